"""What `farm plan` and `farm models` print, as text and as rows of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from farm.cards import ModelCard, stock_cards
from farm.checkpoint import BUILTIN_FOLDER, find_checkpoint
from farm.jobs import Job
from farm.plan import Plan

MAX_REASONS = 4  # shown of a shot


def plan_table(job: Job, plan: Plan, missing: set[str], why: Mapping[str, Sequence[str]]) -> list[str]:
    """A plan as text: one row per shot, then one per stage, then why anything would run, by shot ("" for the film)."""
    film, tasks = job.film, plan.tasks
    width, height = film.delivered_px
    lines = [
        f"{film.title}: job {job.id}, {film.num_delivered} frames of {width}x{height} at {film.output_fps:g} fps "
        f"({film.num_delivered / film.output_fps:.2f} s), model {', '.join(film.models)}",
        "",
        f"{'shot':<20} {'chunks':>6} {'generated':>9} {'kept':>6} {'delivered':>9}  state",
    ]
    for shot, planned in zip(film.shots, plan.shots, strict=True):
        lacking = [tasks[k].stage for k in planned.tasks if k in missing]
        state = "done" if not lacking else "needs " + ", ".join(dict.fromkeys(lacking))
        generated = sum(c.generated for c in shot.chunks)
        lines.append(
            f"{shot.id:<20} {len(shot.chunks):>6} {generated:>9} {shot.num_frames:>6} {shot.num_delivered:>9}  {state}"
        )
    lines += ["", f"{'stage':<12} {'tasks':>6} {'to run':>7} {'exist':>6}"]
    for stage in dict.fromkeys(t.stage for t in tasks.values()):
        mine = [k for k, t in tasks.items() if t.stage == stage]
        lacking_count = sum(k in missing for k in mine)
        lines.append(f"{stage:<12} {len(mine):>6} {lacking_count:>7} {len(mine) - lacking_count:>6}")
    if why:
        lines += ["", "why, against the last render of this title"]
    for name in [*(s.id for s in plan.shots), ""]:
        told = why.get(name, ())
        lines += [f"{name or 'film':<20} {reason}" for reason in told[:MAX_REASONS]]
        lines += [f"{name or 'film':<20} and {len(told) - MAX_REASONS} more"] if len(told) > MAX_REASONS else []
    return lines


def model_rows(path: str | None) -> list[dict[str, Any]]:
    """The built-in model and the families, or what one checkpoint is and what the farm would do with it.

    Raises:
        InputError: `path` is no checkpoint that can be used.
    """
    if path is not None:
        checkpoint = find_checkpoint(path, beside=Path.cwd())
        return [_row(checkpoint.card, path) | {"fingerprints": dict(checkpoint.fingerprints)}]
    ours = [_row(find_checkpoint("builtin", beside=Path()).card, "builtin")] if BUILTIN_FOLDER.is_dir() else []
    return ours + [_row(card, kind) for kind, card in stock_cards().items()]


def model_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        lines.append(row["model"])
        lines += [f"  {key:<20} {value}" for key, value in row.items() if key not in ("model", "fingerprints")]
        prints = row.get("fingerprints", {}).items()
        lines += [f"  {component:<20} sha256 {fingerprint[:16]}" for component, fingerprint in prints]
    return lines


def _row(card: ModelCard, model: str) -> dict[str, Any]:
    told = asdict(card) | {"rule": str(card.rule), "size": f"{card.size[0]}x{card.size[1]}"}
    for key in ("modes", "contexts"):
        told[key] = ", ".join(told[key]) or "none"
    hidden = ("latent_rgb", "name", "latent_channels", "components", "settings", "conditioning")
    return {"model": model} | {key: value for key, value in told.items() if key not in hidden}
