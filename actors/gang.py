"""A gang: several processes that are one replica. They start, run every task and end together.

The first rank, the leader, is the replica that a pool knows, with the same methods. It starts the other ranks in the
bundles of its placement group, hands every task on to them, and answers for all. Whatever goes wrong with one rank ends
the gang whole, because the others may wait for it in a collective: the leader tells the controller what happened, the
controller removes the placement group, and with it Ray ends every process and frees every GPU.

- A rank that dies: its unanswered `watch` breaks at once, the leader answers `ReplicaLost` though its own thread hangs.
- A rank that fails alone (out of memory): its answer comes, and the leader does not wait for its own for long.
- A rank that stands still: collectives run into their timeout in the others, which fail.
- A leader that stands still or cannot be reached: the others fail in the same way, and remove the group themselves.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import psutil
import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.replica import Replica
from actors.worker import Inputs, cause_of, trim_memory
from farm.clock import steady_time
from farm.control.fleet import Ran, ReplicaSpec, Status
from farm.errors import FarmError, Halted, InputError, ReplicaLost, StoreError, TaskCanceled
from farm.task import Cause, Outcome, Task

log = logging.getLogger(__name__)
T = TypeVar("T")
LOOK_S = 0.2  # between looks at whether the gang is still whole, while a task runs
SETTLE_S = 5.0  # for the other ranks to answer when one has failed
ABANDONED_S = 20.0  # after a failure, for the gang to be ended by others
SAVE_S = 300.0  # for what is made and not yet in the store, when the gang has broken
ALL_VISIBLE = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
# Ray else hides all GPUs but a rank's own, and NCCL then finds no way from one to another but through the host: on
# NVSwitch machines thousands of times slower (ray#61073). Ranks choose theirs by `set_device`.
GANG_ENVIRONMENT = {"env_vars": {ALL_VISIBLE: "1"}}
GROUPS = {"io": 2, "store": 2, "watch": 1}


@dataclass(frozen=True)
class Told:
    """What a rank says of a task: how it ended there."""

    outcome: Outcome
    reason: str = ""
    cause: Cause = ""
    is_leaving: bool = False
    is_refusal: bool = False  # of what all ranks find out alike, before any of them waits for another


Place = tuple[str, int]  # a node's id, a process's


def here() -> Place:
    return ray.get_runtime_context().get_node_id(), os.getpid()


def end_process(place: Place) -> None:
    """End a rank on this node. One that stands still is ended by Ray too, but only some seconds after it was asked."""
    node, pid = place
    if node == here()[0]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def first_line(error: Exception) -> str:
    return next((line for line in str(error).strip().splitlines() if line.strip()), type(error).__name__)


def in_bundle(group: PlacementGroup, index: int, spec: ReplicaSpec) -> dict[str, Any]:
    """Options of an actor that is one rank."""
    return {
        "num_cpus": spec.cpus, "num_gpus": spec.gpus, "max_restarts": 0, "max_task_retries": 0,
        "runtime_env": GANG_ENVIRONMENT,
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
    }  # fmt: skip


def _bind(spec: ReplicaSpec) -> str:
    from pipelines.parallel import bind_device

    ids = [str(i) for i in ray.get_gpu_ids()] if spec.gpus else []
    all_visible = os.environ.get(ALL_VISIBLE) == "1"
    return bind_device(ids, all_visible=all_visible, visible=os.environ.get("CUDA_VISIBLE_DEVICES", ""))


def _use_interface() -> None:
    """Have gloo talk over the interface by which Ray reaches this node: a host's own name may mean loopback."""
    address = ray.util.get_node_ip_address()
    for name, known in psutil.net_if_addrs().items():
        if any(a.address == address for a in known):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class Rank(Replica):
    """A rank but the first. It keeps nothing, and answers the leader alone."""

    def __init__(self, spec: ReplicaSpec, rank: int) -> None:
        super().__init__(spec)
        self.rank = rank
        self.end_timer: threading.Timer | None = None

    def join(self, host: str, port: int, leader: Place) -> Place:
        """Become one of the gang. Returns where this rank is."""
        from pipelines.parallel import join

        spec = self.spec
        assert spec.sharing is not None
        _use_interface()
        self.stages.gang = join(
            spec.sharing, rank=self.rank, size=spec.sharing.ranks, host=host, port=port, device=_bind(spec),
            timeout_s=spec.gang_timeout_s,
        )  # fmt: skip
        self.leader = leader
        return here()

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never answers: who waits for it learns of this process's end."""
        threading.Event().wait()

    def follow(self, task: Task, inputs: Sequence[tuple[Task, Any]], frugal: bool, saved: bytes | None) -> Told:
        """This rank's part of a task."""
        from pipelines import rolls
        from pipelines.stage import Progress

        self._is_heard()
        self.assisting, self.current = None, task.key
        self.progress = Progress(
            saved=saved, agree=self.stages.gang.agree, keep=lambda *state: None, halted=self.is_leaving
        )
        try:
            if frugal:
                self.stages.unload()
            stage, _ = self.stages.get(task.stage, (task.model, task.components), frugal=frugal)
            rolls.run(stage, task.request, Inputs(self._input, inputs), self.progress)
            return Told("succeeded")
        except Halted:
            return Told("interrupted", is_leaving=self.is_leaving)
        except TaskCanceled:
            return Told("canceled", is_leaving=self.is_leaving)
        except Exception as e:  # noqa: BLE001  # the leader decides what to do with it
            told = self._failed(e)
            if not told.is_refusal:
                self.end_timer = threading.Timer(ABANDONED_S, _end_gang, args=(self.leader,))
                self.end_timer.daemon = True
                self.end_timer.start()
            return told
        finally:
            if frugal:
                self.stages.unload()
            self.current = self.progress = None
            trim_memory()

    def follow_in(self, method: str, *values: Any) -> Told:
        """This rank's part of a method that all ranks must run (`prepare`, `assist`, `warm`)."""
        self._is_heard()
        try:
            getattr(Replica, method)(self, *values)
            return Told("succeeded")
        except Exception as e:  # noqa: BLE001  # as above
            return self._failed(e)

    def _failed(self, error: Exception) -> Told:
        log.warning("rank %d of %s failed", self.rank, self.spec.name, exc_info=error)
        reason = str(error) if isinstance(error, FarmError) else f"{type(error).__name__}: {error}"
        is_refusal = isinstance(error, InputError | StoreError)
        return Told("failed", f"rank {self.rank}: {reason}"[:2000], cause_of(error), is_refusal=is_refusal)

    def _is_heard(self) -> None:
        """The leader lives, and has more for us to do."""
        if self.end_timer is not None:
            self.end_timer.cancel()


def _end_gang(leader: Place) -> None:
    """The last means, when neither leader nor controller has ended a broken gang."""
    end_process(leader)
    group = get_current_placement_group()
    if group is not None:
        remove_placement_group(group)


class Leader(Replica):
    """The first rank, and what the controller takes for the replica."""

    def __init__(self, spec: ReplicaSpec) -> None:
        super().__init__(spec)
        from pipelines.parallel import join, open_store

        sharing = spec.sharing
        assert sharing is not None
        group, size = get_current_placement_group(), sharing.ranks
        self.worker = ThreadPoolExecutor(1)  # the thread that computes: it may hang in a collective
        self.lost: ReplicaLost | None = None
        self.places: tuple[Place, ...] = ()  # of the others
        _use_interface()
        host = ray.util.get_node_ip_address()
        store = open_store(host, timeout_s=spec.gang_timeout_s)
        kind = ray.remote(concurrency_groups=GROUPS)(Rank)
        self.others = [kind.options(**in_bundle(group, i, spec)).remote(spec, i) for i in range(1, size)]
        joined = [other.join.remote(host, store.port, here()) for other in self.others]
        threading.Thread(target=self._watch, args=(list(joined),), daemon=True).start()
        self.stages.gang = self._while_whole(
            lambda: join(
                sharing, rank=0, size=size, host=host, port=store.port, device=_bind(spec),
                timeout_s=spec.gang_timeout_s, store=store,
            )
        )  # fmt: skip

    def _watch(self, joined: list[Any]) -> None:
        """Notice the end of another rank, whatever this one is doing."""
        self.lost = self._wait_for_an_end(joined)
        end = time.monotonic() + SAVE_S
        time.sleep(ABANDONED_S)  # the controller ends us before that, unless it is gone itself
        while self.unsaved and time.monotonic() < end:
            time.sleep(1.0)
        os._exit(1)

    def _wait_for_an_end(self, joined: list[Any]) -> ReplicaLost:
        limit_s, name = self.spec.gang_timeout_s, self.spec.name
        try:
            self.places = tuple(ray.get(joined, timeout=limit_s))
        except ray.exceptions.GetTimeoutError:
            return ReplicaLost(f"not all ranks of {name} could join within {limit_s:g} s")
        except ray.exceptions.RayError as e:
            return ReplicaLost(f"a rank of {name} could not join: {first_line(e)}")
        watches = {other.watch.remote(): i for i, other in enumerate(self.others)}
        ended, _ = ray.wait(list(watches), num_returns=1, timeout=None)  # no limit: they answer when they die
        i = watches[ended[0]]
        try:
            ray.get(ended[0])
        except ray.exceptions.ActorUnavailableError as e:
            return ReplicaLost(f"rank {i + 1} of {name} cannot be reached: {first_line(e)}", is_unreachable=True)
        except ray.exceptions.RayError as e:
            return ReplicaLost(f"rank {i + 1} of {name} ended: {first_line(e)}", node=self.places[i][0])
        return ReplicaLost(f"rank {i + 1} of {name} ended", node=self.places[i][0])

    def _while_whole(self, work: Callable[[], T], answers: Sequence[Any] = ()) -> T:
        """What `work` returns, unless the gang breaks meanwhile.

        Args:
            answers: of the other ranks; one that has failed ends the waiting after a while.
        Raises:
            ReplicaLost: a rank has gone.
            RankFailed: one has failed, and this one still waits for it.
        """
        future: Future[T] = self.worker.submit(work)
        failed_at: float | None = None
        while not wait([future], LOOK_S).done:
            if self.lost is not None:
                raise self.lost
            if failed_at is None and self._failure(answers) is not None:
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > SETTLE_S:
                raise RankFailed(self._failure(answers))
        return future.result()

    def _failure(self, answers: Sequence[Any]) -> Told | None:
        """What the first other rank that has failed says; lack of memory before all else."""
        done, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0) if answers else ([], [])
        told = [t for t in self._told(done) if t.outcome == "failed"]
        return min(told, key=lambda t: t.cause != "memory", default=None)

    def _told(self, answers: Sequence[Any]) -> list[Told]:
        try:
            return list(ray.get(list(answers), timeout=SETTLE_S))
        except ray.exceptions.RayError:  # a rank has died: `lost` tells
            return []

    # -- what a pool asks of a replica

    @ray.method(concurrency_group="io")
    def status(self) -> Status:
        if self.lost is not None and self.current is None:
            raise self.lost
        status: Status = Replica.status(self)
        return replace(status, other_nodes=tuple(node for node, _ in self.places))

    def run(self, task: Task, inputs: Sequence[tuple[Task, Any]], frugal: bool = False) -> Ran:
        """As `Replica.run`, on all ranks.

        Raises:
            ReplicaLost: a rank has gone.
        """
        saved, started_at = self._saved(task), steady_time()
        if self.is_leaving:  # before the others are told, who would wait for this rank
            return self._ran("interrupted", started_at, 0.0, reason="the gang is about to end", info={"leaving": True})
        answers = [other.follow.remote(task, inputs, frugal, saved) for other in self.others]
        try:
            ran = self._while_whole(lambda: self._run(task, inputs, frugal, saved), answers)
        except RankFailed as e:
            return self._broken(self._ran("failed", started_at, 0.0, info={"frugal": True} if frugal else {}), e.told)
        if ran.outcome == "succeeded":
            return ran
        ended, _ = ray.wait(answers, num_returns=len(answers), timeout=SETTLE_S)
        told = self._told(ended)
        if ran.outcome != "failed":  # agreed by all ranks
            if any(t.is_leaving for t in told) and not self.is_leaving:
                self._leave(0, None)
            return replace(ran, info=ran.info | {"leaving": self.is_leaving})
        if len(ended) > len(told):  # one has died: who, is known in a moment
            self._settle()
        if self.lost is not None:
            raise self.lost
        is_refusal = ran.cause == "input" or ran.info.get("input_missing", False)
        if is_refusal and self._is_refused_by_all(told):
            return ran  # nobody is left in a collective
        return self._broken(ran, self._failure(answers))

    def _settle(self) -> None:
        end = time.monotonic() + SETTLE_S
        while self.lost is None and time.monotonic() < end:
            time.sleep(LOOK_S)

    def _is_refused_by_all(self, told: Sequence[Told]) -> bool:
        return len(told) == len(self.others) and all(t.is_refusal for t in told)

    def _broken(self, ran: Ran, told: Told | None) -> Ran:
        """A failure after which this gang can do nothing more: it leaves."""
        self.is_leaving = True
        for place in self.places:
            end_process(place)
        if told is not None and (told.cause == "memory" or not ran.reason):
            ran = replace(ran, reason=told.reason, cause=told.cause)
        return replace(ran, info=ran.info | {"leaving": True})

    def prepare(self, task: Task, inputs: Sequence[tuple[Task, Any]]) -> None:
        self._on_all("prepare", task, inputs)

    def assist(self, key: str, payload: bytes) -> bytes:
        return bytes(self._on_all("assist", key, payload))

    def warm(self, wanted: Sequence[tuple[str, str, tuple[tuple[str, str], ...]]]) -> None:
        sharing = self.spec.sharing
        if (
            sharing is not None and not sharing.shard_weights
        ):  # those are loaded together, and warming passes over errors
            self._on_all("warm", wanted)

    def _on_all(self, method: str, *values: Any) -> Any:
        """Run a method on all ranks. One that fails in it may have left the others in a collective."""
        answers = [other.follow_in.remote(method, *values) for other in self.others]
        try:
            return self._while_whole(lambda: getattr(Replica, method)(self, *values), answers)
        except RankFailed as e:
            self.is_leaving = True
            raise ReplicaLost(e.told.reason if e.told else "a rank failed") from e
        except Exception as e:
            ended, _ = ray.wait(answers, num_returns=len(answers), timeout=SETTLE_S)
            is_refusal = isinstance(e, InputError | StoreError) and self._is_refused_by_all(self._told(ended))
            self.is_leaving = self.is_leaving or not is_refusal
            raise


class RankFailed(FarmError):
    """Another rank has failed while this one waits for it."""

    def __init__(self, told: Told | None) -> None:
        super().__init__(told)
        self.told = told
