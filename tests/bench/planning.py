"""What planning costs: `farm plan` of one and of 10,000 shots, as whole processes: `make bench NAME=planning`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from measure import save, spread
from tiny_checkpoints import make_wan

RUNS = 5


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="planning-"))
    model = make_wan(folder / "wan")
    figures = {}
    for num_shots in (1, 10_000):
        board = folder / f"film{num_shots}.yaml"
        shots = "".join(f"  - {{id: s{i}, prompt: a red ball number {i}, frames: 9}}\n" for i in range(num_shots))
        board.write_text(f"model: {model}\nsize: 64x48\nshots:\n{shots}")
        runs = [measure(board) for _ in range(RUNS)]
        figures[f"{num_shots} shots"] = {
            "wall_s": spread([r[0] for r in runs]),
            "peak_mib": spread([r[1] for r in runs]),
        }
    save("planning", {"goals": "one shot under 0.7 s; 10,000 shots under 5 s and 500 MB", **figures})


def measure(board: Path) -> tuple[float, float]:
    """Seconds and peak memory in MiB of one `farm plan`."""
    command = [
        sys.executable,
        "-m",
        "longtake",
        "plan",
        str(board),
        "--store",
        str(board.parent / "store"),
        "--json",
    ]
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.005)
    assert process.returncode == 0
    return time.monotonic() - started, peak / 2**20


if __name__ == "__main__":
    main()
