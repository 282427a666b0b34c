"""Everything the farm raises on purpose.

    FarmError
    ├── InputError        the input is at fault: exit code 2; carries one `Problem` for each fault found
    ├── RenderError       the render failed: exit code 3
    ├── StoreError        an artifact is missing, damaged or cannot be written
    │   ├── DamagedError
    │   ├── DamagedRecord
    │   ├── StoreFull
    │   └── StoreUnreachable
    ├── NotFinite         a stage has put out NaN or infinity on finite weights
    ├── TaskCanceled      a stage stopped between two steps because it was told to
    ├── Halted            the same, with its state kept, to go on elsewhere
    ├── LeaseLost         another controller drives the job
    ├── ReplicaLost       a replica has gone, or cannot be reached
    └── IllegalMove       a state was to change in a way that does not exist (states.py)

All of them keep their arguments in `args`, so they survive pickling between Ray processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One fault of the input: what must hold, what we got, what to do; and where it stands."""

    message: str
    key: str = ""
    file: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line) if part)
        return f"{place}: {self.message}" if place else self.message

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def problem_from_json(data: str | Mapping[str, Any]) -> Problem:
    """As `Problem.as_json` made it; stores written before 0.2 have the message alone."""
    return Problem(data) if isinstance(data, str) else Problem(**data)


class FarmError(Exception):
    """Base of all errors of the farm."""


class InputError(FarmError):
    """The input is at fault; nothing was rendered and nothing was written."""

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(Problem(p) if isinstance(p, str) else p for p in problems)
        super().__init__(*self.problems)

    def __str__(self) -> str:
        return "\n".join(str(p) for p in self.problems)

    def at(self, *, key: str = "", file: str = "", line: int | None = None) -> InputError:
        """The same faults, with the place filled in where a fault does not know its own."""
        return InputError(
            *(replace(p, key=p.key or key, file=p.file or file, line=p.line or line) for p in self.problems)
        )


class RenderError(FarmError):
    """A film could not be finished; what exists stays in the store."""


class StoreError(FarmError):
    """An artifact is missing, does not match its checksum, or could not be written."""


class DamagedError(StoreError):
    """An artifact does not match its checksum and has been set aside: the task that made it must run again."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message, key)
        self.key = key

    def __str__(self) -> str:
        return str(self.args[0])


class NotFinite(FarmError):
    """A stage has put out numbers that are not finite, on weights that are: something has overflowed."""


class TaskCanceled(FarmError):
    """A stage stopped because its task was canceled."""


class StoreUnreachable(StoreError):
    """The store has been out of order for longer than one call waits: try later."""


class DamagedRecord(StoreError, ValueError):
    """A small JSON record cannot be read. Where others can do without it they go on."""


class StoreFull(StoreError):
    """There is no room in the store: work waits until there is."""


class LeaseLost(FarmError):
    """Another controller drives the job now."""


class ReplicaLost(FarmError):
    """A replica has gone, or cannot be reached. Of a gang, `node` is that of the rank that went first."""

    def __init__(self, reason: str, is_unreachable: bool = False, node: str = "") -> None:
        super().__init__(reason, is_unreachable, node)
        self.is_unreachable, self.node = is_unreachable, node

    def __str__(self) -> str:
        return str(self.args[0])


class Halted(FarmError):
    """A stage stopped between two steps, with its state kept, because its replica is wanted or must leave."""
