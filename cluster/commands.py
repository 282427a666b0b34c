"""The commands that look at jobs and stores, and give orders; none of them needs Ray."""

from __future__ import annotations

import argparse
import getpass
import json
import platform
import re
import time
from dataclasses import asdict
from typing import Any

from farm.errors import InputError, Problem
from farm.journal import look_at_lease, read_attempts, read_log, write_order
from farm.store import Store

from .answer import Answer
from .order import open_store

AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DEFAULT_AGE = "30d"


def add_commands(command: Any) -> None:
    """Declare them; `command` makes a subparser out of a name, a function and a line of help."""

    def stored(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = command(name, run, text)
        sub.add_argument("--store", metavar="URI", help="default: $LONGTAKE_STORE or .longtake")
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        return sub

    stored("list", run_list, "list the jobs of a store")
    stored("show", run_show, "show what has happened to a job").add_argument("job", metavar="JOB")
    for name, text in (
        ("pause", "hand out no more of a job's tasks; what runs stops between two steps and keeps its state"),
        ("resume", "go on with a paused job"),
        ("cancel", "end a job; what is finished stays"),
        ("requeue", "give a job's failed tasks another chance"),
    ):
        sub = stored(name, run_order, text)
        sub.set_defaults(order=name, priority=None, all=False)
        sub.add_argument("job", metavar="JOB")
        if name == "requeue":
            sub.add_argument("--all", action="store_true", help="run everything again, also what is finished")
    priority = stored("priority", run_order, "say which job goes first: 0 to 100, 50 by default")
    priority.set_defaults(order="priority", all=False)
    priority.add_argument("job", metavar="JOB")
    priority.add_argument("priority", type=int, metavar="N")
    stats = stored("stats", run_stats, "what renders have cost: by stage, pool and model, with retries")
    stats.add_argument("--since", default="", metavar="YYYY-MM-DD", help="from this day on")
    store = stored("store", run_store, "list, verify or clean up a store")
    store.add_argument("what", choices=("ls", "verify", "gc"))
    store.add_argument(
        "--older-than", default=DEFAULT_AGE, metavar="AGE", help=f"gc: as 12h, 30d, 4w (default: {DEFAULT_AGE})"
    )
    store.add_argument("--delete", action="store_true", help="gc: delete it; without this it is only listed")
    store.add_argument("--set-aside", action="store_true", help="verify: move what is damaged away, to be made again")


def _opened(args: argparse.Namespace) -> Store:
    store = open_store(args.store)
    store.check()
    return store


def _told(args: argparse.Namespace, data: dict[str, Any], lines: list[str]) -> int:
    print(json.dumps(data) if args.json else "\n".join(lines))
    return 0


# -- jobs


def run_order(args: argparse.Namespace, answer: Answer) -> int:
    """Write an order for whoever drives the job."""
    store = _opened(args)
    if args.priority is not None and not 0 <= args.priority <= 100:
        raise InputError(Problem(f"the priority must be from 0 to 100, got {args.priority}", "priority"))
    by = f"{getpass.getuser()}@{platform.node()}"
    name = write_order(
        store, args.job, args.order, by=by, at=time.time(), priority=args.priority, everything=args.all
    )  # fmt: skip
    held = look_at_lease(store, args.job)
    who = f"{held.owner.name} drives the job and will carry it out" if held else (
        "nobody drives the job now: it is carried out when it is rendered again"
    )  # fmt: skip
    return _told(args, {"job": args.job, "order": name, "driven_by": held.owner.name if held else None},
                 [f"{args.order} {args.job}: written; {who}"])  # fmt: skip


def run_list(args: argparse.Namespace, answer: Answer) -> int:
    from farm.housekeeping import list_jobs

    rows = list_jobs(_opened(args))
    lines = [f"{'job':<16} {'status':<10} {'priority':>8}  title"]
    lines += [f"{r['job']:<16} {r['status']:<10} {r['priority']:>8}  {r['title']}" for r in rows]
    return _told(args, {"jobs": rows}, lines)


def run_show(args: argparse.Namespace, answer: Answer) -> int:
    store = _opened(args)
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
    return _told(args, {"job": args.job, "log": records, "attempts": [asdict(a) for a in attempts]}, lines)


# -- the ledger and the store


def run_stats(args: argparse.Namespace, answer: Answer) -> int:
    from farm.housekeeping import stats

    if args.since and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", args.since):
        raise InputError(Problem(f"--since must be a day as 2026-11-20, got {args.since!r}", "since"))
    told = stats(_opened(args), since=args.since)
    total, per = told["total"], told["film_s"]
    lines = [
        f"{told['films']} finished films of {per:.1f} s in all; {total['attempts']} attempts, "
        f"{total['replica_s']:.1f} replica seconds ({total['wasted_s']:.1f} without success), "
        f"{total['gpu_s']:.1f} GPU seconds"
    ]
    if per:
        lines.append(
            f"for each second of film: {told['replica_s_per_film_s']:.2f} replica seconds, "
            f"{told['gpu_s_per_film_s']:.2f} GPU seconds, cost {told['cost_per_film_s']:.5f}"
        )
    for title, group in (("stage", "by_stage"), ("pool", "by_pool"), ("model", "by_model")):
        lines += [
            "",
            f"{title:<24} {'attempts':>8} {'replica s':>10} {'wasted s':>9} {'GPU s':>10} {'cost':>10} {'kJ':>8}",
        ]
        for name, t in sorted(told[group].items(), key=lambda item: -item[1]["replica_s"]):
            lines.append(
                f"{name[:24]:<24} {t['attempts']:>8} {t['replica_s']:>10.1f} {t['wasted_s']:>9.1f} {t['gpu_s']:>10.1f} "
                f"{t['cost']:>10.4f} {t['energy_j'] / 1000:>8.1f}"
            )
    lines += ["", "attempts without success: " + (
        ", ".join(f"{count} {cause}" for cause, count in sorted(told["retries"].items())) or "none"
    )]  # fmt: skip
    return _told(args, told, lines)


def seconds_of_age(text: str) -> float:
    """`12h`, `30d` in seconds.

    Raises:
        InputError: it is something else.
    """
    found = AGE.fullmatch(text)
    if not found:
        raise InputError(
            Problem(f"--older-than must be a number with s, m, h, d or w, as 30d, got {text!r}", "older_than")
        )
    return float(found[1]) * UNIT_S[found[2]]


def run_store(args: argparse.Namespace, answer: Answer) -> int:
    from farm import housekeeping

    store, now = _opened(args), time.time()
    if args.what == "ls":
        areas = housekeeping.list_areas(store)
        lines = [f"{a['area']:<12} {a['files']:>8} files {a['bytes'] / 2**20:>12.1f} MiB" for a in areas]
        return _told(args, {"areas": areas}, lines)
    if args.what == "verify":
        found = list(housekeeping.verify(store, now=now))
        for finding in found if args.set_aside else ():
            housekeeping.set_aside(store, finding)
        lines = [f"{f.path}: {f.what}" for f in found]
        lines.append(f"{len(found)} problems" + (", set aside" if found and args.set_aside else ""))
        _told(args, {"problems": [asdict(f) for f in found]}, lines)
        return 3 if found and not args.set_aside else 0
    found = housekeeping.collectable(store, older_than_s=seconds_of_age(args.older_than), now=now)
    size = sum(f.size for f in found)
    if args.delete:
        housekeeping.delete(store, found)
    lines = [f"{f.path}: {f.what}" for f in found]
    verb = "deleted" if args.delete else "could be deleted (farm store gc --delete)"
    lines.append(f"{len(found)} files, {size / 2**20:.1f} MiB, {verb}")
    return _told(args, {"files": [asdict(f) for f in found], "bytes": size, "deleted": args.delete}, lines)
