"""What was asked for, and the film that came of it: job.json, storyboard.yaml, films/<job>/."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from farm.document import read_document
from farm.errors import DamagedError, DamagedRecord, InputError, Problem, StoreError, problem_from_json
from farm.film.film import Film
from farm.film.looks import Look, fault_of
from farm.models.card import ModelCard
from farm.models.checkpoint import Checkpoint
from farm.models.frame_rule import FrameRule
from farm.plan.plan import Plan
from farm.plan.sources import source_task
from farm.store.store import Store, artifact_path, sidecar_path
from farm.task import EncodeText, Task

READERS = 16  # of small records; a store in a cloud answers each in tens of milliseconds


@dataclass(frozen=True)
class Job:
    """One submitted film: everything that planning it again needs, without its author's files."""

    id: str
    film: Film
    models: tuple[Checkpoint, ...]  # the film's, then those that single shots name
    storyboard: str  # as the author wrote it
    warnings: tuple[Problem, ...] = ()  # of planning it

    def as_json(self) -> dict[str, Any]:
        data = {"id": self.id, "film": self.film.as_json(), "models": [_without_names(m) for m in self.models]}
        return {**data, "storyboard": self.storyboard, "warnings": [w.as_json() for w in self.warnings]}


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
    except DamagedRecord as e:
        raise InputError(f"{e}; render its storyboard again: jobs/{job_id}/storyboard.yaml is a copy") from None
    try:
        film = Film.from_json(data["film"])
        warnings = tuple(map(problem_from_json, data.get("warnings", ())))
        return Job(data["id"], film, tuple(map(_checkpoint, data["models"])), data["storyboard"], warnings)
    except (KeyError, TypeError) as e:
        raise InputError(f"job {job_id!r} was written by another version of the farm; render it again ({e})") from None


def _without_names(model: Checkpoint) -> dict[str, Any]:
    """A model without the tables that LoRAs were read by, which are long and have done their work."""
    data = asdict(model)
    return data | {"card": {k: v for k, v in data["card"].items() if not k.startswith("lora_")}}


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
    """Show a finished film and its shots under the job's name. Returns the film's full path.

    Raises:
        DamagedError: some of it is damaged, all of which has been set aside: it must be made again.
    """
    damaged, shown = (
        dict[str, StoreError](),
        {shot.clip: f"shots/{shot.id}" for shot in plan.shots} | {plan.film: "film"},
    )
    film = ""
    for key in plan.targets:
        task = plan.tasks[key]
        try:
            source = store.local_path_of(task) or store.read(task)
            if key in shown:
                path = store.publish(f"films/{job.id}/{shown[key]}.{task.extension}", source)
                film = path if key == plan.film else film
        except StoreError as e:  # another film that has it too may have set it aside
            if not isinstance(e, DamagedError) and store.has(task):
                raise
            damaged[key] = e
    if damaged:
        key, first = next(iter(damaged.items()))
        raise DamagedError(f"{first}" + (f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""), key)
    store.publish(f"films/{job.id}/seams.json", json.dumps(read_seams(store, plan), indent=1).encode())
    warnings = [w.as_json() for w in (*job.warnings, *find_warnings(store, job, plan))]
    store.publish(f"films/{job.id}/warnings.json", json.dumps(warnings, indent=1).encode())
    return film


def read_warnings(store: Store, job_id: str) -> tuple[Problem, ...]:
    """What is not as it may have been meant in a finished film; nothing where it is not finished."""
    try:
        return tuple(map(problem_from_json, json.loads(store.cat(f"films/{job_id}/warnings.json"))))
    except (FileNotFoundError, ValueError, TypeError):
        return ()


def read_seams(store: Store, plan: Plan) -> list[dict[str, Any]]:
    """All measured joins and cuts of a finished film, in order."""
    lines = [(s.id, line) for s in plan.shots if s.seams for line in store.read(plan.tasks[s.seams]).splitlines()]
    return [{"shot": shot} | json.loads(line) for shot, line in lines]


def find_warnings(store: Store, job: Job, plan: Plan) -> list[Problem]:
    """What tasks have noted beside their artifacts: prompts that were cut, shots in which nothing can be seen."""
    texts = {
        key: (task.label, task.request) for key, task in plan.tasks.items()
        if isinstance(task.request, EncodeText) and task.request.may_be_cut
    }  # fmt: skip
    noted = [*texts, *dict.fromkeys(key for shot in plan.shots for key in shot.frames)]
    with ThreadPoolExecutor(READERS) as pool:
        notes = dict(zip(noted, pool.map(lambda key: _note(store, plan.tasks[key]), noted), strict=True))
    found: list[tuple[str, str, tuple[str, ...]]] = []  # shot, what is to be said, the keys that it may be about
    for key, (label, request) in texts.items():
        if cut := notes[key].get("cut"):
            lost = f"{cut['lost'][:80]!r}" + (" ..." if len(cut["lost"]) > 80 else "")
            must = f"the prompt of {label} must have at most {cut['limit']} tokens for {request.family}"
            found.append((label, f"{must}, got {cut['tokens']}; cut: {lost}", ("prompt", "prompts")))
    for shot in plan.shots:
        looks = [Look(**notes[key]["look"]) for key in shot.frames if "look" in notes.get(key, {})]
        if len(looks) == len(shot.frames) and (fault := fault_of(looks)):
            found.append((shot.id, f"shot {shot.id} {fault}", ()))
    return _placed(job.storyboard, found) if found else []


def _placed(storyboard: str, found: Sequence[tuple[str, str, tuple[str, ...]]]) -> list[Problem]:
    """Warnings with their keys and lines in the storyboard; without where that cannot be read any more."""
    try:
        document = read_document(storyboard.encode(), file="")
        index = {shot["id"]: (i, shot) for i, shot in enumerate(document.data["shots"])}
    except (InputError, KeyError, TypeError):
        return [Problem(message) for _, message, _ in found]
    made = []
    for name, message, keys in found:
        if name in index:
            i, shot = index[name]
            made.append(document.problem(("shots", i, *[key for key in keys if key in shot][:1]), message))
        else:
            made.append(Problem(message))
    return made


def _note(store: Store, task: Task) -> dict[str, Any]:
    try:
        told: dict[str, Any] = store.record(sidecar_path(artifact_path(task))).get("info", {})
    except (FileNotFoundError, DamagedRecord):  # collected since; what it says is not needed for the film
        return {}
    return told
