"""What a replica computes with, apart from Ray: loaded stages, inputs fetched when asked for, step checkpoints."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import importlib.metadata
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from farm.control.fleet import ReplicaSpec
from farm.errors import InputError, NotFinite, StoreError
from farm.models.checkpoint import check_fingerprints
from farm.models.fetch import local_folder
from farm.store.step_checkpoints import keep_step
from farm.store.store import Store
from farm.task import Cause, Task

log = logging.getLogger(__name__)
Loaded = tuple[str, tuple[tuple[str, str], ...]]  # folder and (component, fingerprint): a folder's weights may change
MODEL_STAGES = {"encode", "denoise", "decode", "interpolate"}
WITH_WEIGHTS = {"encode", "denoise", "decode"}  # stages that load a model's components
KEEP_TIMEOUT_S = 30.0  # for the last checkpoint of a process that ends


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


def cause_of(error: BaseException) -> Cause:
    """What kind of failure an error is."""
    if isinstance(error, InputError):
        return "input"
    if isinstance(error, NotFinite):
        return "overflow"
    words = ("out of memory", "can't allocate memory", "cannot allocate memory", "low on memory")
    is_short = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "memory" if is_short or any(w in str(error).lower() for w in words) else "error"


def energy_j() -> float | None:
    """Joules that the GPUs of this process have used since they were started; None where that is not told (NVML)."""
    try:
        import pynvml

        pynvml.nvmlInit()
        visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.isdigit()]
        handles = [pynvml.nvmlDeviceGetHandleByIndex(int(v)) for v in visible]
        return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(h) for h in handles) / 1000 if handles else None
    except Exception:  # noqa: BLE001  # no NVML, no driver, a device that does not count
        return None


class Keeper:
    """Writes a task's step checkpoints, one at a time and beside the task; what comes meanwhile is passed over."""

    def __init__(self, store: Store, key: str) -> None:
        self.store, self.key = store, key
        self.pool = ThreadPoolExecutor(1)
        self.writing: Future[None] | None = None
        self.num_kept = 0

    def __call__(self, step: int, data: bytes, is_last: bool) -> None:
        if self.writing is not None and not self.writing.done() and not is_last:
            return
        self.writing = self.pool.submit(self._write, step, data)
        if is_last:
            with contextlib.suppress(TimeoutError):  # then the next one begins with an earlier state
                self.writing.result(KEEP_TIMEOUT_S)

    def _write(self, step: int, data: bytes) -> None:
        try:
            keep_step(self.store, self.key, step, data, made_with=made_with())
            self.num_kept += 1
        except (OSError, StoreError) as e:  # the task can do without
            log.warning("no checkpoint after step %d of %s: %s", step, self.key, e)

    def close(self) -> None:
        self.pool.shutdown(wait=True)


class Inputs(Sequence[bytes | Path]):
    """A task's inputs, each fetched when it is asked for, so that a long shot's frames are never in memory together."""

    def __init__(self, fetch: Callable[[Task, Any], bytes | Path], sources: Sequence[tuple[Task, Any]]) -> None:
        self.fetch, self.sources = fetch, sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Inputs(self.fetch, self.sources[index])
        return self.fetch(*self.sources[index])


class Stages:
    """The loaded stages of one process: of each stage one model."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self.spec = spec
        self.gang: Any = None  # a `pipelines.parallel.Gang`, where this process is one of several ranks
        self.loaded: dict[str, dict[Loaded, Any]] = {}  # stage to its objects, by what they were loaded from

    def get(self, stage: str, origin: Loaded, *, frugal: bool = False) -> tuple[Any, float]:
        """The loaded stage, and the seconds that loading it took now.

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
                gc.collect()  # hooks of split models hold them in circles
        started = time.perf_counter()
        module = importlib.import_module(f"{self.spec.package}.{stage}")
        place = str(local_folder(folder, names)) if stage in WITH_WEIGHTS else folder
        if place != folder:  # it may have changed there since the plan was made
            check_fingerprints(Path(place), components)
        how = self.spec.placement.get(stage, {}) if stage in MODEL_STAGES else {}
        if frugal and stage in WITH_WEIGHTS:
            how = how | {"offload": "sequential"}
        if self.gang:
            how = how | {"gang": self.gang}
        built = ours[origin] = module.Stage(place, names, **self.spec.numerics.get(stage, {}), **how)
        return built, time.perf_counter() - started

    def unload(self) -> None:
        """Unload every stage."""
        self.loaded.clear()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
        trim_memory()
