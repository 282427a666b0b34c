"""/v1/films: storyboards come in, and everything about a film can be read, from its shots to every attempt's reason."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from cluster.http.guard import parse_json
from cluster.http.incoming import Incoming, incoming
from cluster.http.media import TYPES, send_file
from cluster.service.errors import Forbidden, NotFound, NotReady
from cluster.service.prepare import Prepared
from cluster.service.service import Service
from cluster.shapes import (
    ErrorAnswer,
    EstimateAnswer,
    FilmAnswer,
    FilmList,
    ModelAnswer,
    ModelList,
    PoolAnswer,
    PoolList,
    PriorityOrder,
    RequeueOrder,
    RunningAnswer,
    ShotAnswer,
    TaskAnswer,
    TaskList,
    warning_answers,
)
from farm.errors import InputError, Problem
from farm.service.access import Caller
from farm.service.submission import Submission, Where
from farm.states import ENDED, JOB_STATES
from farm.store.journal import read_log

YAML_KINDS = ("application/yaml", "application/x-yaml", "text/yaml")
KINDS = (*YAML_KINDS, "application/json", "multipart/form-data")
LOOK_S = 1.0  # between two looks of an event stream
BOARD = """\
title: A ball on grass
shots:
  - {id: opening, prompt: a red ball rolls over grass at sunset, seconds: 2}
"""
BOARD_AS_JSON = {"shots": [{"id": "opening", "prompt": "a red ball rolls over grass", "seconds": 2}]}
STORYBOARD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A storyboard (`farm schema`): as YAML, as JSON, or in a form beside the files that it names.",
        "content": {
            "application/yaml": {"schema": {"type": "string"}, "example": BOARD},
            "application/json": {"schema": {"type": "object"}, "example": BOARD_AS_JSON},
            "multipart/form-data": {
                "schema": {
                    "type": "object", "required": ["storyboard"],
                    "properties": {
                        "storyboard": {"type": "string"},
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                },
            },
        },
    }
}  # fmt: skip


Answers = dict[int | str, dict[str, Any]]


def errors(*statuses: int, also: Answers | None = None) -> Answers:
    """What a route may answer besides its result; some hold for all."""
    found: Answers = {s: {"model": ErrorAnswer} for s in (400, 401, 403, 405, 413, 429, 503, *statuses)}
    return (also or {}) | found


Job = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="the film's id")]
Shot = Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Webhook = Annotated[str, Query(max_length=2000, description="an https address that is told when the film has ended")]
Priority = Annotated[int, Query(ge=0, le=100, description="which film goes first")]
Once = Annotated[
    str, Header(alias="Idempotency-Key", max_length=200, pattern=r"^[\x20-\x7e]*$",
                description="the same request with the same key is one film")
]  # fmt: skip

VIDEO: dict[str, Any] = {kind: {} for kind in TYPES.values()}
MEDIA: Answers = {
    200: {"content": VIDEO, "description": "the film"},
    206: {"content": VIDEO, "description": "the part of it that Range asks for"},
}
SENT = errors(404, 409, 416, also=MEDIA)
AGAIN: Answers = {200: {"model": FilmAnswer, "description": "it was submitted before"}}
PREVIEW: Answers = {200: {"content": {"image/png": {}}, "description": "a small picture"}}
EVENTS: Answers = {200: {"content": {"text/event-stream": {}}, "description": "events"}}

router = APIRouter(tags=["films"])


def service_of(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


def caller_of(request: Request) -> Caller:
    found: Caller = request.state.caller
    return found


async def film_answer(service: Service, one: Submission) -> FilmAnswer:
    """A film as it stands now: by its controller where one renders it, else by the store."""
    return await _live_answer(service, one, await asyncio.to_thread(service.where, one))


async def _live_answer(service: Service, one: Submission, told: Where) -> FilmAnswer:
    live = await service.live(one, told)
    warnings = await asyncio.to_thread(service.warnings, one, told)
    return answer_of(one, told, live if live is not None and "done" in live else {}, warnings)


def answer_of(one: Submission, told: Where, view: dict[str, Any], warnings: Sequence[Problem]) -> FilmAnswer:
    state: Any = view["status"] if view.get("status") in JOB_STATES else told.state
    base = f"/v1/films/{one.job}"
    return FilmAnswer(
        id=one.job, title=one.title, model=one.model, status=state,
        reason=view.get("reason") or told.reason,
        progress=1.0 if told.state == "completed" else view.get("progress", 0.0),
        left_s=view.get("left_s"), priority=told.priority, by=one.by, created_at=one.at, ended_at=told.ended_at,
        width=one.width, height=one.height, fps=one.fps, frames=one.frames, seconds=one.seconds,
        shots=[ShotAnswer(id=i, frames=f, chunks=c, clip=f"{base}/shots/{i}/content") for i, f, c in one.shots],
        to_run=view.get("to_run"), done=view.get("done"), retried=view.get("retried"),
        running=[RunningAnswer(**r) for r in view.get("running", ())],
        previews=[f"{base}/previews/{p.rsplit('/', 1)[-1]}" for p in view.get("previews", {}).values()],
        errors=view.get("errors") or ([told.reason] if told.state == "failed" else []),
        warnings=warning_answers(warnings),
        film=f"{base}/content" if told.state == "completed" else None,
    )  # fmt: skip


async def _prepared(service: Service, made: Incoming, request: Request) -> Prepared:
    is_json = request.headers["content-type"].partition(";")[0].strip().lower() == "application/json"
    raw = made.raw
    if not raw and "storyboard" in made.fields:
        raw = made.fields["storyboard"].encode()
    elif is_json:  # JSON writes some characters as pairs, which YAML does not know
        raw = json.dumps(parse_json(raw), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if unknown := sorted(made.fields.keys() - {"storyboard"}):
        raise InputError(f"the form must have the field storyboard and files alone, got {unknown[0][:100]!r}")
    return await asyncio.to_thread(service.prepare, raw, made.files)


@router.post("/v1/films", status_code=201, response_model=FilmAnswer, openapi_extra=STORYBOARD_BODY,
             responses=errors(409, 415, also=AGAIN))  # fmt: skip
async def submit_film(
    request: Request, priority: Priority = 50, webhook: Webhook = "", idempotency_key: Once = ""
) -> Response:  # fmt: skip
    """Submit a storyboard. When this answers, the film is durable: nothing that dies afterwards loses it."""
    service, caller = service_of(request), caller_of(request)
    if not caller.may_submit:
        raise Forbidden(f"the role {caller.role} may not submit films")
    async with incoming(request, service.limits, kinds=KINDS) as made:
        prepared = await _prepared(service, made, request)
        one, is_new = await asyncio.to_thread(
            service.submit, prepared, caller, kind="film", priority=priority, key=idempotency_key, webhook=webhook
        )
    told = (
        answer_of(one, Where("queued", "", one.priority), {}, one.warnings)
        if is_new
        else await film_answer(service, one)
    )
    return JSONResponse(told.model_dump(), 201 if is_new else 200, {"Location": f"/v1/films/{one.job}"})


@router.post("/v1/estimates", response_model=EstimateAnswer, openapi_extra=STORYBOARD_BODY,
             responses=errors(415))  # fmt: skip
async def estimate_film(request: Request) -> EstimateAnswer:
    """What a storyboard would take, before it is submitted. Writes nothing."""
    service = service_of(request)
    async with incoming(request, service.limits, kinds=KINDS) as made:
        prepared = await _prepared(service, made, request)
        told = await asyncio.to_thread(service.estimate, prepared)
    return EstimateAnswer(**told, warnings=warning_answers(prepared.warnings))


@router.get("/v1/films", response_model=FilmList, responses=errors())
async def list_films(
    request: Request, after: Annotated[str, Query(pattern=r"^([0-9a-f]{16})?$")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20, order: Literal["asc", "desc"] = "desc",
    status: Annotated[Literal["", *JOB_STATES], Query(description="only films with this status")] = "",  # type: ignore[valid-type]  # a tuple of literals
    by: Annotated[str, Query(pattern=r"^([a-z0-9][a-z0-9_-]{0,39})?$", description="only this key's")] = "",
) -> FilmList:  # fmt: skip
    """Films, the newest first."""
    service = service_of(request)
    found, has_more = await asyncio.to_thread(
        service.page, caller_of(request), kind="", after=after, limit=limit, newest_first=order == "desc", state=status,
        by=by,
    )  # fmt: skip
    rows = [await film_answer(service, one) for one in found]
    first, last = (rows[0].id, rows[-1].id) if rows else (None, None)
    return FilmList(data=rows, first_id=first, last_id=last, has_more=has_more)


async def _found(request: Request, job: str) -> Submission:
    return await asyncio.to_thread(service_of(request).find, job, caller_of(request))


@router.get("/v1/films/{job}", response_model=FilmAnswer, responses=errors(404))
async def show_film(request: Request, job: Job) -> Response:
    """One film as it stands."""
    service = service_of(request)

    def look() -> tuple[Submission, Where]:
        one = service.find(job, caller_of(request))
        return one, service.where(one)

    told = await _live_answer(service, *await asyncio.to_thread(look))
    return JSONResponse(told.model_dump())


@router.get("/v1/films/{job}/tasks", response_model=TaskList, responses=errors(404))
async def show_tasks(request: Request, job: Job) -> TaskList:
    """Every task of a film, with each attempt at it and its reason."""
    one = await _found(request, job)
    rows = await asyncio.to_thread(service_of(request).tasks, one)
    return TaskList(data=[TaskAnswer(**row) for row in rows])


@router.get("/v1/films/{job}/content", response_class=Response, responses=SENT)
async def film_content(request: Request, job: Job) -> Response:
    """The finished film; with Range, a part of it."""
    return await _send(request, job, "")


@router.get("/v1/films/{job}/shots/{shot}/content", response_class=Response, responses=SENT)
async def shot_content(request: Request, job: Job, shot: Shot) -> Response:
    """The clip of a finished shot, also while others are being made."""
    return await _send(request, job, shot)


async def _send(request: Request, job: str, shot: str) -> Response:
    service, one = service_of(request), await _found(request, job)
    path = await asyncio.to_thread(service.clip, one, shot)
    if path is None:
        raise NotReady(f"film {job!r} is not finished" if not shot else f"shot {shot!r} of {job!r} is not finished")
    name = f"{job}{'-' if shot else ''}{shot}.{path.rsplit('.', 1)[-1]}"
    return await send_file(request, service.store, path, name=name)


@router.get("/v1/films/{job}/previews/{name}", response_class=Response,
            responses=errors(404, also=PREVIEW))  # fmt: skip
async def film_preview(
    request: Request, job: Job, name: Annotated[str, Path(pattern=r"^preview-[A-Za-z0-9 _.-]{1,120}\.png$")]
) -> Response:  # fmt: skip
    """What a chunk looks like while it is denoised."""
    await _found(request, job)
    try:
        data = await asyncio.to_thread(service_of(request).store.cat, f"jobs/{job}/{name}")
    except FileNotFoundError:
        raise NotFound(f"film {job!r} has no such preview") from None
    return Response(data, media_type="image/png")


@router.get("/v1/films/{job}/events", response_class=StreamingResponse,
            responses=errors(404, also=EVENTS))  # fmt: skip
async def film_events(
    request: Request, job: Job,
    last_event_id: Annotated[str, Header(pattern=r"^[0-9]{0,9}$", description="go on behind this event")] = "",
    timeout_s: Annotated[float, Query(ge=0, le=86_400, allow_inf_nan=False)] = 3600.0,
) -> StreamingResponse:  # fmt: skip
    """Server-sent events: `state` for every record of the film's journal, numbered, so that a client which comes back
    misses none; `progress` in between; `end` when it has ended. A stream ends after `timeout_s` seconds."""
    service, caller, one = service_of(request), caller_of(request), await _found(request, job)
    service.check_streams(caller)
    events = _events(service, caller, one, int(last_event_id or 0), timeout_s)
    return StreamingResponse(events, media_type="text/event-stream")


async def _events(
    service: Service, caller: Caller, one: Submission, after: int, timeout_s: float
) -> AsyncIterator[str]:  # fmt: skip
    end, last = time.monotonic() + timeout_s, ""
    with service.streaming(caller):
        yield "retry: 2000\n\n"
        while True:
            where = await asyncio.to_thread(service.where, one)
            if where.num_records > after:
                for record in await asyncio.to_thread(read_log, service.store, one.job, after=after):
                    after += 1
                    if record["kind"] == "state":
                        told = {k: record[k] for k in ("state", "event", "reason", "at")}
                        yield _event("state", told, after)
            now = await _live_answer(service, one, where)
            progress = now.model_dump_json(
                include={"status", "progress", "left_s", "running", "to_run", "done", "previews"}
            )
            if progress != last:
                last = progress
                yield f"event: progress\ndata: {progress}\n\n"
            if now.status in ENDED:
                yield _event("end", {"status": now.status, "reason": now.reason})
                return
            left_s = end - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(min(LOOK_S, left_s))


def _event(kind: str, data: dict[str, Any], number: int | None = None) -> str:
    head = f"id: {number}\n" if number is not None else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data)}\n\n"


async def _order(request: Request, job: str, order: str, **more: Any) -> FilmAnswer:
    service = service_of(request)
    one = await asyncio.to_thread(lambda: service.order(job, caller_of(request), order, **more))
    return await film_answer(service, one)


@router.post("/v1/films/{job}/pause", status_code=202, response_model=FilmAnswer, responses=errors(404))
async def pause_film(request: Request, job: Job) -> FilmAnswer:
    """Hand out no more of its tasks; what runs stops between two steps and keeps its state."""
    return await _order(request, job, "pause")


@router.post("/v1/films/{job}/resume", status_code=202, response_model=FilmAnswer, responses=errors(404))
async def resume_film(request: Request, job: Job) -> FilmAnswer:
    """Go on with a paused film."""
    return await _order(request, job, "resume")


@router.post("/v1/films/{job}/cancel", status_code=202, response_model=FilmAnswer, responses=errors(404))
async def cancel_film(request: Request, job: Job) -> FilmAnswer:
    """End it; what is finished stays."""
    return await _order(request, job, "cancel")


@router.post("/v1/films/{job}/requeue", status_code=202, response_model=FilmAnswer, responses=errors(404))
async def requeue_film(request: Request, job: Job, told: RequeueOrder | None = None) -> FilmAnswer:
    """Give its failed tasks another chance."""
    return await _order(request, job, "requeue", everything=bool(told and told.everything))


@router.post("/v1/films/{job}/priority", status_code=202, response_model=FilmAnswer, responses=errors(404))
async def prioritize_film(request: Request, job: Job, told: PriorityOrder) -> FilmAnswer:
    """Say which film goes first: 0 to 100."""
    return await _order(request, job, "priority", priority=told.priority)


@router.get("/v1/pools", response_model=PoolList, responses=errors())
async def list_pools(request: Request) -> PoolList:
    """The pools of replicas that serve the stages."""
    pools = service_of(request).pools
    rows = [
        PoolAnswer(
            name=name, stages=list(p.stages), ranks=p.ranks, cpus=p.cpus, gpus=p.gpus, accelerator=p.accelerator,
            min_replicas=p.replicas.min, max_replicas=p.replicas.max,
        )
        for name, p in pools.items()
    ]  # fmt: skip
    return PoolList(data=rows)


@router.get("/v1/models", response_model=ModelList, responses=errors())
async def list_models(request: Request) -> ModelList:
    """The models that films may name."""
    rows = []
    for name, model in service_of(request).models.items():
        card = model.card
        rows.append(
            ModelAnswer(
                id=name, created=0, owned_by="longtake" if name == "builtin" else "operator", family=card.family,
                modes=list(card.modes), size="{}x{}".format(*card.size), fps=card.fps, steps=card.steps,
            )
        )  # fmt: skip
    return ModelList(data=rows)
