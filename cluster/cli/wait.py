"""`farm wait`: until a job has ended."""

from __future__ import annotations

import argparse
import sys
import time

from cluster.cli.answer import Answer
from cluster.cli.options import add_server, opened, server, tell
from farm.errors import InputError, RenderError
from farm.service.submission import where_is
from farm.states import ENDED

WAIT_LOOK_S = 1.0  # between looks at a job that is waited for


def add(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--timeout-s", type=float, default=None, metavar="S", help="give up after so many seconds")


def run(args: argparse.Namespace, answer: Answer) -> int:
    client, told = server(args), ""
    end = None if args.timeout_s is None else time.monotonic() + args.timeout_s
    store = None if client else opened(args)
    if store is not None and "job.json" not in store.names(f"jobs/{args.job}"):
        raise InputError(f"there is no job {args.job!r} in the store {store.uri}")
    while True:
        if client:
            film = client.show(args.job)
            status, reason = str(film.status), film.reason
        else:
            assert store is not None
            told_now = where_is(store, args.job)
            status, reason = told_now.state, told_now.reason
        if f"{status}: {reason}" != told:
            told = f"{status}: {reason}"
            print(f"farm: {args.job} is {status}{': ' if reason else ''}{reason}", file=sys.stderr)
        if status in ENDED:
            if client:
                client.http.close()
            tell(args, {"job": args.job, "status": status, "reason": reason}, [status])
            return 0 if status == "completed" else 3
        if end is not None and time.monotonic() > end:
            raise RenderError(f"job {args.job} is {status} after {args.timeout_s:g} s")
        time.sleep(WAIT_LOOK_S)
