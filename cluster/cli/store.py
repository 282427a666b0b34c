"""`farm store ls|verify|gc`: what a store holds, whether it is whole, and what could go."""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import asdict

from cluster.cli.answer import Answer
from cluster.cli.options import add_json, add_store, opened, tell
from farm.errors import InputError, Problem

AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DEFAULT_AGE = "30d"


def add(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    add_json(parser)
    parser.add_argument("what", choices=("ls", "verify", "gc"))
    parser.add_argument(
        "--older-than", default=DEFAULT_AGE, metavar="AGE", help=f"gc: as 12h, 30d, 4w (default: {DEFAULT_AGE})"
    )
    parser.add_argument("--delete", action="store_true", help="gc: delete it; without this it is only listed")
    parser.add_argument("--set-aside", action="store_true", help="verify: move what is damaged away, to be made again")


def run(args: argparse.Namespace, answer: Answer) -> int:
    from farm.store import housekeeping

    store, now = opened(args), time.time()
    if args.what == "ls":
        areas = housekeeping.list_areas(store)
        lines = [f"{a['area']:<12} {a['files']:>8} files {a['bytes'] / 2**20:>12.1f} MiB" for a in areas]
        return tell(args, {"areas": areas}, lines)
    if args.what == "verify":
        found = list(housekeeping.verify(store, now=now))
        for finding in found if args.set_aside else ():
            housekeeping.set_aside(store, finding)
        lines = [f"{f.path}: {f.what}" for f in found]
        lines.append(f"{len(found)} problems" + (", set aside" if found and args.set_aside else ""))
        tell(args, {"problems": [asdict(f) for f in found]}, lines)
        return 3 if found and not args.set_aside else 0
    found = housekeeping.collectable(store, older_than_s=seconds_of_age(args.older_than), now=now)
    size = sum(f.size for f in found)
    if args.delete:
        housekeeping.delete(store, found)
    lines = [f"{f.path}: {f.what}" for f in found]
    verb = "deleted" if args.delete else "could be deleted (farm store gc --delete)"
    lines.append(f"{len(found)} files, {size / 2**20:.1f} MiB, {verb}")
    return tell(args, {"files": [asdict(f) for f in found], "bytes": size, "deleted": args.delete}, lines)


def seconds_of_age(text: str) -> float:
    """`12h`, `30d` in seconds.

    Raises:
        InputError: it is something else.
    """
    found = AGE.fullmatch(text)
    if not found:
        raise InputError(
            Problem(f"--older-than must be a number with s, m, h, d or w, as 30d, got {text!r}", "older_than")
        )
    return float(found[1]) * UNIT_S[found[2]]
