"""Which task runs next: the one of the highest priority, then of the longest remaining chain, then the oldest.

Pure state: it is told what happened and answers what to do; it reads no clock and calls nobody. Invariant: every task
of every job is in exactly one of waiting, ready, active, done or dead, and no task is handed out twice at once.
Each operation costs O(log n) in the number of ready tasks, plus O(1) for each edge of the graph it touches.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .task import Task, TaskState


@dataclass
class Node:
    """A task that must run, for one or more jobs."""

    task: Task
    jobs: dict[str, int]  # job id to priority
    missing: int  # inputs that are not there yet
    chain: float
    state: TaskState = "queued"
    avoid: frozenset[str] = frozenset()
    has_let_go: bool = False  # of its inputs: it is safe, or will never run
    users: list[str] = field(default_factory=list)  # keys of the tasks that wait for this one


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
        self.ready: dict[str, list[tuple[int, float, int, str]]] = {}
        self.order = itertools.count()
        self.unfinished_users: Counter[str] = Counter()

    def add_job(self, job: str, tasks: Mapping[str, Task], to_run: set[str], *, priority: int = 50) -> None:
        """Take on the tasks of a job that must run; those that another job already asked for are shared."""
        chains = remaining_chains(tasks, to_run)
        for key in [k for k in tasks if k in to_run]:
            node = self.nodes.get(key)
            if node is not None and node.state not in ("failed", "canceled"):
                node.jobs[job] = priority
                if node.state == "queued" and not node.missing:
                    self._push(node)  # its priority may have risen; the older entry is passed over when it comes up
                continue
            inputs = [self.nodes[k] for k in tasks[key].inputs if k in to_run]
            waiting = [n for n in inputs if n.state != "completed"]
            node = self.nodes[key] = Node(tasks[key], {job: priority}, len(waiting), chains[key])
            self.unfinished_users.update(tasks[key].inputs)
            for source in waiting:
                source.users.append(key)
            if not waiting:
                self._push(node)

    def is_needed(self, key: str) -> bool:
        """Whether a task that has not finished takes this output."""
        return self.unfinished_users[key] > 0

    def is_finished(self, key: str) -> bool:
        """Whether a task has been done and persisted, and some job still remembers it."""
        node = self.nodes.get(key)
        return node is not None and node.state == "completed" and node.has_let_go

    def is_settled(self, keys: Iterable[str]) -> bool:
        """Whether none of these tasks can run any more."""
        nodes = self.nodes
        return all(nodes[k].state in ("completed", "failed", "canceled") for k in keys if k in nodes)

    def num_ready(self, stages: Iterable[str]) -> int:
        return sum(len(self.ready.get(stage, ())) for stage in stages)

    def take(self, stages: Iterable[str], *, replica: str, others: bool) -> Task | None:
        """Hand out the best ready task of these stages to a replica; None where there is none for it.

        Args:
            others: whether the pool has replicas besides this one, for tasks that should avoid it.
        """
        put_back = []
        chosen = None
        while chosen is None:
            heads = [self.ready[s] for s in stages if self.ready.get(s)]
            if not heads:
                break
            entry = heapq.heappop(min(heads, key=lambda heap: heap[0]))
            node = self.nodes.get(entry[3])
            if node is None or node.state != "queued" or not node.jobs:
                continue  # an older entry of a task that went on since
            if others and replica in node.avoid:
                put_back.append((node.task.stage, entry))
                continue
            chosen = node
        for stage, entry in put_back:
            heapq.heappush(self.ready[stage], entry)
        if chosen is None:
            return None
        chosen.state = "active"
        return chosen.task

    def computed(self, key: str) -> list[str]:
        """The output of an active task exists: its users may start. Returns the keys that became ready."""
        node = self.nodes[key]
        if node.state == "completed":
            return []
        node.state = "completed"
        freed = []
        for user in node.users:
            waiting = self.nodes.get(user)
            if waiting is None or waiting.state not in ("queued", "soft-failed"):
                continue
            waiting.missing -= 1
            if not waiting.missing:
                self._push(waiting)
                freed.append(user)
        node.users.clear()
        return freed

    def finished(self, key: str) -> list[str]:
        """The output of a computed task is safe. Returns the inputs whose values nobody needs any more."""
        node = self.nodes[key]
        self._let_go(node)
        return [source for source in dict.fromkeys(node.task.inputs) if not self.is_needed(source)]

    def requeue(self, key: str, *, avoid: frozenset[str] = frozenset()) -> None:
        """An attempt ended without a result: the task waits again."""
        node = self.nodes[key]
        node.state, node.avoid = "queued", avoid
        if node.jobs:
            self._push(node)
        else:
            node.state = "canceled"

    def fail(self, key: str) -> list[str]:
        """Give a task up, and with it all that needs it. Returns the keys of all of them."""
        dead, stack = [], [key]
        while stack:
            node = self.nodes[stack.pop()]
            if node.state in ("failed", "completed"):
                continue
            node.state = "failed"
            self._let_go(node)
            dead.append(node.task.key)
            stack.extend(node.users)
        return dead

    def drop_job(self, job: str) -> list[str]:
        """Forget a job. Returns the keys of active tasks that nobody wants any more."""
        orphans = []
        for key, node in list(self.nodes.items()):
            if node.jobs.pop(job, None) is None or node.jobs:
                continue
            if node.state == "active":
                orphans.append(key)
            else:
                self._let_go(node)
                del self.nodes[key]
        return orphans

    def forget(self, key: str) -> None:
        """Drop an active task that nobody wants once its attempt has ended."""
        node = self.nodes.get(key)
        if node is not None and not node.jobs:
            self._let_go(node)
            del self.nodes[key]

    def _let_go(self, node: Node) -> None:
        if not node.has_let_go:
            node.has_let_go = True
            self.unfinished_users.subtract(node.task.inputs)

    def _push(self, node: Node) -> None:
        entry = (-max(node.jobs.values()), -node.chain, next(self.order), node.task.key)
        heapq.heappush(self.ready.setdefault(node.task.stage, []), entry)
