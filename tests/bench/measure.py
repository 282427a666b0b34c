"""Keep a benchmark's figures: JSON with commit, hardware and versions beside the numbers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


def save(name: str, figures: dict[str, Any]) -> None:
    """Write `results/<name>.json`, print it, and say what has changed since the figures that were there."""
    told = {"benchmark": name, "when": datetime.now(UTC).isoformat(timespec="seconds"), **where(), "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if path.is_file() else None
    path.write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))
    for line in changes(before, told) if before else ():
        print(line)


def changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Each figure beside the one of an earlier run, in percent; seconds depend on the machine, so its speed is told."""
    speeds = [f"{told['commit']}, a loop of 10^6 steps in {told.get('loop_ms', '?')} ms" for told in (before, now)]
    yield f"compared with {speeds[0]} (now {speeds[1]}):"
    old, new = dict(_figures(before["figures"])), dict(_figures(now["figures"]))
    for name in [n for n in new if old.get(n)]:
        yield f"  {name:<48} {old[name]:>12.4g} -> {new[name]:>12.4g}  {100 * (new[name] / old[name] - 1):+.0f} %"


def _figures(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested figures, by their names joined with dots; of a spread its median."""
    if isinstance(value, dict) and "median" in value:
        yield name, float(value["median"])
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _figures(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def loop_ms() -> float:
    """What a loop of 10^6 additions takes here, the fastest of five: the speed of the machine, now."""

    def once() -> float:
        started, total = time.perf_counter(), 0
        for i in range(10**6):
            total += i
        return time.perf_counter() - started

    return round(1000 * min(once() for _ in range(5)), 1)


def where() -> dict[str, Any]:
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=20).stdout.strip()

    packages = ("ray", "torch", "diffusers", "transformers")
    return {
        "commit": git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "*.py") else ""),
        "hardware": f"{os.cpu_count()} x {_processor()}, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "loop_ms": loop_ms(),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


GROUPS = {  # of a farm's processes, by what their programs' names or titles hold
    "controller": "ray::Controller", "replicas": "ray::Replica", "agents": "Agent", "gcs": "gcs_server",
    "raylet": "raylet", "workers": "ray::",
}  # fmt: skip


def cpu_by_group(pid: int) -> dict[str, float]:
    """CPU seconds of a process (`door`) and of the living processes of the Ray that it started, each group apart."""
    told = {"door": 0.0, **dict.fromkeys(GROUPS, 0.0), "others": 0.0}
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            t, line = process.cpu_times(), Path(process.cmdline()[0]).name
        except (psutil.NoSuchProcess, IndexError):
            continue
        group = next((name for name, mark in GROUPS.items() if mark in line), "others")
        told["door" if process == root else group] += t.user + t.system
    return told


def cpu_seconds_of_tree(pid: int) -> float:
    """CPU seconds of a process and all its living descendants, and of their children that have ended."""
    total = 0.0
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            t = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += t.user + t.system + t.children_user + t.children_system
    return total
