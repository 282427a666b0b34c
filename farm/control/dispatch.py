"""Which task runs next: the one of the highest priority, then of the longest remaining chain, then the oldest.

Pure state: it is told what happened and answers what to do; it reads no clock and calls nobody. A task goes from queued
(waiting for inputs, then ready) to active, is *computed* when its output exists somewhere, and completed when that
output is safe in the store. Users may start on a computed input; if it is lost before it is safe they wait again.

Invariants: no task is handed out twice at once; a node stays as long as a job wants it or an attempt at it runs.
Each operation costs O(log n) in the number of ready tasks, plus O(1) for each edge of the graph it touches.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from farm.states import WAITING, TaskState, task_after
from farm.task import Task

RUN_TASKS = 16  # so far ahead of where a replica is, another may begin a run of its own, and pay what it lacks


@dataclass
class Node:
    """A task that must run, for one or more jobs."""

    task: Task
    jobs: dict[str, int]  # job to priority
    chain: float
    state: TaskState = "queued"
    missing: int = 0  # inputs that are not computed
    is_ready: bool = False  # waiting for nothing but a replica, and in the heap
    entry: int = 0  # number of its valid entry there
    is_computed: bool = False
    is_doomed: bool = False  # active, but an input has failed for good: another try would be in vain
    holds_inputs: bool = True  # until it is safe or will never run
    avoid: frozenset[str] = frozenset()  # replicas
    pools: frozenset[str] = frozenset()  # that may take it; empty: any that serves its stage
    users: dict[str, None] = field(default_factory=dict)  # keys of the tasks that take this one's output
    replica: str = ""  # that was given it last

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    def move(self, event: str) -> None:
        self.state = task_after(self.state, event)


def remaining_chains(tasks: Mapping[str, Task], keys: Iterable[str]) -> dict[str, float]:
    """For each task, the cost of the most expensive way from its start to the end of its film.

    `tasks` lists every task after its inputs.
    """
    wanted = set(keys)
    chain: dict[str, float] = {}
    for key in reversed([k for k in tasks if k in wanted]):
        chain[key] = chain.get(key, 0.0) + tasks[key].cost
        for source in tasks[key].inputs:
            if source in wanted:
                chain[source] = max(chain.get(source, 0.0), chain[key])
    return chain


class Dispatcher:
    """The ready queues of all stages, and the graph that feeds them."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.heaps: dict[str, list[tuple[int, float, int, str]]] = {}
        self.order = itertools.count()
        self.num_ready: Counter[str] = Counter()  # by stage
        self.num_holding: Counter[str] = Counter()  # unfinished tasks that take an output, by its key
        self.held: set[str] = set()  # jobs whose tasks wait until they are released

    def add_job(self, job: str, tasks: Mapping[str, Task], to_run: set[str], *, priority: int = 50) -> None:
        """Take on the tasks of a job that must run; those that another job already asked for are shared."""
        chains = remaining_chains(tasks, to_run)
        for key in [k for k in tasks if k in to_run]:
            node = self.nodes.get(key)
            if node is not None:
                node.jobs[job] = priority
                self._wait_for(node, to_run)  # inputs may have been dropped, and entered anew, while it ran
                if node.state in ("failed", "canceled"):  # for another job; this one may have more luck
                    self._reopen(node)
                elif node.state == "paused" and job not in self.held:
                    node.move("resume")
                    self._ready_if_it_can(node)
                elif node.is_ready:
                    self._push(node)  # its priority may have risen
                continue
            node = self.nodes[key] = Node(tasks[key], {job: priority}, chains[key])
            self.num_holding.update(tasks[key].inputs)
            self._wait_for(node, to_run)
            if self._is_held(node):
                node.move("pause")
            self._ready_if_it_can(node)

    def take(
        self, stages: Iterable[str], *, replica: str, peers: Iterable[str], idle: Iterable[str] = (), pool: str = "",
        fits: Callable[[Task], bool] = lambda task: True,
    ) -> Task | None:  # fmt: skip
        """Hand out the best ready task of these stages to a replica; None where there is none for it.

        A task that can go on with what another task left in a replica is kept for that one while it is idle, or still
        at that other task.

        Args:
            peers: all replicas that could take such tasks, for tasks that should avoid some of them.
            idle: those of them that ask for work now.
            pool: the replica's.
            fits: whether the best one may be handed out now; where it may not, none is.
        """
        peers, idle, put_back = set(peers), set(idle), []
        chosen = None
        while chosen is None:
            heads = [self.heaps[s] for s in stages if self.heaps.get(s)]
            if not heads:
                break
            entry = heapq.heappop(min(heads, key=lambda heap: heap[0]))
            node = self.nodes.get(entry[3])
            if node is None or not node.is_ready or node.entry != entry[2]:
                continue  # an older entry of a task that went on, or whose priority changed, since
            if (
                (node.pools and pool not in node.pools)
                or (replica in node.avoid and peers - node.avoid)
                or self._is_kept(node, replica, peers, idle)
            ):
                put_back.append((node.task.stage, entry))
                continue
            if not fits(node.task):
                put_back.append((node.task.stage, entry))
                break
            chosen = node
        for stage, entry in put_back:
            heapq.heappush(self.heaps[stage], entry)
        if chosen is None:
            return None
        self._not_ready(chosen)
        chosen.move("hand out")
        chosen.replica = replica
        return chosen.task

    def _is_kept(self, node: Node, replica: str, peers: set[str], idle: set[str]) -> bool:
        """Whether a ready task waits for another replica than the one that asks."""
        before = self.nodes.get(node.task.near)
        for _ in range(RUN_TASKS):  # back to the last one that was given to a replica
            if before is None or before.replica or not before.is_waiting:
                break
            before = self.nodes.get(before.task.near)
        if before is None or before.replica in ("", replica) or before.replica not in peers - node.avoid:
            return False
        if before.task.key != node.task.near:
            return True
        return before.replica in idle or (before.state == "active" and before.task.stage == node.task.stage)

    # -- what became of an active task

    def computed(self, key: str) -> list[str]:
        """The output of an active task exists: its users may start. Returns the keys that became ready."""
        node = self.nodes[key]
        if node.is_computed:
            return []
        node.is_computed = True
        freed = []
        for user in (self.nodes[k] for k in node.users):
            user.missing -= 1
            if self._ready_if_it_can(user):
                freed.append(user.task.key)
        return freed

    def finished(self, key: str) -> list[str]:
        """The output of a computed task is safe. Returns the inputs whose values nobody needs any more."""
        node = self.nodes[key]
        node.move("succeed")
        self._let_go(node)
        return [source for source in dict.fromkeys(node.task.inputs) if not self.is_needed(source)]

    def requeue(
        self, key: str, *, event: str = "interrupt", avoid: frozenset[str] = frozenset(),
        pools: frozenset[str] = frozenset(),
    ) -> bool:  # fmt: skip
        """An attempt ended without a safe output: the task waits again, and so do users that have not been done.

        Args:
            event: why, as in states.py.
            avoid: replicas that should not take it next.
            pools: that may take it; empty: any.

        Returns False where that would be in vain because an input has failed; then the task has failed too.
        """
        node = self.nodes[key]
        if node.is_doomed:
            self.fail(key)
            return False
        self._take_back(node)
        node.move(event)
        node.avoid, node.pools = avoid, pools
        if self._is_held(node):
            node.move("pause")
        self._ready_if_it_can(node)
        return True

    def revive(self, job: str, tasks: Mapping[str, Task], keys: set[str]) -> None:
        """Outputs that existed are gone: these tasks must run, again perhaps, before what takes them can.

        `tasks` lists every task of the job after its inputs.
        """
        priority = next((node.jobs[job] for node in self.nodes.values() if job in node.jobs), 50)
        for key in [k for k in tasks if k in keys]:
            node = self.nodes.get(key)
            if node is not None and node.state == "completed":
                node.holds_inputs = True
                self.num_holding.update(node.task.inputs)
                self.requeue(key, event="lose")
                node.jobs[job] = priority
        old = set(self.nodes)
        self.add_job(job, tasks, keys, priority=priority)
        for key in [k for k in tasks if k in keys and k not in old]:  # their users may have been there before them
            users = [n for n in self.nodes.values() if key in n.task.inputs and n.task.key not in self.nodes[key].users]
            for user in users:
                self.nodes[key].users[user.task.key] = None
                if user.state not in ("completed", "failed", "canceled"):
                    user.missing += 1
                    self._not_ready(user)

    def fail(self, key: str) -> list[str]:
        """Give a task up, and with it all that needs it. Returns the keys of all of them."""
        dead, stack = [], [key]
        while stack:
            node = self.nodes[stack.pop()]
            if node.state in ("failed", "completed"):
                continue
            if node.state == "active" and node.task.key != key:
                node.is_doomed = True
                continue
            self._not_ready(node)
            node.move("give up")
            self._let_go(node)
            dead.append(node.task.key)
            stack.extend(node.users)
        return dead

    def requeue_failed(self, job: str) -> list[str]:
        """Give what has failed for a job another chance. Returns the keys."""
        failed = [node for node in self.nodes.values() if job in node.jobs and node.state == "failed"]
        for node in failed:
            self._reopen(node)
        for node in self.nodes.values():
            if job in node.jobs:
                node.is_doomed = False
        return [node.task.key for node in failed]

    def _reopen(self, node: Node) -> None:
        """A task that has failed waits once more."""
        node.move("requeue")
        node.is_doomed, node.avoid, node.pools = False, frozenset(), frozenset()
        self._take_back(node)
        if not node.holds_inputs:
            node.holds_inputs = True
            self.num_holding.update(node.task.inputs)
        if self._is_held(node):
            node.move("pause")
        self._ready_if_it_can(node)

    def _take_back(self, node: Node) -> None:
        """Its output does not exist any more: who takes it waits again."""
        if node.is_computed:
            node.is_computed = False
            for user in (self.nodes[k] for k in node.users):
                user.missing += 1
                self._not_ready(user)

    def forget(self, key: str) -> None:
        """Drop a task that nobody wants once its attempt has ended."""
        node = self.nodes.get(key)
        if node is not None and not node.jobs:
            self._remove(node)

    def hold_job(self, job: str) -> list[str]:
        """No more tasks are handed out for this job alone. Returns the keys of those that run for it alone."""
        self.held.add(job)
        running = []
        for key, node in self.nodes.items():
            if job not in node.jobs or not self._is_held(node):
                continue
            if node.is_waiting:
                self._not_ready(node)
                node.move("pause")
            elif node.state == "active":
                running.append(key)
        return running

    def release_job(self, job: str) -> None:
        """Hand out the tasks of a held job again."""
        self.held.discard(job)
        for node in self.nodes.values():
            if job in node.jobs and node.state == "paused":
                node.move("resume")
                self._ready_if_it_can(node)

    def set_priority(self, job: str, priority: int) -> None:
        """Of what this job still has to run."""
        for node in self.nodes.values():
            if job in node.jobs:
                node.jobs[job] = priority
                if node.is_ready:
                    self._push(node)

    def drop_job(self, job: str) -> list[str]:
        """Forget a job. Returns the keys of active tasks that nobody wants any more."""
        self.held.discard(job)
        orphans = []
        for key, node in reversed(list(self.nodes.items())):
            if node.jobs.pop(job, None) is None:
                continue
            if node.jobs:
                if node.is_waiting and self._is_held(node):
                    self._not_ready(node)
                    node.move("pause")
                continue
            if node.state == "active":
                orphans.append(key)
            else:
                self._remove(node)
        return orphans

    # -- questions

    def is_needed(self, key: str) -> bool:
        """Whether a task that has not finished takes this output."""
        return self.num_holding[key] > 0

    def is_finished(self, key: str) -> bool:
        """Whether a task has been done and is safe, and some job still remembers it."""
        return key in self.nodes and self.nodes[key].state == "completed"

    def is_pending(self, key: str) -> bool:
        """Whether a task is being done, again perhaps: its output may be missing for now."""
        return key in self.nodes and self.nodes[key].state in (*WAITING, "active", "paused")

    def is_settled(self, keys: Iterable[str]) -> bool:
        """Whether none of these tasks can run any more."""
        nodes = self.nodes
        return all(nodes[k].state in ("completed", "failed", "canceled") for k in keys if k in nodes)

    # --

    def _wait_for(self, node: Node, to_run: set[str]) -> None:
        """Have a task wait for those of its inputs that must be made."""
        for source in dict.fromkeys(node.task.inputs):
            if source in to_run and source in self.nodes and node.task.key not in self.nodes[source].users:
                self.nodes[source].users[node.task.key] = None
                node.missing += not self.nodes[source].is_computed
        if node.missing:
            self._not_ready(node)

    def _is_held(self, node: Node) -> bool:
        return bool(node.jobs) and self.held.issuperset(node.jobs)

    def _ready_if_it_can(self, node: Node) -> bool:
        if not node.is_waiting or node.missing or node.is_ready:
            return False
        node.is_ready = True
        self.num_ready[node.task.stage] += 1
        self._push(node)
        return True

    def _not_ready(self, node: Node) -> None:
        if node.is_ready:
            node.is_ready = False
            self.num_ready[node.task.stage] -= 1

    def _push(self, node: Node) -> None:
        node.entry = next(self.order)
        priority = max((p for job, p in node.jobs.items() if job not in self.held), default=0)
        heapq.heappush(self.heaps.setdefault(node.task.stage, []), (-priority, -node.chain, node.entry, node.task.key))

    def _let_go(self, node: Node) -> None:
        if node.holds_inputs:
            node.holds_inputs = False
            for key in node.task.inputs:
                self.num_holding[key] -= 1
                if not self.num_holding[key]:
                    del self.num_holding[key]

    def _remove(self, node: Node) -> None:
        self._not_ready(node)
        self._let_go(node)
        for source in node.task.inputs:
            if source in self.nodes:
                self.nodes[source].users.pop(node.task.key, None)
        del self.nodes[node.task.key]
        for user in [self.nodes[key] for key in node.users if not node.is_computed]:  # they are another's, or run still
            user.missing -= 1
            self._ready_if_it_can(user)
