"""What waits for films in a world: doors that submit, follow and close."""

from __future__ import annotations

import asyncio

from farm.errors import InputError, ReplicaLost, StoreError
from farm.states import ENDED
from farm.store.journal import Held, Watch, Wish, read_standing
from farm.worlds.weather import LIMIT_S
from farm.worlds.world import World


async def door(world: World, wish: Wish) -> str:
    """What `farm render` does, again and again until the job has ended. Some doors close before that."""
    await asyncio.sleep(world.rng.uniform(0, 40) if world.num_faults else 0)
    closes_at = world.loop.time() + world.rng.uniform(5, 100) if world.adopts and world.rng.random() < 0.3 else LIMIT_S
    watch: Watch | None = None
    is_submitted = False
    while world.loop.time() < closes_at or not is_submitted:
        await asyncio.sleep(world.rng.uniform(0.1, 2.0))
        if not world.alive:
            continue
        instance = world.rng.choice(world.alive)
        try:
            stale = watch.held if watch and watch.look(watch.held, world.loop.time()) else None
            held: Held | None = await instance.call(instance.control.submit(wish, stale=stale, door=wish.name))
            if held is not None:
                watch = watch or Watch(held, world.loop.time())
                watch.look(held, world.loop.time())
                if read_standing(world.store, wish.job).state in ENDED:
                    return "followed"
                continue
            watch, is_submitted = None, True
            while world.loop.time() < closes_at:
                view = await instance.call(instance.control.view(wish.name, wait_s=30.0))
                if view["status"] in ENDED:
                    world.tell(f"{wish.job} is {view['status']} {view['errors'][:1]}")
                    return str(view["status"])
                if view["status"] == "lost":
                    break
        except (ReplicaLost, KeyError, OSError, StoreError, InputError):
            continue
    return "closed"


async def until_all_ended(world: World) -> None:
    while True:
        await asyncio.sleep(20)
        states = [read_standing(world.store, w.job) for w in world.wishes]
        if all(s.state in ENDED for s in states) and not (world.adopts and world.store.names("queue")):
            return
