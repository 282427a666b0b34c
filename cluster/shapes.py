"""What the films API takes and gives, for the server and for its client. Times are seconds since the epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from farm.errors import Problem


class Told(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Fault(BaseModel):
    key: str
    line: int | None
    message: str


class ErrorAnswer(BaseModel):
    """What every error looks like."""

    error: Told
    errors: list[Fault]


class WarningAnswer(BaseModel):
    """What is not as it may have been meant, though nothing is at fault."""

    file: str
    line: int | None
    key: str
    message: str


def warning_answers(warnings: Sequence[Problem]) -> list[WarningAnswer]:
    return [WarningAnswer(**w.as_json()) for w in warnings]


class ShotAnswer(BaseModel):
    id: str
    frames: int = Field(description="frames of the model that are kept")
    chunks: int
    clip: str = Field(description="where its clip is, once it is finished; before the film is")


class RunningAnswer(BaseModel):
    stage: str
    label: str
    pool: str
    replica: str
    step: int
    num_steps: int


class FilmAnswer(BaseModel):
    """A film as it stands."""

    id: str
    object: Literal["film"] = "film"
    title: str
    model: str
    status: Literal["queued", "active", "pausing", "paused", "canceling", "completed", "failed", "canceled"]
    reason: str = Field(description="why it has this status")
    progress: float = Field(ge=0, le=1)
    left_s: float | None = Field(description="seconds left at the pace so far")
    priority: int
    by: str
    created_at: float
    ended_at: float | None
    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    shots: list[ShotAnswer]
    to_run: int | None = Field(description="tasks that are to run; unknown while it waits")
    done: int | None
    retried: int | None
    running: list[RunningAnswer]
    previews: list[str]
    errors: list[str]
    warnings: list[WarningAnswer]
    film: str | None


class FilmList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FilmAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class AttemptAnswer(BaseModel):
    outcome: str
    cause: str
    reason: str
    pool: str
    replica: str
    started_at: float
    ended_at: float
    run_s: float
    gpu_s: float


class TaskAnswer(BaseModel):
    key: str
    stage: str
    label: str
    is_done: bool
    attempts: list[AttemptAnswer]


class TaskList(BaseModel):
    object: Literal["list"] = "list"
    data: list[TaskAnswer]


class StageEstimate(BaseModel):
    tasks: int
    replica_s: float | None
    gpu_s: float | None
    cost: float | None


class EstimateAnswer(BaseModel):
    """By what tasks of the same stage and model have taken here; none where there were none."""

    tasks: int
    to_run: int
    stages: dict[str, StageEstimate]
    replica_s: float | None
    gpu_s: float | None
    cost: float | None
    warnings: list[WarningAnswer]


class PriorityOrder(BaseModel):
    model_config = {"extra": "forbid", "strict": True, "json_schema_extra": {"example": {"priority": 80}}}
    priority: int = Field(ge=0, le=100)


class RequeueOrder(BaseModel):
    model_config = {"extra": "forbid", "strict": True}
    everything: bool = Field(default=False, description="also what is finished")


class PoolAnswer(BaseModel):
    name: str
    stages: list[str]
    ranks: int
    cpus: float
    gpus: float
    accelerator: str | None
    min_replicas: int
    max_replicas: int


class PoolList(BaseModel):
    object: Literal["list"] = "list"
    data: list[PoolAnswer]


class ModelAnswer(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    family: str
    modes: list[str]
    size: str
    fps: float
    steps: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelAnswer]
