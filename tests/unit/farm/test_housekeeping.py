"""What can go from a store, and what is wrong in it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from farm.errors import StoreError
from farm.keys import make_task
from farm.store.housekeeping import collectable, delete, list_areas, set_aside, verify
from farm.store.journal import Owner, take_lease
from farm.store.store import Store, artifact_path
from farm.task import Decode, EncodeText, Task

DAY_S = 86_400.0


def text(prompt: str) -> Task:
    return make_task("encode", EncodeText("wan", prompt, 8), extension="safetensors", label=prompt)


FRAMES = make_task("decode", Decode("wan", ((0, 1),), 0, True, 0, 1), extension="mkv", label="one")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A job that has ended and needs `kept` and the frames, and what nobody needs."""
    store = Store(str(tmp_path / "store"))
    store.create()
    for task in (text("kept"), text("nobody's"), FRAMES):
        store.put(task, task.key.encode())
    add_job(store, "ended", [text("kept"), FRAMES], state="completed")
    return store


def add_job(store: Store, job: str, tasks: list[Task], *, state: str) -> None:
    rows = [["", "", i, task.key, artifact_path(task)] for i, task in enumerate(tasks)]
    store.publish(f"jobs/{job}/plan.mp4.json", json.dumps(rows).encode())
    journal = take_lease(store, job, Owner("me"), now=lambda: 0.0)
    journal.move("submit", "asked for")  # type: ignore[union-attr]
    if state == "completed":
        journal.move("finish", "done")  # type: ignore[union-attr]


def collected(store: Store, *, days: float = 0.0) -> list[tuple[str, str]]:
    found = collectable(store, older_than_s=days * DAY_S, now=time.time() + 1)
    return [(Path(f.path).name.split(".")[0][:6], f.what) for f in found if f.path.endswith((".mkv", ".safetensors"))]


def test_lossless_frames_go_first_and_then_what_no_job_refers_to(store: Store) -> None:
    assert collected(store) == [
        (FRAMES.key[:6], "lossless frames, made again from latents"), (text("nobody's").key[:6], "no job refers to it"),
    ]  # fmt: skip
    assert collected(store, days=1) == []
    found = collectable(store, older_than_s=0.0, now=time.time() + 1)
    assert delete(store, found) == sum(f.size for f in found)
    assert store.has(text("kept"))
    assert not store.has(FRAMES)
    assert not (Path(store.root) / artifact_path(FRAMES)).exists()
    assert collected(store) == []


def test_what_a_job_that_has_not_ended_needs_stays(store: Store) -> None:
    add_job(store, "open", [text("nobody's"), FRAMES], state="active")
    store.put_if_absent(f"checkpoints/{FRAMES.key[:2]}/{FRAMES.key}/000001-x-y.safetensors", b"x")
    assert collected(store) == []


def test_nothing_goes_while_a_jobs_needs_cannot_be_read(store: Store) -> None:
    store.publish("jobs/ended/plan.mp4.json", b"[[")
    with pytest.raises(StoreError, match="cannot be read"):
        collected(store)


def test_verifying_finds_every_kind_of_damage_and_sets_it_aside(store: Store) -> None:
    assert list(verify(store, now=time.time())) == []
    root = Path(store.root)
    (root / artifact_path(text("kept"))).write_bytes(b"short")
    frames = root / artifact_path(FRAMES)
    frames.write_bytes(FRAMES.key[::-1].encode())
    (root / "artifacts" / "ab").mkdir(exist_ok=True)
    lonely = root / "artifacts" / "ab" / f"ab{62 * '0'}.mp4"
    lonely.write_bytes(b"half")
    assert len(list(verify(store, now=time.time()))) == 2  # somebody may be writing the lonely one
    os.utime(lonely, (0, 0))
    (root / artifact_path(text("nobody's"))).unlink()
    found = {Path(f.path).name[:6]: f.what for f in verify(store, now=time.time())}
    assert "must have 64 bytes, got 5" in found[text("kept").key[:6]]
    assert "does not match" in found[FRAMES.key[:6]]
    assert "no record" in found["ab0000"]
    assert "its artifact is missing" in found[text("nobody's").key[:6]]
    for finding in list(verify(store, now=time.time())):
        set_aside(store, finding)
    assert list(verify(store, now=time.time())) == []
    assert not store.has(text("kept"))
    assert next(a for a in list_areas(store) if a["area"] == "damaged")["files"] >= 5
