"""A replica and the controller on a local Ray, with stages that only take time."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from doors import submit, wait_for_end
from farm_process import wait_until
from in_process import plan_of, resolve_board

from actors.logs import last_lines
from cluster.ray import Connection
from farm.control.fleet import Fleet
from farm.film.film import job_id_of
from farm.models.checkpoint import find_checkpoint
from farm.pools.pools import Pool, pools_as_json
from farm.store.jobs import Job, write_job
from farm.store.journal import read_attempts
from farm.store.store import Store

POOLS = {"all": Pool(stages=["encode", "denoise", "decode", "assemble"])}


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Any]:
    bench = str(Path(__file__).parents[1] / "bench")  # where the replicas find the stand-ins
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", bench)
        connection = Connection(None, POOLS)
        import ray

        yield ray
        connection.close()


def start_stand_in(ray: Any, store: Path) -> Any:
    from actors.pool import RayHands

    fleet = Fleet(POOLS, RayHands("test"), store_uri=str(store), package="stand_ins")
    (slot,) = fleet.scale("all", waiting=0, now=0.0)
    ray.get(slot.handle.where.remote(), timeout=60)
    return slot.handle


def test_a_replica_answers_while_it_computes_and_stops_when_told(
    local_ray: Any, tiny_wan: Path, tmp_path: Path
) -> None:
    ray = local_ray
    replica = start_stand_in(ray, tmp_path)
    shot = {"id": "a", "prompt": "x", "frames": 5}
    task = next(t for t in plan_of({"size": "64x48", "shots": [shot]}, tiny_wan).tasks.values() if t.stage == "denoise")
    running = replica.run.remote(task, [])
    wait_until("a step", lambda: ray.get(replica.status.remote(), timeout=10).step >= 1)
    status = ray.get(replica.status.remote(), timeout=10)
    assert status.task == task.key
    assert 1 <= status.step < status.num_steps
    assert not ray.wait([running], timeout=0)[0]  # it answered while the task was running
    ray.get(replica.cancel.remote(task.key), timeout=10)
    ran = ray.get(running, timeout=30)
    assert ran.outcome == "canceled"
    assert "canceled after step" in ran.reason
    assert ray.get(replica.status.remote(), timeout=10).task is None
    again = ray.get(replica.run.remote(task, []), timeout=30)  # the cancellation was for that run only
    assert again.outcome == "succeeded"
    assert ray.get(replica.persist.remote(task.key), timeout=10) == 992
    ray.kill(replica)


def test_a_failure_comes_with_its_traceback_and_the_end_of_the_log(
    local_ray: Any, tiny_wan: Path, tmp_path: Path
) -> None:
    replica = start_stand_in(local_ray, tmp_path)
    task = next(iter(plan_of({"shots": [{"id": "a", "prompt": "x", "frames": 5}]}, tiny_wan).tasks.values()))
    ran = local_ray.get(replica.run.remote(replace(task, stage="upscale"), []), timeout=30)  # there is no such stand-in
    assert ran.outcome == "failed"
    assert ran.details.startswith("Traceback (most recent call last)")
    assert "ModuleNotFoundError: No module named 'stand_ins.upscale'" in ran.details
    told = f"task {task.key} failed:"
    assert told in ran.details.partition("-- log\n")[2]
    _, pid = local_ray.get(replica.where.remote(), timeout=10)
    local_ray.kill(replica)
    logs = Path(local_ray._private.worker._global_node.get_logs_dir_path())
    assert told in last_lines(logs, pid)  # also when the process has gone
    assert last_lines(logs, 1) == last_lines(None, pid) == ""


def test_what_waits_in_a_replica_behind_another_task_can_be_called_off(
    local_ray: Any, tiny_wan: Path, tmp_path: Path
) -> None:
    ray = local_ray
    replica = start_stand_in(ray, tmp_path)
    plan = plan_of({"size": "64x48", "shots": [{"id": i, "prompt": i, "frames": 5} for i in "abc"]}, tiny_wan)
    tasks = [t for t in plan.tasks.values() if t.stage == "denoise"]
    running, halted, canceled = (replica.run.remote(task, []) for task in tasks)
    ray.get(replica.halt.remote(tasks[1].key), timeout=10)
    ray.get(replica.cancel.remote(tasks[2].key), timeout=10)
    told = ray.get([running, halted, canceled], timeout=60)
    assert [ran.outcome for ran in told] == ["succeeded", "interrupted", "interrupted"]
    assert {ran.reason for ran in told[1:]} == {"told to stop before it began"}
    assert not ray.get(replica.status.remote(), timeout=10).task
    assert ray.get(replica.run.remote(tasks[1], []), timeout=60).outcome == "succeeded"  # it may come again
    ray.kill(replica)


def test_a_replica_reads_the_store_when_a_value_is_gone(local_ray: Any, tiny_wan: Path, tmp_path: Path) -> None:
    ray = local_ray
    replica = start_stand_in(ray, tmp_path)
    tasks = list(
        plan_of({"size": "64x48", "shots": [{"id": "a", "prompt": "x", "frames": 5}]}, tiny_wan).tasks.values()
    )
    text, latents = tasks[0], next(t for t in tasks if t.stage == "denoise")
    lost = ray.get(replica.run.remote(latents, [(text, None)]), timeout=30)
    assert lost.outcome == "failed"
    assert "missing" in lost.reason
    Store(str(tmp_path)).put(text, b"embeddings")
    assert ray.get(replica.run.remote(latents, [(text, None)]), timeout=30).outcome == "succeeded"
    ray.kill(replica)


def test_a_film_on_stand_ins_leaves_a_whole_ledger(local_ray: Any, tiny_wan: Path, tmp_path: Path) -> None:
    from actors.controller import start_controller

    ray = local_ray
    store = Store(str(tmp_path / "store"))
    store.create()
    checkpoint = find_checkpoint(str(tiny_wan), beside=Path())
    shots = [{"id": f"s{i}", "prompt": f"x {i}", "frames": 5} for i in range(2)]
    film = resolve_board({"size": "64x48", "guidance": 1.0, "shots": shots}, checkpoint).film
    job = Job(job_id_of(film, checkpoint), film, (checkpoint,), "")
    write_job(store, job)
    controller = start_controller("ledger", store.root, pools_as_json(POOLS), package="stand_ins")
    names = [submit(controller, job.id, door=door) for door in ("one", "other")]
    other = submit(controller, job.id, container="mkv")
    assert names[0] == names[1] != other  # the second door follows; another container is another rendering
    assert ray.get(controller.cancel.remote(names[0], "one"), timeout=10) is False  # the other door still waits for it
    for name in (names[0], other):
        view = wait_for_end(controller, name)
        assert view["to_run"] == 10
        assert view["status"] == "completed", view
        assert view["run"] == 10
    assert set(view["stage_s"]) == {"encode", "denoise", "decode", "assemble"}
    attempts = read_attempts(store, job.id)
    assert len(attempts) == 11  # nine tasks are shared, each film is joined by itself
    assert {a.outcome for a in attempts} == {"succeeded"}
    assert all(a.queued_at <= a.started_at <= a.ended_at and a.node and a.output_bytes for a in attempts)
    spans = sorted((a.started_at, a.ended_at) for a in attempts)
    assert all(end <= start + 0.01 for (_, end), (start, _) in pairwise(spans))  # one at a time
    lines = [
        'attempts_total{cause="",outcome="succeeded",pool="all",stage="denoise"} 2.0',
        'films_total{outcome="completed"} 2.0', "film_frames_total 20.0", "films_open 0.0",
        'tasks_waiting{stage="denoise"} 0.0', 'replicas{pool="all",state="idle"} 1.0',
        'task_s_count{pool="all",stage="denoise"} 2.0',
    ]  # fmt: skip
    wait_until("metrics of what was done", lambda: set(lines) <= metrics_of(ray), timeout_s=60)
    ray.get(controller.close.remote(), timeout=30)
    ray.kill(controller)


def metrics_of(ray: Any) -> set[str]:
    """What Ray tells Prometheus of ours, without its prefix and the tags that it adds."""
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith("ray_longtake_")]
    added = re.compile(r'(?:Component|SessionName|Version|\w+(?:Address|Id|Name|Type|Node)|otel_\w+)="[^"]*",?')
    told = (added.sub("", line).replace(",}", "}").replace("{}", "") for line in lines)
    return {line.removeprefix("ray_longtake_") for line in told}
