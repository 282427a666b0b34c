"""Builders of ffmpeg command lines, apart from what runs them, so that tests can compare arguments.

Every encoder runs on one thread with bitexact flags, because x264's and x265's bytes change with the number of threads.
Video is converted to BT.709, limited range, and tagged so. Groups of pictures are closed, so that clips can be joined.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ffmpeg
import imageio_ffmpeg

from farm.film.film import ENCODERS
from farm.task import JoinClips, MixFrames, WriteClip

GOP_S = 2.0  # seconds between keyframes at most: what players and cutters expect
BT709 = {"color_primaries": "bt709", "color_trc": "bt709", "colorspace": "bt709"}  # by setparams: ffmpeg 9 ignores
# -color_primaries and -color_trc of an output, and mp4 has no `colr` then


def encoder_options(codec: str, *, crf: int, gop: int) -> dict[str, Any]:
    """Options of one encoder; `gop` in frames."""
    more: dict[str, dict[str, Any]] = {
        "h264": {"crf": crf, "preset": "medium", "g": gop, "x264-params": "open-gop=0"},
        "h265": {
            "crf": crf, "preset": "medium", "g": gop, "vtag": "hvc1",
            "x265-params": "open-gop=0:pools=none:frame-threads=1:log-level=error",
        },
        "av1": {"crf": crf, "preset": 6, "g": gop, "svtav1-params": "lp=1:irefresh-type=2"},
        "vp9": {"crf": crf, "b:v": 0, "row-mt": 0, "cpu-used": 3, "g": gop},
        "prores": {"profile:v": 3, "vendor": "apl0"},
    }  # fmt: skip
    return {"vcodec": ENCODERS[codec], **more[codec]}


def write_clip_command(request: WriteClip, *, width_px: int, height_px: int, target: str) -> list[str]:
    """Raw RGB frames of the given size on standard input, already repeated for the output rate, to a clip."""
    numerator, denominator = (int(n) for n in request.fps.split("/"))
    pixels = "yuv422p10le" if request.codec == "prores" else "yuv420p"
    source = ffmpeg.input(
        "pipe:0", format="rawvideo", pix_fmt="rgb24", s=f"{width_px}x{height_px}", framerate=request.fps
    )
    scaled = source.filter(
        "scale", request.width_px, request.height_px, flags="lanczos+accurate_rnd+full_chroma_int",
        out_color_matrix="bt709", out_range="tv",
    ).filter("format", pixels).filter("setparams", **BT709)  # fmt: skip
    options = encoder_options(request.codec, crf=request.crf, gop=max(1, round(GOP_S * numerator / denominator)))
    written = scaled.output(
        target, **options, color_range="tv", threads=1, flags="+bitexact", fflags="+bitexact", map_metadata=-1
    )
    return _command(written)


def mix_command(request: MixFrames, leaves: str, comes: str, *, target: str) -> list[str]:
    """Two lossless files of equally many frames to the raw RGB frames in which the first becomes the second.

    The first frame is all of the one that leaves, and each further one is 1/n further on.
    """
    fade = "fade" if request.kind == "crossfade" else request.kind
    seconds = float(request.comes.num_frames / Fraction(request.fps))
    one, two = (
        ffmpeg.input(file).filter("setpts", f"N/({request.fps})/TB").filter("settb", "1/1000000")
        .filter("fps", request.fps).filter("format", "gbrp") for file in (leaves, comes)
    )  # fmt: skip
    mixed = ffmpeg.filter([one, two], "xfade", transition=fade, duration=seconds, offset=0).filter("format", "rgb24")
    return _command(mixed.output(target, format="rawvideo", threads=1, flags="+bitexact"))


def join_clips_command(request: JoinClips, *, list_file: str, metadata_file: str, target: str) -> list[str]:
    """Copy the packets of the clips named in `list_file` (concat demuxer) under the chapters of `metadata_file`."""
    clips = ffmpeg.input(list_file, format="concat", safe=0)
    notes = ffmpeg.input(metadata_file, format="ffmetadata")
    options: dict[str, Any] = {"c": "copy", "fflags": "+bitexact", "map_metadata": 1, "map_chapters": 1}
    if request.container in ("mp4", "mov"):
        options["movflags"] = "+faststart"
    joined = ffmpeg.output(clips["v"], target, **options)
    # ffmpeg-python only names inputs whose streams are mapped, so the metadata's input is put in by hand
    command = _command(joined)
    at = command.index("-map")
    return [*command[:at], *_input_arguments(notes), *command[at:]]


def _input_arguments(stream: Any) -> list[str]:
    arguments = ffmpeg.get_args(stream.output("unused"))
    return list(arguments[: arguments.index("-i") + 2])


def _command(stream: Any) -> list[str]:
    quiet = stream.global_args("-hide_banner", "-loglevel", "error", "-nostats", "-filter_threads", "1")
    return list(ffmpeg.compile(quiet, cmd=imageio_ffmpeg.get_ffmpeg_exe(), overwrite_output=True))


def metadata_text(request: JoinClips) -> str:
    """The film's metadata and one chapter per shot, in ffmpeg's ffmetadata format."""
    frame_us = 1_000_000 / Fraction(request.fps)  # a time base of 1/fps could exceed what containers hold
    lines = [";FFMETADATA1", *(f"{key}={_escaped(value)}" for key, value in request.metadata)]
    start = 0
    for name, num_frames in request.chapters:
        end = start + num_frames
        lines += ["[CHAPTER]", "TIMEBASE=1/1000000", f"START={round(start * frame_us)}", f"END={round(end * frame_us)}"]
        lines.append(f"title={_escaped(name)}")
        start = end
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return "".join("\\" + c if c in "=;#\\\n" else c for c in value)
