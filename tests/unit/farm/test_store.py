"""The store: put if absent, checksums, records; on a local folder and on another fsspec file system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from farm.errors import InputError, StoreError
from farm.keys import make_task
from farm.store.store import Store, artifact_path, sidecar_path
from farm.task import Decode, EncodeText

TASK = make_task("encode", EncodeText("wan", "a ball", 8), extension="safetensors", label="a ball")
FRAMES = make_task("decode", Decode("wan", ((0, 3),), 0, True, 0, 9), extension="mkv", inputs=("0" * 64,))


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    yield Store(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}")
    fsspec.filesystem("memory").store.clear()


def test_what_is_put_can_be_read(store: Store) -> None:
    assert not store.has(TASK)
    record = store.put(TASK, b"embeddings", info={"note": 1})
    assert store.has(TASK)
    assert store.read(TASK) == b"embeddings"
    assert record["size"] == 10
    beside = store.record(sidecar_path(artifact_path(TASK)))
    assert beside["parts"]["parameters"]["prompt"] == "a ball"


def test_the_first_artifact_of_a_key_wins(store: Store) -> None:
    store.put(TASK, b"first")
    assert store.put(TASK, b"second!")["size"] == 5
    assert store.read(TASK) == b"first"


def test_an_artifact_lies_where_its_kind_lies() -> None:
    assert artifact_path(TASK) == f"artifacts/{TASK.key[:2]}/{TASK.key}.safetensors"
    assert artifact_path(FRAMES) == f"frames/{FRAMES.key[:2]}/{FRAMES.key}.mkv"


def test_damage_is_noticed(store: Store) -> None:
    store.put(TASK, b"embeddings")
    store.publish(artifact_path(TASK), b"embeddingz")
    with pytest.raises(StoreError, match="damaged"):
        store.read(TASK)


def test_a_missing_artifact_is_told(store: Store) -> None:
    with pytest.raises(StoreError, match="missing"):
        store.read(TASK)


def test_data_that_a_crash_left_without_its_record_gets_one(store: Store) -> None:
    store.put(TASK, b"first")
    store.fs.rm_file(store.full(sidecar_path(artifact_path(TASK))))
    assert not store.has(TASK)
    assert store.put(TASK, b"second!")["size"] == 5
    assert store.read(TASK) == b"first"


def test_many_writers_of_one_key_leave_one_whole_artifact(tmp_path: Path) -> None:
    contents = [bytes([i]) * 200_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: Store(str(tmp_path)).put(TASK, data), contents))
    assert Store(str(tmp_path)).read(TASK) in contents
    assert not list(tmp_path.rglob("*.part"))


def test_files_are_taken_over_without_a_copy(tmp_path: Path) -> None:
    source = tmp_path / "clip"
    source.write_bytes(b"clip")
    store = Store(str(tmp_path / "store"))
    store.put(TASK, source)
    kept = store.local_path_of(TASK)
    assert kept is not None
    assert kept.stat().st_ino == source.stat().st_ino


def test_opening_and_checking_write_nothing(tmp_path: Path) -> None:
    Store(str(tmp_path / "none")).check()
    assert not (tmp_path / "none").exists()


def test_a_newer_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "layout.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(InputError, match="version 99"):
        Store(str(tmp_path)).check()


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(InputError, match="fsspec"):
        Store("nonsense://somewhere")
