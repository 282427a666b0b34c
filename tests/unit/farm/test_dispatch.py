"""The dispatcher: order of hand-out, and that no task is lost or runs twice, whatever happens."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
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
        text = make_task(
            "encode", EncodeText("wan", "same" if shared_prompt else f"{name} {i}", 8), extension="x", cost=1
        )
        what = Denoise("wan", "text", (1,), length, 1.0, 1.0, hash(name) % 1000 * 100 + i, ())
        latents = make_task("denoise", what, inputs=(text.key,), extension="x", cost=length, label=f"{name}{i}")
        frames = make_task(
            "decode", Decode("wan", ((0, 1),), 0, True, 0, length), inputs=(latents.key,), extension="x", cost=1
        )
        tasks += [text, latents, frames]
        ends.append(frames.key)
    tasks.append(make_task("assemble", JoinClips("mp4", (), name, ()), inputs=tuple(ends), extension="x", cost=1))
    return {t.key: t for t in tasks}


def take_all(dispatcher: Dispatcher, stages: list[Stage]) -> list[Task]:
    taken = []
    while (task := dispatcher.take(stages, replica="r", peers=())) is not None:
        taken.append(task)
    return taken


def one_film(lengths: list[int]) -> tuple[dict[str, Task], Dispatcher]:
    tasks, dispatcher = make_film("f", lengths), Dispatcher()
    dispatcher.add_job("f", tasks, set(tasks))
    return tasks, dispatcher


def finish(dispatcher: Dispatcher, key: str) -> list[str]:
    dispatcher.computed(key)
    return dispatcher.finished(key)


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


def test_a_task_avoids_replicas_where_it_failed_while_there_are_others() -> None:
    _tasks, dispatcher = one_film([3])
    (text,) = take_all(dispatcher, ["encode"])
    dispatcher.requeue(text.key, avoid=frozenset({"bad"}))
    assert dispatcher.take(ALL, replica="bad", peers=("bad", "good")) is None
    assert dispatcher.take(ALL, replica="good", peers=("bad", "good")) == text
    dispatcher.requeue(text.key, avoid=frozenset({"bad"}))
    assert dispatcher.take(ALL, replica="bad", peers=()) == text


def take_of(length: int) -> tuple[Dispatcher, list[Task]]:
    """One shot of several chunks: each decode task goes on where the one before ended."""
    tasks: list[Task] = []
    for k in range(length):
        latents = make_task("denoise", Denoise("wan", "text", (1,), k + 1, 1.0, 1.0, k, ()), extension="x", cost=1)
        near = tasks[-1].key if tasks else ""
        shown = Decode("wan", ((0, 1),), 0, True, 0, k + 1)
        tasks += [latents, make_task("decode", shown, inputs=(latents.key,), extension="x", cost=1, near=near)]
    dispatcher = Dispatcher()
    dispatcher.add_job("f", {t.key: t for t in tasks}, {t.key for t in tasks})
    for task in take_all(dispatcher, ["denoise"]):
        finish(dispatcher, task.key)
    return dispatcher, [t for t in tasks if t.stage == "decode"]


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


def test_a_task_that_failed_on_every_replica_goes_to_any() -> None:
    _tasks, dispatcher = one_film([3])
    (text,) = take_all(dispatcher, ["encode"])
    dispatcher.requeue(text.key, avoid=frozenset({"a", "b"}))
    assert dispatcher.take(ALL, replica="a", peers=("a", "b")) == text


def test_users_wait_again_for_an_output_that_was_lost_before_it_was_safe() -> None:
    _tasks, dispatcher = one_film([3])
    (text,) = take_all(dispatcher, ["encode"])
    (latents,) = dispatcher.computed(text.key)
    dispatcher.requeue(text.key)
    assert take_all(dispatcher, ["denoise"]) == []
    assert dispatcher.is_pending(text.key)
    (again,) = take_all(dispatcher, ["encode"])
    finish(dispatcher, again.key)
    assert [t.key for t in take_all(dispatcher, ["denoise"])] == [latents]


def test_a_user_that_ran_meanwhile_is_tried_again_when_its_input_is_back() -> None:
    _tasks, dispatcher = one_film([3])
    (text,) = take_all(dispatcher, ["encode"])
    dispatcher.computed(text.key)
    (latents,) = take_all(dispatcher, ["denoise"])
    dispatcher.requeue(text.key)  # lost before it was safe
    dispatcher.requeue(latents.key)  # could not read its input
    assert take_all(dispatcher, ["denoise"]) == []
    (again,) = take_all(dispatcher, ["encode"])
    finish(dispatcher, again.key)
    assert take_all(dispatcher, ["denoise"]) == [latents]


def test_another_try_is_in_vain_once_an_input_has_failed() -> None:
    tasks, dispatcher = one_film([3])
    (text,) = take_all(dispatcher, ["encode"])
    dispatcher.computed(text.key)
    (latents,) = take_all(dispatcher, ["denoise"])
    dispatcher.fail(text.key)
    assert not dispatcher.is_settled(tasks)  # the user that runs may still succeed
    assert not dispatcher.requeue(latents.key)
    assert dispatcher.is_settled(tasks)


def test_a_film_dropped_and_asked_for_again_waits_for_all_inputs_anew() -> None:
    tasks, dispatcher = one_film([3, 4])
    running = take_all(dispatcher, ["encode"])
    dispatcher.drop_job("f")
    dispatcher.add_job("f", tasks, set(tasks))
    for task in running:
        assert len(dispatcher.computed(task.key)) == 1
    assert sum(dispatcher.num_ready.values()) == 2
    assert take_all(dispatcher, ["decode", "assemble"]) == []


def test_dropping_one_film_while_an_output_is_not_safe_yet_leaves_the_other_whole() -> None:
    one, two = make_film("one", [3], shared_prompt=True), make_film("two", [4], shared_prompt=True)
    dispatcher = Dispatcher()
    for name, film in (("one", one), ("two", two)):
        dispatcher.add_job(name, film, set(film))
    (text,) = take_all(dispatcher, ["encode"])
    dispatcher.computed(text.key)
    dispatcher.drop_job("one")
    dispatcher.finished(text.key)
    assert [t.key in two for t in take_all(dispatcher, ["denoise"])] == [True]


def test_what_is_ready_is_counted_exactly() -> None:
    tasks = make_film("f", [1] * 50)
    dispatcher = Dispatcher()
    dispatcher.add_job("f", tasks, set(tasks))
    assert dispatcher.num_ready["encode"] == 50
    dispatcher.drop_job("f")
    assert not any(dispatcher.num_ready.values())


def test_a_failed_task_takes_down_what_needs_it_and_nothing_else() -> None:
    tasks, dispatcher = one_film([3, 4])
    one, two = take_all(dispatcher, ["encode"])
    dead = dispatcher.fail(one.key)
    assert [tasks[k].stage for k in dead] == ["encode", "denoise", "decode", "assemble"]
    finish(dispatcher, two.key)
    assert len(take_all(dispatcher, ["denoise"])) == 1
    assert not dispatcher.is_settled(tasks)


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


def test_an_output_that_has_gone_is_made_again_before_what_takes_it() -> None:
    """Of a film that was there up to its latents; the decode task finds them damaged."""
    tasks = make_film("f", [5, 5])
    text, latents, frames = list(tasks)[:3]
    dispatcher = Dispatcher()
    dispatcher.add_job("f", tasks, set(tasks) - {text, latents})
    taken = {t.key for t in take_all(dispatcher, ["decode"])}
    assert frames in taken
    dispatcher.revive("f", tasks, {latents})
    dispatcher.requeue(frames)
    assert frames not in {t.key for t in take_all(dispatcher, ["decode"])}
    assert latents in {t.key for t in take_all(dispatcher, ["denoise"])}
    dispatcher.computed(latents)
    assert [t.key for t in take_all(dispatcher, ["decode"])] == [frames]
    dispatcher.finished(latents)
    finish(dispatcher, frames)

    dispatcher.revive("f", tasks, {latents, frames})  # once more, now that both were done in this run
    assert take_all(dispatcher, ["decode"]) == []
    assert latents in {t.key for t in take_all(dispatcher, ["denoise"])}
    finish(dispatcher, latents)
    assert [t.key for t in take_all(dispatcher, ["decode"])] == [frames]
    while rest := take_all(dispatcher, ALL):
        for task in rest:
            finish(dispatcher, task.key)
    finish(dispatcher, frames)
    for task in take_all(dispatcher, ALL):
        finish(dispatcher, task.key)
    assert dispatcher.is_settled(tasks)
    assert not any(dispatcher.is_needed(k) for k in tasks)


def test_an_input_that_is_dropped_and_asked_for_again_is_waited_for() -> None:
    """Found by a simulated world: the user ran meanwhile, on an input that was computed and lost before it was safe."""
    tasks, dispatcher = one_film([3])
    (text,) = take_all(dispatcher, ["encode"])
    dispatcher.computed(text.key)
    (latents,) = take_all(dispatcher, ["denoise"])
    dispatcher.requeue(text.key)
    dispatcher.drop_job("f")  # the lease is lost; the user still runs
    dispatcher.add_job("f", tasks, set(tasks))
    dispatcher.requeue(latents.key)
    assert take_all(dispatcher, ["denoise"]) == []
    (again,) = take_all(dispatcher, ["encode"])
    finish(dispatcher, again.key)
    assert take_all(dispatcher, ["denoise"]) == [latents]


def test_an_input_that_only_another_film_wanted_anew_holds_nobody_up() -> None:
    one, two = make_film("one", [3], shared_prompt=True), make_film("two", [3], shared_prompt=True)
    dispatcher = Dispatcher()
    dispatcher.add_job("one", one, set(one))
    text = next(iter(one))
    dispatcher.add_job("two", two, set(two) - {text})  # it has come into the store meanwhile
    dispatcher.drop_job("one")
    assert {t.stage for t in take_all(dispatcher, ["denoise"])} == {"denoise"}
