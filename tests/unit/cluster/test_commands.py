"""The commands besides render, and what they print."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import fetch, models
from cluster.cli.doctor import examine
from cluster.cli.main import main
from cluster.cli.progress import Lines, duration, summary
from cluster.cli.stopping import TWICE_S, StopRequest
from farm.pools.pools import Pool


def test_plan_tells_what_is_generated_and_kept(
    tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "film.yaml"
    board.write_text("title: T\nsize: 64x48\nfps: 16\nshots: [{id: a, prompt: x, frames: 80}]\noutput: {fps: 32}\n")
    assert main(["plan", str(board), "--model", str(tiny_wan), "--store", str(tmp_path / "s")]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("a "))
    assert row.split()[:5] == ["a", "1", "81", "80", "160"]
    assert "needs encode, denoise, decode, interpolate, assemble" in row
    assert not (tmp_path / "s").exists()


def test_plan_as_json_has_the_same_keys_as_render(
    tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = tmp_path / "film.yaml"
    board.write_text("size: 64x48\nshots: [{id: a, prompt: x, frames: 9}]\n")
    assert main(["plan", str(board), "--model", str(tiny_wan), "--store", str(tmp_path / "s"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["status"] == "planned"
    assert answer["tasks"] == {"total": 6, "run": 0, "reused": 0, "retried": 0}
    assert set(answer) >= {
        "job", "status", "film", "width", "height", "fps", "frames", "seconds", "shots", "tasks", "wall_s", "stage_s",
        "seams", "errors",
    }  # fmt: skip


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert "shots" in json.loads(capsys.readouterr().out)["properties"]


def test_models_examines_a_checkpoint(tiny_wan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(tiny_wan)]) == 0
    shown = capsys.readouterr().out
    assert "4n+1" in shown
    assert "832x480" in shown
    assert "sha256" in shown
    assert main(["models", "--json"]) == 0
    names = [m["model"] for m in json.loads(capsys.readouterr().out)["models"]]
    assert "WanPipeline" in names


def test_a_report_of_no_job_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "0123456789abcdef", "--store", str(tmp_path)]) == 2
    assert "no job" in capsys.readouterr().err


def test_doctor_tells_what_pools_lack(capsys: pytest.CaptureFixture[str]) -> None:
    assert examine({"all": Pool(stages=["encode", "denoise", "decode"], gpus=8)}) == 3
    shown = capsys.readouterr().out
    assert "failure  pool all" in shown
    assert "8 GPU" in shown


def test_doctor_finds_this_installation_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} <= {"ok", "warning"}
    assert any("ffmpeg" in line and line.startswith("ok") for line in lines)


def test_faults_of_the_command_line_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paint"]) == 2
    assert main(["render", "x.yaml", "--store", "", "--json"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "failed"
    assert main(["--help"]) == 0


def test_the_console_script_is_there() -> None:
    script = Path(sys.executable).with_name("farm")
    told = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=30, check=True)
    assert all(command in told.stdout for command in ("render", "plan", "models", "schema", "report", "doctor"))


VIEW = {
    "status": "active", "run": 3, "done": 3, "to_run": 9, "shots": 2, "shots_done": 1,
    "left_s": 75.2, "starting": [], "previews": {"one": "preview-one.png"},
    "running": [{"stage": "denoise", "label": "one", "step": 5, "num_steps": 20, "pool": "p", "replica": "p-0"}],
}  # fmt: skip


def test_progress_in_plain_lines() -> None:
    stream = io.StringIO()
    with Lines("Film", stream) as show:
        show(VIEW)
        show(VIEW)
    shown = stream.getvalue().splitlines()
    assert shown == [
        "Film: 1 of 2 shots, 3 of 9 tasks, denoise one 5/20; 1 min 15 s left",
        "Film: preview of one: preview-one.png",
    ]


def test_waiting_for_replicas_is_told() -> None:
    assert "waiting for 2 replicas" in summary(VIEW | {"running": [], "starting": ["a", "b"]})


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (65, "1 min 05 s"), (7500, "2 h 05 min")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_where_rifes_weights_are_missing_the_difference_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGTAKE_RIFE", str(tmp_path / "none.safetensors"))
    board = tmp_path / "film.yaml"
    board.write_text("output: {fps: 24}\nshots: [{id: a, prompt: a red ball, frames: 9}]\n")
    assert main(["plan", str(board), "--store", str(tmp_path / "s")]) == 0
    told = capsys.readouterr().err
    assert "farm fetch rife" in told and "differ from those that RIFE makes" in told
    examine(None)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "rife"]
    assert line.startswith("warning") and "farm fetch rife" in line


def test_fetch_brings_rifes_weights_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "rife.safetensors"
    monkeypatch.setenv("LONGTAKE_RIFE", str(weights))

    def setup(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        assert command[1:] == ["-m", "pipelines.rife_setup"]
        return subprocess.CompletedProcess(command, 0, "", "RIFE's weights could not be fetched (no network)\n")

    monkeypatch.setattr(fetch.subprocess, "run", setup)
    assert main(["fetch", "rife"]) == 3
    assert "could not be fetched (no network)" in capsys.readouterr().err
    weights.write_bytes(b"there already")
    assert main(["fetch", "rife", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "rife", "path": str(weights)}


def test_fetch_of_a_model_that_is_nowhere_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "nobody/nothing"]) == 2
    assert "nobody/nothing" in capsys.readouterr().err


# -- whatever leaves main


def test_an_error_that_nobody_has_thought_of_keeps_the_contract(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str | None) -> object:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(models, "model_rows", broken)
    assert main(["models", "--json"]) == 3
    told = capsys.readouterr()
    answer = json.loads(told.out.splitlines()[-1])
    assert answer["status"] == "failed" and "unexpected ZeroDivisionError" in answer["errors"][0]["message"]
    assert "Traceback" not in told.err
    monkeypatch.setenv("LONGTAKE_TRACEBACK", "1")
    assert main(["models"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_what_ray_makes_of_sigterm_is_an_interruption(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "model_rows", lambda path: sys.exit(15))
    assert main(["models", "--json"]) == 130
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["status"] == "canceled"


def test_a_mistyped_command_is_told_which_one_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rendr", "film.yaml", "--json"]) == 2
    told = capsys.readouterr()
    assert "there is no command 'rendr'; did you mean render?" in told.err
    assert json.loads(told.out.splitlines()[-1])["errors"]


def test_a_pipe_that_is_closed_is_silent() -> None:
    command = f"{Path(sys.executable).with_name('farm')} schema | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_address_at_which_nobody_listens_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from serving import free_port

    board = tmp_path / "film.yaml"
    board.write_text("shots: [{id: a, prompt: a red ball, frames: 9}]\n")
    address = f"127.0.0.1:{free_port()}"
    assert main(["render", str(board), "--store", str(tmp_path / "s"), "--address", address]) == 2
    told = capsys.readouterr().err
    assert address in told and "unset RAY_ADDRESS" in told
    assert not (tmp_path / "s").exists()


def test_one_signal_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd signals a parent, which passes it on, and its child itself."""
    clock = [10.0]
    monkeypatch.setattr("cluster.cli.stopping.time.monotonic", lambda: clock[0])
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        clock[0] += TWICE_S / 2
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        clock[0] += TWICE_S
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
