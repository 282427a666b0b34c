"""One simulated world, drawn from a seed: its films, pools and nodes, and the controllers that come and go.

As FoundationDB and TigerBeetle test: replicas, nodes, the store's files, doors and the clock are simulated; everything
else is the code that runs in production. All chance comes from one seed, so a world that goes wrong goes wrong again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from farm.control.attempts import AHEAD_S
from farm.control.control import Control
from farm.control.jobs import Planned, plan_wish
from farm.errors import ReplicaLost
from farm.film.film import job_id_of
from farm.film.resolve import resolve
from farm.film.storyboard import parse_storyboard
from farm.plan.plan import Plan, make_plan, tasks_to_run
from farm.pools.pools import Pool, numerics
from farm.store.jobs import Job, write_job
from farm.store.journal import Owner, Wish
from farm.store.store import Store
from farm.worlds.actors import Instance
from farm.worlds.boards import builtin, draw_pools, make_board
from farm.worlds.replica import SimNode
from farm.worlds.weather import Weather


class World(Weather):
    """One seed's world: its films and pools, its nodes and controllers."""

    def __init__(
        self, seed: int, *, num_faults: int = 14, min_tasks: int = 100, log: Callable[[str], None] | None = None,
        control: Callable[[Control], None] = lambda control: None,
    ) -> None:  # fmt: skip
        """Args:
        num_faults: how many things go wrong, at least.
        control: changes each controller after it is made: for faults of the farm itself that a test puts in.
        """
        super().__init__(seed, num_faults=num_faults, log=log)
        self.change = control
        self.adopts = self.rng.random() < 0.7
        self.max_open = self.rng.choice([1, 2, 64])
        self.pools = draw_pools(self.rng)
        self.nodes = [SimNode(f"node{i}") for i in range(self.rng.randint(2, 5))]
        self.instances: list[Instance] = []
        self.plans: dict[str, Plan] = {}
        self.wishes: list[Wish] = []
        self.known_plans: dict[str, tuple[Job, Plan]] = {}
        self.ordered_to_end: set[str] = set()
        self.started = self.makespan_s = 0.0
        self.ended_as: list[str] = []
        self._draw_films(min_tasks)
        self.ahead_s = AHEAD_S if self.is_exact else self.rng.choice([0.0, AHEAD_S, 30.0])

    def _draw_films(self, min_tasks: int) -> None:
        self.store.create()
        while sum(len(p.tasks) for p in self.plans.values()) < min_tasks:
            text = make_board(self.rng, len(self.wishes))
            film = resolve(parse_storyboard(text.encode(), file="board.yaml"), builtin()).film
            job = Job(job_id_of(film, builtin()), film, (builtin(),), text)
            write_job(self.store, job)
            plan = make_plan(film, job.models, numerics(self.pools), container="mp4", stills=False)
            wish = Wish(job.id, "mp4", False, "farm", self.rng.choice([10, 50, 90]), by=self.rng.choice(["one", "two"]))
            self.wishes.append(wish)
            self.plans[wish.name], self.known_plans[wish.name] = plan, (job, plan)
        if not self.num_faults:
            return
        keys = sorted({k for plan in self.plans.values() for k in plan.tasks})
        for key in keys:
            x = self.rng.random()
            if x < 0.002:
                self.poison.add(key)
            elif x < 0.03:
                self.flaky[key] = self.rng.randint(1, 2)  # failures before it succeeds: fewer than end a task
            elif x < 0.04:
                self.hungry[key] = self.rng.choice([1, 1, 2])  # 1: as soon as it is frugal; 2: in a larger pool

    def plan_of(self, store: Store, pools: Mapping[str, Pool], wish: Wish) -> Planned:
        """What `plan_wish` says; read from the store once."""
        if self.seed % 50 == 0:
            return plan_wish(store, pools, wish)
        job, plan = self.known_plans[wish.name]
        return job, plan, tasks_to_run(plan.tasks, plan.targets, store.has)

    # -- controllers

    @property
    def alive(self) -> list[Instance]:
        return [i for i in self.instances if not i.is_dead]

    def make_instance(self) -> Instance:
        instance = Instance(
            self, len(self.instances), pools=self.pools, nodes=self.nodes, max_open=self.max_open, adopts=self.adopts,
            ahead_s=self.ahead_s, is_dead=self._is_known_dead, plan=self.plan_of,
        )  # fmt: skip
        self.change(instance.control)
        self.instances.append(instance)
        return instance

    def start_controller(self) -> Instance:
        instance = self.make_instance()
        self.tell(f"{instance.name} starts")
        self.spawn(_open(instance))
        return instance

    def _is_known_dead(self, owner: Owner) -> bool:
        instance = next((i for i in self.instances if i.name == owner.name), None)
        return instance is None or (instance.is_dead and self.rng.random() < 0.5)


async def _open(instance: Instance) -> None:
    with contextlib.suppress(ReplicaLost):
        await instance.call(instance.control.open())
