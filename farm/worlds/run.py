"""A world from beginning to end, and many of them on all cores."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from farm.errors import StoreError
from farm.store.journal import read_standing
from farm.worlds.checks import faults_in
from farm.worlds.doors import door, until_all_ended
from farm.worlds.faults import break_things, give_orders, keep_one_controller
from farm.worlds.weather import LIMIT_S
from farm.worlds.world import World


class _Errors(logging.Handler):
    """What a controller logs as its own failure is a fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, Exception) and not isinstance(error, OSError | StoreError):
            self.faults.append(f"{record.getMessage()}: {type(error).__name__}: {error}")


def run(world: World) -> list[str]:
    """Let the world live. Returns what was wrong in the end: nothing, in a good farm."""
    errors = _Errors(world.faults)
    logging.getLogger("farm.control").addHandler(errors)
    try:
        world.loop.run_until_complete(asyncio.wait_for(_live(world), LIMIT_S))
    except TimeoutError:
        for wish in world.wishes:
            standing = read_standing(world.store, wish.job)
            world.faults.append(f"job {wish.job} never ends: {standing.state} ({standing.reason})")
    except RuntimeError as e:
        world.faults.append(str(e))
    finally:
        logging.getLogger("farm.control").removeHandler(errors)
        for instance in world.instances:
            instance.is_dead = True
        while left := asyncio.all_tasks(world.loop):
            for task in left:
                task.cancel()
            world.loop.run_until_complete(asyncio.sleep(0))
        world.loop.close()
    return [*world.faults, *faults_in(world)]


async def _live(world: World) -> None:
    world.start_controller()
    world.spawn(keep_one_controller(world))
    world.spawn(break_things(world))
    world.spawn(give_orders(world))
    world.started = world.loop.time()
    doors = [world.loop.create_task(door(world, wish)) for wish in world.wishes]
    world.ended_as = await asyncio.gather(*doors)
    world.makespan_s = world.loop.time() - world.started
    await until_all_ended(world)


def faults_of(seed: int) -> list[str]:
    return [f"seed {seed}: {fault}" for fault in run(World(seed))]


def faults_of_many(seeds: Sequence[int]) -> Iterator[str]:
    """What goes wrong in many worlds, which live on all cores that nobody else needs."""
    pool = ProcessPoolExecutor(initializer=_be_humble)
    try:
        for faults in pool.map(faults_of, seeds, chunksize=5):
            yield from faults
    finally:
        pool.shutdown(cancel_futures=True)


def _be_humble() -> None:
    if hasattr(os, "SCHED_IDLE"):  # Ray's workers have nice 15 and must not wait for worlds
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)
    gc.set_threshold(50_000, 20, 100)  # worlds are large and live briefly: a tenth of the time went into looking
