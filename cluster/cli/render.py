"""`farm render`: a storyboard becomes a film, on a local Ray or a cluster."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

from actors.identity import is_dead
from cluster.cli.answer import Answer
from cluster.cli.deliver import deliver, read_target
from cluster.cli.drive import follow, render_missing
from cluster.cli.options import add_autoscaling, add_storyboard, given
from cluster.cli.order import Order, keep_job, look_again, read_order, with_requeued
from cluster.cli.report import try_to_draw_report
from cluster.ray import Connection, check_this_machine
from farm.errors import DamagedError, Problem, RenderError
from farm.plan.plan import tasks_to_run
from farm.store.jobs import publish_film, read_seams, read_warnings
from farm.store.journal import look_at_lease, read_attempts


def add(parser: argparse.ArgumentParser) -> None:
    add_storyboard(parser)
    parser.add_argument(
        "--out", type=given, metavar="FILE_OR_FOLDER", help="the film's file, or a folder for PNG frames"
    )
    parser.add_argument(
        "--address", type=given, metavar="A", help="a Ray cluster to render on (default: $RAY_ADDRESS or a local Ray)"
    )
    add_autoscaling(parser)


def run(args: argparse.Namespace, answer: Answer) -> int:
    target = read_target(args.out)
    address = args.address or os.environ.get("RAY_ADDRESS") or None
    with ExitStack() as stack:
        connection = None
        if address and not args.pools:  # pools are then made for the cluster's hardware, and keys depend on them
            connection = stack.enter_context(closing(Connection(address, {})))
        order = read_order(args, answer, target=target, on_cluster=connection is not None)
        answer.warn(order.warnings)
        stale = None
        order, film = publish_finished(with_requeued(order), answer)
        if order.missing and address is None:
            held = look_at_lease(order.store, order.job.id)
            if held is not None and not is_dead(held.owner):  # another `farm render` on this store
                stale = follow(order, held)
                order, film = publish_finished(look_again(order, answer), answer)
        if order.missing:
            if address is None:
                check_this_machine(order.pools, order.pools_file)
                order.store.create()
            connection = connection or stack.enter_context(closing(Connection(address, order.pools)))
            view = render_missing(order, connection, stale=stale, autoscaling=args.autoscaling)
            total = answer.data["tasks"]["total"]
            reused = total - view["to_run"] + view["not_needed"]
            answer.data["tasks"] |= {"run": view["run"], "reused": reused, "retried": view["retried"]}
            answer.data["stage_s"] = {stage: round(s, 4) for stage, s in view["stage_s"].items()}
            answer.data["first_step_at"] = view["first_step_at"]
            if view["status"] != "completed":
                return tell_unfinished(order, view, answer)
            film = view["film"]
    try:
        path = deliver(target, order.store, order.plan, film)
    except OSError as e:
        raise RenderError(f"the film is finished ({film}), but could not be written to {args.out}: {e}") from e
    report = try_to_draw_report(order.store, order.job.id)
    for shot, told in zip(order.plan.shots, answer.data["shots"], strict=True):
        told["clip"] = order.store.place(
            f"films/{order.job.id}/shots/{shot.id}.{order.plan.tasks[shot.clip].extension}"
        )
    known = {w.message for w in order.warnings}  # those of planning have been told; the others lie beside the film
    made = [w for w in read_warnings(order.store, order.job.id) if w.message not in known]
    answer.warn(replace(w, file=str(args.storyboard)) for w in made)
    answer.data |= {"status": "completed", "film": path, "seams": read_seams(order.store, order.plan)}
    ran, reused = answer.data["tasks"]["run"], answer.data["tasks"]["reused"]
    print(
        f"farm: {path}: {answer.data['frames']} frames, {answer.data['seconds']:.2f} s; {ran} tasks run, {reused} "
        f"reused; job {order.job.id}, report {report}",
        file=sys.stderr,
    )
    return answer.finish(0)


def publish_finished(order: Order, answer: Answer) -> tuple[Order, str]:
    """Show a film of which nothing is missing, and where; else nothing. What is damaged of it is missing then."""
    if order.missing:
        return order, ""
    order.store.create()
    keep_job(order)
    try:
        return order, publish_film(order.store, order.job, order.plan)
    except DamagedError as e:
        print(f"farm: {e}; what is damaged is made again", file=sys.stderr)
        return look_again(order, answer), ""


def tell_unfinished(order: Order, view: dict[str, Any], answer: Answer) -> int:
    tasks = order.plan.tasks
    done = len(tasks) - len(tasks_to_run(tasks, order.plan.targets, order.store.has))
    report = try_to_draw_report(order.store, order.job.id)
    left = f"{done} of {len(tasks)} tasks are in the store, and the same command goes on from there; report {report}"
    if view["status"] == "canceled":
        return answer.fail(130, [Problem(f"{view.get('reason') or 'interrupted'}; {left}")])
    failed = [a for a in read_attempts(order.store, order.job.id) if a.outcome == "failed"]
    if failed:
        tells = f"farm show {order.job.id} --attempt {failed[-1].attempt_id} --store {order.store.uri}"
        left += f"; {tells} shows the last failure's traceback and log"
    code = 2 if view.get("is_input_at_fault") else 3
    return answer.fail(code, [*(Problem(e) for e in view["errors"]), Problem(left)])
