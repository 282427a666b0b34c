"""Why a task would run: which named part of its key differs from the film's last render.

A render leaves the keys of its tasks in `jobs/<job>/plan.<container>.json`, by what each does in which shot, and where
that is under `last/`, by the film's title. What those keys were made of stands beside the artifacts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from farm.keys import kind_of, parts_of_task
from farm.plan.plan import Plan
from farm.store.jobs import Job
from farm.store.store import Store, artifact_path, sidecar_path
from farm.task import Task

Place = tuple[str, str, int]  # shot ("" for the film), kind of request, number among those
MAX_SHOWN = 60  # characters of a value
MAX_LOOKED = 2000  # tasks whose old records are read
NEW, GONE = "it is new", "it was not finished, or is not there any more"
MANY = "it has changed, as have many before it"


def places_of(plan: Plan) -> dict[Place, str]:
    """Each task's key by what it does. A task that two shots share has a place in each."""
    places: dict[Place, str] = {}
    counts: Counter[tuple[str, str]] = Counter()

    def add(shot: str, key: str) -> None:
        kind = kind_of(plan.tasks[key].request)
        places[shot, kind, counts[shot, kind]] = key
        counts[shot, kind] += 1

    for shot in plan.shots:
        for key in dict.fromkeys((*shot.tasks, shot.clip, shot.seams)):
            if key:
                add(shot.id, key)
    placed = set(places.values())
    for key in plan.tasks:
        if key not in placed:
            add("", key)
    return places


def write_plan(store: Store, job: Job, plan: Plan, *, variant: str) -> None:
    """Note what a job consists of, for the next render and for the collection of what no job needs.

    Args:
        variant: its container and the like: a job may be rendered into several.
    """
    rows = [[*place, key, artifact_path(plan.tasks[key])] for place, key in places_of(plan).items()]
    rows += [["", "SourceFile", i, t.key, artifact_path(t)] for i, t in enumerate(plan.sources.values())]
    path = f"jobs/{job.id}/plan.{variant}.json"
    store.publish(path, json.dumps(rows).encode())
    store.publish(_last_path(job), json.dumps({"job": job.id, "plan": path}).encode())


def _last_path(job: Job) -> str:
    return f"last/{hashlib.sha256(job.film.title.encode()).hexdigest()[:16]}.json"


def reasons(store: Store, job: Job, plan: Plan, missing: set[str]) -> dict[str, list[str]]:
    """For each missing task, what has changed since the last render: `parameters.seed: 5, was 4`."""
    before = _last_render(store, job)
    if before is None:
        return {key: [NEW] for key in missing}
    labels = {t.key: f"{t.stage} of {t.label}" for t in (*plan.tasks.values(), *plan.sources.values())}
    told: dict[str, list[str]] = {}
    num_looked = 0
    for place, key in places_of(plan).items():
        if key not in missing or key in told:
            continue
        if place not in before:
            told[key] = [NEW]
        elif before[place][0] == key:
            told[key] = [GONE]
        else:
            num_looked += 1
            is_enough = num_looked > MAX_LOOKED
            told[key] = [MANY] if is_enough else _differences(store, plan.tasks[key], before[place][1], labels)
    return told


def _last_render(store: Store, job: Job) -> dict[Place, tuple[str, str]] | None:
    try:
        rows: list[list[Any]] = json.loads(store.cat(store.record(_last_path(job))["plan"]))
        return {(shot, kind, number): (key, path) for shot, kind, number, key, path in rows}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _differences(store: Store, task: Task, old_path: str, labels: Mapping[str, str]) -> list[str]:
    try:
        old = store.record(sidecar_path(old_path))["parts"]
    except (FileNotFoundError, ValueError, KeyError):
        return [GONE]
    new = json.loads(json.dumps(parts_of_task(task)))
    one, other = (dict(_flat({k: v for k, v in parts.items() if k != "inputs"})) for parts in (new, old))
    found = [
        f"{name}: {_shown(one.get(name))}, was {_shown(other.get(name))}"
        for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)
    ]  # fmt: skip
    known = set(old["inputs"])
    changed = [labels[k] for k in dict.fromkeys(new["inputs"]) if k not in known]
    if changed:
        more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
        found.append(f"inputs: {', '.join(changed[:2])}{more}")
    elif new["inputs"] != old["inputs"]:
        found.append("inputs: fewer, or in another order")
    return found


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for i, item in enumerate(value):
            yield from _flat(item, f"{name}[{i}]")
    else:
        yield name, value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def summary(plan: Plan, told: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """For each shot ("" for the film) the changes that do not follow from others of it, each once."""
    by_shot: dict[str, dict[str, None]] = {}
    if not told:
        return {}
    places = places_of(plan)
    for place, key in places.items():
        own = [line for line in told.get(key, ()) if not line.startswith("inputs: ")]
        for line in own:
            by_shot.setdefault(place[0], {})[line] = None
    for shot in {place[0] for place, key in places.items() if key in told} - by_shot.keys():
        by_shot[shot] = {"what it takes from others has changed": None}
    return {shot: list(lines) for shot, lines in by_shot.items()}
