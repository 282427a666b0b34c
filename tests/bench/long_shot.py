"""Whether memory or the time a frame takes grows with a shot: `make bench NAME=long_shot`.

One shot of the built-in model of 30 s, 5 and 10 minutes, two steps a chunk. The peak memory of every process, and the
slope of wall time from the first to the second length against that from the second to the third.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from measure import save

LENGTHS_S = (30, 300, 600)
BOARD = """\
steps: 2
output: {{fps: 16, interpolate: flow}}
shots: [{{id: take, prompt: a red ball rolls over grass at day, seconds: {seconds}}}]
"""
LATENT_MIB = 600 * 8 / 4 * 16 * 8 * 12 * 4 / 2**20  # of ten minutes, float32


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="long-shot-"))
    found = {seconds: render(folder, seconds) for seconds in LENGTHS_S}
    short, middle, long = (found[s] for s in LENGTHS_S)
    slopes = [(b["wall_s"] - a["wall_s"]) / (b["frames"] - a["frames"]) for a, b in ((short, middle), (middle, long))]
    ratios = {name: round(long["peak_mib"][name] / peak, 3) for name, peak in short["peak_mib"].items()}
    goals = f"peaks at most 1.2 times, plus {LATENT_MIB:.0f} MiB of latent; slopes within 10 %"
    save("long_shot", {"goals": goals, "by seconds": found, "peak, 600 s of 30 s": ratios,
                       "seconds a frame, 30 to 300 and 300 to 600": [round(s, 4) for s in slopes]})  # fmt: skip


def render(folder: Path, seconds: int) -> dict[str, Any]:
    board = folder / f"{seconds}.yaml"
    board.write_text(BOARD.format(seconds=seconds))
    command = [
        sys.executable,
        "-m",
        "longtake",
        "render",
        str(board),
        "--store",
        str(folder / f"s{seconds}"),
        "--json",
    ]
    with open(folder / "told", "w") as told:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True)
    peaks: dict[str, float] = {}
    while process.poll() is None:
        for name, resident in _residents(process.pid):
            peaks[name] = max(peaks.get(name, 0.0), resident)
        time.sleep(0.2)
    assert process.stdout is not None
    answer = json.loads(process.stdout.read().splitlines()[-1])
    assert answer["status"] == "completed", answer
    rounded = {name: round(peak) for name, peak in sorted(peaks.items())}
    return {"wall_s": answer["wall_s"], "frames": answer["frames"], "peak_mib": rounded}


def _residents(pid: int) -> Iterator[tuple[str, float]]:
    """Name and resident memory in MiB of each of our processes."""
    try:
        everybody = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in everybody:
        with suppress(psutil.NoSuchProcess):
            if name := _name_of(one):
                yield name, one.memory_info().rss / 2**20


def _name_of(process: psutil.Process) -> str:
    """What is ours: the door, the controller, and replicas by their order of start."""
    line = " ".join(process.cmdline())
    actor = re.match(r"ray::(Controller|Replica)", line)
    if actor:
        return f"{actor[1]} {_order(process)}" if actor[1] == "Replica" else "Controller"
    return "farm render" if "-m longtake" in line else ""


_seen: dict[int, list[int]] = {}


def _order(process: psutil.Process) -> int:
    """Replicas of one run in the order in which they were seen: denoise first, as it is asked first."""
    run = _seen.setdefault(process.ppid(), [])
    if process.pid not in run:
        run.append(process.pid)
    return run.index(process.pid)


if __name__ == "__main__":
    main()
