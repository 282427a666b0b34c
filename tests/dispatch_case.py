"""Small films, and a dispatcher that hands them out, for tests."""

from __future__ import annotations

from farm.control.dispatch import Dispatcher
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
