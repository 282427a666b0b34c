"""`farm show`: what has happened to a job, with reasons."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict

from cluster.cli.answer import Answer
from cluster.cli.options import add_server, opened, server, tell
from farm.errors import InputError
from farm.store.journal import read_attempts, read_details, read_log


def add(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    parser.add_argument("job", metavar="JOB")
    parser.add_argument(
        "--attempt", metavar="ID", help="everything that is known of one attempt (or the beginning of its id)"
    )


def run(args: argparse.Namespace, answer: Answer) -> int:
    if args.attempt is not None:
        return show_attempt(args)
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
        if record["kind"] == "damaged":
            lines.append("a record that cannot be read")
            continue
        words = {"lease": f"lease {record['fence']} of {record['writer']}", "release": "lease given back"}
        what = words.get(record["kind"]) or f"{record.get('state') or record['kind']}: {record.get('reason', '')}"
        lines.append(f"{when}  {what}")
    lines.append("")
    for a in attempts:
        if a.outcome != "succeeded":
            lines.append(f"{a.stage:<11} {a.label:<24} {a.outcome:<12} {a.cause:<7} on {a.replica}: {a.reason[:120]}")
            lines.append(f"{'':<11} attempt {a.attempt_id}")
    lines.append(f"{len(attempts)} attempts, {sum(a.outcome != 'succeeded' for a in attempts)} without success")
    return tell(args, {"job": args.job, "log": records, "attempts": [asdict(a) for a in attempts]}, lines)


def show_attempt(args: argparse.Namespace) -> int:
    """One attempt: its record, its traceback and the end of its replica's log."""
    if server(args):
        raise InputError("--attempt must stand beside --store: a server tells no logs")
    store = opened(args)
    attempts = read_attempts(store, args.job)
    found = [a for a in attempts if a.attempt_id.startswith(args.attempt)]
    if len(found) != 1:
        near = ", ".join(a.attempt_id for a in found or attempts if a.outcome != "succeeded") or "none has failed"
        what = f"be the beginning of one attempt's id, which {len(found)} are" if found else "be an attempt of the job"
        raise InputError(f"--attempt must {what}, got {args.attempt!r}; those without success: {near}")
    (attempt,) = found
    details = read_details(store, attempt)
    lines = [f"{name:<18} {value}" for name, value in asdict(attempt).items() if value not in ("", 0, 0.0, {})]
    return tell(args, {**asdict(attempt), "details": details}, [*lines, "", details or "no log was kept"])
