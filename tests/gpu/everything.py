"""All that needs a GPU, in one command of under ten minutes: `make gpu`, or this file with a Python that has torch.

Its tests, then steps of Wan-sized transformers against stock diffusers, a gang over NCCL, decoding, memory. Each part
is a process with a limit of its own; what it had printed when it was ended counts. All goes into one JSON file. On a
machine without a registry, `--wheels FOLDER` puts packages that were carried there (tests/gpu/wheels.txt) before those
of the machine. Without a GPU all of it runs at a tiny size: a rehearsal.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MEASURES = HERE / "measures.py"
PARTS = {  # in this order: most telling first; seconds at most, 560 together
    "tests": 150, "forward": 240, "decode": 60, "gang": 60, "memory": 50,
}  # fmt: skip
FEW = "gang_of_one or latents_equal or (families and text and wan)"  # in a rehearsal; unit tests have all on the CPU


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that are installed for this run alone")
    parser.add_argument("--out", type=Path, help="default: tests/bench/results/gpu.json; of a rehearsal, nowhere")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone; may be given again")
    args = parser.parse_args(argv)
    wheels = tempfile.TemporaryDirectory(prefix="longtake-wheels-")
    environment = environment_of(args.wheels, wheels.name)
    told: dict[str, Any] = {"benchmark": "gpu", "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **device(environment)}
    is_whole = bool(told["gpu"]) and not args.only
    out = args.out or (ROOT / "tests" / "bench" / "results" / "gpu.json" if is_whole else None)
    is_good = True
    for part, limit_s in PARTS.items():
        if args.only and part not in args.only:
            continue
        words = tests_of(told["gpu"]) if part == "tests" else [str(MEASURES), part]
        told[part] = made = run(words, environment, limit_s)
        is_good &= made["code"] == 0 or (made["code"] == "ended" and part != "tests")  # figures may lack their end
        if out is not None:  # after each part: the machine may go
            out.write_text(json.dumps(told, indent=1) + "\n")
        print(f"-- {part}: {made['code']} after {made['s']:.0f} s, {len(made['lines'])} lines", flush=True)
    print(f"figures in {out}" if out else "a rehearsal: no GPU is here")
    return 0 if is_good else 1


def environment_of(wheels: Path | None, target: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]
    if wheels is not None:
        files = sorted(map(str, wheels.glob("*.whl")))
        install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile", "--target", target]
        subprocess.run([sys.executable, *install, *files], check=True, timeout=300)
        paths.insert(0, target)
    paths += [path] if (path := os.environ.get("PYTHONPATH")) else []
    more = {"PYTHONPATH": os.pathsep.join(paths), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    return os.environ | more | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "LONGTAKE_GPU_TESTS": "1"}


def device(environment: dict[str, str]) -> dict[str, Any]:
    """The GPU (empty: none), and the versions that matter."""
    code = (
        "import json, torch, diffusers, transformers; has = torch.cuda.is_available();"
        "print(json.dumps({'gpu': torch.cuda.get_device_name() if has else '', 'versions': {'torch': torch.__version__,"
        "'diffusers': diffusers.__version__, 'transformers': transformers.__version__}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"commit": commit, **found}


def tests_of(gpu: str) -> list[str]:
    few = [] if gpu else ["-k", FEW]
    return ["-m", "pytest", "-q", "-x", "--timeout", "120", "-p", "no:cacheprovider", "-m", "gpu", *few, str(HERE)]


def run(words: Sequence[str], environment: dict[str, str], limit_s: float) -> dict[str, Any]:
    """One part: its exit code (or `ended`, at its limit), its JSON lines, and the end of whatever else it said."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        code: int | str
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the ranks that it has started, which hold GPU memory
            process.wait(20)
            code = "ended"
        out.seek(0)
        text = out.read().splitlines()
    lines = [json.loads(line) for line in text if line.startswith("{")]
    rest = [line for line in text if not line.startswith("{")]
    return {"code": code, "s": round(time.monotonic() - started, 1), "lines": lines, "said": rest[-15:]}


if __name__ == "__main__":
    sys.exit(main())
