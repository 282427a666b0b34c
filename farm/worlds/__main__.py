"""`python -m farm.worlds --worlds 1000` simulates many worlds; `--seed N` one, with its story."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from farm.worlds.run import faults_of_many, run
from farm.worlds.world import World


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Let simulated worlds live, and say what was wrong in them.")
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first one")
    parser.add_argument("--seed", type=int, help="this one alone, with its story")
    args = parser.parse_args(argv)
    if args.seed is not None:
        faults = run(World(args.seed, log=print))
        print("\n".join(faults) or "nothing was wrong")
        return bool(faults)
    started, bad = time.monotonic(), set()
    for fault in faults_of_many(range(args.first, args.first + args.worlds)):
        bad.add(fault.partition(":")[0])
        print(fault, flush=True)
    print(f"{args.worlds} worlds, {len(bad)} with faults, {time.monotonic() - started:.0f} s")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
