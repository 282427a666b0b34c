"""`farm pause|resume|cancel|requeue|priority`: an order for whoever drives a job."""

from __future__ import annotations

import argparse
import getpass
import platform
import time

from cluster.cli.answer import Answer
from cluster.cli.options import add_server, check_priority, opened, server, tell
from farm.store.journal import look_at_lease, write_order


def add(parser: argparse.ArgumentParser, order: str) -> None:
    add_server(parser)
    parser.set_defaults(order=order, priority=None, all=False)
    parser.add_argument("job", metavar="JOB")
    if order == "requeue":
        parser.add_argument("--all", action="store_true", help="run everything again, also what is finished")
    if order == "priority":
        parser.add_argument("priority", type=int, metavar="N")


def run(args: argparse.Namespace, answer: Answer) -> int:
    check_priority(args.priority)
    if client := server(args):
        with client:
            film = client.order(args.job, args.order, priority=args.priority, everything=args.all)
        return tell(args, film.model_dump(), [f"{args.order} {args.job}: it is {film.status}"])
    store = opened(args)
    by = f"{getpass.getuser()}@{platform.node()}"
    name = write_order(
        store, args.job, args.order, by=by, at=time.time(), priority=args.priority, everything=args.all
    )  # fmt: skip
    held = look_at_lease(store, args.job)
    who = f"{held.owner.name} drives the job and will carry it out" if held else (
        "nobody drives the job now: it is carried out when it is rendered again"
    )  # fmt: skip
    return tell(args, {"job": args.job, "order": name, "driven_by": held.owner.name if held else None},
                 [f"{args.order} {args.job}: written; {who}"])  # fmt: skip
