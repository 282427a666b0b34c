"""The report's part on joins and cuts: a table of all of them, and a picture of the worst join."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from fractions import Fraction
from html import escape
from typing import Any

from dashboards.sheets import sheet_of
from farm.store.jobs import Job
from farm.store.store import Store

MAX_ROWS = 60  # the worst ones
COLUMNS = {
    "mad_ratio": "difference", "warp_ratio": "warping error", "flow_jump": "flow jump px", "delta_e": "colour step ΔE",
    "sharpness": "sharpness", "contrast": "contrast", "moving_delta_e": "moving ΔE",
}  # fmt: skip


def seams_section(store: Store, job: Job) -> Iterator[str]:
    """HTML; nothing for a film without joins and cuts, or one that is not finished."""
    try:
        seams: list[dict[str, Any]] = json.loads(store.cat(f"films/{job.id}/seams.json"))
    except FileNotFoundError:
        return
    if not seams:
        return
    yield "<h2>Joins and cuts</h2>"
    yield (
        "<p class='soft'>Across each, against the median where latent frames begin inside chunks: difference and "
        "warping error as ratios, flow jump and colour step as how much more. Then the chunk after each join against "
        "the shot's first, which shows what changes slowly: sharpness and contrast as ratios, and the distance of the "
        "mean colours of what moves.</p>"
    )
    joins = [s for s in seams if s["kind"] == "join"]
    if joins:
        worst = max(joins, key=_visible)
        yield from _picture(store, job, worst)
    shown = sorted(seams, key=_visible, reverse=True)[:MAX_ROWS]
    yield seams_table(shown)
    if len(seams) > len(shown):
        yield f"<p class='soft'>and {len(seams) - len(shown)} more that are less visible</p>"


def _visible(seam: dict[str, Any]) -> float:
    return float(seam["mad_ratio"] or 0.0)


def seams_table(seams: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{h}</th>" for h in ("shot", "frame", "kind", *COLUMNS.values()))
    rows = [
        f"<tr><td>{escape(s['shot'])}</td><td>{s['frame']}</td><td>{s['kind']}</td>"
        + "".join("<td>–</td>" if s.get(k) is None else f"<td>{s[k]:.2f}</td>" for k in COLUMNS) + "</tr>"
        for s in seams
    ]  # fmt: skip
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _picture(store: Store, job: Job, seam: dict[str, Any]) -> Iterator[str]:
    """Two frames before the join and two after it, as delivered."""
    folder = f"films/{job.id}/shots"
    clip = next((name for name in store.names(folder) if name.rsplit(".", 1)[0] == seam["shot"]), None)
    if clip is None:
        return
    rate = Fraction(str(job.film.output_fps)) / Fraction(str(job.film.fps))
    length = next(shot.num_delivered for shot in job.film.shots if shot.id == seam["shot"])
    wanted = [min(int(-(-(seam["frame"] + i) * rate // 1)), length - 1) for i in (-2, -1, 0, 1)]
    data = base64.b64encode(sheet_of(store.cat(f"{folder}/{clip}"), [max(w, 0) for w in wanted], 128)).decode()
    words = f"The most visible join: shot {seam['shot']}, before and from model frame {seam['frame']}"
    yield f"<figure><img alt='' src='data:image/jpeg;base64,{data}'><figcaption>{escape(words)}</figcaption></figure>"
