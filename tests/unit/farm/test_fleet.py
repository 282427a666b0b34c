"""A replica's tasks as its controller knows them: the one that runs, and a short one that waits behind it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from farm.control.fleet import Fleet, Slot
from farm.pools.pools import Pool
from farm.task import EncodeText, Task


class Hands:
    """Remembers what it was asked to halt and to stop."""

    def __init__(self) -> None:
        self.halted: list[str] = []
        self.stopped: list[str] = []

    def halt(self, handle: str, key: str) -> None:
        self.halted.append(key)

    def stop(self, handle: str) -> None:
        self.stopped.append(handle)


def slot_with(*keys: str) -> Slot:
    slot = Slot("one", "all", "handle", node="a")
    for key in keys:
        slot.give(key, 1.0)
    return slot


def task_of(model: str, cost: float) -> Task:
    return Task("key", "encode", EncodeText("wan", "a ball", 32), (), (), (), "safetensors", model, "one", cost)


def test_what_waits_begins_when_the_task_in_front_of_it_has_ended() -> None:
    slot = slot_with("front", "behind")
    assert (slot.busy, slot.ahead, slot.given, slot.began) == ("front", "behind", ["front", "behind"], {"front": 1.0})
    slot.take_off("front", 5.0)
    assert (slot.busy, slot.ahead, slot.began["behind"], slot.is_free) == ("behind", None, 5.0, False)
    slot.take_off("behind", 6.0)
    assert (slot.busy, slot.idle_since, slot.is_free) == (None, 6.0, True)


def test_an_answer_may_overtake_that_of_the_task_in_front() -> None:
    slot = slot_with("front", "behind")
    slot.take_off("behind", 5.0)
    assert (slot.busy, slot.ahead) == ("front", None)
    slot.take_off("front", 6.0)
    assert slot.is_free


def test_a_replica_that_leaves_gives_back_what_waits_and_ends_when_it_has_none() -> None:
    hands: Any = Hands()
    fleet = Fleet({"all": Pool(stages=["encode"])}, hands, store_uri="s", package="p")
    slot = fleet.slots["one"] = slot_with("front", "behind")
    assert fleet.holding({"behind", "other"}) == [(slot, "behind")]
    fleet.dismiss(slot)
    assert (hands.halted, hands.stopped) == (["behind"], [])
    slot.take_off("front", 5.0)
    slot.take_off("behind", 5.0)
    fleet.dismiss(slot)
    assert hands.stopped == ["handle"]


def test_how_long_a_task_takes_is_known_from_one_of_its_kind_and_model_alone() -> None:
    slot, task = slot_with(), task_of("wan", 10.0)
    assert slot.expected_s(task) == math.inf
    slot.note_pace(task, 2.0)
    assert slot.expected_s(replace(task, cost=30.0)) == pytest.approx(6.0)
    assert slot.expected_s(replace(task, cost=0.0)) == math.inf
    slot.note_pace(replace(task, model="ltx"), 1.0)  # which the replica has loaded in its place
    assert slot.expected_s(task) == math.inf
    assert slot.expected_s(replace(task, model="ltx")) == pytest.approx(1.0)
