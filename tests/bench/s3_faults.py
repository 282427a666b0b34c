"""What a bad network between the farm and S3 costs: `make bench NAME=s3_faults` (about ten minutes).

The same film on a local S3 server: directly, with a delay of 200 ms on every request, and with the delay, 10 % of
requests failing and 5 % truncated. Delays alone are the bound: failures should add the waits of their retries and no
more.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from farm_process import farm
from measure import save, spread
from s3_server import BUCKET, Harm, credentials, harmful_proxy, s3_server

RUNS = 3
BOARD = "steps: 2\nsize: 48x32\nshots: [{id: a, prompt: a red ball rolls, frames: 45}]\n"
HARMS = {
    "none": {}, "delay": {"delay_s": 0.2}, "all": {"delay_s": 0.2, "fail": 0.10, "cut": 0.05},
}  # fmt: skip


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="s3-faults-"))
    board = folder / "film.yaml"
    board.write_text(BOARD)
    seconds: dict[str, list[float]] = {name: [] for name in HARMS}
    requests: dict[str, int] = {}
    frames = set()
    with s3_server() as url:
        for run in range(RUNS):
            for name, harm in HARMS.items():
                made = Harm(seed=run, **harm)
                out = folder / f"{name}{run}"
                with harmful_proxy(url, made) as proxy:
                    started = time.monotonic()
                    argv = ("render", board, "--store", f"s3://{BUCKET}/{name}{run}", "--out", out, "--json")
                    done = farm(*argv, timeout_s=600, made_pools=True, **credentials(proxy))
                    seconds[name].append(time.monotonic() - started)
                assert done.code == 0, done.told
                requests[name] = made.count.total()
                frames.add(tuple(p.read_bytes() for p in sorted(out.glob("*.png"))))
    save(
        "s3_faults",
        {
            "equal_frames": len(frames) == 1, "requests": requests,
            "seconds": {name: spread(s) for name, s in seconds.items()},
            "goal": "right films; slower by no more than the delays explain",
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
