"""From a storyboard to a film through Ray, as a user does it."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from farm_process import farm, finish, replicas_of, start_farm, wait_until
from PIL import Image
from tiny_checkpoints import make_wan

from farm.store.journal import read_attempts, read_details
from farm.store.store import Store

BOARD = """\
title: Two shots
model: {model}
size: 64x48
fps: 8
steps: 3
seed: 5
output: {{fps: 24, scale: 2, interpolate: none}}
shots:
  - {{id: one, prompt: a red ball rolls over grass, frames: 9}}
  - {{id: two, prompt: a blue cube, seconds: 1.5, seed: 9, guidance: 1.0}}
"""
NUM_DELIVERED = 27 + 36  # 9 frames at 8 fps and 1.5 s, at 24 fps


def write_board(folder: Path, model: Path, **changes: str) -> Path:
    text = BOARD.format(model=model)
    for old, new in changes.items():
        text = text.replace(old, new)
    board = folder / "film.yaml"
    board.write_text(text)
    return board


def is_working(pid: int) -> bool:
    """Whether a replica below this process runs a task: Ray shows it in the replica's title."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "ray::Replica.run" in " ".join(child.cmdline()):
                return True
    return False


def read_folder(folder: Path) -> np.ndarray:
    names = sorted(p.name for p in folder.glob("*.png"))
    assert names == [f"{i:06d}.png" for i in range(len(names))]
    return np.stack([np.asarray(Image.open(folder / n)) for n in names])


def test_a_film_is_exactly_what_was_asked_for(tiny_wan: Path, tmp_path: Path) -> None:
    board, store = write_board(tmp_path, tiny_wan), tmp_path / "store"
    frames = farm("render", board, "--store", store, "--out", tmp_path / "frames", "--json", made_pools=True)
    assert frames.code == 0, frames.told
    assert frames.answer["tasks"] == {"total": 13, "run": 13, "reused": 0, "retried": 0}

    film = farm("render", board, "--store", store, "--out", tmp_path / "film.mp4", "--json").answer
    assert film["job"] == frames.answer["job"]
    assert film["tasks"] == {"total": 11, "run": 0, "reused": 11, "retried": 0}
    assert (film["width"], film["height"], film["fps"]) == (128, 96, 24.0)
    assert (film["frames"], film["seconds"]) == (NUM_DELIVERED, NUM_DELIVERED / 24)
    assert [(s["id"], s["frames"], s["chunks"]) for s in film["shots"]] == [("one", 9, 1), ("two", 12, 1)]
    assert all(Path(s["clip"]).is_file() for s in film["shots"])

    with av.open(str(tmp_path / "film.mp4")) as container:
        stream = container.streams.video[0]
        shown = [(f.pts * f.time_base, f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
        assert (stream.width, stream.height, stream.average_rate) == (128, 96, 24)
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)  # bt709, limited
        assert container.metadata["title"] == "Two shots"
        assert "AI-generated" in container.metadata["comment"]
        assert "seed 5" in container.metadata["comment"]
        assert str(tmp_path) not in str(container.metadata)
        chapters = [(c["metadata"]["title"], c["start"] * c["time_base"]) for c in container.chapters()]
        assert container.duration == pytest.approx(NUM_DELIVERED / 24 * 1e6, abs=1)
    assert [t for t, _ in shown] == [pytest.approx(i / 24) for i in range(NUM_DELIVERED)]
    assert [(name, float(start)) for name, start in chapters] == [("one", 0.0), ("two", pytest.approx(27 / 24))]

    exact = read_folder(tmp_path / "frames").astype(float)
    coded = np.stack([picture for _, picture in shown]).astype(float)
    error = ((exact - coded) ** 2).mean(axis=(1, 2, 3))
    assert exact.shape == (NUM_DELIVERED, 96, 128, 3)
    assert (10 * np.log10(255**2 / error)).min() > 30  # noise from random weights; examples/ is held to 35 dB
    assert np.array_equal(exact[0], exact[2])  # three delivered frames for each of the model's
    assert not np.array_equal(exact[2], exact[3])

    assert not list(store.rglob("*.part"))
    published = store / "films" / film["job"] / "film.mp4"
    assert published.stat().st_nlink == 1  # people edit what they find; the artifact must not change with it
    report = (store / "films" / film["job"] / "report.html").read_text()
    assert all(words in report for words in ("Two shots", "<video", "<svg", "a red ball", "denoise", "data:image/jpeg"))
    assert "src='http" not in report


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param([(1, 1), (3, 1)], id="1 and 3 replicas"),
        pytest.param([(1, 1), (2, 1), (1, 2)], id="2 replicas, 2 threads", marks=pytest.mark.slow),
    ],
)
def test_the_bits_do_not_depend_on_replicas_or_their_order(
    settings: list[tuple[int, int]], tiny_wan: Path, tmp_path: Path
) -> None:
    """(replicas, threads) of one pool, whose replicas take tasks of every stage as they come. Three threads
    change bits of denoise and decode: measured, see DESIGN.md."""
    board = write_board(tmp_path, tiny_wan)
    films, frames = [], []
    for i, (replicas, cpus) in enumerate(settings):
        pools = tmp_path / f"pools{i}.yaml"
        bounds = f"replicas: {{min: {replicas}, max: {replicas}}}, cpus: {cpus}"
        pools.write_text(f"pools: {{all: {{stages: [encode, denoise, decode, assemble], {bounds}}}}}\n")
        out = tmp_path / f"frames{i}"
        done = farm("render", board, "--store", tmp_path / f"s{i}", "--pools", pools, "--out", out, "--json")
        assert done.code == 0, done.told
        frames.append(read_folder(out))
        films.append(next((tmp_path / f"s{i}" / "films").glob("*/film.mp4")).read_bytes())
    assert all(np.array_equal(frames[0], other) for other in frames[1:])
    assert all(films[0] == other for other in films[1:])


def test_a_stopped_render_goes_on_where_it_stopped(tiny_wan: Path, tmp_path: Path) -> None:
    board = write_board(tmp_path, tiny_wan, **{"steps: 3": "steps: 3", "frames: 9": "frames: 9, steps: 1000"})
    argv = ("render", board, "--store", tmp_path / "store", "--out", tmp_path / "film.mp4", "--json")
    attempts = tmp_path / "store" / "jobs"
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start_farm(*argv)
        wait_until("a replica to work", lambda p=process: is_working(p.pid), during=process)
        wait_until("two prompts", lambda: len(list(attempts.glob("*/attempts/*.json"))) >= 2, during=process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        stopped = finish(process, timeout_s=60)
        assert stopped.code == 130, stopped.told
        assert stopped.answer["status"] == "canceled"
        assert "the same command goes on" in stopped.told
        assert not (tmp_path / "film.mp4").exists()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive
        assert not list((tmp_path / "store").rglob("*.part"))

    board.write_text(board.read_text().replace("steps: 1000", "steps: 2"))  # the other film shares what is shared
    done = farm(*argv)
    assert done.code == 0, done.told
    assert done.answer["tasks"]["reused"] >= 2


@pytest.mark.slow
def test_a_killed_replica_costs_its_task_and_nothing_else(tiny_wan: Path, tmp_path: Path) -> None:
    board = write_board(tmp_path, tiny_wan, **{"frames: 9": "frames: 9, steps: 400"})
    whole = farm("render", board, "--store", tmp_path / "whole", "--out", tmp_path / "whole.mp4", "--json")
    process = start_farm("render", board, "--store", tmp_path / "store", "--out", tmp_path / "film.mp4", "--json")
    ended = tmp_path / "store" / "jobs"
    wait_until("the prompts to be encoded", lambda: len(list(ended.glob("*/attempts/*.json"))) >= 3, during=process)
    replicas = replicas_of(process)
    for replica in replicas:
        replica.kill()
    done = finish(process)
    assert replicas
    assert done.code == 0, done.told
    assert done.answer["tasks"]["retried"] >= 1
    assert done.answer["tasks"]["run"] == whole.answer["tasks"]["run"]
    (died,) = ended.glob("*/attempts/*.log")  # written by the controller, from Ray's log of the process
    shown = farm("show", done.answer["job"], "--attempt", died.stem, "--store", tmp_path / "store", "--json")
    assert shown.answer["cause"] == "died"
    assert "-- log" in shown.answer["details"]
    assert (tmp_path / "film.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_hub_id_is_found_in_the_local_cache(tiny_wan: Path, tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--studio--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "v2").write_text("0" * 40)
    shutil.copytree(tiny_wan, cached / "snapshots" / ("0" * 40))
    board = tmp_path / "film.yaml"
    board.write_text(BOARD.format(model="studio/tiny@v2"))
    argv = ("plan", board, "--store", tmp_path / "store", "--json")
    found = farm(*argv, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    assert found.code == 0, found.told
    missing = farm(*argv, HF_HUB_CACHE=str(tmp_path / "other"), HF_HUB_OFFLINE="1")
    assert missing.code == 2
    assert "could not be had from the hub" in missing.told


def shape_of_another(config: dict[str, Any]) -> None:
    config["base_dim"] = 8  # its weights cannot be loaded


def one_mean_too_few(config: dict[str, Any]) -> None:
    config["latents_mean"].pop()  # it can be loaded, and fails when it decodes


@pytest.mark.parametrize(
    ("spoil", "replicas", "code", "told"),
    [
        (one_mean_too_few, 2, 3, "decode of one: 3 attempts failed"),
        pytest.param(one_mean_too_few, 1, 3, "decode of one: 3 attempts failed", marks=pytest.mark.slow),
        pytest.param(shape_of_another, 1, 2, "must be what diffusers can load", marks=pytest.mark.slow),
    ],
)
def test_a_stage_that_fails_ends_the_render_and_keeps_what_exists(
    spoil: Callable[[dict[str, Any]], None], replicas: int, code: int, told: str, tmp_path: Path
) -> None:
    pools = tmp_path / "pools.yaml"
    bounds = f"{{min: {replicas}, max: {replicas}}}"
    pools.write_text(
        f"pools: {{denoise: {{stages: [encode, denoise]}}, media: {{stages: [decode], replicas: {bounds}}}}}\n"
    )
    model = make_wan(tmp_path / "wan")
    file = model / "vae" / "config.json"
    config = json.loads(file.read_text())
    spoil(config)
    file.write_text(json.dumps(config))
    board = write_board(tmp_path, model)
    failed = farm("render", board, "--store", tmp_path / "store", "--pools", pools, "--json")
    assert failed.code == code, failed.told
    assert "Traceback" not in failed.told
    assert failed.answer["status"] == "failed"
    assert failed.answer["tasks"]["run"] == 5  # three texts, two latents
    assert any(told in e["message"] for e in failed.answer["errors"])
    tries = [a for a in read_attempts(Store(str(tmp_path / "store")), failed.answer["job"]) if a.outcome == "failed"]
    assert len(tries) == (2 if code == 2 else 6)  # of two shots
    assert all("Traceback" in read_details(Store(str(tmp_path / "store")), a) for a in tries)
    (report,) = (tmp_path / "store").glob("films/*/report.html")
    assert "decode of one on media-" in report.read_text()
    again = farm("plan", board, "--store", tmp_path / "store", "--json")
    assert again.answer["tasks"]["reused"] == 5


def test_an_earlier_export_is_replaced_and_a_second_one_is_the_same(tiny_wan: Path, tmp_path: Path) -> None:
    board, out = write_board(tmp_path, tiny_wan), tmp_path / "frames"
    argv = ("render", board, "--store", tmp_path / "store", "--out", out)
    assert farm(*argv).code == 0
    before = read_folder(out)
    (out / "000003.png").unlink()
    (out / "000999.png").write_bytes(b"left by an interrupted export")
    assert farm(*argv).code == 0
    assert np.array_equal(read_folder(out), before)


def test_what_was_cut_of_a_prompt_is_a_warning_also_of_a_film_that_exists(tmp_path: Path) -> None:
    board = tmp_path / "film.yaml"
    board.write_text(f"steps: 1\nshots: [{{id: a, prompt: {' '.join(['a red ball'] * 20)}, frames: 5}}]\n")
    for _ in range(2):
        done = farm("render", board, "--store", tmp_path / "store", "--out", tmp_path / "film.mp4", "--json")
        assert done.code == 0, done.told
        (warning,) = [w["message"] for w in done.answer["warnings"] if "tokens" in w["message"]]
        assert "the prompt of a must have at most 32 tokens" in warning and "cut: 'red ball a red ball" in warning
        assert warning in done.told
