"""`farm show`: what has happened to a job, with reasons."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from cluster.cli.answer import Answer
from cluster.cli.options import add_server, opened, server, tell
from farm.errors import InputError
from farm.store.journal import read_attempts, read_log


def add(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    parser.add_argument("job", metavar="JOB")


def run(args: argparse.Namespace, answer: Answer) -> int:
    if client := server(args):
        with client:
            film, tasks = client.show(args.job), client.tasks(args.job).data
        rows = [(t, a) for t in tasks for a in t.attempts if a.outcome != "succeeded"]
        lines = [f"{film.title}: {film.status} {film.progress:.0%} {film.reason}".rstrip(), ""]
        lines += [f"{t.stage:<11} {t.label:<24} {a.outcome:<12} on {a.replica}: {a.reason[:120]}" for t, a in rows]
        lines.append(f"{sum(t.is_done for t in tasks)} of {len(tasks)} tasks are done, {len(rows)} attempts in vain")
        return tell(args, {**film.model_dump(), "tasks": [t.model_dump() for t in tasks]}, lines)
    store = opened(args)
    records, attempts = read_log(store, args.job), read_attempts(store, args.job)
    if not records:
        raise InputError(f"there is no job {args.job!r} in the store {store.uri}, or it was never begun")
    lines = []
    for record in records:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["at"]))
        words = {"lease": f"lease {record['fence']} of {record['writer']}", "release": "lease given back"}
        what = words.get(record["kind"]) or f"{record.get('state') or record['kind']}: {record.get('reason', '')}"
        lines.append(f"{when}  {what}")
    lines.append("")
    for a in attempts:
        if a.outcome != "succeeded":
            lines.append(f"{a.stage:<11} {a.label:<24} {a.outcome:<12} {a.cause:<7} on {a.replica}: {a.reason[:120]}")
    lines.append(f"{len(attempts)} attempts, {sum(a.outcome != 'succeeded' for a in attempts)} without success")
    return tell(args, {"job": args.job, "log": records, "attempts": [asdict(a) for a in attempts]}, lines)
