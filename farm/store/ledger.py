"""The ledger: one row per attempt, as Parquet that any tool reads, partitioned by day; and what it says of costs.

When a job ends, its attempts since it was last taken on become one file for each day: `ledger/day=2026-11-20/
<job>-<fence>.parquet`, put if absent. An attempt that served two jobs is in the files of both, with one id.
"""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from farm.store.journal import read_attempts
from farm.store.store import Store
from farm.task import Attempt

TEXT = ("attempt_id", "job", "task", "stage", "label", "model", "pool", "replica", "node", "outcome", "cause", "reason")
NUMBERS = ("queued_at", "started_at", "ended_at", "run_s", "load_s", "gpus", "price_per_hour")
COUNTS = ("fence", "peak_memory_bytes", "output_bytes")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in TEXT]
    + [(name, pa.float64()) for name in NUMBERS]
    + [(name, pa.int64()) for name in COUNTS]
    + [("gpu_s", pa.float64()), ("energy_j", pa.float64()), ("info", pa.string())]  # info: JSON
)


ESTIMATED = ("replica_s", "gpu_s", "cost")


def row_of(attempt: Attempt) -> dict[str, Any]:
    """An attempt as a row: times are seconds since the epoch."""
    row, told = dict(vars(attempt)), attempt.info
    del row["info"]
    energy = told.get("energy_j")
    return {**row, "gpu_s": attempt.gpu_s, "energy_j": energy, "info": json.dumps(told, sort_keys=True)}


def day_of(attempt: Attempt) -> str:
    return datetime.fromtimestamp(attempt.started_at, UTC).strftime("%Y-%m-%d")


def compact(store: Store, job: str) -> list[str]:
    """Put a job's attempts into the ledger, those that are not there yet. Returns the paths of new files."""
    files: defaultdict[str, list[Attempt]] = defaultdict(list)
    for attempt in read_attempts(store, job):
        files[f"ledger/day={day_of(attempt)}/{job}-{attempt.fence}.parquet"].append(attempt)
    made = []
    for path, attempts in files.items():
        if not store.exists(path):
            buffer = io.BytesIO()
            table = pa.Table.from_pylist([row_of(a) for a in attempts], schema=SCHEMA)
            pq.write_table(table, buffer, compression="zstd")
            store.put_if_absent(path, buffer.getvalue())
            made.append(path)
    return made


def read_ledger(store: Store, *, since: str = "") -> list[dict[str, Any]]:
    """All rows from a day on (YYYY-MM-DD), each attempt once with its `jobs`, and those of jobs not yet ended."""
    rows: dict[str, dict[str, Any]] = {}

    def add(row: dict[str, Any]) -> None:
        jobs = rows.setdefault(row["attempt_id"], {**row, "jobs": []})["jobs"]
        jobs += [] if row["job"] in jobs else [row["job"]]

    for folder in store.names("ledger"):
        if folder.startswith("day=") and folder.removeprefix("day=") >= since:
            for name in [n for n in store.names(f"ledger/{folder}") if n.endswith(".parquet")]:
                table = pq.read_table(io.BytesIO(store.cat(f"ledger/{folder}/{name}")), schema=SCHEMA)
                for row in table.to_pylist():
                    add(row)
    for job in {name.split(".")[0] for name in store.names("queue")}:
        for attempt in read_attempts(store, job):
            if day_of(attempt) >= since:
                add(row_of(attempt))
    return list(rows.values())


@dataclass
class Tally:
    """What attempts of one kind have cost."""

    attempts: int = 0
    replica_s: float = 0.0
    gpu_s: float = 0.0
    wasted_s: float = 0.0  # of the replicas' seconds, in attempts that did not succeed
    cost: float = 0.0
    energy_j: float = 0.0

    def add(self, row: dict[str, Any]) -> None:
        seconds = row["ended_at"] - row["started_at"]
        self.attempts += 1
        self.replica_s += seconds
        self.gpu_s += row["gpu_s"]
        self.wasted_s += seconds * (row["outcome"] != "succeeded")
        self.cost += seconds / 3600 * row["price_per_hour"]
        self.energy_j += row["energy_j"] or 0.0


@dataclass
class Stats:
    """Sums over the ledger."""

    total: Tally = field(default_factory=Tally)
    by_stage: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    by_pool: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    by_model: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    retries: Counter[str] = field(default_factory=Counter)  # attempts that did not succeed, by outcome and cause
    films: int = 0
    film_s: float = 0.0  # finished

    def as_json(self) -> dict[str, Any]:
        per = self.film_s or None
        groups = {n: {k: asdict(t) for k, t in getattr(self, n).items()} for n in ("by_stage", "by_pool", "by_model")}
        return {
            "total": asdict(self.total), **groups, "retries": dict(self.retries), "films": self.films,
            "film_s": self.film_s, "gpu_s_per_film_s": self.total.gpu_s / per if per else None,
            "replica_s_per_film_s": self.total.replica_s / per if per else None,
            "cost_per_film_s": self.total.cost / per if per else None,
        }  # fmt: skip


def stats_of(rows: Iterable[dict[str, Any]], finished_s: dict[str, float]) -> Stats:
    """Add rows up.

    Args:
        finished_s: the seconds of each finished film, by job.
    """
    stats, jobs = Stats(), set()
    for row in rows:
        jobs.update(row["jobs"])
        for tally in (
            stats.total, stats.by_stage[row["stage"]], stats.by_pool[row["pool"]],
            stats.by_model[row["model"] or "without a model"],
        ):  # fmt: skip
            tally.add(row)
        if row["outcome"] != "succeeded":
            stats.retries[f"{row['outcome']} {row['cause']}".strip()] += 1
    ours = jobs & finished_s.keys()
    stats.films, stats.film_s = len(ours), sum(finished_s[j] for j in ours)
    return stats


def estimate_of(kinds: Iterable[tuple[str, str]], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What tasks would take: for each, the mean of what those of its stage and model have taken.

    Args:
        kinds: stage and model of each task that is to run.
        rows: of the ledger.
    Returns:
        `replica_s`, `gpu_s` and `cost` in all and by `stages`; None where some task's like has never succeeded.
    """
    sums: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
    for row in rows:
        if row["outcome"] == "succeeded":
            sums[row["stage"], row["model"]].add(row)
    stages: dict[str, dict[str, Any]] = {}
    for stage, model in kinds:
        one, seen = stages.setdefault(stage, {"tasks": 0, **dict.fromkeys(ESTIMATED, 0.0)}), sums.get((stage, model))
        one["tasks"] += 1
        for name in ESTIMATED:
            is_known = seen is not None and one[name] is not None
            one[name] = one[name] + getattr(seen, name) / seen.attempts if seen and is_known else None
    total: dict[str, float | None] = {}
    for name in ESTIMATED:
        values = [one[name] for one in stages.values()]
        total[name] = None if None in values else sum(values)
    return {"stages": stages, **total}
