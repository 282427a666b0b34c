"""The ledger: Parquet that any tool reads, each attempt once, and what it says of costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from farm.store.journal import Wish, read_attempts, write_attempt, write_wish
from farm.store.ledger import compact, read_ledger, stats_of
from farm.store.store import Store
from farm.task import Attempt

DAY_S = 86_400.0
NOON = 1_795_132_800.0  # 2026-11-20 00:00 UTC
DONE = Attempt(
    attempt_id="a1", job="job", task="t" * 64, stage="denoise", label="one", pool="p", replica="p-0", node="n",
    queued_at=NOON, started_at=NOON + 1, ended_at=NOON + 3601, outcome="succeeded", fence=1, model="builtin", gpus=2.0,
    price_per_hour=3.0, info={"energy_j": 100.0, "resumed_at": 3},
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    store.create()
    return store


def test_attempts_become_parquet_by_day_once(store: Store) -> None:
    failed = replace(DONE, attempt_id="a2", outcome="failed", cause="died", reason="x")
    later = replace(DONE, attempt_id="a3", started_at=NOON + DAY_S, ended_at=NOON + DAY_S + 1)
    for attempt in (DONE, failed, later, replace(DONE, reason="the second record of an attempt is passed over")):
        write_attempt(store, attempt)
    assert compact(store, "job") == ["ledger/day=2026-11-20/job-1.parquet", "ledger/day=2026-11-21/job-1.parquet"]
    assert compact(store, "job") == []
    write_attempt(store, replace(DONE, attempt_id="a4", fence=2))
    assert compact(store, "job") == ["ledger/day=2026-11-20/job-2.parquet"]
    table = pq.read_table(str(Path(store.root) / "ledger"))  # as any tool: one table, with the day as a column
    assert table.num_rows == 4
    assert set(table.column("day").to_pylist()) == {"2026-11-20", "2026-11-21"}
    rows = read_ledger(store)
    assert sorted(r["attempt_id"] for r in rows) == ["a1", "a2", "a3", "a4"]
    assert {r["attempt_id"] for r in read_ledger(store, since="2026-11-21")} == {"a3"}
    assert next(r for r in rows if r["attempt_id"] == "a1")["gpu_s"] == 7200
    assert len(read_attempts(store, "job")) == 4


def test_jobs_that_have_not_ended_count_too(store: Store) -> None:
    write_attempt(store, DONE)
    assert read_ledger(store) == []
    write_wish(store, Wish("job", "mp4", False, "farm"))
    assert [r["attempt_id"] for r in read_ledger(store)] == ["a1"]


def test_costs_add_up(store: Store) -> None:
    wasted = replace(DONE, attempt_id="a2", outcome="failed", cause="memory", ended_at=NOON + 1801, stage="decode")
    shared = replace(DONE, job="other")
    for attempt in (DONE, wasted, shared):
        write_attempt(store, attempt)
    compact(store, "job")
    compact(store, "other")
    told = stats_of(read_ledger(store), {"job": 10.0, "other": 20.0, "elsewhere": 99.0}).as_json()
    assert told["total"]["attempts"] == 2  # one of them served both jobs
    assert told["total"]["replica_s"] == 3600 + 1800
    assert told["total"]["gpu_s"] == 2 * (3600 + 1800)
    assert told["total"]["wasted_s"] == 1800
    assert told["total"]["cost"] == pytest.approx(4.5)
    assert told["total"]["energy_j"] == 200
    assert told["by_stage"]["decode"]["attempts"] == 1
    assert told["retries"] == {"failed memory": 1}
    assert (told["films"], told["film_s"]) == (2, 30.0)
    assert told["cost_per_film_s"] == pytest.approx(4.5 / told["film_s"])
