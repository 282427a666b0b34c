"""A replica: one process that holds loaded stages and runs one task at a time.

Tasks run in the actor's own thread; health, cancel and store writes have threads of their own, so they are answered
while a task computes. A finished value is handed to Ray's object store first and persisted afterwards (`persist`), so
that the next stage does not wait for the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import ray

from actors.lending import Helpers
from actors.logs import last_lines, own_folder
from actors.worker import MODEL_STAGES, Inputs, Keeper, Stages, cause_of, energy_j, made_with, trim_memory
from farm.clock import steady_time
from farm.control.fleet import Ran, ReplicaSpec, Status
from farm.errors import FarmError, Halted, StoreError, StoreFull, StoreUnreachable, TaskCanceled
from farm.patience import is_passing
from farm.pools.pools import THREAD_ENVIRONMENT
from farm.store.step_checkpoints import forget_steps, read_step
from farm.store.store import Store
from farm.task import Outcome, Task

log = logging.getLogger(__name__)
FETCH_TIMEOUT_S = 120.0  # for an input in the object store, before it is read from the store instead
LEAVE_S = 60.0  # at most, to stop between two steps and put away what is made, when the process is told to end
LINGER_S = 7.0  # after that: a controller that looks now and then shall learn of it and give no more work


class Replica:
    """See the module; made by `actors.pool.RayHands`."""

    def __init__(self, spec: ReplicaSpec) -> None:
        os.environ.update(THREAD_ENVIRONMENT)
        if not spec.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves it unset for actors without GPUs: they would see all
        self.spec, self.store = spec, Store(spec.store_uri)
        self.stages = Stages(spec)
        self.unsaved: dict[str, tuple[Task, Any, dict[str, Any]]] = {}
        self.progress: Any = None
        self.current: str | None = None
        self.canceled: set[str] = set()
        self.halted: set[str] = set()
        self.is_leaving = False
        self.helpers: Helpers | None = None  # of the task that runs here
        self.lent: tuple[int, str, dict[str, Any]] = (0, "", {})  # the last word of the controller on helpers
        self.assisting: tuple[str, Any, Any] | None = None  # key of another's task, its stage, predictions by slice
        from pipelines.scratch import remove_orphans

        remove_orphans()
        if MODEL_STAGES & set(spec.stages):
            import torch

            torch.set_num_threads(spec.cpus)
        signal.signal(signal.SIGTERM, self._leave)  # in place of Ray's handler, which ends the process at once

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """The machine will go: keep the state of what runs, put away what is made, and end."""
        self.is_leaving = True
        progress = self.progress  # the task may end meanwhile
        if progress is not None:
            progress.halted = True
        threading.Thread(target=self._end_when_done, daemon=True).start()

    def _end_when_done(self) -> None:
        end = time.monotonic() + LEAVE_S
        while (self.current or self.unsaved) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(LINGER_S)
        os._exit(0)

    @ray.method(concurrency_group="io")
    def where(self) -> tuple[str, int]:
        """The node's id and the process id; answers once the replica has started."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    @ray.method(concurrency_group="io")
    def status(self) -> Status:
        progress, task = self.progress, self.current
        if progress is None or task is None:
            return Status(None, 0, 1, b"", self.is_leaving)
        preview, progress.preview = progress.preview, b""
        return Status(task, progress.step, progress.num_steps, preview, self.is_leaving)

    @ray.method(concurrency_group="io")
    def cancel(self, key: str) -> None:
        """Stop a task between two of its steps; also one that has not started yet."""
        self.canceled.add(key)
        progress = self.progress
        if self.current == key and progress is not None:
            progress.canceled = True

    @ray.method(concurrency_group="io")
    def halt(self, key: str) -> None:
        """The same, with its state kept first; what has no state is finished."""
        self.halted.add(key)
        progress = self.progress
        if self.current == key and progress is not None:
            progress.halted = True

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
        stage, _ = self.stages.get(task.stage, (task.model, task.components))
        predicts, _ = stage.predicts(task.request, Inputs(self._input, inputs))
        self.assisting = (task.key, stage, predicts)

    def assist(self, key: str, payload: bytes) -> bytes:
        """Predict some slices of that task at one step."""
        if self.assisting is None or self.assisting[0] != key:
            raise StoreError(f"this replica is not ready to predict slices of {key}")
        _, stage, predicts = self.assisting
        return bytes(stage.assist(predicts, payload))

    @ray.method(concurrency_group="store")
    def persist(self, key: str) -> int:
        """Write a finished task's artifact to the store; its size in bytes.

        Raises:
            StoreFull, OSError: it is kept, to be written later.
        """
        task, artifact, info = self.unsaved[key]
        is_kept = False
        try:
            record = self.store.put(task, artifact, info=info)
            if info.get("checkpoints") or info.get("resumed_at"):
                with contextlib.suppress(OSError, StoreError):  # what is left is collected later
                    forget_steps(self.store, key)
        except (StoreFull, OSError):
            is_kept = True
            raise
        finally:
            if not is_kept:
                self.unsaved.pop(key, None)
                if isinstance(artifact, Path):
                    shutil.rmtree(artifact.parent, ignore_errors=True)  # the stage made the folder for it alone
                del artifact
                trim_memory()  # here, because the next task runs already
        return int(record["size"])

    def warm(self, wanted: Sequence[tuple[str, str, tuple[tuple[str, str], ...]]]) -> None:
        """Load stages before their first task comes: (stage, model folder, components with fingerprints)."""
        for stage, model, components in wanted:
            try:
                self.stages.get(stage, (model, components))
            except Exception as e:  # noqa: BLE001  # told by the task that needs it
                log.info("warming %s failed: %s", stage, e)

    def run(self, task: Task, inputs: Sequence[tuple[Task, Any]], frugal: bool = False) -> Ran:
        """Run one task.

        Args:
            inputs: each input's task and, where its value is still in the object store, a reference to its bytes.
            frugal: with as little memory as gives the same bits: nothing else stays loaded, weights stay on the host.
        """
        if self._is_called_off(task.key):
            told: dict[str, Any] = {"halted": True, "step": 0, "leaving": self.is_leaving}
            return self._ran("interrupted", steady_time(), 0.0, reason="told to stop before it began", info=told)
        return self._run(task, inputs, frugal, self._saved(task))

    def _is_called_off(self, key: str) -> bool:
        """Whether a task that has waited here behind another was halted or canceled meanwhile; it may come again."""
        is_meant = key in self.halted or key in self.canceled
        self.halted.discard(key)
        self.canceled.discard(key)
        return is_meant

    def _saved(self, task: Task) -> bytes | None:
        """The state from which to go on; None to begin anew."""
        with contextlib.suppress(OSError, StoreError):
            return read_step(self.store, task.key, made_with=made_with()) if task.stage == "denoise" else None
        return None

    def _run(self, task: Task, inputs: Sequence[tuple[Task, Any]], frugal: bool, saved: bytes | None) -> Ran:
        started_at, load_s, energy = steady_time(), 0.0, energy_j() if self.spec.gpus else None
        keeper = Keeper(self.store, task.key)
        told: dict[str, Any] = {"frugal": True} if frugal else {}
        if self.is_leaving:
            return self._ran(
                "interrupted", started_at, 0.0, reason="the replica is about to end", info={"leaving": True}
            )
        try:
            from pipelines import rolls
            from pipelines.stage import Progress

            self.assisting, self.helpers = None, Helpers(task.key)
            self.helpers.hear(*self.lent[1:])
            self.progress = Progress(
                canceled=task.key in self.canceled, halted=task.key in self.halted, share=self.helpers, saved=saved,
                agree=self.stages.gang.agree if self.stages.gang else None,
            )  # fmt: skip
            self.current = task.key
            if self.is_leaving:  # told so since
                self.progress.halted = True
            if task.stage == "denoise":
                self.progress.keep, self.progress.keep_every_s = keeper, self.spec.checkpoint_s
                self.progress.keep_every_steps = self.spec.checkpoint_steps
            if frugal:
                self.stages.unload()
            stage, load_s = self.stages.get(task.stage, (task.model, task.components), frugal=frugal)
            result = rolls.run(stage, task.request, Inputs(self._input, inputs), self.progress)
            keeper.close()
            told |= {"resumed_at": self.progress.resumed_at, "checkpoints": keeper.num_kept}
            told = {name: value for name, value in told.items() if value}
            self.unsaved[task.key] = (task, result.artifact, {**result.info, **told, "made_with": made_with()})
            value = ray.put(result.artifact) if isinstance(result.artifact, bytes) else None
            info = {"first_step_at": self.progress.first_step_at, "slices_given": self.helpers.num_given, **result.info}
            if energy is not None and (now := energy_j()) is not None:
                told["energy_j"] = now - energy
            return self._ran("succeeded", started_at, load_s, value=value, info=info | told)
        except Halted as e:
            told |= {"halted": True, "step": self.progress.step, "leaving": self.is_leaving}
            return self._ran("interrupted", started_at, load_s, reason=str(e), info=told)
        except TaskCanceled as e:
            return self._ran("canceled", started_at, load_s, reason=str(e))
        except Exception as e:  # noqa: BLE001  # translated: the controller decides what to do with it
            log.warning("task %s failed:\n%s", task.key, traceback.format_exc())
            details = f"{traceback.format_exc()}\n{last_lines(own_folder(), os.getpid())}"
            told |= {"input_missing": True} if isinstance(e, StoreError) else {}
            told |= {"store_out_of_order": True} if isinstance(e, StoreUnreachable) else {}
            reason = str(e) if isinstance(e, FarmError) else f"{type(e).__name__}: {e}"
            return self._ran(
                "failed", started_at, load_s, reason=reason[:2000], cause=cause_of(e), info=told, details=details
            )
        finally:
            keeper.close()
            if frugal:
                self.stages.unload()
            self.canceled.discard(task.key)
            self.halted.discard(task.key)
            self.current = self.progress = self.helpers = None
            if task.key not in self.unsaved:  # else `persist` does it, beside the next task
                trim_memory()

    def _input(self, source: Task, value: Any) -> bytes | Path:
        if value is not None:
            try:
                return bytes(ray.get(value, timeout=FETCH_TIMEOUT_S))
            except (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError) as e:
                log.info("value of %s is gone (%s); reading the store", source.key, type(e).__name__)
        if source.stage == "assemble" and (path := self.store.local_path_of(source)):
            return path
        try:
            return self.store.read(source)
        except OSError as e:
            kind = StoreUnreachable if is_passing(e) else StoreError
            raise kind(f"the store {self.store.uri} cannot be read: {e}") from e

    def _ran(self, outcome: Outcome, started_at: float, load_s: float, **more: Any) -> Ran:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            more["info"] = more.get("info", {}) | {"peak_gpu_bytes": int(torch.cuda.max_memory_allocated())}
            torch.cuda.reset_peak_memory_stats()
        return Ran(outcome, started_at, steady_time(), load_s, peak_memory_bytes=peak, **more)
