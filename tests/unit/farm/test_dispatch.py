"""The dispatcher: order of hand-out, and that no task is lost or runs twice, whatever happens."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from dispatch_case import ALL, finish, make_film, one_film, take_all, take_of
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.control.dispatch import Dispatcher, remaining_chains
from farm.task import Task


def test_the_longest_remaining_chain_goes_first() -> None:
    _tasks, dispatcher = one_film([3, 9, 5])
    for task in take_all(dispatcher, ["encode"]):
        finish(dispatcher, task.key)
    assert [t.cost for t in take_all(dispatcher, ["denoise"])] == [9, 5, 3]


def test_priority_goes_before_length() -> None:
    long, urgent = make_film("long", [50]), make_film("urgent", [1])
    dispatcher = Dispatcher()
    dispatcher.add_job("long", long, set(long))
    dispatcher.add_job("urgent", urgent, set(urgent), priority=90)
    first = dispatcher.take(["encode"], replica="r", peers=())
    assert first is not None
    assert first.key in urgent


def test_age_decides_between_equals() -> None:
    dispatcher = Dispatcher()
    films = [make_film(f"f{i}", [5]) for i in range(4)]
    for i, film in enumerate(films):
        dispatcher.add_job(f"f{i}", film, set(film))
    taken = take_all(dispatcher, ["encode"])
    assert [next(i for i, f in enumerate(films) if t.key in f) for t in taken] == [0, 1, 2, 3]


def test_two_films_share_a_task_that_both_need() -> None:
    one, two = make_film("one", [3], shared_prompt=True), make_film("two", [4], shared_prompt=True)
    dispatcher = Dispatcher()
    dispatcher.add_job("one", one, set(one))
    dispatcher.add_job("two", two, set(two))
    (text,) = take_all(dispatcher, ["encode"])
    finish(dispatcher, text.key)
    assert len(take_all(dispatcher, ["denoise"])) == 2


def test_a_task_is_kept_for_the_replica_that_can_go_on() -> None:
    dispatcher, (one, two, three) = take_of(3)
    both = ("a", "b")
    assert dispatcher.take(["decode"], replica="a", peers=both, idle=both) is not None
    first = next(t for t in (one, two, three) if dispatcher.nodes[t.key].state == "active")
    following = {one.key: two, two.key: three}.get(first.key)
    assert following is not None
    finish(dispatcher, first.key)
    others = set()
    while (task := dispatcher.take(["decode"], replica="b", peers=both, idle=both)) is not None:
        others.add(task.key)
    assert following.key not in others  # `a` is idle and has the cache
    assert dispatcher.take(["decode"], replica="a", peers=both, idle=both) == following


def test_a_task_goes_elsewhere_when_the_replica_that_could_go_on_is_busy_or_gone() -> None:
    for peers, idle in ((("a", "b"), ("b",)), (("b",), ("b",))):
        dispatcher, (one, two) = take_of(2)
        while dispatcher.take(["decode"], replica="a", peers=("a",), idle=("a",)) not in (one, None):
            dispatcher.requeue(two.key)
        finish(dispatcher, one.key)
        assert dispatcher.take(["decode"], replica="b", peers=peers, idle=idle) == two


def test_what_is_ready_is_counted_exactly() -> None:
    tasks = make_film("f", [1] * 50)
    dispatcher = Dispatcher()
    dispatcher.add_job("f", tasks, set(tasks))
    assert dispatcher.num_ready["encode"] == 50
    dispatcher.drop_job("f")
    assert not any(dispatcher.num_ready.values())


def test_a_dropped_job_leaves_nothing_but_what_runs() -> None:
    _tasks, dispatcher = one_film([3, 4])
    running = dispatcher.take(ALL, replica="r", peers=())
    assert running is not None
    assert dispatcher.drop_job("f") == [running.key]
    dispatcher.forget(running.key)
    assert not dispatcher.nodes
    assert not any(dispatcher.num_holding.values())
    assert not take_all(dispatcher, ALL)


def test_values_are_let_go_when_their_last_user_has_finished() -> None:
    one, two = make_film("one", [3], shared_prompt=True), make_film("two", [4], shared_prompt=True)
    dispatcher = Dispatcher()
    for name, film in (("one", one), ("two", two)):
        dispatcher.add_job(name, film, set(film))
    (text,) = take_all(dispatcher, ["encode"])
    finish(dispatcher, text.key)
    first, second = take_all(dispatcher, ["denoise"])
    assert finish(dispatcher, first.key) == []
    assert finish(dispatcher, second.key) == [text.key]


def test_chains_add_up_to_the_end_of_the_film() -> None:
    tasks = make_film("f", [3, 9])
    chain = remaining_chains(tasks, tasks)
    assert max(chain.values()) == 1 + 9 + 1 + 1
    assert chain[next(reversed(tasks))] == 1


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), num_films=st.integers(1, 4), shared=st.booleans())
def test_no_task_is_lost_and_none_runs_twice_at_once(seed: int, num_films: int, shared: bool) -> None:
    """Outputs that are computed, then lost or safe; failures, final ones too; films dropped and asked for again.

    In the end every task of a film that is wanted is done, or failed because it or an input was given up.
    """
    rng = random.Random(seed)
    dispatcher, films = Dispatcher(), {}
    for i in range(num_films):
        films[f"f{i}"] = make_film(f"f{i}", [rng.randint(1, 9) for _ in range(rng.randint(1, 6))], shared_prompt=shared)
    wanted = set(films)
    running, unsafe, safe, given_up = set[str](), set[str](), set[str](), set[str]()

    def ask_for(name: str) -> None:
        dispatcher.add_job(name, films[name], {k for k in films[name] if k not in safe}, priority=rng.choice([10, 50]))

    for name in films:
        ask_for(name)
    for step in range(4000):
        is_calm = step > 2500  # no more faults: everything must come to an end
        if rng.random() < 0.5 and (task := dispatcher.take(ALL, replica="r", peers=())):
            assert task.key not in running | unsafe | safe
            assert set(task.inputs) <= safe | unsafe
            running.add(task.key)
        elif running and rng.random() < 0.5:
            key = rng.choice(sorted(running))
            running.remove(key)
            if not dispatcher.nodes[key].jobs:
                dispatcher.forget(key)
            elif is_calm or rng.random() < 0.75:
                unsafe.add(key)
                dispatcher.computed(key)
            elif rng.random() < 0.9:
                dispatcher.requeue(key)
            else:
                given_up.add(key)
                dispatcher.fail(key)
        elif unsafe and rng.random() < 0.5:
            key = rng.choice(sorted(unsafe))
            unsafe.remove(key)
            if is_calm or rng.random() < 0.8:
                safe.add(key)
                dispatcher.finished(key)
                dispatcher.forget(key)
            elif not dispatcher.nodes[key].jobs:
                dispatcher.forget(key)
            else:
                dispatcher.requeue(key)
        elif not is_calm and rng.random() < 0.02:
            name = rng.choice(sorted(films))
            if name in wanted and len(wanted) > 1:
                wanted.remove(name)
                dispatcher.drop_job(name)
            elif name not in wanted and not running & films[name].keys() and not unsafe & films[name].keys():
                wanted.add(name)
                given_up -= films[name].keys()
                ask_for(name)
    assert not running
    assert not unsafe

    def is_lost(key: str, film: dict[str, Task]) -> bool:
        return key in given_up or any(is_lost(k, film) for k in film[key].inputs)

    for name in wanted:
        for key, task in films[name].items():
            assert key in safe or is_lost(key, films[name]), (task.stage, dispatcher.nodes.get(key))


def test_a_hand_out_costs_logarithmic_time() -> None:
    """Counted in comparisons of heap entries, not in seconds."""
    counts = []
    for size in (1000, 4000, 16000):
        dispatcher = Dispatcher()
        tasks = make_film("f", [1] * size)
        dispatcher.add_job("f", tasks, set(tasks))
        compared = Counter[str]()

        class Entry(tuple):
            def __lt__(self, other: object) -> bool:
                compared["n"] += 1  # noqa: B023  # read before the next round
                return tuple.__lt__(self, other)

        heap = dispatcher.heaps["encode"]
        heap[:] = [Entry(e) for e in heap]
        for _ in range(100):
            dispatcher.take(["encode"], replica="r", peers=())
        counts.append(compared["n"] / 100)
    assert all(after - before < 8 for before, after in pairwise(counts))  # four times the tasks: two levels more


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_a_long_take_is_decoded_in_runs(replicas: int) -> None:
    """All decode tasks are ready: 3 latent frames each, and a halo of 28 where a replica does not go on."""
    length, names = 64, [f"r{i}" for i in range(replicas)]
    dispatcher, chain = take_of(length)
    number = {task.key: k for k, task in enumerate(chain)}
    free_at, last, work, ended = dict.fromkeys(names, 0.0), dict.fromkeys(names, -2), 0, []
    running: dict[str, str] = {}
    now = 0.0
    while len(ended) < length:
        for name in names:
            if name not in running:
                idle = [n for n in names if n not in running]
                task = dispatcher.take(["decode"], replica=name, peers=names, idle=idle)
                if task is not None:
                    k = number[task.key]
                    cost = 3 + (0 if last[name] == k - 1 or k == 0 else min(28, 3 * k))
                    work, last[name], running[name] = work + cost, k, task.key
                    free_at[name] = now + cost
        assert running, "nothing runs and nothing is done"
        name = min(running, key=lambda n: free_at[n])
        now = free_at[name]
        finish(dispatcher, running[name])
        ended.append(running.pop(name))
    alone = 3 * length
    assert now <= alone  # helpers never make it slower
    assert work <= alone + 28 * 2 * replicas
    if replicas == 4:
        assert now < 0.6 * alone
