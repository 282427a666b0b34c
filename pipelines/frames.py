"""Lossless frames as bytes: FFV1 in Matroska, RGB, written and read inside the process (no ffmpeg start-up)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import av
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # (H, W, 3), RGB


def write_lossless(frames: Iterable[Frame], *, width_px: int, height_px: int) -> bytes:
    """Code frames with FFV1 on one thread; the bytes depend on nothing but the frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=25, options={"level": "3", "slices": "4"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "bgr0"
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def read_lossless(data: bytes) -> Iterator[Frame]:
    """The frames again, one by one, so that memory does not grow with the shot."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
