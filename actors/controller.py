"""The controller: one Ray actor that gives farm/control/ its hands and its clock. It never touches a tensor."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import ray

from actors.autoscaler import ON_HEAD
from actors.identity import is_dead, this_process
from actors.meters import Meters
from actors.pool import RayHands
from farm.clock import steady_time
from farm.control.control import Control
from farm.pools.pools import pools_from_json
from farm.store.journal import Held, Owner, Wish
from farm.store.store import Store

NAMESPACE = "longtake"
OPEN_TIMEOUT_S = 60.0
IO_THREADS = 32  # they wait for the store; one that is slow must not keep others from showing that we live


class Controller:
    """See the module. What crosses to the doors are plain values; a rendering is named by its wish."""

    def __init__(self, farm: str, store_uri: str, pools: dict[str, Any], package: str, adopts: bool) -> None:
        self.meters = Meters()
        self.control = Control(
            Store(store_uri), pools_from_json(pools), RayHands(farm), owner=this_process(), farm=farm,
            io=self.meters.timed(asyncio.to_thread), now=steady_time, package=package, adopts=adopts, is_dead=is_dead,
        )  # fmt: skip
        self.control.work.on_attempt, self.control.jobs.on_end = self.meters.note_attempt, self.meters.note_end
        if adopts:  # also when Ray has started it again, and no door knocks
            ray.get_runtime_context().current_actor.open.remote()

    async def open(self) -> list[str]:
        if not self.control.is_open:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(IO_THREADS))
            self.looking = asyncio.ensure_future(self.meters.keep_looking(self.control))
        return await self.control.open()

    async def submit(
        self, wish: dict[str, Any], *, door: str, stale: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Take on a job that lies in the store, for a door. Returns the lease of another controller that drives it."""
        await self.control.open()  # a controller that was started again
        held = await self.control.submit(Wish(**wish), stale=held_from_json(stale) if stale else None, door=door)
        return asdict(held) if held else None

    async def view(self, name: str, wait_s: float = 0.0) -> dict[str, Any]:
        """Where a rendering stands; `unknown` where this controller was started since it was submitted."""
        if name not in self.control.jobs.renderings:
            return {"status": "unknown"}
        return await self.control.view(name, wait_s=wait_s)

    async def statuses(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """Of many renderings at once: `status`, `errors` and `film`."""
        views = {name: await self.view(name) for name in names}
        return {name: {k: v[k] for k in ("status", "errors", "film") if k in v} for name, v in views.items()}

    async def cancel(self, name: str, door: str) -> bool:
        return await self.control.cancel(name, door)

    async def is_quiet(self, name: str) -> bool:
        return await self.control.is_quiet(name)

    async def list_replicas(self) -> list[dict[str, Any]]:
        """The replicas that exist, with the node and the process of each; no node where one is still starting."""
        slots = self.control.fleet.slots.values()
        return [{"name": s.name, "pool": s.pool, "node": s.node, "pid": s.pid, "busy": bool(s.busy)} for s in slots]

    async def close(self) -> None:
        """Stop all replicas; the controller itself is ended by whoever started it."""
        await self.control.close()


def held_from_json(data: dict[str, Any]) -> Held:
    return Held(data["fence"], Owner(**data["owner"]), data["beat"])


def start_controller(
    name: str, store_uri: str, pools: dict[str, Any], *, package: str = "pipelines", adopts: bool = False
) -> Any:
    """Join the farm of that name, or start it: a named, detached actor, which Ray starts again when it dies.

    It is placed on the head: for an autoscaler an actor keeps its node busy for ever, also one that costs.

    Args:
        adopts: it stays: jobs that nobody drives are taken on without a door.
    """
    options: dict[str, Any] = {
        "name": name, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached", "max_restarts": -1,
    }  # fmt: skip
    actor = ray.remote(Controller).options(num_cpus=0, resources=ON_HEAD, **options)
    handle = actor.remote(name, store_uri, pools, package, adopts)
    ray.get(handle.open.remote(), timeout=OPEN_TIMEOUT_S)
    return handle
