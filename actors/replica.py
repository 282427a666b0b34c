"""A replica: one process that holds loaded stages and runs one task at a time.

Tasks run in the actor's own thread; health, cancel and store writes have threads of their own, so they are answered
while a task computes. A finished value is handed to Ray's object store first and persisted afterwards (`persist`), so
that the next stage does not wait for the store.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import logging
import os
import platform
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from farm.errors import DamagedError, FarmError, InputError, StoreError, TaskCanceled
from farm.pools import THREAD_ENVIRONMENT
from farm.store import Store
from farm.task import Outcome, Task

from .lending import Helpers

log = logging.getLogger(__name__)
FETCH_TIMEOUT_S = 120.0  # for an input in the object store, before it is read from the store instead
Loaded = tuple[str, tuple[tuple[str, str], ...]]  # folder and (component, fingerprint): a folder's weights may change
MODEL_STAGES = {"encode", "denoise", "decode", "interpolate"}


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is told when it is made; `numerics` by stage."""

    name: str
    pool: str
    stages: tuple[str, ...]
    numerics: dict[str, dict[str, Any]]
    cpus: int
    gpus: float
    store_uri: str
    package: str  # whose modules are the stages: `pipelines`, or stand-ins of a benchmark


@dataclass(frozen=True)
class Ran:
    """How an attempt went, before its output is persisted. `value` refers to the artifact's bytes."""

    outcome: Outcome
    started_at: float
    ended_at: float
    load_s: float = 0.0
    reason: str = ""
    value: Any = None
    peak_memory_bytes: int = 0
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """What a replica is doing; `preview` only where it is new."""

    task: str | None
    step: int
    num_steps: int
    preview: bytes


@functools.cache
def made_with() -> dict[str, str]:
    """Versions and CPU instruction set: what else decides bits; kept beside every artifact."""
    packages = ("longtake", "torch", "diffusers", "transformers", "av", "imageio-ffmpeg", "numpy",
                "opencv-python-headless")  # fmt: skip
    versions = {p: importlib.metadata.version(p) for p in packages}
    torch = sys.modules.get("torch")
    return versions | {"cpu": torch.backends.cpu.get_cpu_capability() if torch else platform.machine()}


def trim_memory() -> None:
    """Give freed memory back to the system: glibc keeps it, and a replica's grows with every task."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


class _Inputs(Sequence[bytes | Path]):
    """A task's inputs, each fetched when it is asked for, so that a long shot's frames are never in memory together."""

    def __init__(self, fetch: Callable[[Task, Any], bytes | Path], sources: Sequence[tuple[Task, Any]]) -> None:
        self.fetch, self.sources = fetch, sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Inputs(self.fetch, self.sources[index])
        return self.fetch(*self.sources[index])


class Replica:
    """See the module; made by `actors.pool.Replicas`."""

    def __init__(self, spec: ReplicaSpec) -> None:
        os.environ.update(THREAD_ENVIRONMENT)
        if not spec.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset for actors without GPUs: they would see all
        self.spec, self.store = spec, Store(spec.store_uri)
        self.loaded: dict[str, dict[Loaded, Any]] = {}  # stage to its objects, by what they were loaded from
        self.unsaved: dict[str, tuple[Task, Any, dict[str, Any]]] = {}
        self.progress: Any = None
        self.current: str | None = None
        self.canceled: set[str] = set()
        self.helpers: Helpers | None = None  # of the task that runs here
        self.lent: tuple[int, str, dict[str, Any]] = (0, "", {})  # the last word of the controller on helpers
        self.assisting: tuple[str, Any, Any] | None = None  # key of another's task, its stage, predictions by slice
        if MODEL_STAGES & set(spec.stages):
            import torch

            torch.set_num_threads(spec.cpus)

    @ray.method(concurrency_group="io")
    def where(self) -> tuple[str, int]:
        """The node's id and the process id; answers once the replica has started."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    @ray.method(concurrency_group="io")
    def status(self) -> Status:
        progress, task = self.progress, self.current
        if progress is None or task is None:
            return Status(None, 0, 1, b"")
        preview, progress.preview = progress.preview, b""
        return Status(task, progress.step, progress.num_steps, preview)

    @ray.method(concurrency_group="io")
    def cancel(self, key: str) -> None:
        """Stop a task between two of its steps; also one that has not started yet."""
        self.canceled.add(key)
        if self.current == key and self.progress is not None:
            self.progress.canceled = True

    @ray.method(concurrency_group="io")
    def lend(self, number: int, key: str, handles: dict[str, Any]) -> None:
        """Say which idle replicas may predict slices of a task of this one, from its next step on.

        It may come before that task has begun, and after a later one of a higher number.
        """
        self.lent = max(self.lent, (number, key, handles), key=lambda told: told[0])
        if self.helpers is not None:
            self.helpers.hear(*self.lent[1:])

    def prepare(self, task: Task, inputs: Sequence[tuple[Task, Any]]) -> None:
        """Get ready to predict slices of a task that another replica runs."""
        self.assisting = None  # it may hold another model
        stage, _ = self._stage(task.stage, (task.model, task.components))
        predicts, _ = stage.predicts(task.request, _Inputs(self._input, inputs))
        self.assisting = (task.key, stage, predicts)

    def assist(self, key: str, payload: bytes) -> bytes:
        """Predict some slices of that task at one step."""
        if self.assisting is None or self.assisting[0] != key:
            raise StoreError(f"this replica is not ready to predict slices of {key}")
        _, stage, predicts = self.assisting
        return bytes(stage.assist(predicts, payload))

    @ray.method(concurrency_group="store")
    def persist(self, key: str) -> int:
        """Write a finished task's artifact to the store; its size in bytes."""
        task, artifact, info = self.unsaved[key]
        try:
            record = self.store.put(task, artifact, info=info)
        finally:
            self.unsaved.pop(key, None)
            if isinstance(artifact, Path):
                shutil.rmtree(artifact.parent, ignore_errors=True)  # the stage made the folder for it alone
        return int(record["size"])

    def warm(self, wanted: Sequence[tuple[str, str, tuple[tuple[str, str], ...]]]) -> None:
        """Load stages before their first task comes: (stage, model folder, components with fingerprints)."""
        for stage, model, components in wanted:
            try:
                self._stage(stage, (model, components))
            except Exception as e:  # noqa: BLE001  # told by the task that needs it
                log.info("warming %s failed: %s", stage, e)

    def run(self, task: Task, inputs: Sequence[tuple[Task, Any]]) -> Ran:
        """Run one task.

        Args:
            inputs: each input's task and, where its value is still in the object store, a reference to its bytes.
        """
        started_at, load_s = time.time(), 0.0
        try:
            from pipelines import rolls
            from pipelines.stage import Progress

            self.assisting, self.helpers = None, Helpers(task.key)
            self.helpers.hear(*self.lent[1:])
            self.progress = Progress(canceled=task.key in self.canceled, share=self.helpers)
            self.current = task.key
            stage, load_s = self._stage(task.stage, (task.model, task.components))
            result = rolls.run(stage, task.request, _Inputs(self._input, inputs), self.progress)
            self.unsaved[task.key] = (task, result.artifact, {**result.info, "made_with": made_with()})
            value = ray.put(result.artifact) if isinstance(result.artifact, bytes) else None
            info = {"first_step_at": self.progress.first_step_at, "slices_given": self.helpers.num_given, **result.info}
            return self._ran("succeeded", started_at, load_s, value=value, info=info)
        except TaskCanceled as e:
            return self._ran("canceled", started_at, load_s, reason=str(e))
        except Exception as e:  # noqa: BLE001  # translated: the controller decides what to do with it
            log.warning("task %s failed:\n%s", task.key, traceback.format_exc())
            info = {"input_error": isinstance(e, InputError), "input_missing": isinstance(e, StoreError)}
            if isinstance(e, DamagedError):
                info["damaged"] = e.key
            reason = str(e) if isinstance(e, FarmError) else f"{type(e).__name__}: {e}"
            return self._ran("failed", started_at, load_s, reason=reason[:2000], info=info)
        finally:
            self.current = self.progress = self.helpers = None
            self.canceled.discard(task.key)
            trim_memory()

    def _stage(self, stage: str, origin: Loaded) -> tuple[Any, float]:
        """The loaded stage and the seconds that loading it took now.

        A stage keeps one model: several objects only where its kinds of tasks use different components of it.
        """
        if stage in MODEL_STAGES:
            import torch

            torch.set_flush_denormal(True)  # a property of the thread that computes
        ours = self.loaded.setdefault(stage, {})
        if origin in ours:
            return ours[origin], 0.0
        folder, components = origin
        names = tuple(name for name, _ in components)
        for old_folder, old in list(ours):
            if old_folder != folder or {n for n, _ in old} & set(names):
                del ours[old_folder, old]
        started = time.perf_counter()
        module = importlib.import_module(f"{self.spec.package}.{stage}")
        built = ours[origin] = module.Stage(folder, names, **self.spec.numerics.get(stage, {}))
        return built, time.perf_counter() - started

    def _input(self, source: Task, value: Any) -> bytes | Path:
        if value is not None:
            try:
                return bytes(ray.get(value, timeout=FETCH_TIMEOUT_S))
            except (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError) as e:
                log.info("value of %s is gone (%s); reading the store", source.key, type(e).__name__)
        if source.stage == "assemble" and (path := self.store.local_path_of(source)):
            return path
        return self.store.read(source)

    def _ran(self, outcome: Outcome, started_at: float, load_s: float, **more: Any) -> Ran:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            more["info"] = more.get("info", {}) | {"peak_gpu_bytes": int(torch.cuda.max_memory_allocated())}
            torch.cuda.reset_peak_memory_stats()
        return Ran(outcome, started_at, time.time(), load_s, peak_memory_bytes=peak, **more)
