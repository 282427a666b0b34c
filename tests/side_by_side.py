"""Run several pytest commands at once, so that no core idles while tests wait for Ray: `side_by_side.py SET`.

Unit tests run at the lowest priority, in the time that those of Ray leave. Each set's own output follows when it has
ended; the last line names the ten slowest tests of all.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Tests that start Ray go two at a time, each file on one of two workers: alone they leave 40 % of two cores idle
# (measured), and a Ray with its replicas takes 1 to 2 GiB.
RAY = ("-n", "2", "--dist", "loadfile", "tests/integration")
UNIT = ("-n", "2", "--dist", "worksteal", "tests/unit", "tests/fuzz")
SETS = {
    "test": {
        "integration": ("-m", FAST := "not slow and not gpu and not endurance", *RAY),
        "unit": ("-m", FAST, *UNIT),
    },
    "slow": {"integration": ("-m", SLOW := "slow and not gpu", *RAY), "unit": ("-m", SLOW, "tests/unit")},
}
IDLE = ("unit",)


def main(name: str) -> int:
    with tempfile.TemporaryDirectory(prefix="longtake-tests-") as folder:
        return run(name, Path(folder))


def run(name: str, folder: Path) -> int:
    started = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    for part, words in SETS[name].items():
        environment = os.environ | {"LONGTAKE_DURATIONS": str(folder / f"{part}.durations")}
        command = [sys.executable, "-m", "pytest", "-q", *words]
        with (folder / f"{part}.out").open("wb") as out:
            running[part] = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_be_idle if part in IDLE else None,
            )
    codes: dict[str, int] = {}
    try:
        while len(codes) < len(running):
            for part, process in running.items():
                if part not in codes and process.poll() is not None:
                    codes[part] = process.returncode
                    print(f"-- {part}, after {time.monotonic() - started:.0f} s", flush=True)
                    print((folder / f"{part}.out").read_text(errors="replace"), flush=True)
            time.sleep(0.5)
    finally:
        for process in running.values():
            if process.poll() is None:
                process.terminate()
                process.wait(60)
    print(slowest(folder), flush=True)
    return max(codes.values(), key=abs)


def slowest(folder: Path) -> str:
    rows = [json.loads(line) for path in folder.glob("*.durations") for line in path.read_text().splitlines()]
    rows.sort(reverse=True)
    told = ", ".join(f"{seconds:.0f} s {name}" for seconds, name in rows[:10])
    return f"the ten slowest tests: {told}"


def _be_idle() -> None:
    with contextlib.suppress(AttributeError, PermissionError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
