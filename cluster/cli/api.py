"""The command line as functions, for notebooks and programs: the same path, with values instead of words.

What is at fault is raised: `InputError` (exit code 2) and `RenderError` (3). Progress, warnings and what is left of a
render that failed go to standard error, as on the command line.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cli import render as command
from cluster.cli.answer import Answer
from cluster.cli.deliver import Target
from cluster.cli.order import read_order
from cluster.cli.tables import plan_table
from farm.errors import InputError, Problem, RenderError, StoreError
from farm.film.storyboard import Storyboard, parse_storyboard, read_storyboard
from farm.plan.plan import Plan
from farm.store.history import reasons, summary

Source = str | Path | Mapping[str, Any] | Storyboard  # a file, or what would stand in one; paths are relative to it
MAX_SHOWN_BYTES = 20 * 2**20  # of a film inside a notebook


@dataclass(frozen=True)
class Film:
    """A finished film. In a notebook it shows itself."""

    path: str  # file, or folder of PNG frames, or URI in the store
    job: str
    width: int  # px, delivered; as are fps, frames and seconds
    height: int
    fps: float
    frames: int
    seconds: float
    shots: list[dict[str, Any]]  # {"id", "frames", "chunks", "clip"}
    seams: list[dict[str, Any]]  # {"shot", "frame", "kind", "mad_ratio", ...}
    tasks: dict[str, int]  # {"total", "run", "reused", "retried"}
    stage_s: dict[str, float]
    wall_s: float

    def _repr_html_(self) -> str:
        path = Path(self.path)
        if path.suffix not in (".mp4", ".webm") or not path.is_file() or path.stat().st_size > MAX_SHOWN_BYTES:
            return f"<code>{self.path}</code>"
        data = base64.b64encode(path.read_bytes()).decode()
        kind = path.suffix[1:]
        return f'<video controls loop width="{self.width}" src="data:video/{kind};base64,{data}"></video>'


@dataclass(frozen=True)
class Planned:
    """What a storyboard would need. `str` gives the table that `farm plan` prints."""

    job: str
    plan: Plan  # the graph of tasks; `longtake.run_plan` runs it in this process
    missing: frozenset[str]  # keys of the tasks that would run
    warnings: tuple[Problem, ...]
    table: str

    def __str__(self) -> str:
        return self.table


def load_storyboard(source: Source) -> Storyboard:
    """Read and validate a storyboard against the schema; what depends on its model is checked by `plan`.

    Raises:
        InputError: with every fault, its line and its key.
    """
    raw, path = _read(source)
    draft = parse_storyboard(raw, file=str(path))
    if draft.problems or draft.top is None:
        raise InputError(*draft.problems)
    return Storyboard(**{**draft.top.model_dump(by_alias=True), "shots": [shot for _, shot in draft.shots]})


def plan(
    storyboard: Source, *, model: str | None = None, pools: str | Path | None = None, store: str | None = None,
    only: Sequence[str] = (), draft: bool = False,
) -> Planned:  # fmt: skip
    """What would run and what exists already; needs neither torch nor Ray, and writes nothing.

    Raises:
        InputError: with every fault of the storyboard.
    """
    order = read_order(_words(storyboard, model, pools, store, only, draft), Answer(as_json=False), target=Target())
    why = summary(order.plan, reasons(order.store, order.job, order.plan, order.missing))
    table = "\n".join(plan_table(order.job, order.plan, order.missing, why))
    return Planned(order.job.id, order.plan, frozenset(order.missing), order.warnings, table)


def render(
    storyboard: Source, out: str | Path | None = None, *, model: str | None = None, pools: str | Path | None = None,
    store: str | None = None, address: str | None = None, only: Sequence[str] = (), draft: bool = False,
) -> Film:  # fmt: skip
    """Render a storyboard, on a Ray of its own or on the cluster at `address`. What exists already is not made again.

    Args:
        out: a file (.mp4 .mkv .webm .mov), or a folder for PNG frames; in the store alone if not given.
    Raises:
        InputError: the storyboard, the pools or `out` are at fault, and nothing was rendered; or weights, when read.
        RenderError: the render failed; the same call goes on from what exists.
        KeyboardInterrupt: it was interrupted; so does this.
    """
    words = _words(storyboard, model, pools, store, only, draft)
    words.out, words.address = None if out is None else str(out), address
    answer = Answer(as_json=False)
    try:
        code = command.run(words, answer)
    except (StoreError, OSError) as e:
        raise RenderError(str(e)) from e
    told = answer.data
    if code == 130:
        raise KeyboardInterrupt
    if code == 2:
        raise InputError(*(Problem(**e) for e in told["errors"]))
    if code:
        raise RenderError("; ".join(e["message"] for e in told["errors"]))
    names = Film.__dataclass_fields__.keys() - {"path"}
    return Film(path=told["film"], **{name: told[name] for name in names})


def _words(
    storyboard: Source, model: str | None, pools: str | Path | None, store: str | None, only: Sequence[str], draft: bool
) -> argparse.Namespace:
    """The options of a command line."""
    raw, path = _read(storyboard)
    return argparse.Namespace(
        storyboard=path, raw=raw, model=model, pools=Path(pools) if pools else None, store=store,
        only=list(only) or None, draft=draft, json=False, autoscaling="auto",
    )  # fmt: skip


def _read(source: Source) -> tuple[bytes, Path]:
    """The YAML of a storyboard and its file; one that has none lies in the working folder."""
    if isinstance(source, str | Path):
        return read_storyboard(Path(source)), Path(source)
    data = source.model_dump(by_alias=True, exclude_none=True) if isinstance(source, Storyboard) else dict(source)
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False).encode(), Path("storyboard.yaml")  # JSON is YAML
    except (TypeError, ValueError) as e:
        raise InputError(f"a storyboard must hold plain values, as YAML does: {e}") from None
