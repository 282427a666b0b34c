"""Time and files that are not real: an event loop in which waiting takes none, and a file system in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in which waiting takes no time."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._scheduled: list[asyncio.TimerHandle]  # asyncio's own heap of what waits for its time
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the world stands still: everybody waits for somebody")
        if timeout > 0:
            self.now_s = max(self.now_s, self._scheduled[0].when())  # exactly, so that nothing depends on rounding
        return []

    def _process_events(self, event_list: Sequence[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


class Files:
    """What a store is made of: files by name, in memory."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.folders: dict[str, dict[str, None]] = {}

    def put(self, path: str, data: bytes) -> None:
        self.data[path] = data
        while "/" in path:
            path, name = path.rsplit("/", 1)
            self.folders.setdefault(path, {})[name] = None

    def delete(self, path: str) -> None:
        del self.data[path]
        folder, name = path.rsplit("/", 1)
        del self.folders[folder][name]


class FileSystem:
    """The files as one process sees them: the part of fsspec that the store uses. `harm` is asked before and after
    each call."""

    def __init__(self, files: Files, harm: Callable[[str, str], None] = lambda call, when: None) -> None:
        self.files, self.harm = files, harm

    def exists(self, path: str) -> bool:
        self.harm("exists", "before")
        return path in self.files.data

    isfile = exists

    def cat_file(self, path: str) -> bytes:
        self.harm("cat_file", "before")
        if path not in self.files.data:
            raise FileNotFoundError(path)
        return self.files.data[path]

    def cat(self, paths: list[str], on_error: str) -> dict[str, bytes]:
        assert on_error == "omit"
        found = {}
        for path in paths:
            with suppress(OSError):
                found[path] = self.cat_file(path)
        return found

    def ls(self, path: str, detail: bool = False) -> list[str]:
        self.harm("ls", "before")
        if path not in self.files.folders:
            raise FileNotFoundError(path)
        return [f"{path}/{name}" for name in self.files.folders[path]]

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        self.harm("write", "before")
        if mode == "create" and path in self.files.data:
            raise FileExistsError(path)
        self.files.put(path, data)
        self.harm("write", "after")

    def mv(self, source: str, target: str) -> None:
        self.harm("write", "before")
        self.files.put(target, self.cat_file(source))
        self.files.delete(source)

    def rm_file(self, path: str) -> None:
        self.harm("write", "before")
        if path not in self.files.data:
            raise FileNotFoundError(path)
        self.files.delete(path)
        self.harm("write", "after")
