"""What a person sees while a film is rendered: bars on a terminal, plain lines elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Any, TextIO

PLAIN_EVERY_S = 2.0


def show_progress(title: str, *, stream: TextIO = sys.stderr) -> Any:
    """The display for this stream; call it with the controller's view of the job, as often as you like."""
    return Bars(title) if stream.isatty() else Lines(title, stream)


class Lines(AbstractContextManager["Lines"]):
    """One line whenever the number of finished tasks changed, and every few seconds while a task runs."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self.title, self.stream = shortened(title, 40), stream
        self.last, self.last_at = -1, 0.0
        self.seen: set[str] = set()

    def __call__(self, view: dict[str, Any]) -> None:
        now = time.monotonic()
        if view["done"] == self.last and now - self.last_at < PLAIN_EVERY_S:
            return
        self.last, self.last_at = view["done"], now
        print(f"{self.title}: {summary(view)}", file=self.stream, flush=True)
        for label, path in view["previews"].items():
            if path not in self.seen:
                self.seen.add(path)
                print(f"{self.title}: preview of {label}: {path}", file=self.stream, flush=True)

    def __exit__(self, *args: object) -> None:
        self.stream.flush()


def summary(view: dict[str, Any]) -> str:
    """`1 of 2 shots, 4 of 9 tasks, denoise opening 12/20, decode meadow; 35 s left`."""
    parts = [f"{view['shots_done']} of {view['shots']} shots, {view['run']} of {view['to_run']} tasks"]
    if view["starting"] and not view["running"]:
        parts.append(f"waiting for {len(view['starting'])} replicas to start")
    for r in view["running"][:4]:
        steps = f" {r['step']}/{r['num_steps']}" if r["num_steps"] > 1 else ""
        parts.append(f"{r['stage']} {r['label']}{steps}")
    left = f"; {duration(view['left_s'])} left" if view["left_s"] is not None and view["status"] == "active" else ""
    state = f"; {view['status']}: {view['reason']}" if view["status"] in ("pausing", "paused", "canceling") else ""
    return ", ".join(parts) + left + state


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shortened(text: str, most: int) -> str:
    """Long names lose their middle: ends are what tells shots apart."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


class Bars(AbstractContextManager["Bars"]):
    """rich's bars: the film, then one row for each task that runs."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.bars = Progress(
            TextColumn("{task.description:<28}", markup=False), BarColumn(bar_width=32), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self.film = self.bars.add_task(shortened(title, 28), total=None, note="starting")
        self.rows: dict[tuple[str, str], Any] = {}
        self.seen: set[str] = set()

    def __enter__(self) -> Bars:
        self.bars.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.bars.stop()

    def __call__(self, view: dict[str, Any]) -> None:
        note = f"{view['shots_done']} of {view['shots']} shots"
        note += f", {duration(view['left_s'])} left" if view["left_s"] is not None else ""
        note += "  starting replicas" if view["starting"] and not view["running"] else ""
        for label, path in view["previews"].items():
            if path not in self.seen:
                self.seen.add(path)
                self.bars.console.print(f"preview of {label}: {path}", markup=False, soft_wrap=True)
        self.bars.update(self.film, total=view["to_run"], completed=view["done"], note=note)
        now = {(r["stage"], r["label"]): r for r in view["running"]}
        for gone in self.rows.keys() - now.keys():
            self.bars.remove_task(self.rows.pop(gone))
        for key, r in now.items():
            if key not in self.rows:
                self.rows[key] = self.bars.add_task(f"  {r['stage']} {shortened(r['label'], 17)}", total=1, note="")
            self.bars.update(self.rows[key], total=r["num_steps"], completed=r["step"], note=r["replica"])
