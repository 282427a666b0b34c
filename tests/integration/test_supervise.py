"""Whatever ends the process that renders, somebody says so: an exit code, a sentence, an object of JSON."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest
from farm_process import farm, finish, start_farm, wait_until

BOARD = """\
size: 96x64
steps: 20
shots:
  - {id: a, prompt: a red ball rolls, frames: 53}
  - {id: b, prompt: a red ball rolls, frames: 53, seed: 2}
"""


def started(folder: Path, **environment: str) -> subprocess.Popen[str]:
    (folder / "film.yaml").write_text(BOARD)
    return start_farm("render", folder / "film.yaml", "--store", folder / "store", "--json", **environment)


def begun(folder: Path, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All that the command has started, once it renders."""
    wait_until("an attempt", lambda: list(folder.glob("store/jobs/*/attempts/*.json")), during=process)
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("delay_s", [0.05, 2.0])
def test_sigterm_during_the_start_is_an_interruption(delay_s: float, tmp_path: Path) -> None:
    process = started(tmp_path)
    wait_until("the parent to listen", lambda: psutil.Process(process.pid).children(), during=process)
    time.sleep(delay_s)
    process.terminate()
    done = finish(process, timeout_s=60)
    assert done.code == 130, done.told
    assert done.answer["status"] == "canceled"


def test_a_process_that_is_killed_is_answered_for(tmp_path: Path) -> None:
    process = started(tmp_path)
    inside = begun(tmp_path, process)
    (child,) = psutil.Process(process.pid).children()
    child.kill()
    done = finish(process, timeout_s=60)
    assert done.code == 3
    assert "was ended by SIGKILL" in done.answer["errors"][0]["message"]
    psutil.wait_procs(inside, timeout=20)
    assert not [p for p in inside if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_nothing_goes_on_when_the_parent_is_killed(tmp_path: Path) -> None:
    process = started(tmp_path)
    inside = [p for p in begun(tmp_path, process) if "Agent" not in p.name()]  # Ray's own look up now and then
    process.kill()
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(inside, timeout=60)
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["gcs_server", "raylet"])
def test_a_cluster_whose_daemon_dies_ends_the_render_with_a_sentence(daemon: str, tmp_path: Path) -> None:
    process = started(tmp_path, RAY_gcs_rpc_server_reconnect_timeout_s="5")
    next(p for p in begun(tmp_path, process) if p.name() == daemon).kill()
    done = finish(process, timeout_s=200)
    assert done.code == 3, done.told
    assert "the same command goes on from" in done.answer["errors"][-1]["message"]
    again = farm("render", tmp_path / "film.yaml", "--store", tmp_path / "store", "--json")
    assert again.code == 0, again.told
    assert again.answer["tasks"]["reused"] > 0
