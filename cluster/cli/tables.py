"""What `farm plan` and `farm models` print, as text and as rows of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from farm.models.card import ModelCard
from farm.models.cards import stock_cards
from farm.models.checkpoint import BUILTIN_FOLDER, Checkpoint, find_checkpoint, num_parameters
from farm.plan.plan import Plan
from farm.store.jobs import Job

SHOWN = (  # of one model, besides its weights
    "family", "modes", "contexts", "blends", "rule", "size", "fps", "multiple_px", "steps", "guidance", "guidance_low",
    "chunk_frames", "overlap_frames", "max_tokens", "takes_loras", "tiles", "splits", "num_heads",
)  # fmt: skip
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
        return [_row(checkpoint.card, path) | _inside(checkpoint)]
    ours = [_row(find_checkpoint("builtin", beside=Path()).card, "builtin")] if BUILTIN_FOLDER.is_dir() else []
    return ours + [_row(card, kind) | {"gib": _published(card)} for kind, card in stock_cards().items()]


def model_table(rows: list[dict[str, Any]], *, is_one: bool = False) -> list[str]:
    """The families as a table; one checkpoint with everything that is known of it."""
    if is_one:
        return _one_model(rows[0])
    lines = [f"{'pipeline':<46} {'modes':<43} {'contexts':<27} {'blend':<6} {'frames':<6} {'size':<9} fps   lora gang"]
    for row in rows:
        lines.append(
            f"{row['model']:<46} {row['modes']:<43} {row['contexts']:<27} {_yes(row['blends']):<6} {row['rule']:<6} "
            f"{row['size']:<9} {row['fps']:<5g} {_yes(row['takes_loras']):<4} {row['splits']}"
        )
    lines += [
        "",
        "about GiB of weights of published models, as bfloat16 (float32: twice as much); of yours: farm models FOLDER",
    ]
    lines += [f"{'model':<30} {'encode':>7} {'denoise':>8} {'decode':>7}"]
    published = {name: gib for row in rows for name, gib in row.get("gib", {}).items()}
    for name, gib in published.items():
        lines.append(f"{name:<30} {gib['encode']:>7.1f} {gib['denoise']:>8.1f} {gib['decode']:>7.1f}")
    lines += ["", "contexts: what a chunk of a long shot can begin with; frames: the lengths that a model generates."]
    lines += ["gang: what several GPUs can share of one task: its tokens (Ulysses, ring), the two passes of guidance."]
    return lines


def _one_model(row: Mapping[str, Any]) -> list[str]:
    lines = [row["model"]]
    lines += [f"  {key:<20} {value}" for key, value in row.items() if key in SHOWN and value not in (None, ())]
    lines += [f"  {stage:<20} {gib:.2f} GiB of weights in bfloat16, {2 * gib:.2f} in float32"
              for stage, gib in row["gib"].items()]  # fmt: skip
    lines += [f"  {component:<20} sha256 {print_[:16]}" for component, print_ in row["fingerprints"].items()]
    if row["contexts"] == "last_frame":
        lines += ["  long shots           go on from the last frame of a chunk only: motion may break off at joins"]
    elif row["contexts"] == "none":
        able = "blend, or " if row["blends"] else ""
        lines += [f"  long shots           {able}continuity.model with a checkpoint that takes pictures"]
    return lines


def _row(card: ModelCard, model: str) -> dict[str, Any]:
    told = asdict(card) | {"rule": str(card.rule), "size": f"{card.size[0]}x{card.size[1]}"}
    for key in ("modes", "contexts", "splits"):
        told[key] = ", ".join(told[key]) or "none"
    hidden = ("latent_rgb", "name", "latent_channels", "components", "settings", "conditioning", "published")
    return {"model": model} | {key: value for key, value in told.items() if key not in hidden}


def _inside(checkpoint: Checkpoint) -> dict[str, Any]:
    """What lies in a checkpoint: fingerprints, and the weights of each stage in GiB of bfloat16."""
    card, count = checkpoint.card, {c: num_parameters(Path(checkpoint.folder) / c) for c in checkpoint.fingerprints}
    encoders = {*card.components.get("text", ()), *card.components.get("embed", ())}
    by_stage = {"encode": encoders, "denoise": card.components["denoise"], "decode": card.components["vae"]}
    gib = {stage: sum(count[c] for c in parts) * 2 / 2**30 for stage, parts in by_stage.items()}
    return {"fingerprints": dict(checkpoint.fingerprints), "gib": gib}


def _published(card: ModelCard) -> dict[str, dict[str, float]]:
    stages = ("encode", "denoise", "decode")
    return {name: dict(zip(stages, (n * 1e9 * 2 / 2**30 for n in counts), strict=True))
            for name, *counts in card.published}  # fmt: skip


def _yes(value: bool) -> str:
    return "yes" if value else "no"
