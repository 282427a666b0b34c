"""`farm list`: the jobs of a store or a server."""

from __future__ import annotations

import argparse
import time

from cluster.cli.answer import Answer
from cluster.cli.options import add_server, opened, server, tell

add = add_server


def run(args: argparse.Namespace, answer: Answer) -> int:
    from farm.store.housekeeping import list_jobs

    if client := server(args):
        with client:
            films = [film.model_dump() for film in client.list()]
        known = ("status", "priority", "title", "reason", "by")
        rows = [{"job": f["id"], **{k: f[k] for k in known}, "at": f["ended_at"] or f["created_at"]} for f in films]
    else:
        rows = list_jobs(opened(args))
    lines = [f"{'job':<16} {'status':<10} {'since':<16} {'priority':>8}  title"]
    lines += [f"{r['job']:<16} {r['status']:<10} {when(r['at']):<16} {r['priority']:>8}  {r['title']}" for r in rows]
    return tell(args, {"jobs": rows}, lines)


def when(at: float | None) -> str:
    """A time of day in the user's own zone; nothing where it is not known."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else ""
