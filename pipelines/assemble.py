"""The assemble stage: frames to clips and stills, clips to the film."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from functools import singledispatchmethod
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from farm.plan_clips import CLIP_EXTENSION
from farm.task import JoinClips, MeasureSeams, MixFrames, WriteClip, WriteStills

from .ffmpeg_commands import join_clips_command, metadata_text, mix_command, write_clip_command
from .frames import Frame, read_lossless, write_lossless
from .stage import Artifact, Progress, Result, as_bytes, as_path

EPOCH = (1980, 1, 1, 0, 0, 0)  # the only time that a ZIP can hold and that is never now


class Stage:
    """Needs no model. An output is a file in a temporary folder of its own; whoever takes it removes both."""

    def __init__(self, model: str = "", components: Sequence[str] = ()) -> None:
        pass

    def run(self, request: Any, inputs: Sequence[Artifact], progress: Progress) -> Result:
        folder = Path(tempfile.mkdtemp(prefix="longtake-"))
        try:
            return Result(self._write(request, inputs, progress, folder))
        except BaseException:
            shutil.rmtree(folder)
            raise

    @singledispatchmethod
    def _write(self, request: Any, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        raise TypeError(f"assemble takes clips, stills, mixes, seams and joins, got {type(request).__name__}")

    @_write.register
    def _(self, request: WriteClip, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        target = folder / f"clip.{CLIP_EXTENSION[request.codec]}"
        frames = retime(read_all(inputs), request)
        first = next(frames)
        command = write_clip_command(request, width_px=first.shape[1], height_px=first.shape[0], target=str(target))
        run_ffmpeg(command, feed=_counted(chain([first], frames), request.num_frames, progress))
        return target

    @_write.register
    def _(self, request: WriteStills, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        target = folder / "stills.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for i, frame in enumerate(retime(read_all(inputs), request)):
                progress.advance(i, request.num_frames)
                archive.writestr(zipfile.ZipInfo(f"{i:06d}.png", EPOCH), png_of(frame, request))
        return target

    @_write.register
    def _(self, request: MixFrames, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        target, between = folder / "mixed.mkv", request.leaves.num_inputs
        size = {"width_px": request.width_px, "height_px": request.height_px}
        sides = []
        for name, strip, mine in (
            ("leaves", request.leaves, inputs[:between]), ("comes", request.comes, inputs[between:])
        ):  # fmt: skip
            side = WriteStills(
                strip.first_frame, request.num_frames, strip.source_frame, request.fps, request.output_fps, **size
            )  # fmt: skip
            sides.append(folder / f"{name}.mkv")
            sides[-1].write_bytes(write_lossless((enlarge(f, side) for f in retime(read_all(mine), side)), **size))
        mixed = folder / "mixed.rgb"
        run_ffmpeg(mix_command(request, *map(str, sides), target=str(mixed)), feed=())
        frames = np.memmap(mixed, np.uint8, "r").reshape(-1, request.height_px, request.width_px, 3)
        if len(frames) != request.num_frames:
            raise RuntimeError(f"ffmpeg mixed {len(frames)} frames, {request.num_frames} were asked for")
        target.write_bytes(write_lossless(frames, **size))
        for part in (*sides, mixed):
            part.unlink()
        progress.advance(1, 1)
        return target

    @_write.register
    def _(self, request: MeasureSeams, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        from .seams import measure_seams

        target = folder / "seams.jsonl"
        target.write_text("".join(json.dumps(seam) + "\n" for seam in measure_seams(request, read_all(inputs))))
        progress.advance(1, 1)
        return target

    @_write.register
    def _(self, request: JoinClips, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        target = folder / f"film.{request.container}"
        with ExitStack() as stack:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            lines = []
            for i, clip in enumerate(inputs):  # links with names of ours: nothing to escape in the list
                (work / f"{i:06d}").symlink_to(stack.enter_context(as_path(clip, suffix="")).resolve())
                lines.append(f"file '{work / f'{i:06d}'}'")
            (work / "clips.txt").write_text("\n".join(lines) + "\n")
            (work / "metadata.txt").write_text(metadata_text(request), encoding="utf-8")
            command = join_clips_command(
                request, list_file=str(work / "clips.txt"), metadata_file=str(work / "metadata.txt"), target=str(target)
            )
            run_ffmpeg(command, feed=())
        progress.advance(1, 1)
        return target


def read_all(inputs: Iterable[Artifact]) -> Iterator[Frame]:
    """The frames of several artifacts, one after another; one artifact in memory at a time."""
    for artifact in inputs:
        yield from read_lossless(as_bytes(artifact))


def retime(frames: Iterable[Frame], request: WriteClip | WriteStills) -> Iterator[Frame]:
    """Repeat or drop frames so that delivered frame j shows the model frame in force at time j / output_fps."""
    step = Fraction(request.fps) / Fraction(request.output_fps)
    source = iter(frames)
    current, index = next(source), request.source_frame
    for j in range(request.first_frame, request.first_frame + request.num_frames):
        wanted = int(j * step)
        while index < wanted:
            following = next(source, None)
            if following is None:
                break  # times past the last frame repeat it
            current, index = following, index + 1
        yield current


def enlarge(frame: Frame, request: WriteStills) -> Frame:
    """One frame at the delivered size, by Lanczos."""
    if frame.shape[:2] == (request.height_px, request.width_px):
        return frame
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
    enlarged = picture.reformat(request.width_px, request.height_px, interpolation="LANCZOS")
    return np.asarray(enlarged.to_ndarray(format="rgb24"), np.uint8)


def png_of(frame: Frame, request: WriteStills) -> bytes:
    """One delivered frame as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(enlarge(frame, request)).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _counted(frames: Iterable[Frame], total: int, progress: Progress) -> Iterator[bytes]:
    for i, frame in enumerate(frames):
        progress.advance(i, total)
        yield frame.tobytes()


def run_ffmpeg(command: list[str], *, feed: Iterable[bytes], timeout_s: float = 6 * 3600) -> None:
    """Run ffmpeg with `feed` on its standard input.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=words)
        watchdog = threading.Timer(timeout_s, process.kill)
        watchdog.daemon = True
        watchdog.start()
        assert process.stdin is not None
        try:
            for block in feed:
                process.stdin.write(block)
            process.stdin.close()
            process.wait(timeout_s)
        except BrokenPipeError:
            process.wait(timeout_s)
        finally:
            watchdog.cancel()
            if process.poll() is None:  # canceled, or the feed failed
                process.kill()
                process.wait(10)
            with suppress(BrokenPipeError):
                process.stdin.close()
        if process.returncode:
            words.seek(0)
            last = words.read().decode(errors="replace").strip().splitlines()[-3:]
            raise RuntimeError(f"ffmpeg ended with {process.returncode}: {' | '.join(last)}")
