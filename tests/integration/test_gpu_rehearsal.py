"""`make gpu` from end to end at a tiny size, so that a GPU that is at hand for minutes is not spent on a typo."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

EVERYTHING = Path(__file__).parents[1] / "gpu" / "everything.py"
ELSEWHERE = ("torchao", "cudnn", "viable backend", "flash-attn")  # what a CPU cannot have, or is not installed here
LACKING = {
    "ray",
    "pyarrow",
    "cv2",
    "opencv",
    "imageio",
    "deepspeed",
    "fastapi",
    "s3fs",
    "gcsfs",
    "rich",
    "longtake",
    "peft",
}


def environment_without(lacking: set[str], home: Path) -> Path:
    """The Python of a new environment that has what this one has, but for some packages."""
    venv.create(home)
    (target,) = home.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        name = re.split(r"[-_.]", entry.name.removeprefix("__editable___").removeprefix("__editable__."))[0].lower()
        if name not in lacking and not (target / entry.name).exists():
            (target / entry.name).symlink_to(entry)
    return home / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everything_runs_on_the_cpu_with_what_wheels_txt_names(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    python = environment_without(LACKING, tmp_path / "env")
    done = subprocess.run(
        [python, EVERYTHING, "--out", out],
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    told = json.loads(out.read_text())
    assert done.returncode == 0, [told.get("tests", {}).get("said"), done.stdout, done.stderr]
    assert "passed" in told["tests"]["said"][-1]
    for part in ("forward", "decode", "gang", "memory"):
        lines = told[part]["lines"]
        assert any("not_possible" not in line for line in lines), told[part]
        for line in (line for line in lines if "not_possible" in line):
            assert any(word in line["not_possible"] for word in ELSEWHERE), line
    assert all(line["equal"] for line in told["forward"]["lines"] if "equal" in line)
