"""The graph under construction: tasks are made with their keys, and each is there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from farm.film.chunks import Chunk
from farm.film.film import Film, FilmImage, FilmLora, FilmShot
from farm.keys import make_task
from farm.models.card import ModelCard
from farm.models.checkpoint import Checkpoint
from farm.plan.sources import source_task
from farm.task import Numerics, Roll, Task

PRECISE: tuple[tuple[str, Any], ...] = (("dtype", "float32"),)  # of what encodes pictures


@dataclass(frozen=True)
class Try:
    """Which try at a chunk, and the task that measures the join of the one before."""

    roll: int = 0
    measure: str | None = None

    def wrap(self, request: Any, inputs: tuple[str, ...], shot: FilmShot) -> tuple[Any, tuple[str, ...]]:
        """The request and inputs of a task of this try."""
        if self.measure is None:
            return request, inputs
        return Roll(request, shot.max_seam), (*inputs, self.measure)


class Graph:
    """The tasks of a film by key, and those of each shot; what makes tasks is given one."""

    def __init__(self, film: Film, models: Sequence[Checkpoint], numerics: Numerics) -> None:
        self.film, self.models, self.numerics = film, models, numerics
        self.tasks: dict[str, Task] = {}
        self.sources: dict[str, Task] = {}
        self.shot_tasks: dict[str, list[str]] = {}

    def card_of(self, shot: FilmShot) -> ModelCard:
        return self.models[shot.model].card

    def model_for(self, shot: FilmShot, chunk: Chunk) -> Checkpoint:
        """The model of a chunk: another one may make those that go on from others."""
        return self.models[shot.next_model if chunk.context_latents else shot.model]

    def add(self, task: Task) -> str:
        self.tasks.setdefault(task.key, task)
        return task.key

    def picture_cost(self, num_frames: int) -> float:
        """Of work on that many frames, in the units of denoising and decoding."""
        return 4.5 * num_frames * self.film.width_px * self.film.height_px / self.models[0].card.spatial_factor ** 2

    def source(self, file: FilmImage | FilmLora) -> str:
        """The author's file in the graph."""
        task = source_task(file)
        self.sources[task.key] = task
        return task.key

    def plain_task(
        self, request: Any, extension: str, inputs: tuple[str, ...], shot: FilmShot, attempt: Try | None = None
    ) -> str:
        """A small task that needs no model."""
        request, inputs = (attempt or Try()).wrap(request, inputs, shot)
        task = make_task(
            "assemble", request, inputs=inputs, extension=extension, label=shot.id,
            cost=0 if attempt and attempt.measure else self.picture_cost(4),
        )  # fmt: skip
        self.shot_tasks[shot.id].append(task.key)
        return self.add(task)

    def model_task(
        self, request: Any, stage: Any, work: str, *, inputs: tuple[str, ...], label: str, shot: FilmShot,
        model: Checkpoint, cost: float, near: str = "", attempt: Try | None = None,
    ) -> str:  # fmt: skip
        """A task of a stage with the components for one kind of its work."""
        used = tuple((c, model.fingerprints[c]) for c in model.card.components[work])
        numerics = PRECISE if stage == "encode" and work != "text" else self.numerics[stage]
        request, inputs = (attempt or Try()).wrap(request, inputs, shot)
        task = make_task(
            stage, request, inputs=inputs, components=used,
            numerics=numerics, extension="mkv" if stage == "decode" else "safetensors",
            model=model.place, label=label,
            cost=0 if attempt and attempt.measure else cost, near=near,
        )  # fmt: skip
        self.shot_tasks[shot.id].append(task.key)
        return self.add(task)
