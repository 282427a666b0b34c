"""A storyboard and the options beside it, read, checked and planned: everything that can be done without Ray."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from farm.checkpoint import Checkpoint, find_checkpoint
from farm.document import Place, read_document
from farm.errors import InputError, Problem
from farm.film import Film, container_of, job_id_of
from farm.gangs import check_gangs
from farm.jobs import Job, write_job
from farm.journal import new_orders, read_standing
from farm.parallel import Estimate
from farm.plan import Plan, make_plan, tasks_to_run
from farm.pools import (
    Pool,
    cannot_fit,
    check_options,
    check_served,
    default_pools,
    lacking_packages,
    load_pools,
    numerics,
    without_kinds,
)
from farm.resolve import as_draft, only_shots, resolve
from farm.store import Store
from farm.storyboard import Draft, load_storyboard
from farm.why import write_plan

from .answer import Answer
from .deliver import Target
from .hardware import num_cpus, num_gpus, this_machine


def open_store(uri: str | None) -> Store:
    """The store that was named, else $LONGTAKE_STORE, else .longtake in the working folder."""
    return Store(uri or os.environ.get("LONGTAKE_STORE") or ".longtake")


@dataclass(frozen=True)
class Order:
    """A storyboard that has been read, checked and planned."""

    job: Job
    plan: Plan
    pools: dict[str, Pool]
    pools_file: Path | None
    store: Store
    container: str
    missing: set[str]
    warnings: tuple[str, ...]
    files: dict[str, Path]
    gangs: dict[str, Estimate]  # of pools of several ranks


def read_order(args: argparse.Namespace, answer: Answer, *, target: Target, on_cluster: bool = False) -> Order:
    """Check everything that can be checked without Ray; writes nothing.

    Raises:
        InputError: with all faults of the storyboard.
    """
    draft = load_storyboard(args.storyboard)
    pools = load_pools(args.pools) if args.pools else made_pools(on_cluster=on_cluster)
    model = args.model or (draft.top.model if draft.top else None)
    checkpoint: Checkpoint | None = None
    faults: tuple[Problem, ...] = ()
    if model is not None:
        try:
            checkpoint = find_checkpoint(model, beside=Path.cwd() if args.model else args.storyboard.parent)
        except InputError as e:
            faults = (
                e.at(key="--model").problems
                if args.model
                else tuple(draft.document.problem(("model",), str(p)) for p in e.problems)
            )
    others, more = models_of_shots(draft, args.storyboard.parent)
    resolved = resolve(draft, checkpoint, others=others, model_problems=(*faults, *more))
    models = resolved.models
    film = only_shots(resolved.film, tuple(args.only)) if args.only else resolved.film
    film = as_draft(film, models) if args.draft else film
    container = container_of(target.suffix, film.codec)
    store = open_store(args.store)
    store.check()
    text = args.storyboard.read_text("utf-8-sig")
    try:
        job, plan, gangs = plan_job(film, models, text, pools, container=container, stills=target.folder is not None)
    except InputError as e:
        raise InputError(*in_pools_file(e.problems, args.pools)) from None
    missing = tasks_to_run(plan.tasks, plan.targets, store.has)
    answer.tell_film(film, job.id)
    answer.data["tasks"] |= {"total": len(plan.tasks), "reused": len(plan.tasks) - len(missing)}
    return Order(job, plan, pools, args.pools, store, container, missing, resolved.warnings, resolved.files, gangs)


def plan_job(
    film: Film, models: Sequence[Checkpoint], storyboard: str, pools: Mapping[str, Pool], *, container: str,
    stills: bool = False,
) -> tuple[Job, Plan, dict[str, Estimate]]:  # fmt: skip
    """A film as a job with its plan, checked against the pools; and how those of several ranks would share it.

    Raises:
        InputError: the pools cannot render it.
    """
    job = Job(job_id_of(film, *models), film, tuple(models), storyboard)
    plan = make_plan(film, models, numerics(pools), container=container, stills=stills)
    check_options(pools, (m.card for m in models))
    gangs = check_gangs(pools, plan, models)
    check_served(pools, (task.stage for task in plan.tasks.values()))
    return job, plan, gangs


def keep_job(order: Order) -> None:
    """Put into the store what rendering needs, and what the next plan compares itself with."""
    write_job(order.store, order.job, order.files)
    stills = ".stills" if order.plan.stills else ""
    write_plan(order.store, order.job, order.plan, variant=f"{order.container}{stills}")


def check_this_machine(pools: Mapping[str, Pool], pools_file: Path | None) -> None:
    """Raises:
    InputError: the local Ray that would be started can never hold these pools, or lacks what they need.
    """
    told = lacking_packages(pools) or cannot_fit(without_kinds(pools), [this_machine(pools)])
    if told:
        raise InputError(*in_pools_file(told, pools_file))


def check_cluster(pools: Mapping[str, Pool], pools_file: Path | None) -> None:
    """Raises:
    InputError: the connected cluster is fixed and can never hold these pools.
    """
    from actors.pool import can_grow, cluster_nodes

    told = [] if can_grow() else cannot_fit(pools, cluster_nodes())
    if told:
        raise InputError(*in_pools_file(told, pools_file))


def in_pools_file(problems: Sequence[Problem], path: Path | None) -> list[Problem]:
    """Problems about pools with their line in the pools file, where there is one."""
    if not problems or path is None:
        return list(problems)
    document = read_document(path.read_bytes(), file=str(path))
    return [document.problem(tuple(p.key.split(".")), p.message) for p in problems]


def look_again(order: Order, answer: Answer) -> Order:
    """The same order with what is missing now."""
    missing = tasks_to_run(order.plan.tasks, order.plan.targets, order.store.has)
    answer.data["tasks"]["reused"] = len(order.plan.tasks) - len(missing)
    return replace(order, missing=missing)


def with_requeued(order: Order) -> Order:
    """The same order with everything to run, where somebody has asked for that with `farm requeue --all`."""
    standing = read_standing(order.store, order.job.id)
    waiting = [] if standing.is_open else new_orders(order.store, order.job.id, standing.orders)
    if not any(told["order"] == "requeue" and told["everything"] for _, told in waiting):
        return order
    tasks = order.plan.tasks
    return replace(order, missing=tasks_to_run(tasks, order.plan.targets, lambda task: False))


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


def made_pools(*, on_cluster: bool) -> dict[str, Pool]:
    """Pools for the hardware of the connected cluster or of this machine."""
    if not on_cluster:
        return default_pools(num_cpus=num_cpus(), num_gpus=num_gpus())
    from actors.pool import cluster_nodes

    nodes = cluster_nodes()
    return default_pools(num_cpus=int(max(n.cpus for n in nodes)), num_gpus=int(sum(n.gpus for n in nodes)))


def farm_name(store: Store, pools: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the farm that serves a store with these pools (as JSON), and the store's URI for other processes."""
    uri = str(Path(store.root).absolute()) if store.is_local else store.uri
    return "controller-" + hashlib.sha256(json.dumps([uri, pools], sort_keys=True).encode()).hexdigest()[:16], uri
