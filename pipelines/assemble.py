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
from functools import singledispatchmethod
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from farm.plan.clips import CLIP_EXTENSION
from farm.task import (
    ChooseRoll,
    JoinClips,
    MeasureColour,
    MeasureSeams,
    MixFrames,
    SolveColour,
    TakeRoll,
    WriteClip,
    WriteStills,
)  # fmt: skip
from pipelines.ffmpeg_commands import join_clips_command, metadata_text, mix_command, write_clip_command
from pipelines.frames import Frame, write_lossless
from pipelines.rolls import choose
from pipelines.scratch import new_folder
from pipelines.stage import Artifact, Progress, Result, as_bytes, as_path
from pipelines.strips import num_inputs, read_all, read_strip

EPOCH = (1980, 1, 1, 0, 0, 0)  # the only time that a ZIP can hold and that is never now


class Stage:
    """Needs no model. An output is a file in a temporary folder of its own; whoever takes it removes both."""

    def __init__(self, model: str = "", components: Sequence[str] = ()) -> None:
        pass

    def run(self, request: Any, inputs: Sequence[Artifact], progress: Progress) -> Result:
        if isinstance(request, ChooseRoll):
            return Result(choose(request, [as_bytes(m) for m in inputs]))
        if isinstance(request, TakeRoll):
            return Result(as_bytes(inputs[1 + json.loads(as_bytes(inputs[0]))["roll"]]))
        folder = new_folder()
        try:
            return Result(self._write(request, inputs, progress, folder))
        except BaseException:
            shutil.rmtree(folder)
            raise

    @singledispatchmethod
    def _write(self, request: Any, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        raise TypeError(f"assemble takes clips, stills, mixes, colours, seams and joins, got {type(request).__name__}")

    @_write.register
    def _(self, request: WriteClip, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        target = folder / f"clip.{CLIP_EXTENSION[request.codec]}"
        frames = read_strip(request.strip, inputs)
        first = next(frames)
        command = write_clip_command(request, width_px=first.shape[1], height_px=first.shape[0], target=str(target))
        run_ffmpeg(command, feed=_counted(chain([first], frames), request.strip.num_frames, progress))
        return target

    @_write.register
    def _(self, request: WriteStills, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        target = folder / "stills.zip"
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for i, frame in enumerate(read_strip(request.strip, inputs)):
                progress.advance(i, request.strip.num_frames)
                archive.writestr(zipfile.ZipInfo(f"{i:06d}.png", EPOCH), png_of(frame, request))
        return target

    @_write.register
    def _(self, request: MixFrames, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        target, between = folder / "mixed.mkv", num_inputs(request.leaves)
        size = {"width_px": request.width_px, "height_px": request.height_px}
        sides = []
        for name, strip, mine in (
            ("leaves", request.leaves, inputs[:between]), ("comes", request.comes, inputs[between:])
        ):  # fmt: skip
            sides.append(folder / f"{name}.mkv")
            sides[-1].write_bytes(write_lossless((enlarge(f, **size) for f in read_strip(strip, mine)), **size))
        mixed = folder / "mixed.rgb"
        run_ffmpeg(mix_command(request, *map(str, sides), target=str(mixed)), feed=())
        frames = np.memmap(mixed, np.uint8, "r").reshape(-1, request.height_px, request.width_px, 3)
        if len(frames) != request.comes.num_frames:
            raise RuntimeError(f"ffmpeg mixed {len(frames)} frames, {request.comes.num_frames} were asked for")
        target.write_bytes(write_lossless(frames, **size))
        for part in (*sides, mixed):
            part.unlink()
        progress.advance(1, 1)
        return target

    @_write.register
    def _(self, request: MeasureSeams, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        from pipelines.seams import measure_seams

        target = folder / "seams.jsonl"
        frames, num_before = read_strip(request.shot, inputs), 0
        if request.before is not None:
            between, num_before = num_inputs(request.before), request.before.num_frames
            frames = chain(read_strip(request.before, inputs[:between]), read_strip(request.shot, inputs[between:]))
        seams = measure_seams(request, frames, first=request.shot.first_frame - num_before)
        target.write_text("".join(json.dumps(seam) + "\n" for seam in seams))
        progress.advance(1, 1)
        return target

    @_write.register
    def _(self, request: MeasureColour, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        from pipelines.colour import measure_colour

        return _written(folder / "step.json", measure_colour(request, read_all(inputs)), progress)

    @_write.register
    def _(self, request: SolveColour, inputs: Sequence[Artifact], progress: Progress, folder: Path) -> Path:
        from pipelines.colour import solve_colour

        parts = [as_bytes(i) for i in inputs]
        before = parts.pop(0) if request.goes_on else None
        return _written(folder / "colour.json", solve_colour(request, parts, before), progress)

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


def _written(target: Path, data: bytes, progress: Progress) -> Path:
    target.write_bytes(data)
    progress.advance(1, 1)
    return target


def enlarge(frame: Frame, *, width_px: int, height_px: int) -> Frame:
    """One frame at the delivered size, by Lanczos."""
    if frame.shape[:2] == (height_px, width_px):
        return frame
    picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
    enlarged = picture.reformat(width_px, height_px, interpolation="LANCZOS")
    return np.asarray(enlarged.to_ndarray(format="rgb24"), np.uint8)


def png_of(frame: Frame, request: WriteStills) -> bytes:
    """One delivered frame as PNG."""
    buffer = io.BytesIO()
    shown = enlarge(frame, width_px=request.width_px, height_px=request.height_px)
    Image.fromarray(shown).save(buffer, "PNG", compress_level=6)
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
