"""A storyboard and the options beside it, read, checked and planned: everything that can be done without Ray."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.cli.answer import Answer
from cluster.cli.deliver import Target
from cluster.prepare import in_pools_file, models_of_shots, open_store, plan_job
from cluster.ray import made_pools
from farm.errors import InputError, Problem
from farm.film.film import container_of
from farm.film.resolve import as_draft, only_shots, resolve
from farm.film.storyboard import parse_storyboard, read_storyboard
from farm.models.checkpoint import Checkpoint, find_checkpoint
from farm.models.loras import LoraFit
from farm.plan.plan import Plan, tasks_to_run
from farm.pools.parallel import Estimate
from farm.pools.pools import Pool, load_pools
from farm.store.history import write_plan
from farm.store.jobs import Job, write_job
from farm.store.journal import new_orders, read_standing
from farm.store.store import Store


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
    warnings: tuple[Problem, ...]
    files: dict[str, Path]
    gangs: dict[str, Estimate]  # of pools of several ranks
    loras: Mapping[tuple[str, str, str], LoraFit]  # by model, path and transformer


def read_order(args: argparse.Namespace, answer: Answer, *, target: Target, on_cluster: bool = False) -> Order:
    """Check everything that can be checked without Ray; writes nothing.

    Raises:
        InputError: with all faults of the storyboard.
    """
    raw = read_storyboard(args.storyboard) if args.raw is None else args.raw
    draft = parse_storyboard(raw, file=str(args.storyboard))
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
    text = raw.decode("utf-8-sig")
    try:
        job, plan, gangs = plan_job(film, models, text, pools, container=container, stills=target.folder is not None,
                                    warnings=resolved.warnings)  # fmt: skip
    except InputError as e:
        raise InputError(*in_pools_file(e.problems, args.pools)) from None
    missing = tasks_to_run(plan.tasks, plan.targets, store.has)
    answer.tell_film(film, job.id)
    answer.data["tasks"] |= {"total": len(plan.tasks), "reused": len(plan.tasks) - len(missing)}
    return Order(job, plan, pools, args.pools, store, container, missing, resolved.warnings, resolved.files, gangs,
                 resolved.loras)  # fmt: skip


def keep_job(order: Order) -> None:
    """Put into the store what rendering needs, and what the next plan compares itself with."""
    write_job(order.store, order.job, order.files)
    stills = ".stills" if order.plan.stills else ""
    write_plan(order.store, order.job, order.plan, variant=f"{order.container}{stills}")


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
