"""`farm submit`: a storyboard for a farm that serves a store, over HTTP or through the store itself."""

from __future__ import annotations

import argparse
import getpass
import sys
import time

from cluster.cli.answer import Answer
from cluster.cli.deliver import Target
from cluster.cli.options import add_server, check_priority, given_path, server, tell
from cluster.cli.order import keep_job, read_order
from farm.errors import Problem
from farm.service.submission import where_is
from farm.states import ENDED
from farm.store.journal import Wish, write_order, write_wish


def add(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    parser.add_argument("storyboard", type=given_path, metavar="STORYBOARD")
    parser.add_argument("--priority", type=int, default=50, metavar="N", help="0 to 100; default: 50")
    parser.add_argument("--pools", type=given_path, metavar="FILE", help="with --store: pools to check it against")
    parser.add_argument("--model", help="with --store: render with this model instead")


def run(args: argparse.Namespace, answer: Answer) -> int:
    """Over HTTP, or into a store, where any farm that serves it finds it."""
    check_priority(args.priority)
    if client := server(args):
        with client:
            film = client.submit(args.storyboard, priority=args.priority)
        for told in film.warnings:
            warning = Problem(told.message, told.key, str(args.storyboard), told.line)
            print(f"farm: warning: {warning}", file=sys.stderr)
        return tell(args, film.model_dump(), [film.id])
    job = submit_to_store(args)
    return tell(args, {"job": job}, [job])


def submit_to_store(args: argparse.Namespace) -> str:
    """Returns the job's id.

    Raises:
        InputError: as `farm plan`.
    """
    args.only, args.draft, args.raw = None, False, None
    order = read_order(args, Answer(as_json=False), target=Target())
    for warning in order.warnings:
        print(f"farm: warning: {warning}", file=sys.stderr)
    order.store.create()
    keep_job(order)
    now = time.time()
    write_wish(order.store, Wish(order.job.id, order.container, False, "", args.priority, "", now))
    if where_is(order.store, order.job.id).state in ENDED:  # it was rendered before: again, for what is missing now
        write_order(order.store, order.job.id, "requeue", by=getpass.getuser(), at=now)
    return order.job.id
