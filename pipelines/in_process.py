"""A plan run by the stages as plain objects, in this process: the farm without Ray, its store and its retries."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from farm.models.fetch import local_folder
from farm.plan.plan import Plan, tasks_to_run
from pipelines import rolls
from pipelines.stage import Artifact, Progress

WITH_WEIGHTS = ("encode", "denoise", "decode")  # stages that load a model's components


def run_plan(
    plan: Plan, files: Mapping[str, Artifact] | None = None, *, targets: Iterable[str] | None = None
) -> dict[str, Artifact]:
    """Run tasks one after another; every artifact that was made, by its task's key.

    Args:
        files: the author's pictures and LoRAs, by the keys of `plan.sources`.
        targets: run only what these keys need; by default everything.
    """
    needed = tasks_to_run(plan.tasks, plan.tasks if targets is None else targets, lambda task: False)
    stages: dict[Any, Any] = {}
    made: dict[str, Artifact] = dict(files or {})
    for key, task in plan.tasks.items():
        if key not in needed:
            continue
        loaded = (task.stage, task.components)
        if loaded not in stages:
            module = importlib.import_module(f"pipelines.{task.stage}")
            names = tuple(name for name, _ in task.components)
            folder = str(local_folder(task.model, names)) if task.stage in WITH_WEIGHTS else task.model
            stages[loaded] = module.Stage(folder, names, **dict(task.numerics))
        made[key] = rolls.run(stages[loaded], task.request, [made[k] for k in task.inputs], Progress()).artifact
    return made
