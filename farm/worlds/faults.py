"""What goes wrong in a world, what people order meanwhile, and who starts controllers again."""

from __future__ import annotations

import asyncio

from farm.store.journal import Wish, write_order
from farm.worlds.actors import Instance
from farm.worlds.replica import SimNode, end_replica
from farm.worlds.world import World


async def break_things(world: World) -> None:
    for _ in range(world.num_faults):
        await asyncio.sleep(world.rng.expovariate(1 / 4))
        _break_something(world)
    await asyncio.sleep(60)
    world.is_calm = True
    for node in world.nodes:
        node.slowness = 1.0
    world.tell("from now on nothing breaks")


def _break_something(world: World) -> None:
    rng, now = world.rng, world.loop.time()
    kinds = ["replica", "replica", "node", "drain", "slow", "bad", "crash", "crash", "freeze", "outage", "answer",
             "full", "second", "bad node"]  # fmt: skip
    kind = rng.choice(kinds)
    living = [r for r in world.replicas if r.is_alive]
    nodes = [n for n in world.nodes if n.is_alive]
    instance = rng.choice(world.alive) if world.alive else None
    if kind == "replica" and living:
        end_replica(rng.choice(living))
    elif kind in ("node", "drain") and len(nodes) > 1:
        node = rng.choice(nodes)
        node.is_draining = kind == "drain"
        world.loop.call_later(rng.uniform(2, 20) if kind == "drain" else 0, _lose_node, world, node)
    elif kind == "slow":
        rng.choice(nodes).slowness = rng.choice([1, 3, 10])
    elif kind == "bad" and living:
        rng.choice(living).is_bad = True
    elif kind == "bad node" and len(nodes) > 1 and not world.bad_node:
        world.bad_node = rng.choice(nodes).name
        world.loop.call_later(rng.uniform(20, 100), _mend_node, world)
    elif kind == "crash" and instance:
        instance.dies_at_write = rng.choice(["before", "after"])
    elif kind == "freeze" and instance:
        instance.frozen_until = now + rng.uniform(1, 40)
        world.had_two = True
        if rng.random() < 0.7:
            _start_another(world)
    elif kind == "second":
        world.had_two = True
        _start_another(world)
    elif kind == "outage":
        world.outage_until = now + rng.uniform(1, 40)
    elif kind == "answer":
        world.loses_answer = True
    elif kind == "full":
        world.full_until = now + rng.uniform(5, 60)
    world.story[kind] += 1
    world.tell(f"breaks: {kind}")


def _start_another(world: World) -> None:
    """A second controller, which somebody ends after a while."""
    another = world.start_controller()
    world.loop.call_later(world.rng.uniform(20, 80), _end_another, world, another)


def _end_another(world: World, instance: Instance) -> None:
    if len(world.alive) > 1 and not instance.is_dead:
        world.tell(f"{instance.name} is ended")
        instance.kill()


def _lose_node(world: World, node: SimNode) -> None:
    node.is_alive = False
    for replica in world.replicas:
        if replica.node is node:
            end_replica(replica)
    world.nodes.append(SimNode(f"node{len(world.nodes)}"))
    world.tell(f"{node.name} is lost")


def _mend_node(world: World) -> None:
    for replica in world.replicas:
        if replica.node and replica.node.name == world.bad_node:
            replica.is_bad = False
    world.bad_node = ""


async def keep_one_controller(world: World) -> None:
    """As Ray does: a controller that died is started again."""
    while True:
        await asyncio.sleep(world.rng.uniform(0.5, 5.0))
        if not world.alive:
            world.had_two = True  # replicas of the dead one may still run
            world.start_controller()


async def give_orders(world: World) -> None:
    for _ in range(world.rng.randint(0, 4) if world.num_faults else 0):
        await asyncio.sleep(world.rng.expovariate(1 / 25))
        wish = world.rng.choice(world.wishes)
        kind = world.rng.choice(["pause", "priority", "requeue", "pause", "cancel"])
        world.tell(f"order: {kind} {wish.job}")
        _order(world, wish, kind)
        if kind == "pause":
            world.loop.call_later(world.rng.uniform(3, 60), _order, world, wish, "resume")
        if kind == "cancel":
            world.ordered_to_end.add(wish.job)


def _order(world: World, wish: Wish, kind: str) -> None:
    now = world.loop.time()
    write_order(world.store, wish.job, kind, by="somebody", at=now, priority=world.rng.choice([5, 95]),
                name=f"{int(now * 1000):015d}-{world.rng.randrange(10**6)}")  # fmt: skip
