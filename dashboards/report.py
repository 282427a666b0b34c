"""The report of a film: one HTML file that needs nothing else, drawn from the job's ledger and its clips."""

from __future__ import annotations

import base64
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import median

from dashboards.seams import seams_section
from dashboards.sheets import contact_sheet
from farm.store.jobs import Job, read_job, read_warnings
from farm.store.journal import read_attempts
from farm.store.store import Store
from farm.task import STAGES, Attempt

EMBED_BYTES = 8 * 2**20  # a larger film is linked to, as it lies beside the report
MAX_SHEETS = 200  # shots that get a contact sheet
QUIET_S = 60.0  # a longer pause between attempts starts a new chart
COLOURS = {
    "encode": "#7c9cbf", "denoise": "#d9822b", "decode": "#5b9e6f", "interpolate": "#a78bc0", "upscale": "#c0a36e",
    "assemble": "#8a8f98",
}  # fmt: skip
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6b7280; --line: #d5d8dd; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --soft: #9aa1ab; --line: #3a3f46; --paper: #16181b; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
video { width: 100%; max-height: 30rem; background: #000; border-radius: 6px; image-rendering: auto; }
figure { margin: 0 0 1rem; } figcaption { color: var(--soft); } img { max-width: 100%; border-radius: 4px;
  display: block; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); }
pre { overflow: auto; border: 1px solid var(--line); padding: .8rem; border-radius: 6px; } .soft { color: var(--soft); }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; } svg line { stroke: var(--line); }
"""


def make_report(store: Store, job_id: str) -> str:
    """The page as HTML text.

    Raises:
        InputError: there is no such job.
    """
    job, attempts = read_job(store, job_id), read_attempts(store, job_id)
    folder = f"films/{job.id}"
    names = store.names(folder)
    film = next((n for n in names if n.startswith("film.")), None)
    width, height = job.film.delivered_px
    seconds = job.film.num_delivered / job.film.output_fps
    told = (f"{name} ({m.fingerprint})" for name, m in zip(job.film.models, job.models, strict=True))
    facts = (
        f"{job.film.num_delivered} frames of {width}x{height} at {job.film.output_fps:g} fps, {seconds:.2f} s; model "
        f"{', '.join(told)}; job {job.id}"
    )
    parts = [
        f"<h1>{escape(job.film.title)}</h1><p class='soft'>{escape(facts)}</p>",
        _player(store, folder, film) if film else "<p>The film is not finished.</p>",
        *_warnings(store, job_id),
        "<h2>Shots</h2>", *_sheets(store, folder, job),
        *seams_section(store, job),
        "<h2>Time and memory by stage</h2>", stage_table(attempts), *_reasons(attempts),
        "<h2>Attempts by pool and replica</h2>", *(gantt(s) for s in sessions(attempts)),
        f"<h2>Storyboard</h2><pre>{escape(job.storyboard)}</pre>",
        f"<h2>Versions</h2><pre>{escape(_versions())}</pre>",
    ]  # fmt: skip
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(job.film.title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _player(store: Store, folder: str, film: str) -> str:
    kind = {"mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm", "mkv": "video/x-matroska"}
    source = film
    if store.size(f"{folder}/{film}") <= EMBED_BYTES:
        data = base64.b64encode(store.cat(f"{folder}/{film}")).decode()
        source = f"data:{kind[Path(film).suffix[1:]]};base64,{data}"
    return f"<video controls loop muted src='{escape(source, quote=True)}'></video>"


def _warnings(store: Store, job_id: str) -> Iterable[str]:
    if found := read_warnings(store, job_id):
        yield "<h2>Warnings</h2><ul>" + "".join(f"<li>{escape(str(w))}</li>" for w in found) + "</ul>"


def _sheets(store: Store, folder: str, job: Job) -> Iterable[str]:
    clips = {n.rsplit(".", 1)[0]: n for n in store.names(f"{folder}/shots")}
    for shot in job.film.shots[:MAX_SHEETS]:
        name = clips.get(shot.id)
        if name is None:
            continue
        sheet = contact_sheet(store.cat(f"{folder}/shots/{name}"))
        data = base64.b64encode(sheet).decode()
        caption = (
            f"{shot.id}: {', then '.join(p for _, p in shot.prompts)} ({shot.num_frames} frames, seed {shot.seed})"
        )
        picture = f"<img alt='' src='data:image/jpeg;base64,{data}'>"
        yield f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
    if len(job.film.shots) > MAX_SHEETS:
        yield f"<p class='soft'>and {len(job.film.shots) - MAX_SHEETS} more shots</p>"


def stage_table(attempts: Sequence[Attempt]) -> str:
    """Per stage: attempts, seconds, and the largest memory: of the process so far, and of the GPU in that attempt."""
    head = (
        "stage",
        "attempts",
        "failed",
        "run s",
        "median s",
        "load s",
        "queue s",
        "GPU s",
        "process MiB",
        "GPU MiB",
        "MiB out",
    )
    rows = []
    for stage in STAGES:
        mine = [a for a in attempts if a.stage == stage]
        if not mine:
            continue
        cells = (
            stage, len(mine), sum(a.outcome != "succeeded" for a in mine), f"{sum(a.run_s for a in mine):.2f}",
            f"{median(a.run_s for a in mine):.3f}", f"{sum(a.load_s for a in mine):.2f}",
            f"{sum(a.queue_s for a in mine):.2f}", f"{sum(a.gpu_s for a in mine):.1f}",
            f"{max(a.peak_memory_bytes for a in mine) / 2**20:.0f}",
            f"{max(a.info.get('peak_gpu_bytes', 0) for a in mine) / 2**20:.0f}",
            f"{sum(a.output_bytes for a in mine) / 2**20:.2f}",
        )  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return f"<table><tr>{''.join(f'<th>{h}</th>' for h in head)}</tr>{''.join(rows)}</table>"


def _reasons(attempts: Sequence[Attempt]) -> Iterable[str]:
    """What went wrong, where something did."""
    for a in attempts:
        if a.outcome != "succeeded":
            yield f"<p>{escape(f'{a.stage} of {a.label} on {a.replica} {a.outcome}: {a.reason}')}</p>"


def sessions(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    """Attempts in groups without long pauses, as a film may have been rendered on several days."""
    groups: list[list[Attempt]] = []
    last = 0.0
    for attempt in sorted(attempts, key=lambda a: a.started_at):
        if not groups or attempt.started_at - last > QUIET_S:
            groups.append([])
        groups[-1].append(attempt)
        last = max(last, attempt.ended_at)
    return groups


def gantt(attempts: Sequence[Attempt]) -> str:
    """One row per replica, one bar per attempt, as SVG."""
    rows = sorted({(a.pool, a.replica) for a in attempts})
    start, end = min(a.started_at for a in attempts), max(a.ended_at for a in attempts)
    left, right, row_px = 130, 820, 22
    scale = (right - left) / max(end - start, 1e-3)
    drawn = []
    for i, (_, replica) in enumerate(rows):
        drawn.append(f"<text x='0' y='{i * row_px + 15}'>{escape(replica)}</text>")
        drawn.append(f"<line x1='{left}' x2='{right}' y1='{i * row_px + 21}' y2='{i * row_px + 21}'/>")
    for a in attempts:
        y = rows.index((a.pool, a.replica)) * row_px + 3
        x, width = left + (a.started_at - start) * scale, max(1.5, (a.ended_at - a.started_at) * scale)
        words = f"{a.stage} {a.label}: {a.run_s:.3f} s, {a.outcome} {a.reason}".strip()
        stroke = "" if a.outcome == "succeeded" else " stroke='#c0392b' stroke-width='2'"
        drawn.append(
            f"<rect x='{x:.1f}' y='{y}' width='{width:.1f}' height='16' rx='2' fill='{COLOURS[a.stage]}'{stroke}>"
            f"<title>{escape(words)}</title></rect>"
        )
    bottom = len(rows) * row_px + 18
    drawn.append(
        f"<text x='{left}' y='{bottom}'>0 s</text><text x='{right - 45}' y='{bottom}'>{end - start:.2f} s</text>"
    )
    used = [s for s in STAGES if any(a.stage == s for a in attempts)]
    for i, stage in enumerate(used):
        x = left + 60 + i * 100
        drawn.append(f"<rect x='{x}' y='{bottom - 11}' width='12' height='12' rx='2' fill='{COLOURS[stage]}'/>")
        drawn.append(f"<text x='{x + 17}' y='{bottom}'>{stage}</text>")
    return f"<svg viewBox='0 0 {right} {bottom + 8}' width='100%' role='img'>{''.join(drawn)}</svg>"


def _versions() -> str:
    packages = ("longtake", "ray", "torch", "diffusers", "transformers", "av", "imageio-ffmpeg")
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in packages:
        try:
            lines.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{package} is not installed here")
    return "\n".join(lines)
