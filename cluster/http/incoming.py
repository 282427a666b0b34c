"""What a request brings: fields, and files that are written to a folder of the request's own.

A picture is looked at before it is kept: its kind, and the size that its header tells. Nothing is decoded here.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from cluster.http.guard import parse_json
from farm.errors import InputError, Problem
from farm.plan.sources import source_task
from farm.service.limits import Limits
from farm.store.jobs import read_job
from farm.store.store import Store

MAX_NAME, MAX_FIELDS, MAX_FIELD_BYTES = 1000, 64, 4 * 2**20


@dataclass
class Incoming:
    """Fields and files by name; `raw` is the body where it is not multipart."""

    folder: Path
    raw: bytes = b""
    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


@asynccontextmanager
async def incoming(request: Request, limits: Limits, *, kinds: tuple[str, ...]) -> AsyncIterator[Incoming]:
    """Read a request whose content is of one of these kinds. Its folder goes with the context.

    Raises:
        InputError: its files or fields cannot be used. HTTPException: 415, of another kind.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in kinds:
        raise HTTPException(415, f"Content-Type must be one of {', '.join(kinds)}, got {kind[:100]!r}")
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="longtake-request-"))
    try:
        made = Incoming(folder)
        if kind == "multipart/form-data":
            await _read_form(request, made, limits)
        else:
            made.raw = await request.body()
        yield made
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _read_form(request: Request, made: Incoming, limits: Limits) -> None:
    try:
        form = request.form(max_files=limits.max_images + 1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
        async with form as told:
            for name, value in told.multi_items():
                if isinstance(value, UploadFile):
                    await asyncio.to_thread(_keep, name, value, made, limits)
                elif name in made.fields:
                    raise InputError(Problem(f"{name} must be given once", name))
                else:
                    made.fields[name] = value
    except HTTPException as e:  # starlette's of a form that cannot be read
        raise InputError(str(e.detail)) from None


def _keep(field_name: str, upload: UploadFile, made: Incoming, limits: Limits) -> None:
    """Write one file into the request's folder: the storyboard, or a picture or LoRA, known by its own name."""
    name = upload.filename or field_name
    if field_name == "storyboard":
        made.raw = upload.file.read(limits.max_storyboard_bytes + 1)
        return
    if len(name) > MAX_NAME or not name.isprintable():
        told = f"must be printable and at most {MAX_NAME} characters long"
        raise InputError(Problem(f"a file's name {told}, got {name[:100]!r}", field_name))
    if name in made.files:
        raise InputError(Problem(f"a file's name must be there once, got {name!r} twice", field_name))
    path = made.folder / f"file{len(made.files)}"  # its name is the storyboard's: a path of somebody else's machine
    is_lora = name.endswith(".safetensors")
    most = limits.max_body_bytes if is_lora else limits.max_image_bytes
    with path.open("xb") as out:
        size = 0
        while piece := upload.file.read(2**20):
            size += len(piece)
            if size > most:
                raise InputError(Problem(f"{name} must have at most {most} bytes", field_name))
            out.write(piece)
    if not is_lora:
        check_picture(path, limits, key=field_name)
    made.files[name] = path


def check_picture(path: Path, limits: Limits, *, key: str) -> None:
    """Raises:
    InputError: it is no PNG, JPEG or WebP, or has too many pixels; only its header is read.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as picture:
            width, height = picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(Problem(f"{key} must be a PNG, JPEG or WebP picture", key)) from None
    if width * height > limits.max_image_px:
        told = f"{key} must have at most {limits.max_image_px} pixels, got {width}x{height}"
        raise InputError(Problem(told, key))


def fields_of(made: Incoming) -> Mapping[str, Any]:
    """The fields of a form, or of a JSON body."""
    return made.fields if made.fields or not made.raw else parse_json(made.raw)


@asynccontextmanager
async def copied(store: Store, job: str, image: str | None) -> AsyncIterator[Incoming]:
    """The picture of an earlier film of one shot, as if it had come with a request; None: it had none."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="longtake-request-"))
    try:
        made = Incoming(folder)
        if image:
            made.files[image] = folder / "file0"
            await asyncio.to_thread(_copy, store, job, made.files[image])
        yield made
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _copy(store: Store, job: str, path: Path) -> None:
    (shot,) = read_job(store, job).film.shots
    path.write_bytes(store.read(source_task(shot.files[0])))
