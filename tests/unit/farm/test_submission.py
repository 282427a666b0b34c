"""What a server remembers of the store is what the store says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from in_process import resolve_board

from farm.models.checkpoint import find_checkpoint
from farm.service.submission import Memory, Submission, delete, keep, read_submission, take_room, where
from farm.store.jobs import Job
from farm.store.journal import Journal, Owner, drop_wish, read_standing, take_lease
from farm.store.store import Store


class Counting(Store):
    """A store that counts what is read from it."""

    reads = 0

    def record(self, path: str) -> dict[str, Any]:
        self.reads += 1
        return super().record(path)


def test_a_journal_is_read_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    store = Counting(str(tmp_path / "store"))
    store.create()
    one = Submission("job", "film", "ann", 1.0, "", "builtin", 64, 48, 8.0, 16, (("one", 17, 1),), "mp4")
    store.put_record("jobs/job/submission.json", vars(one))
    memory = Memory(store)
    assert memory.submission("job") == read_submission(store, "job") == one
    journal = take_lease(store, "job", Owner("me"), now=lambda: 5.0)
    assert isinstance(journal, Journal)
    for event in ("submit", "hand out", "pause", "quiet", "resume", "finish"):
        journal.move(event, f"because of {event}")
        assert memory.where(one) == where(store, one)
    before = store.reads
    assert (memory.where(one).state, memory.where(one).num_records) == ("completed", 7)
    assert memory.submission("job") == one
    assert store.reads == before
    delete(store, one, at=9.0)
    assert memory.submission("job") is None
    assert read_submission(store, "job") is None
    assert read_submission(store, "job", deleted=True) == one


def test_a_retry_that_overlaps_the_end_of_its_film_leaves_nothing_counted(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.create()
    one = Submission("job", "film", "ann", 1.0, "", "builtin", 64, 48, 8.0, 16, (("one", 17, 1),), "mp4")
    board = {"size": "64x48", "fps": 8, "shots": [{"id": "one", "prompt": "a ball", "frames": 17}]}
    models = (find_checkpoint("builtin", beside=tmp_path),)
    job = Job("job", resolve_board(board, models[0]).film, models, "")
    take_room(store, one.wish)
    assert keep(store, one, job, {}) == one
    assert len(store.names("open/ann")) == 1
    journal = take_lease(store, "job", Owner("me"), now=lambda: 5.0)
    assert isinstance(journal, Journal)
    for event in ("submit", "hand out", "finish"):
        journal.move(event, event)
    drop_wish(store, one.wish)
    take_room(store, one.wish)
    assert keep(store, replace(one, at=2.0), job, {}) == one
    assert store.names("open/ann") == store.names("queue") == []


def test_what_was_known_of_a_journal_stays_as_it_was(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.create()
    journal = take_lease(store, "job", Owner("me"), now=lambda: 5.0)
    assert isinstance(journal, Journal)
    journal.move("submit", "", order="one")
    before = read_standing(store, "job")
    journal.move("hand out", "", order="two", forgiven=["x"])
    after = read_standing(store, "job", before)
    assert (before.orders, before.state, before.forgiven) == ({"one"}, "queued", set())
    assert after == read_standing(store, "job")


@pytest.mark.parametrize("most", [1, 2])
def test_memory_is_bounded(tmp_path: Path, most: int) -> None:
    store = Store(str(tmp_path / "store"))
    store.create()
    memory = Memory(store, most=most)
    for i in range(5):
        one = Submission(f"job{i}", "film", "ann", 1.0, "", "builtin", 64, 48, 8.0, 16, (("one", 17, 1),), "mp4")
        store.put_record(f"jobs/job{i}/submission.json", vars(one))
        assert memory.submission(f"job{i}") == one
        memory.where(one)
        assert max(len(memory.submissions), len(memory.standings)) <= most
