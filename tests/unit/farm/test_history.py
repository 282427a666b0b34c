"""What an edit costs, and why: which named part of a key has changed since the film's last render."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from in_process import resolve_board

from farm.film.film import job_id_of
from farm.models.checkpoint import Checkpoint, find_checkpoint
from farm.plan.plan import Plan, make_plan, tasks_to_run
from farm.pools.pools import Pool, default_pools, numerics
from farm.store.history import reasons, summary, write_plan
from farm.store.jobs import Job, write_job
from farm.store.store import Store

SHOTS = [
    {"id": f"s{i:02}", "prompt": f"a red ball rolls over grass {i}", "frames": 40, "seed": i} for i in range(20)
]  # fmt: skip
BOARD: dict[str, Any] = {"title": "Twenty", "size": "64x48", "fps": 8, "steps": 4, "shots": SHOTS}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return find_checkpoint("builtin", beside=Path())


class Film:
    """A storyboard planned against a store in which an earlier one has been rendered, as far as records go."""

    def __init__(self, board: dict[str, Any], checkpoint: Checkpoint, pools: dict[str, Pool] | None = None) -> None:
        film = resolve_board(board, checkpoint).film
        self.job = Job(job_id_of(film, checkpoint), film, (checkpoint,), "")
        pools = pools or default_pools(num_cpus=2, num_gpus=0)
        self.plan = make_plan(film, (checkpoint,), numerics(pools), container="mp4", stills=False)

    def render(self, store: Store) -> Film:
        write_job(store, self.job)
        write_plan(store, self.job, self.plan, variant="mp4")
        for key in needed(self.plan):
            store.put(self.plan.tasks[key], b"x")
        return self

    def missing(self, store: Store) -> set[str]:
        return tasks_to_run(self.plan.tasks, self.plan.targets, store.has)

    def kinds(self, store: Store) -> dict[str, int]:
        """How many tasks of each kind would run."""
        counts: dict[str, int] = {}
        for key in self.missing(store):
            kind = type(self.plan.tasks[key].request).__name__
            counts[kind] = counts.get(kind, 0) + 1
        return counts

    def why(self, store: Store) -> dict[str, list[str]]:
        return summary(self.plan, reasons(store, self.job, self.plan, self.missing(store)))


def needed(plan: Plan) -> set[str]:
    return tasks_to_run(plan.tasks, plan.targets, lambda task: False)


def edited(**changes: Any) -> dict[str, Any]:
    return deepcopy(BOARD) | changes


def with_shot(index: int, **changes: Any) -> dict[str, Any]:
    board = edited()
    board["shots"][index] |= changes
    return board


@pytest.fixture
def store(tmp_path: Path, checkpoint: Checkpoint) -> Store:
    store = Store(str(tmp_path / "store"))
    store.create()
    Film(BOARD, checkpoint).render(store)
    return store


def test_nothing_would_run_again(store: Store, checkpoint: Checkpoint) -> None:
    assert Film(BOARD, checkpoint).missing(store) == set()
    assert Film(BOARD, checkpoint).why(store) == {}


def test_one_shot_of_twenty_costs_that_shot_and_the_assembly(store: Store, checkpoint: Checkpoint) -> None:
    film = Film(with_shot(7, seed=70), checkpoint)
    chunks = len(film.job.film.shots[7].chunks)
    assert film.kinds(store) == {
        "Denoise": chunks, "Decode": chunks, "MeasureColour": chunks - 1, "SolveColour": 1, "WriteClip": 1,
        "MeasureSeams": 2, "JoinClips": 1,  # the next shot's cut is measured against this one's end
    }  # fmt: skip
    told = film.why(store)
    assert told["s07"] == [f"parameters.seed: {70 + k}, was {7 + k}" for k in range(chunks)]
    assert told["s08"] == ["what it takes from others has changed"]
    assert set(told) == {"s07", "s08", ""}


def test_a_new_prompt_is_named(store: Store, checkpoint: Checkpoint) -> None:
    told = Film(with_shot(3, prompt="a blue cube"), checkpoint).why(store)
    assert any(line.startswith('parameters.prompt: "a blue cube') for line in told["s03"])
    assert any('was "a red ball rolls over grass 3' in line for line in told["s03"])


@pytest.mark.parametrize(
    "changes",
    [
        {"output": {"codec": "h265"}},
        {"output": {"crf": 30}},
        {"shots": [*SHOTS[:5], SHOTS[5] | {"transition": {"kind": "crossfade", "seconds": 0.5}}, *SHOTS[6:]]},
    ],
    ids=["codec", "crf", "transition"],
)
def test_how_it_is_shown_changes_nothing_that_was_denoised(
    changes: dict[str, Any], store: Store, checkpoint: Checkpoint
) -> None:
    film = Film(edited(**changes), checkpoint)
    assert film.missing(store)
    assert not film.kinds(store).keys() & {"EncodeText", "Denoise", "Decode"}


@pytest.mark.parametrize(
    "order",
    [list(reversed(range(20))), [*range(5), *range(6, 20)], [3, 3], [*range(19, 9, -1), *range(10)]],
    ids=["reversed", "one removed", "one alone", "halves swapped"],
)
def test_removing_and_reordering_shots_denoises_nothing(order: list[int], store: Store, checkpoint: Checkpoint) -> None:
    shots = [SHOTS[i] for i in dict.fromkeys(order)]
    assert not Film(edited(shots=shots), checkpoint).kinds(store).keys() & {"EncodeText", "Denoise", "Decode"}


def test_inserting_a_shot_denoises_that_one(store: Store, checkpoint: Checkpoint) -> None:
    new = {"id": "new", "prompt": "a green cone", "frames": 17}
    film = Film(edited(shots=[*SHOTS[:9], new, *SHOTS[9:]]), checkpoint)
    assert film.kinds(store)["Denoise"] == 1
    assert film.why(store)["new"] == ["it is new"]


def test_what_takes_context_from_an_edited_shot_runs_too(tmp_path: Path, checkpoint: Checkpoint) -> None:
    shots = [*SHOTS[:2], {"id": "on", "prompt": "a red ball", "frames": 20, "continue_from": "s01"}]
    store = Store(str(tmp_path / "s"))
    store.create()
    Film(edited(shots=shots), checkpoint).render(store)
    changed = [shots[0], shots[1] | {"seed": 99}, shots[2]]
    film = Film(edited(shots=changed), checkpoint)
    denoised = {t.label for k in film.missing(store) if (t := film.plan.tasks[k]).stage == "denoise"}
    assert {label.split()[0] for label in denoised} == {"s01", "on"}


def test_other_numerics_are_named(store: Store, checkpoint: Checkpoint) -> None:
    pools = {"all": Pool(stages=["encode", "denoise", "decode", "interpolate", "assemble"], dtype="bfloat16")}
    told = Film(BOARD, checkpoint, pools).why(store)
    assert any(line == 'numerics.dtype: "bfloat16", was "float32"' for line in told["s00"])


def test_what_was_lost_or_never_finished_is_told_apart(store: Store, checkpoint: Checkpoint) -> None:
    film = Film(BOARD, checkpoint)
    shot = film.plan.shots[4]
    store.forget(film.plan.tasks[shot.clip])
    assert film.why(store)["s04"] == ["it was not finished, or is not there any more"]
    assert Film(edited(title="Another"), checkpoint).why(store).get("", []) == ["it is new"]
