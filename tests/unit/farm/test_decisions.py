"""Failure, scaling and pools: state in, decision out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.control.failure import GiveUp, Retry, after_failure, is_bad_replica, nodes_to_avoid
from farm.control.scaling import may_leave, num_replicas_wanted, share_out
from farm.errors import InputError, Problem
from farm.pools.pools import (
    Bounds,
    NodeFacts,
    Pool,
    cannot_fit,
    cpus_asked,
    default_pools,
    faults_together,
    memory_of,
    stages_of,
)
from farm.task import Attempt, Cause, Outcome


def short(pool: str, **info: bool) -> Attempt:
    return replace(attempt("failed", cause="memory", **info), pool=pool, replica=f"{pool}-0")


def attempt(outcome: Outcome, replica: str = "r0", cause: Cause | None = None, **info: bool) -> Attempt:
    cause = cause or ("error" if outcome == "failed" else "")
    return Attempt(
        attempt_id="x", job="j", task="t", stage="denoise", label="", pool="p", replica=replica, node="n",
        queued_at=0, started_at=1, ended_at=3, outcome=outcome, reason="out of luck", cause=cause, info=info, gpus=2,
    )  # fmt: skip


MEMORY = {"p": (0.0, 8.0), "q": (0.0, 16.0)}


@pytest.mark.parametrize(
    ("attempts", "decision"),
    [
        ([attempt("failed")], Retry(frozenset({"r0"}))),
        ([attempt("failed"), attempt("failed", "r1")], Retry(frozenset({"r0", "r1"}))),
        ([attempt("failed")] * 3, GiveUp("3 attempts failed; the last: out of luck")),
        ([attempt("interrupted")] * 9, Retry()),
        ([attempt("interrupted"), attempt("failed"), attempt("failed")], Retry(frozenset({"r0"}))),
        ([attempt("failed", cause="input")], GiveUp("out of luck", is_input=True)),
        ([attempt("failed", cause="overflow")], Retry(frozenset({"r0"}))),
        ([attempt("failed", cause="overflow"), attempt("failed", "r1", cause="overflow")], GiveUp("out of luck")),
        ([short("p")], Retry(pools=frozenset({"p"}), frugal=True)),
        ([short("p"), short("p", frugal=True)], Retry(pools=frozenset({"q"}), frugal=True)),
        ([short("q"), attempt("interrupted"), short("p", frugal=True)], Retry(pools=frozenset({"q"}), frugal=True)),
        ([attempt("failed"), short("p"), attempt("failed", "r1")],
         Retry(frozenset({"r0", "r1"}), frozenset({"p"}), frugal=True)),
    ],
)  # fmt: skip
def test_after_failure(attempts: list[Attempt], decision: Retry | GiveUp) -> None:
    assert after_failure(attempts, memory=MEMORY) == decision


def test_too_little_memory_everywhere_is_told_with_what_to_do() -> None:
    told = after_failure([short("p"), short("p", frugal=True), short("q", frugal=True)], memory=MEMORY)
    assert isinstance(told, GiveUp)
    assert "not enough memory in any pool" in told.reason
    assert "tile the decoder" in told.reason


def test_a_lone_replica_that_failed_a_task_is_restarted_before_the_next_try() -> None:
    assert after_failure([attempt("failed")], memory=MEMORY, is_alone=True) == Retry(frozenset({"r0"}), restart=True)
    assert after_failure([attempt("interrupted")], memory=MEMORY, is_alone=True) == Retry()


def test_a_replica_that_fails_three_tasks_and_a_node_that_has_two_of_them_are_left() -> None:
    assert not is_bad_replica(["a", "b", "a", "b"])
    assert is_bad_replica(["a", "b", "c"])
    assert nodes_to_avoid({"n": 2, "m": 1}, ["n", "m"]) == ["n"]
    assert nodes_to_avoid({"n": 2, "m": 2}, ["n", "m"]) == []  # somewhere it must run
    assert nodes_to_avoid({"gone": 5}, ["n", "m"]) == []


def test_memory_is_compared_by_gpus_first() -> None:
    l4, h100 = Pool(stages=["denoise"], gpus=1, accelerator="L4"), Pool(stages=["denoise"], gpus=1, accelerator="H100")
    assert memory_of(l4) == (24, 0)
    assert memory_of(Pool(stages=["decode"], memory_gib=8)) < memory_of(l4) < memory_of(h100)


def test_an_attempt_knows_its_costs() -> None:
    assert (attempt("failed").queue_s, attempt("failed").gpu_s) == (1, 4)


@pytest.mark.parametrize(
    ("waiting", "busy", "least", "most", "wanted"),
    [(0, 0, 0, 4, 0), (0, 0, 1, 4, 1), (3, 1, 0, 8, 4), (30, 1, 0, 8, 8), (0, 2, 0, 8, 2)],
)
def test_a_pool_has_a_replica_for_each_task_within_its_bounds(
    waiting: int, busy: int, least: int, most: int, wanted: int
) -> None:
    assert num_replicas_wanted(waiting=waiting, busy=busy, least=least, most=most) == wanted


def test_replicas_leave_only_when_idle_for_long_and_too_many() -> None:
    assert may_leave(idle_s=100, num_replicas=2, wanted=1)
    assert not may_leave(idle_s=1, num_replicas=2, wanted=1)
    assert not may_leave(idle_s=100, num_replicas=1, wanted=1)


NODES = [
    NodeFacts("a" * 16, cpus=8, gpus=4, memory_bytes=64 * 2**30, accelerator="H100", labels={"pool": "dit"}),
    NodeFacts("b" * 16, cpus=4, gpus=0, memory_bytes=16 * 2**30, accelerator=None, labels={}),
]


@pytest.mark.parametrize(
    ("pool", "fits"),
    [
        (Pool(stages=["denoise"], gpus=1, replicas=Bounds(min=4, max=9)), True),
        (Pool(stages=["denoise"], gpus=1, replicas=Bounds(min=5, max=9)), False),
        (Pool(stages=["denoise"], gpus=0.25, replicas=Bounds(min=8, max=9)), True),
        (Pool(stages=["denoise"], gpus=0.75, cpus=1, replicas=Bounds(min=5, max=9)), False),
        (Pool(stages=["denoise"], accelerator="H100"), True),
        (Pool(stages=["denoise"], accelerator="L4"), False),
        (Pool(stages=["denoise"], labels={"pool": "dit"}), True),
        (Pool(stages=["denoise"], labels={"pool": "tea"}), False),
        (Pool(stages=["denoise"], memory_gib=40), True),
        (Pool(stages=["denoise"], memory_gib=100), False),
        (Pool(stages=["denoise"], cpus=9), False),
    ],
)
def test_what_can_never_fit_is_told(pool: Pool, fits: bool) -> None:
    told = cannot_fit({"p": pool}, NODES)
    assert (not told) == fits
    assert all("pool p asks for" in p.message and "4 GPU H100" in p.message for p in told)


def test_pools_that_fit_one_by_one_may_not_fit_together() -> None:
    one = Pool(stages=["encode"], gpus=1)
    (told,) = cannot_fit({"a": one, "b": one}, [NodeFacts("n", 8, 1, 2**33, None, {})])
    assert "the pools together ask for a 1 x (1 CPU, 1 GPU)" in told.message
    patient = Pool(stages=["denoise"], gpus=1, replicas=Bounds(min=0, max=1))  # may wait until the other leaves
    assert not cannot_fit({"a": one, "b": patient}, [NodeFacts("n", 8, 1, 2**33, None, {})])


def test_default_pools_serve_every_stage_on_any_machine() -> None:
    for cpus, gpus in ((1, 0), (2, 0), (16, 1), (64, 8)):
        pools = default_pools(num_cpus=cpus, num_gpus=gpus)
        assert not faults_together(pools)
        assert {s for name in pools for s in stages_of(pools, name)} >= {"encode", "denoise", "decode", "assemble"}
        assert sum(p.gpus * max(1, p.replicas.max) for p in pools.values()) <= gpus
        assert cpus_asked(pools) <= max(cpus, len(pools))


def test_assemble_runs_where_decode_does_unless_told() -> None:
    pools = {"a": Pool(stages=["encode", "denoise"]), "b": Pool(stages=["decode"])}
    assert stages_of(pools, "b") == ["decode", "assemble"]
    pools["c"] = Pool(stages=["assemble"])
    assert stages_of(pools, "b") == ["decode"]


def test_faults_survive_pickling_and_show_their_place() -> None:
    import copy

    error = InputError(Problem("steps must be at least 1, got 0", "steps", "film.yaml", 4), "and more")
    again = copy.copy(error)
    assert again.problems == error.problems
    assert str(error).splitlines() == ["film.yaml:4: steps must be at least 1, got 0", "and more"]
    assert Path(error.problems[0].file).name == "film.yaml"


@given(slices=st.integers(1, 40), workers=st.integers(1, 12))
def test_slices_are_shared_out_evenly_and_in_order(slices: int, workers: int) -> None:
    shares = share_out(slices, workers)
    assert [i for share in shares for i in share] == list(range(slices))
    assert len(shares) == workers
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert len(shares[0]) == slices // workers  # the owner has the least: it also steps the whole
