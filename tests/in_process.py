"""Render a storyboard with the stages as plain objects, in this process: the farm without Ray."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml

from farm.film.resolve import Resolved, resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import Checkpoint, find_checkpoint
from farm.plan.plan import Plan, make_plan
from farm.pools.pools import default_pools, numerics
from pipelines import rolls
from pipelines.stage import Progress

Board = dict[str, Any] | str


def resolve_board(board: Board, checkpoint: Checkpoint) -> Resolved:
    text = board if isinstance(board, str) else yaml.safe_dump(board)
    return resolve(parse_storyboard(text.encode(), file="board.yaml"), checkpoint)


def plan_of(board: Board, model: Path, *, stills: bool = False, container: str = "mp4") -> Plan:
    checkpoint = find_checkpoint(str(model), beside=Path.cwd())
    pools = default_pools(num_cpus=2, num_gpus=0)
    return make_plan(
        resolve_board(board, checkpoint).film, (checkpoint,), numerics(pools), container=container, stills=stills
    )


def run_plan(plan: Plan, images: dict[str, Path] | None = None) -> dict[str, bytes | Path]:
    """Every task's artifact by key; `images` are the author's, by the keys of `plan.sources`."""
    stages: dict[Any, Any] = {}
    made: dict[str, bytes | Path] = dict(images or {})
    for key, task in plan.tasks.items():
        loaded = (task.stage, task.components)
        if loaded not in stages:
            module = importlib.import_module(f"pipelines.{task.stage}")
            names = tuple(name for name, _ in task.components)
            stages[loaded] = module.Stage(task.model, names, **dict(task.numerics))
        made[key] = rolls.run(stages[loaded], task.request, [made[k] for k in task.inputs], Progress()).artifact
    return made
