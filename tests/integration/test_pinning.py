"""Stages run on the hardware of their pool, on an emulated cluster of three kinds of nodes."""

from __future__ import annotations

from pathlib import Path

from emulated_cluster import emulated_cluster
from farm_process import finish, start_farm

from farm.store.journal import read_attempts
from farm.store.store import Store

POOLS = """\
pools:
  encode:  {stages: [encode], gpus: 0.5, labels: {kind: small}}
  denoise: {stages: [denoise], gpus: 1, accelerator: H100, replicas: {min: 0, max: 2}, dtype: float32}
  media:   {stages: [decode], labels: {kind: media}, memory_gib: 0.5}
"""
BOARD = """\
model: {model}
size: 64x48
fps: 8
steps: 2
seed: {seed}
shots:
  - {{id: one, prompt: a red ball, frames: 5}}
  - {{id: two, prompt: a blue cube, frames: 5}}
  - {{id: three, prompt: the green ball, frames: 5}}
"""
NODES = [
    {"num_cpus": 2, "num_gpus": 1, "labels": {"kind": "small"}},
    {"num_cpus": 2, "num_gpus": 2, "resources": {"accelerator_type:H100": 1}},
    {"num_cpus": 2, "memory": 2**31, "labels": {"kind": "media"}},
]
POOL_OF = {"encode": "encode", "denoise": "denoise", "decode": "media", "assemble": "media"}


def test_every_attempt_ran_on_its_pools_nodes_and_two_films_share_the_pools(tiny_wan: Path, tmp_path: Path) -> None:
    pools, store = tmp_path / "pools.yaml", tmp_path / "store"
    pools.write_text(POOLS)
    boards = [tmp_path / f"film{seed}.yaml" for seed in (1, 2)]
    for seed, board in enumerate(boards, 1):
        board.write_text(BOARD.format(model=tiny_wan, seed=seed))
    with emulated_cluster(NODES) as cluster:
        argv = ("--store", store, "--pools", pools, "--address", cluster.address, "--json")
        both = [start_farm("render", board, *argv) for board in boards]
        films = [finish(process) for process in both]
    assert [f.code for f in films] == [0, 0], [f.told for f in films]
    attempts = [a for f in films for a in read_attempts(Store(str(store)), f.answer["job"])]
    assert all(a.pool == POOL_OF[a.stage] for a in attempts)
    nodes = {pool: {a.node for a in attempts if a.pool == pool} for pool in ("encode", "denoise", "media")}
    assert [len(n) for n in nodes.values()] == [1, 1, 1]  # one node of each kind, and three different ones
    assert len(set.union(*nodes.values())) == 3
    assert len({a.replica for a in attempts if a.pool == "encode"}) == 1  # both films used the same replica
    assert len({a.replica for a in attempts if a.pool == "denoise"}) == 2
    ran = {f.answer["job"]: f.answer["tasks"]["run"] for f in films}
    assert all(f.answer["tasks"]["run"] + f.answer["tasks"]["reused"] == f.answer["tasks"]["total"] for f in films), ran
    encoded = [a.task for a in attempts if a.stage == "encode"]
    assert len(set(encoded)) == 4  # three prompts and the empty one, each encoded once for both films
    assert len({a.attempt_id for a in attempts if a.stage == "encode"}) == 4


def test_a_pool_that_can_never_fit_is_refused_with_what_there_is(tiny_wan: Path, tmp_path: Path) -> None:
    pools, board = tmp_path / "pools.yaml", tmp_path / "film.yaml"
    pools.write_text(POOLS.replace("H100", "B200"))
    board.write_text(BOARD.format(model=tiny_wan, seed=1))
    with emulated_cluster(NODES[:1]) as cluster:
        argv = ("--store", tmp_path / "store", "--pools", pools, "--address", cluster.address, "--json")
        refused = finish(start_farm("render", board, *argv))
    assert refused.code == 2, refused.told
    assert "pool denoise asks for 1 x (1 CPU, 1 GPU, accelerator B200)" in refused.told
    assert "kind=small" in refused.told

    assert not (tmp_path / "store").exists()


def test_a_pool_whose_hardware_is_taken_ends_the_render_after_its_timeout(tiny_wan: Path, tmp_path: Path) -> None:
    pools, board = tmp_path / "pools.yaml", tmp_path / "film.yaml"
    one = "gpus: 1, start_timeout_s: 4, dtype: float32"
    pools.write_text(f"pools:\n  a: {{stages: [encode, decode]}}\n  b: {{stages: [denoise], {one}}}\n")
    board.write_text(BOARD.format(model=tiny_wan, seed=1))
    taken = "pools:\n  a: {stages: [encode, decode], gpus: 1}\n  b: {stages: [denoise]}\n"
    (tmp_path / "taken.yaml").write_text(taken)
    with emulated_cluster([{"num_cpus": 4, "num_gpus": 1}]) as cluster:
        common = ("--address", cluster.address, "--json")
        first = ("--store", tmp_path / "first", "--pools", tmp_path / "taken.yaml")
        assert finish(start_farm("render", board, *first, *common)).code == 0  # its replica keeps the only GPU
        failed = finish(start_farm("render", board, "--store", tmp_path / "second", "--pools", pools, *common))
    assert failed.code == 3, failed.told
    assert "pool b asked for 1 CPU, 1 GPU and got none in 4 s; there is" in failed.told
    assert failed.answer["status"] == "failed"
