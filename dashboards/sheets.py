"""Frames of a clip side by side, as a JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
from PIL import Image

SHEET_FRAMES, SHEET_HEIGHT_PX, GAP_PX = 6, 96, 4


def contact_sheet(clip: bytes, *, num_frames: int = SHEET_FRAMES, height_px: int = SHEET_HEIGHT_PX) -> bytes:
    """Frames spread evenly over a clip."""
    with av.open(io.BytesIO(clip), "r") as container:
        total = sum(1 for _ in container.decode(video=0))
    return sheet_of(clip, [round(i * (total - 1) / max(1, num_frames - 1)) for i in range(num_frames)], height_px)


def first_frame(clip: bytes) -> bytes:
    """The first frame at its own size, as a JPEG."""
    with av.open(io.BytesIO(clip), "r") as container:
        picture = Image.fromarray(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def sheet_of(clip: bytes, wanted: Sequence[int], height_px: int = SHEET_HEIGHT_PX) -> bytes:
    """The frames with these numbers, those beyond the clip's end left out; at least one must be there."""
    kept = {}
    with av.open(io.BytesIO(clip), "r") as container:  # only what is shown is held in memory
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                kept[i] = Image.fromarray(frame.to_ndarray(format="rgb24"))
    chosen = [kept[i] for i in wanted if i in kept]
    width = round(chosen[0].width * height_px / chosen[0].height)
    sheet = Image.new("RGB", (len(chosen) * (width + GAP_PX) - GAP_PX, height_px), "white")
    for i, picture in enumerate(chosen):
        sheet.paste(picture.resize((width, height_px), Image.Resampling.LANCZOS), (i * (width + GAP_PX), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
