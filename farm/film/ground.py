"""What the shots of a film share while they are resolved, and the words in which faults are reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from farm.document import Place
from farm.errors import Problem
from farm.film.film import FilmShot
from farm.film.storyboard import Draft, TopLevel
from farm.models.card import ModelCard
from farm.models.loras import LoraFit

T = TypeVar("T")


@dataclass
class Ground:
    """What all shots of a film share, and what is found while they are resolved."""

    draft: Draft
    top: TopLevel
    size: tuple[int, int]
    fps: float
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    loras: dict[tuple[str, str, str], LoraFit] = field(default_factory=dict)  # by model, path and transformer
    files: dict[str, Path] = field(default_factory=dict)  # the author's, by their SHA-256
    done: dict[str, FilmShot | None] = field(default_factory=dict)

    def fault(self, place: Place, message: str) -> None:
        self.problems.append(self.draft.document.problem(place, message))

    def warn(self, place: Place, message: str) -> None:
        """Note what is not as it may have been meant, though nothing is at fault."""
        self.warnings.append(self.draft.document.problem(place, message))


def off_rule(name: str, card: ModelCard, got: int) -> str:
    return f"{name} must be {card.rule} for {card.name}, got {got}; nearest {are(card.rule.neighbours(got))}"


def are(near: Any) -> str:
    return f"are {near[0]} and {near[1]}" if len(near) == 2 else f"is {near[0]}"


def first_of(*values: T | None) -> T:
    return next(v for v in values if v is not None)
