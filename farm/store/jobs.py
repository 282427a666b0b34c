"""What was asked for, and the film that came of it: job.json, storyboard.yaml, films/<job>/."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from farm.errors import InputError
from farm.film.film import Film
from farm.models.card import ModelCard
from farm.models.checkpoint import Checkpoint
from farm.models.frame_rule import FrameRule
from farm.plan.plan import Plan
from farm.plan.sources import source_task
from farm.store.store import Store, artifact_path, sidecar_path
from farm.task import EncodeText


@dataclass(frozen=True)
class Job:
    """One submitted film: everything that planning it again needs, without its author's files."""

    id: str
    film: Film
    models: tuple[Checkpoint, ...]  # the film's, then those that single shots name
    storyboard: str  # as the author wrote it

    def as_json(self) -> dict[str, Any]:
        data = {"id": self.id, "film": self.film.as_json(), "models": [asdict(m) for m in self.models]}
        return {**data, "storyboard": self.storyboard}


def write_job(store: Store, job: Job, files: Mapping[str, Path] | None = None) -> None:
    """Keep a job and its author's files (by SHA-256).

    The same job may come again with its model in another folder, or its storyboard in other words.
    """
    given = {file.sha256: file for shot in (*job.film.shots, *job.film.unseen) for file in shot.files}
    for file in given.values():
        if not store.has(source_task(file)):
            data = (files or {})[file.sha256].read_bytes()  # a copy: the author's file may change
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise InputError(f"{(files or {})[file.sha256]} changed while the storyboard was read; try again")
            store.put(source_task(file), data)
    store.publish(f"jobs/{job.id}/job.json", json.dumps(job.as_json(), indent=1).encode())
    store.publish(f"jobs/{job.id}/storyboard.yaml", job.storyboard.encode())


def read_job(store: Store, job_id: str) -> Job:
    try:
        data = store.record(f"jobs/{job_id}/job.json")
    except FileNotFoundError:
        raise InputError(f"there is no job {job_id!r} in the store {store.uri}") from None
    try:
        film = Film.from_json(data["film"])
        return Job(data["id"], film, tuple(map(_checkpoint, data["models"])), data["storyboard"])
    except (KeyError, TypeError) as e:
        raise InputError(f"job {job_id!r} was written by another version of the farm; render it again ({e})") from None


def _checkpoint(data: Mapping[str, Any]) -> Checkpoint:
    raw: dict[str, Any] = _tuples(data["card"])
    raw["rule"] = FrameRule(**raw["rule"])
    return Checkpoint(data["name"], data["folder"], ModelCard(**raw), data["fingerprints"], data["origin"])


def _tuples(value: Any) -> Any:
    """JSON with tuples instead of lists."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def publish_film(store: Store, job: Job, plan: Plan) -> str:
    """Show a finished film and its shots under the job's name. Returns the film's full path."""
    for key, name in [*((shot.clip, f"shots/{shot.id}") for shot in plan.shots), (plan.film, "film")]:
        task = plan.tasks[key]
        source = store.local_path_of(task) or store.read(task)
        path = store.publish(f"films/{job.id}/{name}.{task.extension}", source)
    store.publish(f"films/{job.id}/seams.json", json.dumps(read_seams(store, plan), indent=1).encode())
    return path


def read_seams(store: Store, plan: Plan) -> list[dict[str, Any]]:
    """All measured joins and cuts of a finished film, in order."""
    lines = [(s.id, line) for s in plan.shots if s.seams for line in store.read(plan.tasks[s.seams]).splitlines()]
    return [{"shot": shot} | json.loads(line) for shot, line in lines]


def read_warnings(store: Store, plan: Plan) -> list[str]:
    """What was lost of prompts that are longer than their encoder reads; known once they are encoded."""
    found = []
    for task in plan.tasks.values():
        if not isinstance(task.request, EncodeText) or not task.request.may_be_cut or not store.has(task):
            continue
        cut = store.record(sidecar_path(artifact_path(task))).get("info", {}).get("cut")
        if cut:
            lost = f"{cut['lost'][:80]!r}" + (" ..." if len(cut["lost"]) > 80 else "")
            must = f"the prompt of {task.label} must have at most {cut['limit']} tokens for {task.request.family}"
            found.append(f"{must}, got {cut['tokens']}; cut: {lost}")
    return found
