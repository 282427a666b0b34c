"""The store: immutable artifacts by content key, and small records of jobs, on any fsspec URI.

An artifact exists once its `<key>.json` does, which is written last and holds size and checksum. Nothing is ever
overwritten: data is written under a temporary name and linked to its own, or put if absent; the first one wins.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from farm.errors import DamagedError, DamagedRecord, InputError, StoreError, StoreFull
from farm.keys import parts_of_task
from farm.patience import is_passing, patiently
from farm.store.files import checksum_of, options_of, seconds_of, telling_when_full, write_part
from farm.task import TakeRoll, Task

log = logging.getLogger(__name__)
T = TypeVar("T")
PROBE_BYTES = 2**20
READS = 3  # before bytes that do not match their checksum count as damaged

LAYOUT_VERSION = 1
AREAS = (  # what a store holds
    "artifacts", "frames", "checkpoints", "films", "jobs", "ledger", "damaged", "queue", "last",
    "submissions", "open", "requests", "keys", "audit", "batches", "webhooks",
)  # fmt: skip
LOSSLESS_STAGES = ("decode", "interpolate", "upscale")  # their artifacts are frames: the first to be collected


def artifact_path(task: Task) -> str:
    """Where a task's artifact lies in the store: `artifacts/ab/abcd....safetensors`."""
    is_frames = task.stage in LOSSLESS_STAGES or (isinstance(task.request, TakeRoll) and task.extension == "mkv")
    folder = "frames" if is_frames else "artifacts"
    return f"{folder}/{task.key[:2]}/{task.key}.{task.extension}"


def sidecar_path(path: str) -> str:
    return f"{path.rsplit('.', 1)[0]}.json"


@dataclass(frozen=True)
class StoredFile:
    """A file of a store; `modified` in seconds since the epoch, 0 where the store does not tell."""

    path: str
    size: int
    modified: float


class Store:
    """One store; all paths are relative to its URI. Opening one writes nothing."""

    def __init__(self, uri: str, *, fs: Any = None, sleep: Callable[[float], None] = time.sleep) -> None:
        """Open a store.

        Args:
            fs: the file system, where the URI does not tell.
            sleep: how to wait before a distant store is tried again.
        """
        self.uri, self.sleep = uri, sleep
        try:
            self.fs, root = (fs, uri) if fs is not None else fsspec.core.url_to_fs(uri, **options_of(uri))
        except (ValueError, ImportError) as e:
            raise InputError(f"store must be a folder or an fsspec URI, got {uri!r}: {e}") from None
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def _do(self, work: Callable[[], T]) -> T:
        """A call of the file system; what is far away is tried again after errors that may pass."""
        with telling_when_full(self.uri):
            try:
                return work() if self.is_local else patiently(work, sleep=self.sleep)
            except Exception as e:
                if isinstance(e, OSError) or not is_passing(e):
                    raise
                raise OSError(f"{type(e).__name__}: {e}") from e  # of a client's library, whichever it is

    def full(self, path: str) -> str:
        return f"{self.root}/{path}"

    def place(self, path: str) -> str:
        """Where people find a file: its path, or its URI."""
        return self.full(path) if self.is_local else f"{self.uri.rstrip('/')}/{path}"

    def local_path_of(self, task: Task) -> Path | None:
        """The file of an artifact that exists, where the store is a local folder.

        Raises:
            DamagedError: as `read`.
        """
        path = artifact_path(task)
        if not self.is_local or not self.has(task):
            return None
        full = Path(self.full(path))
        if not full.is_file() or checksum_of(full)[0] != self._told_checksum(path):
            raise self._damaged(task)
        return full

    # -- the store as a whole

    def check(self) -> None:
        """Refuse what is not a store of ours; writes nothing.

        Raises:
            InputError: the folder holds other things, or a newer layout than this code knows.
        """
        try:
            layout = json.loads(self.cat("layout.json"))
        except FileNotFoundError:
            if self._do(lambda: self.fs.isfile(self.root)):
                raise InputError(f"store must be a folder, got the file {self.root}") from None
            names = set(self.names(""))
            if names and not ("jobs" in names and names <= set(AREAS)):  # that was deleted while a film was rendered
                raise InputError(
                    f"store must be an empty folder or a store of the farm, got {self.uri}, which holds other files; "
                    "name a new folder"
                ) from None
            return
        except (ValueError, OSError) as e:
            raise InputError(f"store {self.uri} cannot be read: layout.json: {e}") from None
        version = layout.get("version") if isinstance(layout, dict) else None
        if not isinstance(version, int) or version > LAYOUT_VERSION:
            raise InputError(
                f"store {self.uri} has layout version {version}, this farm knows up to {LAYOUT_VERSION}; "
                "update the farm or name another store"
            )

    def create(self) -> None:
        """Make the store ready to be written to.

        Raises:
            InputError: it is not a store of ours (see `check`) or cannot be written.
        """
        self.check()
        try:
            self.put_record("layout.json", {"version": LAYOUT_VERSION})
        except (OSError, StoreFull) as e:
            raise InputError(f"store {self.uri} must be writable: {e}") from None

    # -- artifacts

    def has(self, task: Task) -> bool:
        return self.exists(sidecar_path(artifact_path(task)))

    def put(self, task: Task, data: bytes | Path, *, info: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keep a task's output; where there already is one, that one stays. Returns what stands beside it."""
        path = artifact_path(task)
        if self.put_if_absent(path, data):
            checksum, size = checksum_of(data)
        else:  # another writer was first, and may not have come to its record yet: describe what lies there
            checksum, size = checksum_of(self.cat(path))
        record = {
            "key": task.key, "parts": parts_of_task(task), "size": size, "sha256": checksum, "label": task.label,
            "info": dict(info or {}), "machine": platform.machine(),
        }  # fmt: skip
        if not self.put_record(sidecar_path(path), record):
            record = self.record(sidecar_path(path))
        return record

    def read(self, task: Task) -> bytes:
        """An artifact's bytes.

        Raises:
            DamagedError: it does not match its checksum, or only half of it is there; it has been set aside.
            StoreError: it is missing.
        """
        path = artifact_path(task)
        try:
            told = self._told_checksum(path)
        except FileNotFoundError as e:
            raise StoreError(f"artifact {path} is missing from {self.uri}: {e}") from None
        for _ in range(READS):  # a read can break off without a word
            try:
                data = self.cat(path)
            except FileNotFoundError:
                break
            if hashlib.sha256(data).hexdigest() == told:
                return data
        raise self._damaged(task)

    def _told_checksum(self, path: str) -> str:
        """What an artifact's record says; nothing where that cannot be read."""
        try:
            return str(self.record(sidecar_path(path))["sha256"])
        except (ValueError, KeyError):
            return ""

    def _damaged(self, task: Task) -> DamagedError:
        """Take a damaged artifact out of the way, its record first: without that one it does not exist."""
        path = artifact_path(task)
        name = f"damaged/{path.rsplit('/', 1)[-1]}.{uuid.uuid4().hex[:8]}"
        self.move(sidecar_path(path), f"{name}.record")
        self.move(path, name)
        message = f"artifact {path} of {self.uri} is damaged: it does not match its checksum; it was set aside"
        return DamagedError(message, task.key)

    def put_if_absent(self, path: str, data: bytes | Path) -> bool:
        """Write a file, whole or not at all; False where one was there."""
        if not self.is_local:
            return self._create(path, data.read_bytes() if isinstance(data, Path) else data)
        full = Path(self.full(path))
        part = full.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with telling_when_full(self.uri):
                full.parent.mkdir(parents=True, exist_ok=True)
                write_part(part, data)
                os.link(part, full)
        except FileExistsError:
            return False
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        return True

    def _create(self, path: str, data: bytes) -> bool:
        try:
            self._do(lambda: self.fs.pipe_file(self.full(path), data, mode="create"))
        except FileExistsError:  # also where the first try had come through and only its answer was lost
            return False
        return True

    # -- records

    def put_record(self, path: str, record: Mapping[str, Any]) -> bool:
        """Write a small JSON object if absent; False where one was there."""
        return self.put_if_absent(path, json.dumps(record, sort_keys=True).encode())

    def record(self, path: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            FileNotFoundError: there is none.
            DamagedRecord: it is none.
        """
        try:
            value = json.loads(self.cat(path))
        except (ValueError, RecursionError) as e:
            raise DamagedRecord(f"record {path} of {self.uri} is damaged: {e}") from None
        if not isinstance(value, dict):
            raise DamagedRecord(f"record {path} of {self.uri} is damaged: must be an object, got {value!r:.60}")
        return value

    def records(self, folder: str) -> Iterator[dict[str, Any]]:
        """All JSON records of a folder, by name, without those that are damaged."""
        for name in self.names(folder):
            if name.endswith(".json"):
                try:
                    yield self.record(f"{folder}/{name}")
                except DamagedRecord as e:
                    log.warning("%s; it is passed over", e)

    # -- files

    def cat(self, path: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        return bytes(self._do(lambda: self.fs.cat_file(self.full(path))))

    def cat_many(self, folder: str, names: Sequence[str]) -> dict[str, bytes]:
        """The bytes of files of a folder by name, read at once where the store can; without those that could not be."""
        paths = [self.full(f"{folder}/{name}") for name in names]
        found = self._do(lambda: self.fs.cat(paths, on_error="omit")) if paths else {}
        return {str(path).rsplit("/", 1)[-1]: bytes(data) for path, data in found.items()}

    def cat_part(self, path: str, first: int, end: int) -> bytes:
        """The bytes of a file from `first` up to, and without, `end`."""
        return bytes(self._do(lambda: self.fs.cat_file(self.full(path), start=first, end=end)))

    def exists(self, path: str) -> bool:
        return bool(self._do(lambda: self.fs.exists(self.full(path))))

    def names(self, folder: str) -> list[str]:
        """Names of what lies in a folder, sorted; none where it does not exist."""
        full = self.full(folder) if folder else self.root
        try:
            if self.is_local:  # fsspec takes four times as long over thousands
                return sorted(self._do(lambda: os.listdir(full)))
            found = self._do(lambda: self.fs.ls(full, detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)

    def files(self, folder: str) -> list[StoredFile]:
        """Everything below a folder, by path."""
        try:
            found: dict[str, dict[str, Any]] = self._do(lambda: self.fs.find(self.full(folder), detail=True))
        except FileNotFoundError:
            return []
        start = len(self.full("").lstrip("/"))
        return [
            StoredFile(path.lstrip("/")[start:], int(told.get("size") or 0), seconds_of(told))
            for path, told in sorted(found.items()) if told.get("type") == "file"
        ]  # fmt: skip

    def move(self, path: str, target: str) -> None:
        """Rename a file; nothing happens where there is none."""
        if self.is_local:
            Path(self.full(target)).parent.mkdir(exist_ok=True, parents=True)
        with suppress(FileNotFoundError):
            self._do(lambda: self.fs.mv(self.full(path), self.full(target)))

    def size(self, path: str) -> int:
        return int(self._do(lambda: self.fs.size(self.full(path))))

    def probe(self) -> None:
        """Find out whether there is room.

        Raises:
            StoreFull: there is none.
        """
        path = f"jobs/.probe-{uuid.uuid4().hex[:8]}"
        try:
            self.publish(path, bytes(PROBE_BYTES))
        finally:
            with suppress(OSError, StoreError):
                self.remove(path)

    def forget(self, task: Task) -> None:
        """Delete an artifact, its record first: the task will run again."""
        path = artifact_path(task)
        self.remove(sidecar_path(path))
        self.remove(path)

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens where there is none."""
        with suppress(FileNotFoundError):
            self._do(lambda: self.fs.rm_file(self.full(path)))

    def remove_folder(self, path: str) -> None:
        """Delete an empty folder, where the store has such things."""
        if self.is_local:
            with suppress(OSError):
                Path(self.full(path)).rmdir()

    # -- views: files that may be written again (the film under its job, the report)

    def publish(self, path: str, data: bytes | Path) -> str:
        """Put a copy under a name that people look for, replacing what was there at once. Returns its place."""
        full = self.full(path)
        if self.is_local:
            target = Path(full)
            part = target.with_name(f".{uuid.uuid4().hex}.part")
            try:
                with telling_when_full(self.uri):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if isinstance(data, Path):
                        shutil.copyfile(data, part)  # not a link: people edit what they find; artifacts must not change
                    else:
                        part.write_bytes(data)
                    part.replace(target)
            finally:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
        elif isinstance(data, Path):
            source = str(data)
            self._do(lambda: self.fs.put_file(source, full))
        else:
            content = data
            self._do(lambda: self.fs.pipe_file(full, content))
        return self.place(path)
