"""Films that are paused, followed, taken over, moved to other machines and kept waiting for room, as users meet it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from emulated_cluster import emulated_cluster
from farm_process import Done, farm, finish, kill, replicas_of, start_farm, wait_for_checkpoint, wait_until

from farm.store.journal import read_attempts, read_log, read_standing
from farm.store.ledger import read_ledger
from farm.store.store import Store
from farm.worlds.audit import faults_of_log

BOARD = """\
title: Long steps
model: {model}
size: {size}
fps: 8
steps: {steps}
guidance: 1.0
shots:
  - {{id: one, prompt: a red ball, frames: 33}}
  - {{id: two, prompt: a blue cube, frames: 5, steps: 2}}
"""
POOLS = """\
pools:
  all: {{stages: [encode, denoise, decode, assemble], replicas: {{min: {count}, max: {count}}}, {more}}}
"""


def write_film(
    folder: Path, model: Path, *, steps: int = 1000, size: str = "64x48", count: int = 1, more: str = ""
) -> tuple[Path, Path]:
    more = more or "checkpoint: {seconds: 0, steps: 10}"
    board, pools = folder / "film.yaml", folder / "pools.yaml"
    board.write_text(BOARD.format(model=model, steps=steps, size=size))
    pools.write_text(POOLS.format(count=count, more=more))
    return board, pools


def job_of(store: Path) -> str:
    (job,) = [p.name for p in (store / "jobs").iterdir() if not p.name.startswith(".")]
    return job


def denoise_attempts(store: Path) -> list[Any]:
    return [a for a in read_attempts(Store(str(store)), job_of(store)) if a.stage == "denoise" and a.label == "one"]


def test_a_job_is_paused_resumed_and_canceled_by_orders_in_the_store(tiny_wan: Path, tmp_path: Path) -> None:
    board, pools = write_film(tmp_path, tiny_wan)
    store = tmp_path / "store"
    opened = Store(str(store))
    process = start_farm("render", board, "--store", store, "--pools", pools, "--json")
    wait_for_checkpoint(store, process)
    job = job_of(store)

    def order(*words: str) -> dict[str, Any]:
        done = farm(*words, job, "--store", store, "--json")
        assert done.code == 0, done.told
        return done.answer

    assert order("pause")["driven_by"]
    wait_until("the job to be paused", lambda: read_standing(opened, job).state == "paused")
    assert denoise_attempts(store)[-1].info["halted"]
    assert process.poll() is None  # its door waits
    order("resume")
    wait_until("the job to go on", lambda: read_standing(opened, job).state == "active")
    order("cancel")
    stopped = finish(process, timeout_s=60)
    assert stopped.code == 130, stopped.told
    assert stopped.answer["status"] == "canceled"
    assert "canceled by order of" in stopped.told
    states = [r["state"] for r in read_log(opened, job) if r["kind"] == "state"]
    assert states[:4] == ["queued", "active", "pausing", "paused"]
    assert states[-1] == "canceled"
    assert faults_of_log(opened, job) == []
    shown = farm("show", job, "--store", store)
    assert shown.code == 0, shown.told
    assert [r["title"] for r in farm("list", "--store", store, "--json").answer["jobs"]] == ["Long steps"]
    assert {r["job"] for r in read_ledger(opened)} == {job}
    assert farm("stats", "--store", store, "--json").answer["retries"]
    nobody = farm("pause", "0" * 16, "--store", store, "--json")
    assert nobody.code == 2
    assert "there is no job" in nobody.told


def test_a_replica_that_is_told_to_end_hands_its_steps_on(tiny_wan: Path, tmp_path: Path) -> None:
    """As a spot machine's notice does: SIGTERM, and some time to go."""
    board, pools = write_film(tmp_path, tiny_wan, steps=1000, more="checkpoint: {seconds: 0}")
    whole = farm("render", board, "--store", tmp_path / "whole", "--pools", pools, "--out", tmp_path / "a", "--json")
    assert whole.code == 0, whole.told
    store = tmp_path / "store"
    process = start_farm("render", board, "--store", store, "--pools", pools, "--out", tmp_path / "b", "--json")
    wait_until("some steps to be done", lambda: list(store.glob("jobs/*/preview-*.png")), during=process)
    (replica,) = replicas_of(process)
    replica.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.code == 0, done.told
    first, second = denoise_attempts(store)
    assert (first.outcome, second.outcome) == ("interrupted", "succeeded")
    assert first.info["leaving"]
    assert second.info["resumed_at"] == first.info["step"] > 0
    assert second.replica != first.replica
    assert frames(tmp_path / "a") == frames(tmp_path / "b")
    assert not list(store.glob("checkpoints/*/*"))


def is_running(process: psutil.Process) -> bool:
    """Not one that has ended and waits for somebody to ask how."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def frames(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(folder.glob("*.png"))]


def test_a_second_render_follows_the_first_and_takes_over_when_that_is_killed(tiny_wan: Path, tmp_path: Path) -> None:
    board, pools = write_film(tmp_path, tiny_wan, size="160x96")
    store = tmp_path / "store"
    argv = ("render", board, "--store", store, "--pools", pools, "--json")
    first = start_farm(*argv, "--out", tmp_path / "one.mp4")
    wait_until("the first to begin", lambda: list(store.glob("jobs/*/attempts/*.json")))
    second = start_farm(*argv, "--out", tmp_path / "two.mp4")
    wait_for_checkpoint(store, first)
    time.sleep(3)  # the second has seen the lease
    assert not [p for p in psutil.Process(second.pid).children(recursive=True) if "raylet" in p.name()]
    kept = max(p.name for p in store.glob("checkpoints/*/*/*.safetensors"))
    kill(first)
    done = finish(second)
    assert done.code == 0, done.told
    assert "following" in done.told
    assert (tmp_path / "two.mp4").is_file()
    assert not (tmp_path / "one.mp4").exists()
    attempts = read_attempts(Store(str(store)), job_of(store))
    succeeded = [a.task for a in attempts if a.outcome == "succeeded"]
    assert len(succeeded) == len(set(succeeded))
    assert denoise_attempts(store)[-1].info["resumed_at"] >= int(kept.split("-")[0])
    assert read_standing(Store(str(store)), job_of(store)).fence == 2


@pytest.mark.slow
def test_a_second_render_that_waits_gets_the_film_of_the_first(tiny_wan: Path, tmp_path: Path) -> None:
    board, pools = write_film(tmp_path, tiny_wan, steps=200)
    store = tmp_path / "store"
    argv = ("render", board, "--store", store, "--pools", pools, "--json")
    first = start_farm(*argv, "--out", tmp_path / "one.mp4")
    wait_until("the first to begin", lambda: list(store.glob("jobs/*/attempts/*.json")))
    two = farm(*argv, "--out", tmp_path / "two.mp4")
    one = finish(first)
    assert (one.code, two.code) == (0, 0), two.told
    assert one.answer["tasks"]["run"] == one.answer["tasks"]["total"]
    assert two.answer["tasks"] == {**two.answer["tasks"], "run": 0, "reused": one.answer["tasks"]["total"]}
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.slow
def test_a_node_that_drains_hands_its_steps_on(tiny_wan: Path, tmp_path: Path) -> None:
    board, pools = write_film(tmp_path, tiny_wan, steps=1000, more="labels: {kind: worker}, checkpoint: {seconds: 0}")
    store = tmp_path / "store"
    nodes = [{"num_cpus": 1, "labels": {"kind": "worker"}}, {"num_cpus": 1, "labels": {"kind": "worker"}}]
    with emulated_cluster(nodes) as cluster:
        argv = ("--store", store, "--pools", pools, "--address", cluster.address, "--json")
        process = start_farm("render", board, *argv)
        wait_until("a prompt to be encoded", lambda: list(store.glob("jobs/*/attempts/*.json")))
        time.sleep(1.0)
        node = read_attempts(Store(str(store)), job_of(store))[0].node
        drain = ["drain-node", "--address", cluster.address, "--node-id", node, "--deadline-remaining-seconds", "120",
                 "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]  # fmt: skip
        told = subprocess.run(
            [str(Path(sys.executable).with_name("ray")), *drain],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        done = finish(process)
    assert done.code == 0, done.told
    first, second = denoise_attempts(store)
    assert first.info["halted"]
    assert second.info["resumed_at"] == first.info["step"] > 0
    assert second.node != first.node


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], timeout=20, check=False)


@pytest.mark.slow
def test_a_full_disk_pauses_a_job_until_there_is_room(tiny_wan: Path, tmp_path: Path, small_disk: Path) -> None:
    board, pools = write_film(tmp_path, tiny_wan, steps=1000, more="checkpoint: {seconds: 0}")
    store = small_disk / "store"
    process = start_farm("render", board, "--store", store, "--pools", pools, "--json")
    wait_until("a prompt to be encoded", lambda: list(store.glob("jobs/*/attempts/*.json")))
    filler = small_disk / "filler"
    with filler.open("wb") as f:
        try:
            while True:
                f.write(b"x" * 65536)
                f.flush()
        except OSError:
            pass
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if "no room left" in line:
            break
    assert "paused" in lines[-1] or "pausing" in lines[-1], lines[-3:]
    filler.unlink()
    done = finish(process, timeout_s=180)
    assert done.code == 0, done.told
    log = read_log(Store(str(store)), job_of(store))
    assert any("goes on by itself" in r.get("reason", "") for r in log)
    assert any("there is room" in r.get("reason", "") for r in log)
    assert all(a.outcome == "succeeded" for a in read_attempts(Store(str(store)), job_of(store)))


def test_a_store_that_cannot_be_used_is_refused_before_anything_starts(tiny_wan: Path, tmp_path: Path) -> None:
    board, pools = write_film(tmp_path, tiny_wan)

    def refused(store: Path) -> Done:
        done = farm("render", board, "--store", store, "--pools", pools, "--json")
        assert done.code == 2, done.told
        return done

    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "layout.json").write_text(json.dumps({"version": 99}))
    assert "update the farm or name another store" in refused(newer).told
    home = tmp_path / "home"
    (home / "photos").mkdir(parents=True)
    assert "name a new folder" in refused(home).told
    assert [p.name for p in home.iterdir()] == ["photos"]
    if os.geteuid():  # root writes everywhere
        shut = tmp_path / "shut"
        shut.mkdir()
        shut.chmod(0o500)
        assert "must be writable" in refused(shut).told
    assert "must be writable" in refused(Path("/proc/store")).told


def short_folder() -> Path:
    """A new folder whose path leaves room for Ray's sockets."""
    return Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))


@pytest.mark.slow
def test_what_a_killed_render_leaves_is_cleared_by_the_next(tiny_wan: Path, tmp_path: Path) -> None:
    board, pools = write_film(tmp_path, tiny_wan, steps=20)
    store = tmp_path / "store"
    temporary = short_folder()  # its own: renders of other tests clear up, too
    process = start_farm("render", board, "--store", store, "--pools", pools, "--json", TMPDIR=str(temporary))
    wait_until("Ray to start", lambda: list(temporary.glob("longtake-*/owner.json")), during=process)
    wait_until("the replica to start", lambda: replicas_of(process), during=process)
    children = psutil.Process(process.pid).children(recursive=True)
    kill(process)
    done = farm("render", board, "--store", store, "--pools", pools, "--json", TMPDIR=str(temporary))
    assert done.code == 0, done.told
    wait_until("all processes to end", lambda: not any(map(is_running, children)))
    assert not list(temporary.glob("longtake-*"))
    shutil.rmtree(temporary)


@pytest.mark.slow
def test_a_finished_film_is_made_again_when_that_is_ordered(tiny_wan: Path, tmp_path: Path) -> None:
    board, pools = write_film(tmp_path, tiny_wan, steps=2)
    argv = ("render", board, "--store", tmp_path / "store", "--pools", pools, "--json")
    first = farm(*argv, "--out", tmp_path / "a.mp4")
    assert first.code == 0, first.told
    assert farm(*argv).answer["tasks"]["run"] == 0
    ordered = farm("requeue", first.answer["job"], "--all", "--store", tmp_path / "store")
    assert ordered.code == 0, ordered.told
    again = farm(*argv, "--out", tmp_path / "b.mp4")
    assert again.code == 0, again.told
    assert again.answer["tasks"]["run"] == first.answer["tasks"]["run"]
    assert farm(*argv).answer["tasks"]["run"] == 0  # once
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
