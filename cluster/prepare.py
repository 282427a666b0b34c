"""What every door does before it renders: the store, the models, the job with its plan, the name of the farm."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from farm.document import Place, read_document
from farm.errors import InputError, Problem
from farm.film.film import Film, job_id_of
from farm.film.storyboard import Draft
from farm.models.checkpoint import Checkpoint, find_checkpoint
from farm.plan.plan import Plan, make_plan
from farm.pools.gangs import check_gangs
from farm.pools.parallel import Estimate
from farm.pools.pools import Pool, check_options, check_served, numerics
from farm.store.jobs import Job
from farm.store.store import Store


def open_store(uri: str | None) -> Store:
    """The store that was named, else $LONGTAKE_STORE, else .longtake in the working folder."""
    return Store(os.path.expanduser(uri or os.environ.get("LONGTAKE_STORE") or ".longtake"))


def plan_job(
    film: Film, models: Sequence[Checkpoint], storyboard: str, pools: Mapping[str, Pool], *, container: str,
    stills: bool = False, warnings: tuple[Problem, ...] = (),
) -> tuple[Job, Plan, dict[str, Estimate]]:  # fmt: skip
    """A film as a job with its plan, checked against the pools; and how those of several ranks would share it.

    Raises:
        InputError: the pools cannot render it.
    """
    job = Job(job_id_of(film, *models), film, tuple(models), storyboard, warnings)
    plan = make_plan(film, models, numerics(pools), container=container, stills=stills)
    check_options(pools, (m.card for m in models))
    gangs = check_gangs(pools, plan, models)
    check_served(pools, (task.stage for task in plan.tasks.values()))
    return job, plan, gangs


def in_pools_file(problems: Sequence[Problem], path: Path | None) -> list[Problem]:
    """Problems about pools with their line in the pools file, where there is one."""
    if not problems or path is None:
        return list(problems)
    document = read_document(path.read_bytes(), file=str(path))
    return [document.problem(tuple(p.key.split(".")), p.message) for p in problems]


def models_of_shots(draft: Draft, folder: Path) -> tuple[dict[str, Checkpoint], tuple[Problem, ...]]:
    """The models that shots name for themselves, by what they say, and what is wrong with those that cannot be used."""
    found: dict[str, Checkpoint] = {}
    problems: list[Problem] = []
    looked: set[str] = set()
    named: list[tuple[Place, str | None]] = []
    if draft.top and draft.top.continuity:
        named.append((("continuity", "model"), draft.top.continuity.model))
    for i, shot in draft.shots:
        named.append((("shots", i, "model"), shot.model))
        named.append((("shots", i, "continuity", "model"), shot.continuity.model if shot.continuity else None))
    for place, model in named:
        if model is None or model in looked:
            continue
        looked.add(model)
        try:
            found[model] = find_checkpoint(model, beside=folder)
        except InputError as e:
            problems += [draft.document.problem(place, str(p)) for p in e.problems]
    return found, tuple(problems)


def farm_name(store: Store, pools: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the farm that serves a store with these pools (as JSON), and the store's URI for other processes."""
    uri = str(Path(store.root).absolute()) if store.is_local else store.uri
    return "controller-" + hashlib.sha256(json.dumps([uri, pools], sort_keys=True).encode()).hexdigest()[:16], uri
