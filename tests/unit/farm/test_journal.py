"""A job's log, lease and orders: two controllers never both believe that they hold it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from farm.control.queue import Waiting
from farm.errors import InputError, LeaseLost
from farm.store.journal import (
    LEASE_S,
    Held,
    Journal,
    Owner,
    Watch,
    Wish,
    drop_wish,
    log_path,
    look_at_lease,
    new_orders,
    read_attempts,
    read_log,
    read_standing,
    take_lease,
    write_order,
    write_wish,
)
from farm.store.store import Store
from farm.worlds.audit import faults_of_log

ONE, TWO = Owner("one", "machine", 1, 1.0), Owner("two", "machine", 2, 2.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    store.create()
    return store


def lease(store: Store, owner: Owner, *, stale: Held | None = None) -> Journal:
    got = take_lease(store, "job", owner, now=lambda: 5.0, stale=stale)
    assert isinstance(got, Journal)
    return got


def test_a_job_has_one_holder_until_that_gives_it_back(store: Store) -> None:
    journal = lease(store, ONE)
    journal.move("submit", "asked for")
    held = take_lease(store, "job", TWO, now=lambda: 5.0)
    assert held == Held(1, ONE, 0)
    journal.release()
    assert lease(store, TWO).fence == 2
    assert faults_of_log(store, "job") == []


def test_a_holder_that_stands_still_is_followed_by_the_next_fence_and_can_write_nothing_more(store: Store) -> None:
    old = lease(store, ONE)
    old.move("submit", "asked for")
    old.beat()
    held = take_lease(store, "job", TWO, now=lambda: 5.0)
    assert isinstance(held, Held)
    assert isinstance(
        take_lease(store, "job", TWO, now=lambda: 5.0, stale=Held(1, ONE, 0)), Held
    )  # it has beaten since
    new = lease(store, TWO, stale=held)
    assert new.fence == 2
    new.move("take over", "one is silent")
    with pytest.raises(LeaseLost, match="has passed"):
        old.move("hand out", "late")
    with pytest.raises(LeaseLost, match="has passed"):
        old.beat()
    assert [r["fence"] for r in read_log(store, "job")] == [1, 1, 2, 2]
    assert faults_of_log(store, "job") == []


def test_a_dead_holder_is_followed_at_once(store: Store) -> None:
    lease(store, ONE)
    got = take_lease(store, "job", TWO, now=lambda: 5.0, is_dead=lambda owner: owner == ONE)
    assert isinstance(got, Journal)


def test_a_silence_is_measured_by_the_watchers_clock_and_ended_by_any_sign() -> None:
    watch = Watch(Held(1, ONE, 3), since=100.0)
    assert not watch.look(Held(1, ONE, 3), 100.0 + LEASE_S - 0.1)
    assert not watch.look(Held(1, ONE, 4), 100.0 + LEASE_S)
    assert not watch.look(Held(1, ONE, 4), 100.0 + 2 * LEASE_S - 0.1)
    assert watch.look(Held(1, ONE, 4), 100.0 + 2 * LEASE_S)


def test_a_record_whose_answer_was_lost_is_not_written_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, put = lease(store, ONE), Store.put_if_absent

    def forgetful(self: Store, path: str, data: bytes | Path) -> bool:
        assert put(self, path, data)
        monkeypatch.setattr(Store, "put_if_absent", put)
        raise OSError("the answer was lost")

    monkeypatch.setattr(Store, "put_if_absent", forgetful)
    with pytest.raises(OSError, match="lost"):
        journal.move("submit", "asked for")
    journal.move("submit", "asked for")
    assert [r["kind"] for r in read_log(store, "job")] == ["lease", "state"]
    assert journal.standing.state == "queued"


def test_a_standing_says_what_a_log_comes_to(store: Store) -> None:
    journal = lease(store, ONE)
    journal.move("submit", "asked for")
    journal.append("note", order="x", priority=90, forgiven=["a"])
    journal.move("pause", "no room", by_farm=True)
    standing = read_standing(store, "job")
    assert (standing.state, standing.reason, standing.priority) == ("paused", "no room", 90)
    assert (standing.orders, standing.forgiven, standing.paused_by_farm) == ({"x"}, {"a"}, True)
    assert standing.is_open
    assert (standing.position, standing.fence, standing.run_fence) == (4, 1, 1)


def test_the_audit_finds_a_log_that_somebody_forged(store: Store) -> None:
    journal = lease(store, ONE)
    journal.move("submit", "asked for")
    forged = {"kind": "state", "state": "paused", "event": "quiet", "fence": 7, "writer": "x", "at": 0, "reason": ""}
    store.put_record(log_path("job", 3), forged)
    found = faults_of_log(store, "job")
    assert len(found) == 3
    assert any("which it does not hold" in f for f in found)
    assert any("must not become paused" in f for f in found)


def test_orders_wait_until_they_are_carried_out_and_revive_what_has_ended(store: Store) -> None:
    with pytest.raises(InputError, match="there is no job"):
        write_order(store, "job", "pause", by="me", at=1.0)
    store.publish("jobs/job/job.json", b"{}")
    with pytest.raises(InputError, match="must be one of"):
        write_order(store, "job", "stop", by="me", at=1.0)
    wish = Wish("job", "mp4", False, "farm")
    write_wish(store, wish)
    drop_wish(store, wish)
    first = write_order(store, "job", "pause", by="me", at=1.0)
    second = write_order(store, "job", "priority", by="me", at=2.0, priority=90)
    assert [name for name, _ in new_orders(store, "job", set())] == [first, second]
    assert [told["priority"] for _, told in new_orders(store, "job", {first})] == [90]
    assert Waiting(store, time.time).look() == []
    write_order(store, "job", "requeue", by="me", at=3.0)
    assert Waiting(store, time.time).look() == [wish]
    assert Waiting(store, time.time).look([wish.name]) == []


@pytest.mark.parametrize("harm", ["cut", "gone", "another thing", "half of what it must have"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_log_with_a_damaged_record_goes_on(harm: str, number: int, store: Store) -> None:
    first = lease(store, ONE)
    for event in ("submit", "hand out", "finish"):
        first.move(event, event)
    path = log_path("job", number)
    data = store.cat(path)
    store.remove(path)
    if harm != "gone":
        new = {"cut": data[:20], "another thing": b"[1]", "half of what it must have": b'{"kind": "state"}'}[harm]
        store.put_if_absent(path, new)
    standing = read_standing(store, "job")
    assert standing.position == (3 if (harm, number) == ("gone", 4) else 4)
    if number != 4:
        assert standing.state == "completed"
    held = look_at_lease(store, "job")
    again = lease(store, TWO, stale=held)
    wanted = "completed" if number == 4 else "queued"  # its end was lost: it is brought to its end again
    assert again.move("finish" if number == 4 else "submit", "again") == wanted
    assert read_standing(store, "job").state == wanted


def test_damaged_orders_and_attempts_are_passed_over(store: Store) -> None:
    lease(store, ONE)
    store.publish("jobs/job/job.json", b"{}")
    write_order(store, "job", "pause", by="ann", at=1.0)
    store.publish("jobs/job/orders/000000000000500-x.json", b"{")
    assert [told["order"] for _, told in new_orders(store, "job", set())] == ["pause"]
    store.publish("jobs/job/attempts/a.json", b"[]")
    store.publish("jobs/job/attempts/b.json", b'{"attempt_id": "b"}')
    assert read_attempts(store, "job") == []


def test_a_holder_whose_lease_is_damaged_cannot_write_beside_the_next_one(store: Store) -> None:
    first = lease(store, ONE)
    first.move("submit", "it begins")
    store.publish(log_path("job", 1), b"{")
    held = look_at_lease(store, "job")
    second = take_lease(store, "job", TWO, now=lambda: 5.0, stale=held)
    assert isinstance(second, Journal)
    assert second.fence > first.fence
    with pytest.raises(LeaseLost):
        first.beat()
    with pytest.raises(LeaseLost):
        first.move("hand out", "it does not know yet")
    second.beat()
    assert second.move("take over", "from one") == "queued"


def test_a_lease_of_a_newer_version_holds(store: Store) -> None:
    journal = lease(store, ONE)
    record = store.record(log_path("job", 1))
    record["owner"]["rack"] = "b7"
    store.publish(log_path("job", 1), json.dumps(record).encode())
    assert isinstance(take_lease(store, "job", TWO, now=lambda: 5.0), Held)
    journal.beat()


def test_a_damaged_record_of_a_living_holder_does_not_make_it_look_dead(store: Store) -> None:
    journal = lease(store, ONE)
    journal.move("submit", "it begins")
    store.publish(log_path("job", 2), b"{")
    journal.beat()
    first = look_at_lease(store, "job")
    journal.beat()
    second = look_at_lease(store, "job")
    assert first is not None and second is not None
    assert (first.fence, second.fence, second.beat - first.beat) == (1, 1, 1)
