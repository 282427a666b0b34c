"""Films and pictures over HTTP: whole or by ranges (RFC 9110, 14), and pictures that are drawn from a film."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from functools import lru_cache

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException

from farm.store.store import Store

PIECE_BYTES = 512 * 1024
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
TYPES = {"mp4": "video/mp4", "mkv": "video/x-matroska", "webm": "video/webm", "mov": "video/quicktime"}
SHEET_FRAMES, SHEET_HEIGHT_PX = 12, 128
MOST_PICTURES = 200  # that a server remembers, of some tens of kilobytes each


async def send_file(request: Request, store: Store, path: str, *, name: str) -> Response:
    """A file of the store, or the part of it that is asked for.

    Args:
        name: that a browser saves it under; made of letters, digits, - _ and dots.
    """
    size = await asyncio.to_thread(store.size, path)
    kind = TYPES.get(path.rsplit(".", 1)[-1], "application/octet-stream")
    headers = {"Accept-Ranges": "bytes", "Content-Disposition": f'attachment; filename="{name}"'}
    asked = request.headers.get("range")
    part = range_of(asked, size) if asked else None
    first, last = part or (0, size - 1)
    if part:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["Content-Length"] = str(last - first + 1)
    body = _pieces(store, path, first, last)
    return StreamingResponse(body, 206 if part else 200, headers, media_type=kind)


def range_of(asked: str, size: int) -> tuple[int, int] | None:
    """First and last byte of one range; None where the whole is to be sent.

    Raises:
        HTTPException: 416, where there is no such part.
    """
    found = RANGE.fullmatch(asked.strip())
    if found is None or not (found[1] or found[2]):  # not understood, or several: RFC 9110 lets us send the whole
        return None
    if found[1]:
        first, last = int(found[1]), min(int(found[2]) if found[2] else size - 1, size - 1)
        if found[2] and int(found[2]) < first:
            return None
    else:
        first, last = max(0, size - int(found[2])), size - 1
    if last < first:
        told = f"Range must lie in {size} bytes, got {asked[:100]!r}"
        raise HTTPException(416, told, {"Content-Range": f"bytes */{size}"})
    return first, last


async def _pieces(store: Store, path: str, first: int, last: int) -> AsyncIterator[bytes]:
    at = first
    while at <= last:
        end = min(at + PIECE_BYTES, last + 1)
        yield await asyncio.to_thread(store.cat_part, path, at, end)
        at = end


@lru_cache(maxsize=MOST_PICTURES)
def picture_of(store: Store, path: str, variant: str) -> bytes:
    """A JPEG of a film, which never changes: its first frame, or frames spread over it side by side."""
    from dashboards.sheets import contact_sheet, first_frame

    data = store.cat(path)
    if variant == "thumbnail":
        return first_frame(data)
    return contact_sheet(data, num_frames=SHEET_FRAMES, height_px=SHEET_HEIGHT_PX)
