"""The wheel, installed outside of the tree: the command, the built-in model and the files beside the code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import importlib.resources, longtake
print(longtake.__file__)
print(longtake.plan({'shots': [{'id': 'a', 'prompt': 'a red ball', 'frames': 9}]}).job)
print(importlib.resources.files('cluster').joinpath('serve.yaml').is_file())
"""


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_wheel_renders_a_film_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """What it depends on is taken from the environment of the tests; its own code is not."""
    build = tmp_path / "source"
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (build / name).parent.mkdir(parents=True, exist_ok=True)
            (build / name).write_bytes((ROOT / name).read_bytes())
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        build,
        cwd=tmp_path,
    )
    (wheel,) = tmp_path.glob("longtake-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [n for n in names if n.startswith("tests/")]
    assert {"longtake/py.typed", "longtake/__init__.pyi", "cluster/serve.yaml"} <= set(names)
    assert any(n.endswith("licenses/LICENSE") for n in names) and any(n.endswith("licenses/NOTICE") for n in names)

    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python, farm = home / "bin" / "python", home / "bin" / "farm"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # without its own .pth files

    place, job, has_yaml = run(python, "-c", CODE, cwd=tmp_path).splitlines()
    assert place.startswith(str(site)) and len(job) == 16 and has_yaml == "True"
    told = subprocess.run(
        [farm, "doctor"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    ).stdout
    assert "the built-in model is here" in told
    assert "farm fetch rife" in told  # which belongs to an installation
    board = tmp_path / "film.yaml"
    board.write_text("steps: 2\nshots: [{id: a, prompt: a red ball, frames: 9}]\n")
    answer = json.loads(
        run(farm, "render", board, "--out", tmp_path / "film.mp4", "--json", cwd=tmp_path).splitlines()[-1]
    )
    assert answer["status"] == "completed" and (tmp_path / "film.mp4").stat().st_size > 1000
