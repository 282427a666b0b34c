"""Clocks that are set while a farm runs."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from farm.clock import steady_time
from farm.service.access import FRESH_S, Keyring, add_key, revoke_key
from farm.store.store import Store

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0])
def test_a_clock_that_is_set_changes_nothing(jump_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    before, wall = steady_time(), time.time
    monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
    assert 0 <= steady_time() - before < 60


def test_a_revoked_key_is_refused_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the wall clock what was read two hours in the future would have been fresh for two hours."""
    store = Store(str(tmp_path / "store"))
    store.create()
    secret = add_key(store, "ann", "operator", at=1.0)
    clock = [10_000.0]
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock[0])
    ring = Keyring(store, steady_time)
    ring.refresh()
    revoke_key(store, "ann", at=2.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    clock[0] += FRESH_S + 1
    ring.refresh()
    assert ring.caller_of(secret) is None


def test_what_runs_for_hours_asks_no_clock_that_jumps() -> None:
    """Where a time is compared with a later one; what is only written down or signed may be the wall's."""
    for name in ("actors", "farm/control", "cluster/http"):
        for path in (ROOT / name).rglob("*.py"):
            assert not re.search(r"\btime\.time\b", path.read_text()), path
