"""The plan: what is in a content key, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from in_process import plan_of, resolve_board
from tiny_checkpoints import make_wan

from farm.models.checkpoint import find_checkpoint
from farm.plan.plan import Plan, make_plan, tasks_to_run
from farm.pools.pools import default_pools, numerics

BASE: dict[str, Any] = {
    "size": "64x48", "fps": 8, "seed": 1,
    "shots": [{"id": "a", "prompt": "a red ball", "frames": 9}, {"id": "b", "prompt": "a cube", "frames": 9}],
}  # fmt: skip


def keys(plan: Plan, stage: str) -> set[str]:
    return {k for k, t in plan.tasks.items() if t.stage == stage}


def test_a_plan_is_the_same_every_time(tiny_wan: Path) -> None:
    assert plan_of(BASE, tiny_wan) == plan_of(BASE, tiny_wan)


def test_every_task_comes_after_its_inputs(tiny_wan: Path) -> None:
    seen: set[str] = set()
    for key, task in plan_of(BASE, tiny_wan, stills=True).tasks.items():
        assert set(task.inputs) <= seen
        seen.add(key)


CHANGES = {  # what is changed: the stages whose keys change
    "title": ({"title": "other"}, set()),
    "codec": ({"output": {"codec": "av1"}}, {"assemble"}),
    "output fps": ({"output": {"fps": 24}}, {"assemble"}),
    "seed": ({"seed": 2}, {"denoise", "decode", "assemble"}),
    "steps": ({"steps": 7}, {"denoise", "decode", "assemble"}),
    "negative prompt": ({"negative_prompt": "x"}, {"encode", "denoise", "decode", "assemble"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_touches_the_keys_of_its_stages_and_of_what_follows(change: str, tiny_wan: Path) -> None:
    changes, touched = CHANGES[change]
    before, after = plan_of(BASE, tiny_wan), plan_of(BASE | changes, tiny_wan)
    assert before.film != after.film
    for stage in ("encode", "denoise", "decode", "assemble"):
        ours, theirs = keys(before, stage) - {before.film}, keys(after, stage) - {after.film}
        assert (ours != theirs) == (stage in touched), stage


def test_keys_know_no_shot_ids_and_no_positions(tiny_wan: Path) -> None:
    renamed = [dict(s, id=f"other-{s['id']}") for s in reversed(BASE["shots"])]
    before, after = plan_of(BASE, tiny_wan), plan_of(BASE | {"shots": renamed}, tiny_wan)
    of_order = [{p.film, *(s.seams for s in p.shots)} for p in (before, after)]  # the film, and cuts between two shots
    assert before.tasks.keys() - of_order[0] == after.tasks.keys() - of_order[1]


def test_equal_prompts_are_encoded_once(tiny_wan: Path) -> None:
    shots = [{"id": f"s{i}", "prompt": "a red ball", "frames": 9, "seed": i} for i in range(5)]
    plan = plan_of(BASE | {"shots": shots}, tiny_wan)
    assert len(keys(plan, "encode")) == 2  # the prompt and the empty negative prompt
    assert len(keys(plan, "denoise")) == 5


def test_without_guidance_no_negative_prompt_is_encoded(tiny_wan: Path) -> None:
    plan = plan_of(BASE | {"guidance": 1.0}, tiny_wan)
    assert len(keys(plan, "encode")) == 2
    assert all(len(plan.tasks[k].inputs) == 1 for k in keys(plan, "denoise"))


def test_another_vae_changes_decode_and_what_follows_only(tiny_wan: Path, tmp_path: Path) -> None:
    other = make_wan(tmp_path / "wan")
    config = other / "vae" / "config.json"
    config.write_text(config.read_text() + "\n")
    before, after = plan_of(BASE, tiny_wan), plan_of(BASE, other)
    assert keys(before, "denoise") == keys(after, "denoise")
    assert not keys(before, "decode") & keys(after, "decode")
    assert not keys(before, "assemble") & keys(after, "assemble")


def test_numerics_are_part_of_the_key(tiny_wan: Path) -> None:
    checkpoint = find_checkpoint(str(tiny_wan), beside=Path())
    film = resolve_board(BASE, checkpoint).film
    plans = [
        make_plan(film, (checkpoint,), numerics(default_pools(num_cpus=2, num_gpus=g)), container="mp4", stills=False)
        for g in (0, 1, 8)
    ]
    assert not keys(plans[0], "denoise") & keys(plans[1], "denoise")  # float32 and bfloat16
    assert keys(plans[1], "denoise") == keys(plans[2], "denoise")  # pools and replicas do not matter


def test_only_what_leads_to_something_missing_runs(tiny_wan: Path) -> None:
    plan = plan_of(BASE, tiny_wan)
    shot = plan.shots[0]
    assert tasks_to_run(plan.tasks, plan.targets, lambda t: True) == set()
    assert tasks_to_run(plan.tasks, plan.targets, lambda t: False) == set(plan.tasks)
    assert tasks_to_run(plan.tasks, plan.targets, lambda t: t.key != shot.clip) == {shot.clip}
    lacking = {shot.clip, *shot.frames, plan.film}
    assert tasks_to_run(plan.tasks, plan.targets, lambda t: t.key not in lacking) == lacking
    assert tasks_to_run(plan.tasks, plan.targets, lambda t: t.stage == "assemble") == set()  # frames are not asked for
