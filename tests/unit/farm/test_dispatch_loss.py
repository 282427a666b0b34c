"""What the dispatcher does when outputs, inputs and films go while tasks are at work."""

from __future__ import annotations

from dispatch_case import ALL, finish, make_film, one_film, take_all

from farm.control.dispatch import Dispatcher


def test_a_task_avoids_replicas_where_it_failed_while_there_are_others() -> None:
    _tasks, dispatcher = one_film([3])
    (text,) = take_all(dispatcher, ["encode"])
    dispatcher.requeue(text.key, avoid=frozenset({"bad"}))
    assert dispatcher.take(ALL, replica="bad", peers=("bad", "good")) is None
    assert dispatcher.take(ALL, replica="good", peers=("bad", "good")) == text
    dispatcher.requeue(text.key, avoid=frozenset({"bad"}))
    assert dispatcher.take(ALL, replica="bad", peers=()) == text


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


def test_a_failed_task_takes_down_what_needs_it_and_nothing_else() -> None:
    tasks, dispatcher = one_film([3, 4])
    one, two = take_all(dispatcher, ["encode"])
    dead = dispatcher.fail(one.key)
    assert [tasks[k].stage for k in dead] == ["encode", "denoise", "decode", "assemble"]
    finish(dispatcher, two.key)
    assert len(take_all(dispatcher, ["denoise"])) == 1
    assert not dispatcher.is_settled(tasks)


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
