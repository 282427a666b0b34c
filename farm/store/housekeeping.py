"""What lies in a store: how much of it, whether it is whole, and what can go.

Lossless frames go first: they are large, and made again from latents. Then what no job refers to. Nothing goes that a
job which has not ended may need, and nothing younger than the age that is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from farm.errors import InputError, StoreError
from farm.states import ENDED
from farm.store.jobs import read_job
from farm.store.journal import read_attempts, read_standing
from farm.store.ledger import read_ledger, stats_of
from farm.store.store import AREAS, Store, StoredFile, sidecar_path

YOUNG_S = 3600.0  # half-written files younger than this may be somebody's who writes now


@dataclass(frozen=True)
class Finding:
    """Something in the store, and what is the matter with it."""

    path: str
    what: str
    size: int = 0


def job_ids(store: Store) -> list[str]:
    return [name for name in store.names("jobs") if "." not in name]


def list_areas(store: Store) -> list[dict[str, Any]]:
    """Files and bytes of each part of the store."""
    rows = []
    for area in AREAS:
        files = store.files(area)
        rows.append({"area": area, "files": len(files), "bytes": sum(f.size for f in files)})
    return rows


def list_jobs(store: Store) -> list[dict[str, Any]]:
    """Every job with its title and where it stands."""
    rows = []
    for job in job_ids(store):
        standing = read_standing(store, job)
        try:
            title = store.record(f"jobs/{job}/job.json")["film"]["title"]
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            title = "(job.json is damaged: render the storyboard again)"
        owner = standing.owner.name if standing.owner else ""
        rows.append(
            {"job": job, "title": title, "status": standing.state or "submitted", "reason": standing.reason,
             "driven_by": owner, "priority": 50 if standing.priority is None else standing.priority,
             "at": standing.at or None}
        )  # fmt: skip
    return rows


def verify(store: Store, *, now: float) -> Iterator[Finding]:
    """Read every artifact and compare it with its record."""
    for area in ("artifacts", "frames"):
        files = {f.path: f for f in store.files(area)}
        records = {p.removesuffix(".json") for p in files if p.endswith(".json")}
        for file in files.values():
            if file.path.endswith(".json"):
                continue
            if file.path.rsplit(".", 1)[0] not in records:
                if now - file.modified > YOUNG_S:
                    yield Finding(file.path, "it has no record: whoever wrote it was stopped", file.size)
                continue
            problem = _compare(store, file.path)
            if problem:
                yield Finding(file.path, problem, file.size)
        data = {p.rsplit(".", 1)[0] for p in files if not p.endswith(".json")}
        for name in sorted(records - data):
            yield Finding(f"{name}.json", "its artifact is missing")


def _compare(store: Store, path: str) -> str:
    try:
        told = store.record(sidecar_path(path))
        data = store.cat(path)
    except (FileNotFoundError, ValueError) as e:
        return f"it cannot be read: {e}"
    if len(data) != told.get("size"):
        return f"it must have {told.get('size')} bytes, got {len(data)}"
    return "" if hashlib.sha256(data).hexdigest() == told.get("sha256") else "it does not match its checksum"


def set_aside(store: Store, finding: Finding) -> None:
    """Move what is damaged out of the way, so that it is made again."""
    name = f"damaged/{finding.path.rsplit('/', 1)[-1]}"
    if not finding.path.endswith(".json"):
        store.move(sidecar_path(finding.path), f"{name}.record")
    store.move(finding.path, name)


def collectable(store: Store, *, older_than_s: float, now: float) -> list[Finding]:
    """What could be deleted, in the order in which it should be.

    Raises:
        StoreError: a job's record cannot be read: then nobody knows what it needs.
    """
    kept, protected = _referred_to(store)
    old = {area: [f for f in store.files(area) if now - f.modified >= older_than_s] for area in AREAS}
    found: dict[str, Finding] = {}

    def add(file: StoredFile, what: str) -> None:
        found.setdefault(file.path, Finding(file.path, what, file.size))

    for file in old["frames"]:
        if _stem(file.path) not in protected:
            add(file, "lossless frames, made again from latents")
    for file in [*old["frames"], *old["artifacts"]]:
        if _stem(file.path) not in kept | protected:
            add(file, "no job refers to it")
    for file in old["checkpoints"]:
        if file.path.split("/")[2] not in protected:
            add(file, "a checkpoint of a task that is done or that no open job wants")
    for file in old["damaged"]:
        add(file, "it was damaged")
    for job in job_ids(store):
        if read_standing(store, job).state in ENDED:
            for file in store.files(f"jobs/{job}/beats"):
                if now - file.modified >= older_than_s:
                    add(file, "a sign of life of a job that has ended")
    for area in AREAS:
        for file in old[area]:
            if file.path.endswith(".part"):
                add(file, "half-written")
    return list(found.values())


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".")[0]


def _referred_to(store: Store) -> tuple[set[str], set[str]]:
    """Keys that some job refers to, and those that a job needs which has not ended."""
    kept: set[str] = set()
    protected: set[str] = set()
    for job in job_ids(store):
        try:
            names = store.names(f"jobs/{job}")
            if "deleted.json" in names:
                continue
            plans = [n for n in names if n.startswith("plan.")]
            keys = {str(row[3]) for name in plans for row in json.loads(store.cat(f"jobs/{job}/{name}"))}
            if not plans:  # submitted in another way: what has been tried is what we know
                keys = {a.task for a in read_attempts(store, job)}
        except (ValueError, IndexError) as e:
            raise StoreError(
                f"a plan of jobs/{job} cannot be read ({e}); render the film again, or delete the job"
            ) from e
        kept |= keys
        if read_standing(store, job).state not in ENDED:
            protected |= keys
    return kept, protected


def delete(store: Store, findings: list[Finding]) -> int:
    """Delete them, records first, so that nothing half is ever taken for whole. Returns the bytes."""
    for finding in sorted(findings, key=lambda f: not f.path.endswith(".json")):
        store.remove(finding.path)
    return sum(f.size for f in findings)


def stats(store: Store, *, since: str = "") -> dict[str, Any]:
    """What the ledger says, with the seconds of the films that were finished."""
    rows = read_ledger(store, since=since)
    finished: dict[str, float] = {}
    for job in sorted({str(job) for row in rows for job in row["jobs"]}):
        with suppress(InputError):  # of another version
            if read_standing(store, job).state != "completed":
                continue
            film = read_job(store, job).film
            finished[job] = film.num_delivered / film.output_fps
    return stats_of(rows, finished).as_json()
