"""Gangs through Ray: a film on replicas of several ranks, on logical GPUs, and what is left when one breaks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_cluster import emulated_cluster
from farm_process import farm
from PIL import Image

from cluster.ray import Connection
from farm.control.fleet import ReplicaSpec
from farm.errors import ReplicaLost
from farm.keys import make_task
from farm.pools.gangs import sharing_of
from farm.pools.pools import Parallel, Pool
from farm.store.store import Store
from farm.task import Denoise, Slice, Task

BOARD = """\
title: Gangs
size: 64x48
fps: 8
steps: 150
shots:
  - {id: one, prompt: a red ball rolls over grass, frames: 17}
  - {id: two, prompt: a blue cube spins over sand, frames: 17}
  - {id: three, prompt: a green cone floats over snow, frames: 17}
  - {id: four, prompt: a white car stands over grass, frames: 17}
"""


def write_pools(folder: Path, *, ranks: int, replicas: int = 1, parallel: str = "auto") -> Path:
    path, bounds = folder / f"pools{ranks}.yaml", f"replicas: {{min: {replicas}, max: {replicas}}}"
    gang = f", ranks: {ranks}, parallel: {parallel}, gang_timeout_s: 60" if ranks > 1 else ""
    path.write_text(
        f"pools: {{encode: {{stages: [encode]}}, denoise: {{stages: [denoise], {bounds}{gang}}}, "
        "media: {stages: [decode, assemble]}}\n"
    )
    return path


def attempts_of(store: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in store.glob("jobs/*/attempts/*.json")]


def pictures_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))])


@pytest.mark.slow
def test_two_gangs_of_two_ranks_make_the_film_of_single_replicas_and_four_ranks_find_it_done(tmp_path: Path) -> None:
    board, made = tmp_path / "film.yaml", {}
    board.write_text(BOARD)
    for ranks, replicas in ((1, 1), (2, 2)):
        store, out = tmp_path / f"store{ranks}", tmp_path / f"frames{ranks}"
        pools = write_pools(tmp_path, ranks=ranks, replicas=replicas)
        done = farm("render", board, "--store", store, "--pools", pools, "--out", out, "--json")
        assert done.code == 0, done.told
        made[ranks] = pictures_of(out).astype(int)
    assert np.abs(made[1] - made[2]).max() <= 1  # latents within 1e-5, frames within rounding
    rows = [a for a in attempts_of(tmp_path / "store2") if a["stage"] == "denoise"]
    spans: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        spans.setdefault(row["replica"], []).append((row["started_at"], row["ended_at"]))
    assert len(rows) == 4 and len(spans) == 2
    first, second = spans.values()
    assert any(a < d and c < b for a, b in first for c, d in second)  # both at once
    four = write_pools(tmp_path, ranks=4)
    again = farm(
        "render", board, "--store", tmp_path / "store1", "--pools", four, "--out", tmp_path / "again", "--json"
    )
    assert again.code == 0, again.told
    assert again.answer["tasks"]["run"] == 0
    planned = farm("plan", board, "--store", tmp_path / "other", "--pools", four, "--json")
    assert planned.answer["gangs"]["denoise"]["guidance"] == 2


BLENDED = """\
title: One long take
size: 64x48
steps: 100
continuity: {mode: blend, chunk_frames: 17, overlap_frames: 5}
shots: [{id: one, prompt: a red ball rolls over grass, frames: 89}]
"""


@pytest.mark.slow
def test_a_blended_take_over_two_gangs_has_the_frames_of_one_gang(tmp_path: Path) -> None:
    board, made = tmp_path / "film.yaml", []
    board.write_text(BLENDED)
    for replicas in (1, 2):
        store, out = tmp_path / f"store{replicas}", tmp_path / f"frames{replicas}"
        pools = write_pools(tmp_path, ranks=2, replicas=replicas, parallel="{ulysses: 2}")
        done = farm("render", board, "--store", store, "--pools", pools, "--out", out, "--json")
        assert done.code == 0, done.told
        made.append(pictures_of(out))
        given = sum(a["info"].get("slices_given", 0) for a in attempts_of(store))
        assert (given > 0) == (replicas > 1)
    assert np.array_equal(*made)


# -- gangs by themselves


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # where ranks find broken stages
        with emulated_cluster([{"num_cpus": 4, "num_gpus": 2}]) as made, closing(Connection(made.address, {})):
            import ray

            yield ray


PAIR = Pool(stages=["denoise"], gpus=1, ranks=2, parallel=Parallel(ulysses=2))


def spec_of(pool: Pool, folder: Path) -> ReplicaSpec:
    return ReplicaSpec(
        "denoise-0", "denoise", ("denoise",), {}, {}, pool.cpus, pool.gpus, str(folder), "broken_stages",
        sharing=sharing_of(pool), gang_timeout_s=8.0,
    )  # fmt: skip


def task_that(what: str) -> Task:
    request = Denoise("wan", what, (1, 4, 1, 4, 4), 1, 1.0, 1.0, 0, (Slice(0, 1, None, None),))
    return make_task("denoise", request, extension="safetensors", label=what)


class GangOfTwo:
    """One gang on the two GPUs, as a controller uses it."""

    def __init__(self, folder: Path) -> None:
        from actors.pool import RayHands

        Store(str(folder)).create()
        self.hands = RayHands("here")
        self.handle = self.hands.start(spec_of(PAIR, folder), PAIR, avoid=[])

    def run(self, what: str) -> tuple[Any, float]:
        """How a task ends, and after how many seconds."""

        async def both() -> tuple[Any, float]:
            await asyncio.wait_for(self.hands.place(self.handle), 60)
            started = time.monotonic()
            ran = await asyncio.wait_for(self.hands.run(self.handle, task_that(what), [], frugal=False), 60)
            return ran, time.monotonic() - started

        return asyncio.run(both())

    def end(self, ray: Any) -> None:
        self.hands.stop(self.handle)
        until("the group to go", lambda: not living_groups(ray), timeout_s=20)
        until("the GPUs", lambda: gpus_free(ray) == 2, timeout_s=20)


@pytest.mark.slow
def test_a_gang_computes_and_what_all_ranks_refuse_breaks_nothing(cluster: Any, tmp_path: Path) -> None:
    gang = GangOfTwo(tmp_path / "store")
    assert gang.run("compute")[0].outcome == "succeeded"
    assert asyncio.run(gang.hands.status(gang.handle)).other_nodes == (living_node(cluster),)
    refused, _ = gang.run("refuse")
    assert (refused.outcome, refused.cause, refused.info.get("leaving")) == ("failed", "input", None)
    assert gang.run("compute")[0].outcome == "succeeded"
    gang.end(cluster)


def test_a_rank_that_dies_or_has_no_memory_ends_the_gang_with_the_reason(cluster: Any, tmp_path: Path) -> None:
    gang = GangOfTwo(tmp_path / "one")
    with pytest.raises(ReplicaLost, match="rank 1 of denoise-0 ended") as lost:
        gang.run("die")
    assert lost.value.node in gang.hands.nodes()
    gang.end(cluster)
    gang = GangOfTwo(tmp_path / "two")
    short, _ = gang.run("memory")
    assert (short.outcome, short.cause, short.info["leaving"]) == ("failed", "memory", True)
    assert "out of memory on rank 1" in short.reason
    gang.end(cluster)


@pytest.mark.slow
def test_a_rank_that_stands_still_is_noticed_by_the_others(cluster: Any, tmp_path: Path) -> None:
    gang = GangOfTwo(tmp_path / "one")
    still, seconds = gang.run("stand still")
    assert (still.outcome, still.info["leaving"]) == ("failed", True)
    assert seconds < 60
    gang.end(cluster)
    gang = GangOfTwo(tmp_path / "two")
    with pytest.raises(ReplicaLost):  # rank 1 has removed the group
        gang.run("leader stands still")
    until("the GPUs", lambda: gpus_free(cluster) == 2, timeout_s=20)
    gang.end(cluster)


def gpus_free(ray: Any) -> float:
    return float(ray.available_resources().get("GPU", 0))


def living_node(ray: Any) -> str:
    """The one that has GPUs."""
    (node,) = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]
    return str(node)


def until(what: str, is_true: Any, *, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_gang_that_cannot_be_placed_leaves_nothing_behind(cluster: Any, tmp_path: Path) -> None:
    from actors.pool import RayHands

    pool = Pool(stages=["denoise"], gpus=1, ranks=3, parallel=Parallel(ulysses=3))
    hands = RayHands("here")
    handle = hands.start(spec_of(pool, tmp_path), pool, avoid=[])
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(hands.place(handle), 5))
    hands.stop(handle)
    until("the group to go", lambda: not living_groups(cluster), timeout_s=20)
    assert gpus_free(cluster) == 2


def living_groups(ray: Any) -> list[str]:
    return [g["name"] for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]


def test_groups_of_a_controller_that_has_died_are_removed(cluster: Any) -> None:
    from actors.pool import RayHands

    dead, other, alive = RayHands("here"), RayHands("elsewhere"), RayHands("here")
    name = f"{dead.token}denoise-7"
    group = cluster.util.placement_group([{"GPU": 1}], name=name)
    strange = cluster.util.placement_group([{"GPU": 1}], name=f"{other.token}denoise-7")
    cluster.get([group.ready(), strange.ready()], timeout=30)
    alive.reap()
    until("the group to go", lambda: name not in living_groups(cluster), timeout_s=20)
    assert living_groups(cluster) == [f"{other.token}denoise-7"]
    cluster.util.remove_placement_group(strange)
    until("the GPUs", lambda: gpus_free(cluster) == 2, timeout_s=20)
