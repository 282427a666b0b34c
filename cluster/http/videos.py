"""/v1/videos: the shape of OpenAI's videos API, so that its client works with `base_url` alone.

A video is a film of one shot. Besides OpenAI's fields come those that SGLang and vLLM-Omni have added. Where a field is
left out, the model's card decides.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import yaml
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cluster.http.films import Once, caller_of, errors, service_of
from cluster.http.incoming import Incoming, check_picture, copied, fields_of, incoming
from cluster.http.media import picture_of, send_file
from cluster.service.errors import Forbidden, NotFound, NotReady
from cluster.service.service import Service
from cluster.shapes import WarningAnswer, warning_answers
from farm.errors import InputError, Problem
from farm.service.access import Caller
from farm.service.submission import Submission, Where
from farm.states import ENDED

STATUS = {  # a client that asks until the end knows four words; one for each state of ours
    "queued": "queued", "paused": "queued", "pausing": "in_progress", "active": "in_progress",
    "canceling": "in_progress", "completed": "completed", "failed": "failed", "canceled": "failed",
}  # fmt: skip
PREFIX = "video_"
EXAMPLE: dict[str, Any] = {"prompt": "a red ball rolls over grass", "model": "builtin", "seconds": "2"}
MAX_PROMPT = 8000
Variant = Literal["video", "thumbnail", "spritesheet"]


class VideoRequest(BaseModel):
    """What a video is asked for with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": EXAMPLE})

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$")]
    model: Annotated[str, Field(max_length=200)] | None = None
    seconds: Annotated[float, Field(gt=0, le=6 * 3600, allow_inf_nan=False)] | None = None
    size: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    num_frames: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    fps: Annotated[float, Field(ge=0.1, le=240, allow_inf_nan=False)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    input_reference: str | None = Field(
        default=None, description="the picture that it begins with: a file of the form, or where that is allowed a URL"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: Any) -> Any:
        """Forms give numbers as texts, which are read; but true is not 1."""
        if isinstance(value, bool):
            raise ValueError("must not be true or false")
        return value


class Remix(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"prompt": "a blue ball rolls over sand"}})
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT, pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$")]


class VideoError(BaseModel):
    code: str
    message: str


class VideoAnswer(BaseModel):
    """A video as it stands; times are seconds since the epoch."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None
    expires_at: int | None
    prompt: str
    size: str
    seconds: str
    quality: Literal["standard"] = "standard"
    remixed_from_video_id: str | None
    error: VideoError | None
    warnings: list[WarningAnswer] = Field(default_factory=list, description="not of OpenAI's API")


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[VideoAnswer]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedVideo(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": VideoRequest.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object", "required": ["prompt"],
                    "properties": {
                        name: {"type": "string"} for name in VideoRequest.model_fields if name != "input_reference"
                    } | {"input_reference": {"type": "string", "format": "binary"}},
                },
            },
        },
    }
}  # fmt: skip
VideoId = Annotated[str, Path(pattern=r"^video_[0-9a-f]{16}$", description="the video's id")]

router = APIRouter(prefix="/v1/videos", tags=["videos"])


async def video_answer(service: Service, one: Submission) -> VideoAnswer:
    told: Where = await asyncio.to_thread(service.where, one)
    view = await service.live(one, told) or {}
    return answer_of(service, one, told, view, await asyncio.to_thread(service.warnings, one, told))


def answer_of(
    service: Service, one: Submission, told: Where, view: Mapping[str, Any], warnings: Sequence[Problem]
) -> VideoAnswer:
    state = view["status"] if view.get("status") in STATUS and told.state not in ENDED else told.state
    completed_at = told.ended_at if state == "completed" else None
    error = None
    if STATUS[state] == "failed":
        error = VideoError(code="canceled" if state == "canceled" else "render_failed", message=told.reason or state)
    request = one.request
    return VideoAnswer(
        id=PREFIX + one.job, model=one.model, status=STATUS[state],  # type: ignore[arg-type]  # one of the four
        progress=100 if state == "completed" else min(99, int(100 * view.get("progress", 0.0))),
        created_at=int(one.at), completed_at=int(completed_at) if completed_at else None,
        expires_at=int(_expires_at(service, completed_at)) if completed_at else None, prompt=request["prompt"],
        size=f"{one.width}x{one.height}", seconds=f"{one.seconds:g}", remixed_from_video_id=request.get("remixed_from"),
        error=error, warnings=warning_answers(warnings),
    )  # fmt: skip


def _expires_at(service: Service, completed_at: float) -> float:
    return completed_at + service.limits.keep_days * 86_400


def storyboard_of(told: VideoRequest, image: str | None) -> bytes:
    """A film of one shot."""
    shot: dict[str, Any] = {"id": "video", "prompt": told.prompt}
    shot |= {"frames": told.num_frames} if told.num_frames is not None else {}
    if told.num_frames is None and told.seconds is not None:
        shot["seconds"] = told.seconds
    shot |= {"image": image, "image_fit": "cover"} if image else {}
    board = {
        "title": " ".join(told.prompt.split())[:80], "model": told.model, "size": told.size, "fps": told.fps,
        "seed": told.seed, "steps": told.num_inference_steps, "guidance": told.guidance_scale,
        "negative_prompt": told.negative_prompt, "shots": [shot],
    }  # fmt: skip
    left = {key: value for key, value in board.items() if value is not None}
    return yaml.safe_dump(left, allow_unicode=True, sort_keys=False, width=1000).encode()


def _checked(fields: Mapping[str, Any], model: type[VideoRequest]) -> VideoRequest:
    try:
        return model.model_validate(fields)
    except ValidationError as e:
        problems = []
        for fault in e.errors():
            key = ".".join(map(str, fault["loc"]))
            known = ", ".join(model.model_fields)
            told = f"must be one of {known}" if fault["type"] == "extra_forbidden" else fault["msg"]
            problems.append(Problem(f"{key}: {told}", key))
        raise InputError(*problems) from None


@router.post("", response_model=VideoAnswer, openapi_extra=BODY, responses=errors(409, 415))
async def create_video(request: Request, idempotency_key: Once = "") -> Response:
    """Ask for a video. It is made in the background; ask for its status until it is completed or failed."""
    service, caller = service_of(request), caller_of(request)
    if not caller.may_submit:
        raise Forbidden(f"the role {caller.role} may not submit films")
    async with incoming(request, service.limits, kinds=("application/json", "multipart/form-data")) as made:
        fields = dict(fields_of(made))
        image: str | None = None
        if made.files:
            (image, *more) = made.files
            if more or "input_reference" in fields:
                raise InputError(Problem("input_reference must be one picture", "input_reference"))
        told = _checked(fields, VideoRequest)
        if told.input_reference is not None:
            image = await asyncio.to_thread(_fetched, service, told.input_reference, made)
        one = await _submit(service, caller, told, made, image=image, key=idempotency_key)
    told_back = await video_answer(service, one)
    return JSONResponse(told_back.model_dump(), headers={"Location": f"/v1/videos/{told_back.id}"})


async def _submit(
    service: Service, caller: Caller, told: VideoRequest, made: Incoming, *, image: str | None, key: str,
    remixed_from: str = "",
) -> Submission:  # fmt: skip
    if told.seconds is None and told.num_frames is None:  # the card's: one chunk
        name = told.model or "builtin"
        card = service.models[name].card if name in service.models else None
        told = told.model_copy(update={"num_frames": card.chunk_frames if card else 1})
    raw = storyboard_of(told, image)
    prepared = await asyncio.to_thread(service.prepare, raw, made.files)
    kept = {"prompt": told.prompt, "fields": told.model_dump(exclude_none=True, exclude={"input_reference"})}
    kept |= {"image": image} if image else {}
    kept |= {"remixed_from": remixed_from} if remixed_from else {}
    one, _ = await asyncio.to_thread(
        service.submit, prepared, caller, kind="video", key=key, request=kept
    )  # fmt: skip
    return one


def _fetched(service: Service, url: str, made: Incoming) -> str:
    """A picture from an address, in the request's folder."""
    from cluster.service.fetching import fetch

    if not service.limits.image_urls:
        raise InputError(
            Problem("input_reference must be a file of a form; this server fetches no addresses", "input_reference")
        )
    path = made.folder / f"fetched-{hashlib.sha256(url.encode()).hexdigest()[:16]}"  # the same request, the same name
    path.write_bytes(fetch(url, max_bytes=service.limits.max_image_bytes))
    check_picture(path, service.limits, key="input_reference")
    made.files[path.name] = path
    return str(path.name)


@router.get("", response_model=VideoList, responses=errors())
async def list_videos(
    request: Request, after: Annotated[str, Query(pattern=r"^(video_[0-9a-f]{16})?$")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20, order: Literal["asc", "desc"] = "desc",
) -> VideoList:  # fmt: skip
    """Videos, the newest first."""
    service = service_of(request)
    found, has_more = await asyncio.to_thread(
        service.page, caller_of(request), kind="video", after=after.removeprefix(PREFIX), limit=limit,
        newest_first=order == "desc",
    )  # fmt: skip
    rows = [await video_answer(service, one) for one in found]
    first, last = (rows[0].id, rows[-1].id) if rows else (None, None)
    return VideoList(data=rows, first_id=first, last_id=last, has_more=has_more)


async def _found(request: Request, video: str) -> Submission:
    one = await asyncio.to_thread(service_of(request).find, video.removeprefix(PREFIX), caller_of(request))
    if one.kind != "video":
        raise NotFound(f"there is no video {video!r}")
    return one


@router.get("/{video}", response_model=VideoAnswer, responses=errors(404))
async def show_video(request: Request, video: VideoId) -> VideoAnswer:
    """One video as it stands."""
    return await video_answer(service_of(request), await _found(request, video))


@router.get("/{video}/content", response_class=Response, responses=errors(404, 409, 416, also={
    200: {"content": {"video/mp4": {}, "image/jpeg": {}}, "description": "the video, or a picture of it"},
    206: {"content": {"video/mp4": {}}, "description": "the part that Range asks for"},
}))  # fmt: skip
async def video_content(request: Request, video: VideoId, variant: Variant = "video") -> Response:
    """The finished video; its first frame; or frames of it side by side."""
    service, one = service_of(request), await _found(request, video)
    path = await asyncio.to_thread(service.clip, one)
    told = await asyncio.to_thread(service.where, one)
    if path is None or told.state != "completed":
        raise NotReady(f"video {video!r} is not completed")
    if told.ended_at is not None and service.now() > _expires_at(service, told.ended_at):
        raise NotFound(f"video {video!r} has expired")
    if variant == "video":
        return await send_file(request, service.store, path, name=f"{video}.{one.container}")
    data = await asyncio.to_thread(picture_of, service.store, path, variant)
    return Response(data, media_type="image/jpeg")


@router.delete("/{video}", response_model=DeletedVideo, responses=errors(404))
async def delete_video(request: Request, video: VideoId) -> DeletedVideo:
    """Take it from the list; one that is being made is canceled."""
    await _found(request, video)
    await asyncio.to_thread(service_of(request).delete, video.removeprefix(PREFIX), caller_of(request))
    return DeletedVideo(id=video)


@router.post("/{video}/remix", response_model=VideoAnswer, responses=errors(404, 409))
async def remix_video(request: Request, video: VideoId, remix: Remix, idempotency_key: Once = "") -> VideoAnswer:
    """The same video with another prompt."""
    service, caller = service_of(request), caller_of(request)
    if not caller.may_submit:
        raise Forbidden(f"the role {caller.role} may not submit films")
    before = await _found(request, video)
    told = _checked({**before.request["fields"], "prompt": remix.prompt}, VideoRequest)
    image = before.request.get("image")
    async with copied(service.store, before.job, image) as made:
        one = await _submit(service, caller, told, made, image=image, key=idempotency_key, remixed_from=video)
    return await video_answer(service, one)
