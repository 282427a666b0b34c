"""The quality gate: a chunk whose join is bad is made again, and only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import plan_of, run_plan

from farm.plan.plan import Plan
from farm.task import ChooseRoll, Denoise, MeasureSeams, Roll, TakeRoll
from pipelines.rolls import choose
from pipelines.stage import as_bytes

TAKE: dict[str, Any] = {"id": "a", "prompt": "a red ball rolls over sand", "frames": 41, "steps": 2, "seed": 5}


def gated(max_seam: float, **more: Any) -> Plan:
    continuity = {"max_seam": max_seam, "rerolls": 2, "color_match": False, **more}
    return plan_of({"shots": [TAKE | {"continuity": continuity}]}, Path("builtin"))


def measure(ratio: float) -> bytes:
    return json.dumps({"mad_ratio": ratio}).encode()


def test_the_first_good_try_is_chosen_else_the_best() -> None:
    def roll(*measures: bytes) -> int:
        return int(json.loads(choose(ChooseRoll(1.5), measures))["roll"])

    assert roll(measure(1.2), b"", b"") == 0
    assert roll(measure(1.9), measure(1.4), b"") == 1
    assert roll(measure(1.9), measure(1.6), measure(1.7)) == 1
    assert roll(json.dumps({"mad_ratio": None}).encode(), b"", b"") == 0  # nothing to measure it against


@pytest.mark.parametrize("context", ["latents", "frames"])
def test_good_joins_cost_no_more_tries_and_give_the_film_without_a_gate(context: str) -> None:
    plan = gated(100.0, context=context)
    made = run_plan(plan)
    tries = [t for t in plan.tasks.values() if isinstance(t.request, Roll)]
    assert len(tries) == 2 * 2 * 3  # two joins, two more tries each: to denoise, decode, measure
    assert all(as_bytes(made[t.key]) == b"" for t in tries)
    plain = plan_of({"shots": [TAKE | {"continuity": {"color_match": False, "context": context}}]}, Path("builtin"))
    ungated = run_plan(plain)
    assert as_bytes(made[plan.film]) == as_bytes(ungated[plain.film])


def test_bad_joins_are_tried_again_with_other_seeds_and_the_best_goes_on() -> None:
    plan = gated(1.0)
    made = run_plan(plan)
    seeds = [r.seed for t in plan.tasks.values() for r in [getattr(t.request, "request", t.request)]
             if isinstance(r, Denoise)]  # fmt: skip
    assert seeds == [5, 6, 1_000_009, 2_000_012, 7, 1_000_010, 2_000_013]
    choices = [t for t in plan.tasks.values() if isinstance(t.request, ChooseRoll)]
    assert len(choices) == 2
    for task in choices:
        ratios = [json.loads(m)["mad_ratio"] for k in task.inputs if (m := as_bytes(made[k]))]
        chosen = json.loads(as_bytes(made[task.key]))["roll"]
        assert ratios[chosen] <= 1.0 or ratios[chosen] == min(ratios)
        assert ratios[chosen] == min(ratios) or chosen == len(ratios) - 1
    taken = [t for t in plan.tasks.values() if isinstance(t.request, TakeRoll)]
    for task in taken:
        roll = json.loads(as_bytes(made[task.inputs[0]]))["roll"]
        assert as_bytes(made[task.key]) == as_bytes(made[task.inputs[1 + roll]])
    later = [t for t in plan.tasks.values() if isinstance(t.request, Denoise) and t.request.seed == 7]
    assert taken[0].key in later[0].inputs  # the next chunk's key follows from the choice
    seams = plan.tasks[plan.shots[0].seams or ""]
    assert isinstance(seams.request, MeasureSeams)
    assert taken[1].key in seams.inputs
