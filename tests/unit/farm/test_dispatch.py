"""The dispatcher: order of hand-out, and that no task is lost or runs twice, whatever happens."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from farm.dispatch import Dispatcher, remaining_chains
from farm.keys import make_task
from farm.task import Decode, Denoise, EncodeText, JoinClips, Stage, Task

ALL: list[Stage] = ["encode", "denoise", "decode", "assemble"]


def make_film(name: str, lengths: list[int], *, shared_prompt: bool = False) -> dict[str, Task]:
    """A film's graph: per shot encode > denoise > decode, then one join; a shot's cost is its length."""
    tasks: list[Task] = []
    ends = []
    for i, length in enumerate(lengths):
        text = make_task("encode", EncodeText("same" if shared_prompt else f"{name} {i}", 8), extension="x", cost=1)
        what = Denoise((1,), length, 1.0, 1.0, None, False, hash(name) % 1000 * 100 + i)
        latents = make_task("denoise", what, inputs=(text.key,), extension="x", cost=length, label=f"{name}{i}")
        frames = make_task("decode", Decode(length), inputs=(latents.key,), extension="x", cost=1)
        tasks += [text, latents, frames]
        ends.append(frames.key)
    tasks.append(make_task("assemble", JoinClips("mp4", (), name, ()), inputs=tuple(ends), extension="x", cost=1))
    return {t.key: t for t in tasks}


def take_all(dispatcher: Dispatcher, stages: list[Stage]) -> list[Task]:
    taken = []
    while (task := dispatcher.take(stages, replica="r", others=False)) is not None:
        taken.append(task)
    return taken


def finish(dispatcher: Dispatcher, key: str) -> list[str]:
    dispatcher.computed(key)
    return dispatcher.finished(key)


def test_the_longest_remaining_chain_goes_first() -> None:
    tasks = make_film("f", [3, 9, 5])
    dispatcher = Dispatcher()
    dispatcher.add_job("f", tasks, set(tasks))
    for task in take_all(dispatcher, ["encode"]):
        finish(dispatcher, task.key)
    assert [t.cost for t in take_all(dispatcher, ["denoise"])] == [9, 5, 3]


def test_priority_goes_before_length() -> None:
    long, urgent = make_film("long", [50]), make_film("urgent", [1])
    dispatcher = Dispatcher()
    dispatcher.add_job("long", long, set(long))
    dispatcher.add_job("urgent", urgent, set(urgent), priority=90)
    first = dispatcher.take(["encode"], replica="r", others=False)
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


def test_a_task_avoids_replicas_where_it_failed_while_there_are_others() -> None:
    tasks = make_film("f", [3])
    dispatcher = Dispatcher()
    dispatcher.add_job("f", tasks, set(tasks))
    (text,) = take_all(dispatcher, ["encode"])
    dispatcher.requeue(text.key, avoid=frozenset({"bad"}))
    assert dispatcher.take(ALL, replica="bad", others=True) is None
    assert dispatcher.take(ALL, replica="good", others=True) == text
    dispatcher.requeue(text.key, avoid=frozenset({"bad"}))
    assert dispatcher.take(ALL, replica="bad", others=False) == text


def test_a_failed_task_takes_down_what_needs_it_and_nothing_else() -> None:
    tasks = make_film("f", [3, 4])
    dispatcher = Dispatcher()
    dispatcher.add_job("f", tasks, set(tasks))
    one, two = take_all(dispatcher, ["encode"])
    dead = dispatcher.fail(one.key)
    assert [tasks[k].stage for k in dead] == ["encode", "denoise", "decode", "assemble"]
    finish(dispatcher, two.key)
    assert len(take_all(dispatcher, ["denoise"])) == 1
    assert not dispatcher.is_settled(tasks)


def test_a_dropped_job_leaves_nothing_but_what_runs() -> None:
    tasks = make_film("f", [3, 4])
    dispatcher = Dispatcher()
    dispatcher.add_job("f", tasks, set(tasks))
    running = dispatcher.take(ALL, replica="r", others=False)
    assert running is not None
    assert dispatcher.drop_job("f") == [running.key]
    dispatcher.forget(running.key)
    assert not dispatcher.nodes
    assert not any(dispatcher.unfinished_users.values())
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


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_films=st.integers(1, 4), shared=st.booleans())
def test_no_task_is_lost_and_none_runs_twice_at_once(seed: int, num_films: int, shared: bool) -> None:
    """Random completions, failures, retries and cancellations; in the end everything that was not dropped is done."""
    rng = random.Random(seed)
    dispatcher, films, running = Dispatcher(), {}, Counter[str]()
    for i in range(num_films):
        films[f"f{i}"] = make_film(f"f{i}", [rng.randint(1, 9) for _ in range(rng.randint(1, 6))], shared_prompt=shared)
        dispatcher.add_job(f"f{i}", films[f"f{i}"], set(films[f"f{i}"]), priority=rng.choice([10, 50]))
    done: set[str] = set()
    dropped: set[str] = set()
    for _ in range(2000):
        if rng.random() < 0.6 and (task := dispatcher.take(ALL, replica="r", others=False)):
            running[task.key] += 1
            assert running[task.key] == 1
            assert set(task.inputs) <= done
        elif running:
            key = rng.choice(sorted(running))
            del running[key]
            node = dispatcher.nodes[key]
            if not node.jobs:
                dispatcher.forget(key)
            elif rng.random() < 0.2:
                dispatcher.requeue(key)
            else:
                done.add(key)
                finish(dispatcher, key)
        elif len(films) > 1 and rng.random() < 0.01 and len(dropped) < len(films) - 1:
            dropped.add(rng.choice(sorted(films)))
            dispatcher.drop_job(max(dropped))
    wanted = set().union(*(set(f) for name, f in films.items() if name not in dropped))
    assert wanted <= done


def test_a_hand_out_costs_logarithmic_time() -> None:
    """Counted in comparisons of heap entries, not in seconds."""
    counts = []
    for size in (1000, 4000, 16000):
        dispatcher = Dispatcher()
        tasks = make_film("f", [1] * size)
        dispatcher.add_job("f", tasks, set(tasks))
        compared = Counter[str]()

        class Entry(tuple):  # type: ignore[type-arg]
            def __lt__(self, other: object) -> bool:
                compared["n"] += 1  # noqa: B023  # read before the next round
                return tuple.__lt__(self, other)  # type: ignore[operator]

        heap = dispatcher.ready["encode"]
        heap[:] = [Entry(e) for e in heap]
        for _ in range(100):
            dispatcher.take(["encode"], replica="r", others=False)
        counts.append(compared["n"] / 100)
    assert all(after - before < 8 for before, after in pairwise(counts))  # four times the tasks: two levels more
