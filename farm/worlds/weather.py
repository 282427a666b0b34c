"""What all inhabitants of a simulated world share: chance, time, files, outages, and the story so far."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from farm.store.store import Store
from farm.task import Task
from farm.worlds.virtual import Files, FileSystem, VirtualLoop

LIMIT_S = 10_000.0  # virtual: a world that has not ended by then never will


class Weather:
    """See the module."""

    def __init__(self, seed: int, *, num_faults: int, log: Callable[[str], None] | None) -> None:
        self.seed, self.rng, self.log, self.num_faults = seed, random.Random(seed), log, num_faults
        self.loop, self.files = VirtualLoop(), Files()
        self.story, self.trace = Counter[str](), hashlib.sha256()
        self.store = self.open_store()
        self.background: set[asyncio.Task[Any]] = set()
        self.outage_until = self.full_until = 0.0
        self.loses_answer = False
        self.bad_node = ""
        self.had_two = False  # controllers, or one that had lost its lease without knowing
        self.is_calm = False
        self.is_exact = not num_faults  # tasks take as long as they should, and answers come at once
        self.poison: set[str] = set()  # tasks that no replica can do
        self.flaky: dict[str, int] = {}  # failures of a task before it succeeds: fewer than end it
        self.hungry: dict[str, int] = {}  # 1: out of memory unless frugal; 2: unless in a larger pool, too
        self.true_failures: Counter[str] = Counter()  # by task, those that may count
        self.replicas: list[Any] = []  # all that ever were, of whatever controller
        self.running: dict[str, list[Any]] = {}  # replicas by the task that they run
        self.faults: list[str] = []

    def open_store(self, harm: Callable[[str, str], None] | None = None) -> Store:
        """The world's store as one process sees it; `harm` is asked before and after each of its calls."""
        fs = FileSystem(self.files, harm) if harm else FileSystem(self.files)
        return Store("sim", fs=fs, sleep=lambda s: None)

    def tell(self, text: str) -> None:
        line = f"{self.loop.time():10.2f} {text}"
        self.trace.update(line.encode())
        if self.log:
            self.log(line)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self.background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.background.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever waits for it, if anybody does

    def harm(self, call: str, when: str) -> None:
        """What may befall a call of the store."""
        now = self.loop.time()
        if now < self.outage_until:
            raise OSError("the store is out of order")
        if call == "write" and when == "before" and now < self.full_until:
            raise OSError(28, "No space left on device")
        if call == "write" and when == "after" and self.loses_answer:
            self.loses_answer = False
            raise OSError("the answer was lost")


def content_of(task: Task) -> bytes:
    """What a task puts out: it depends on its key alone, as the farm promises."""
    digest = hashlib.sha256(f"content of {task.key}".encode()).hexdigest()
    return (json.dumps({"sha": digest, "roll": 0}) + "\n").encode() if task.extension == "jsonl" else digest.encode()
