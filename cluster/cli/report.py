"""`farm report`: the page about a job, drawn anew."""

from __future__ import annotations

import argparse

from cluster.cli.answer import Answer
from cluster.cli.options import add_store
from cluster.prepare import open_store
from farm.errors import FarmError
from farm.store.store import Store


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")
    add_store(parser)


def run(args: argparse.Namespace, answer: Answer) -> int:
    store = open_store(args.store)
    print(draw_report(store, args.job))
    return 0


def draw_report(store: Store, job: str) -> str:
    from dashboards.report import make_report

    return store.publish(f"films/{job}/report.html", make_report(store, job).encode())


def try_to_draw_report(store: Store, job: str) -> str:
    """Its place, or why there is none: what was rendered matters more."""
    try:
        return draw_report(store, job)
    except (OSError, FarmError) as e:
        return f"could not be drawn: {e}"
