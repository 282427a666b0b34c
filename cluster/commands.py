"""The commands that look at jobs and stores, and give orders; none of them needs Ray."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from farm.errors import InputError, Problem, RenderError
from farm.journal import Wish, look_at_lease, read_attempts, read_log, write_order, write_wish
from farm.states import ENDED
from farm.store import Store
from farm.submission import where_is

from .answer import Answer
from .deliver import Target
from .order import keep_job, open_store, read_order

AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DEFAULT_AGE = "30d"
WAIT_LOOK_S = 1.0  # between looks at a job that is waited for


def add_commands(command: Any) -> None:
    """Declare them; `command` makes a subparser out of a name, a function and a line of help."""

    def stored(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = command(name, run, text)
        sub.add_argument("--store", metavar="URI", help="default: $LONGTAKE_STORE or .longtake")
        sub.add_argument("--json", action="store_true", help="print one JSON object")
        return sub

    def reached(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = stored(name, run, text)
        sub.add_argument("--url", metavar="URL", help="ask this server instead (default: $LONGTAKE_URL; $LONGTAKE_KEY)")
        return sub

    reached("list", run_list, "list the jobs of a store")
    reached("show", run_show, "show what has happened to a job").add_argument("job", metavar="JOB")
    submit = reached("submit", run_submit, "hand a storyboard to a farm that serves a store, and do not wait")
    submit.add_argument("storyboard", type=Path, metavar="STORYBOARD")
    submit.add_argument("--priority", type=int, default=50, metavar="N", help="0 to 100; default: 50")
    submit.add_argument("--pools", type=Path, metavar="FILE", help="with --store: pools to check it against")
    submit.add_argument("--model", help="with --store: render with this model instead")
    wait = reached("wait", run_wait, "wait until a job has ended; exit code 0 where it is completed, else 3")
    wait.add_argument("job", metavar="JOB")
    wait.add_argument("--timeout-s", type=float, default=None, metavar="S", help="give up after so many seconds")
    download = reached("download", run_download, "fetch a finished film, or a finished shot of it")
    download.add_argument("job", metavar="JOB")
    download.add_argument("--shot", default="", metavar="ID", help="its clip, which is there before the film is")
    download.add_argument("--out", type=Path, required=True, metavar="FILE")
    for name, text in (
        ("pause", "hand out no more of a job's tasks; what runs stops between two steps and keeps its state"),
        ("resume", "go on with a paused job"),
        ("cancel", "end a job; what is finished stays"),
        ("requeue", "give a job's failed tasks another chance"),
    ):
        sub = reached(name, run_order, text)
        sub.set_defaults(order=name, priority=None, all=False)
        sub.add_argument("job", metavar="JOB")
        if name == "requeue":
            sub.add_argument("--all", action="store_true", help="run everything again, also what is finished")
    priority = reached("priority", run_order, "say which job goes first: 0 to 100, 50 by default")
    priority.set_defaults(order="priority", all=False)
    priority.add_argument("job", metavar="JOB")
    priority.add_argument("priority", type=int, metavar="N")
    batch = stored("batch", run_batch, "render a manifest of films (Parquet, JSONL, CSV or a folder of storyboards)")
    batch.add_argument("manifest", metavar="MANIFEST", help="a path or URI")
    batch.add_argument("--template", type=Path, metavar="FILE", help="a storyboard with {columns}")
    batch.add_argument("--results", metavar="URI", help="a folder; default: <store>/batches/<name of the manifest>")
    batch.add_argument("--pools", type=Path, metavar="FILE", help="which stages run on which hardware (YAML)")
    batch.add_argument("--address", metavar="A", help="a Ray cluster (default: $RAY_ADDRESS or a local Ray)")
    batch.add_argument("--priority", type=int, default=50, metavar="N", help="0 to 100; default: 50")
    batch.add_argument("--max-open", type=int, default=48, metavar="N", help="films at once; default: 48")
    batch.add_argument("--again", action="store_true", help="also rows that have failed, or were canceled")
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
    _check_priority(args.priority)
    if client := _server(args):
        with client:
            film = client.order(args.job, args.order, priority=args.priority, everything=args.all)
        return _told(args, film.model_dump(), [f"{args.order} {args.job}: it is {film.status}"])
    store = _opened(args)
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

    if client := _server(args):
        with client:
            films = [film.model_dump() for film in client.list()]
        rows = [{"job": f["id"], **{k: f[k] for k in ("status", "priority", "title", "reason", "by")}} for f in films]
    else:
        rows = list_jobs(_opened(args))
    lines = [f"{'job':<16} {'status':<10} {'priority':>8}  title"]
    lines += [f"{r['job']:<16} {r['status']:<10} {r['priority']:>8}  {r['title']}" for r in rows]
    return _told(args, {"jobs": rows}, lines)


def run_show(args: argparse.Namespace, answer: Answer) -> int:
    if client := _server(args):
        with client:
            film, tasks = client.show(args.job), client.tasks(args.job).data
        rows = [(t, a) for t in tasks for a in t.attempts if a.outcome != "succeeded"]
        lines = [f"{film.title}: {film.status} {film.progress:.0%} {film.reason}".rstrip(), ""]
        lines += [f"{t.stage:<11} {t.label:<24} {a.outcome:<12} on {a.replica}: {a.reason[:120]}" for t, a in rows]
        lines.append(f"{sum(t.is_done for t in tasks)} of {len(tasks)} tasks are done, {len(rows)} attempts in vain")
        return _told(args, {**film.model_dump(), "tasks": [t.model_dump() for t in tasks]}, lines)
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


def run_submit(args: argparse.Namespace, answer: Answer) -> int:
    """Over HTTP, or into a store, where any farm that serves it finds it."""
    _check_priority(args.priority)
    if client := _server(args):
        with client:
            film = client.submit(args.storyboard, priority=args.priority)
        for warning in film.warnings:
            print(f"farm: warning: {warning}", file=sys.stderr)
        return _told(args, film.model_dump(), [film.id])
    job = submit_to_store(args)
    return _told(args, {"job": job}, [job])


def submit_to_store(args: argparse.Namespace) -> str:
    """Returns the job's id.

    Raises:
        InputError: as `farm plan`.
    """
    args.only, args.draft = None, False
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


def run_batch(args: argparse.Namespace, answer: Answer) -> int:
    from . import batch  # it imports pyarrow, which others can do without

    return batch.run_batch(args, answer)


def run_wait(args: argparse.Namespace, answer: Answer) -> int:
    client, told = _server(args), ""
    end = None if args.timeout_s is None else time.monotonic() + args.timeout_s
    store = None if client else _opened(args)
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
            _told(args, {"job": args.job, "status": status, "reason": reason}, [status])
            return 0 if status == "completed" else 3
        if end is not None and time.monotonic() > end:
            raise RenderError(f"job {args.job} is {status} after {args.timeout_s:g} s")
        time.sleep(WAIT_LOOK_S)


def run_download(args: argparse.Namespace, answer: Answer) -> int:
    if not args.out.absolute().parent.is_dir():
        raise InputError(Problem(f"--out must lie in a folder that exists, got {args.out}", "--out"))
    if client := _server(args):
        with client:
            client.download(args.job, args.out, shot=args.shot)
    else:
        store = _opened(args)
        folder, name = (f"films/{args.job}/shots", args.shot) if args.shot else (f"films/{args.job}", "film")
        found = next((n for n in store.names(folder) if n.rsplit(".", 1)[0] == name), None)
        if found is None:
            raise InputError(f"there is no finished {name} of job {args.job!r} in the store {store.uri}")
        part = args.out.with_name(f".{args.out.name}.part")
        part.write_bytes(store.cat(f"{folder}/{found}"))
        part.replace(args.out)
    return _told(args, {"job": args.job, "film": str(args.out)}, [str(args.out)])


def _check_priority(priority: int | None) -> None:
    if priority is not None and not 0 <= priority <= 100:
        raise InputError(Problem(f"the priority must be from 0 to 100, got {priority}", "priority"))


def _server(args: argparse.Namespace) -> Any:
    """The server that was named; None where a store is meant. HTTP is imported only then."""
    if args.url and args.store:
        raise InputError(Problem("one of --url and --store must be given, not both", "--url"))
    url = args.url or (None if args.store else os.environ.get("LONGTAKE_URL"))
    if not url:
        return None
    from .client import Client

    return Client(url, os.environ.get("LONGTAKE_KEY"))


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
