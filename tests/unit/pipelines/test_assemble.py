"""Clips and films: every codec exactly as long, large and fast as asked; the same bytes each time."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import TaskCanceled
from farm.film.chunks import num_delivered
from farm.task import JoinClips, Strip, WriteClip
from pipelines.assemble import Stage, run_ffmpeg
from pipelines.ffmpeg_commands import join_clips_command, metadata_text, write_clip_command
from pipelines.frames import write_lossless
from pipelines.scratch import new_folder, remove_orphans
from pipelines.stage import Progress
from pipelines.strips import retime

CODECS = {"h264": ("mp4", 18), "h265": ("mp4", 20), "av1": ("mp4", 24), "vp9": ("webm", 24), "prores": ("mov", 0)}


def moving_square(num_frames: int = 9) -> bytes:
    video = np.full((num_frames, 48, 64, 3), (40, 90, 160), np.uint8)
    for i in range(num_frames):
        video[i, 16:32, 4 + 4 * i : 20 + 4 * i] = (230, 60, 30)
    return write_lossless(video, width_px=64, height_px=48)


def clip_request(codec: str, *, num_frames: int = 27, output_fps: str = "24/1") -> WriteClip:
    step = Fraction(8) / Fraction(output_fps)
    strip = Strip(0, num_frames, 0, 1, f"{step.numerator}/{step.denominator}")
    return WriteClip(strip, output_fps, 128, 96, codec, CODECS[codec][1])


@pytest.mark.parametrize("codec", CODECS)
def test_a_film_of_each_codec_is_exact_and_repeatable(codec: str) -> None:
    stage, frames, container = Stage(), moving_square(), CODECS[codec][0]
    clips = [stage.run(clip_request(codec), [frames], Progress()).artifact for _ in range(2)]
    assert clips[0].read_bytes() == clips[1].read_bytes()
    chapters = (("one", 27), ("two", 27))
    for kind in {container} | ({"mkv"} if container != "mov" else set()):
        joined = stage.run(JoinClips(kind, chapters, "24/1", (("title", "x=1; #é"),)), clips, Progress()).artifact
        with av.open(str(joined)) as film:
            stream = film.streams.video[0]
            times = [float(f.pts * f.time_base) for f in film.decode(stream)]
            assert (stream.width, stream.height, stream.average_rate) == (128, 96, 24)
            assert colours_of(stream) == BT709
            assert film.metadata["title"] == "x=1; #é"
            assert len(film.chapters()) == 2
        assert times == pytest.approx([i / 24 for i in range(54)], abs=0.0006)  # Matroska counts milliseconds


BT709 = (1, 1, 1, 1)  # primaries, transfer, matrix; limited range: ITU-T H.273, and FFmpeg's AVCOL_RANGE_MPEG


def colours_of(stream: Any) -> tuple[int, ...]:
    context = stream.codec_context
    return (context.color_primaries, context.color_trc, context.colorspace, context.color_range)


@pytest.mark.parametrize("codec", CODECS)
def test_a_clip_and_its_film_say_which_colours_they_have(codec: str) -> None:
    """Probed in the files made. A player that is told nothing guesses, and SD sizes are then shown as BT.601."""
    stage, container = Stage(), CODECS[codec][0]
    clip = stage.run(clip_request(codec), [moving_square()], Progress()).artifact
    film = stage.run(JoinClips(container, (("one", 27),), "24/1", ()), [clip], Progress()).artifact
    for path in (clip, film):
        with av.open(str(path)) as opened:
            assert colours_of(opened.streams.video[0]) == BT709
        if container in ("mp4", "mov"):  # the box that players read before they look into the stream
            at = path.read_bytes().index(b"colrnc")
            assert path.read_bytes()[at + 8 : at + 14] == bytes([0, 1, 0, 1, 0, 1])


def test_a_fraction_of_a_frame_rate_is_kept() -> None:
    stage = Stage()
    clip = stage.run(
        clip_request("h264", num_frames=30, output_fps="24000/1001"), [moving_square()], Progress()
    ).artifact
    with av.open(str(clip)) as film:
        assert film.streams.video[0].average_rate == Fraction(24000, 1001)


@given(
    num_frames=st.integers(1, 40),
    fps=st.sampled_from(["8", "16", "24", "30"]),
    output=st.sampled_from(["6", "8", "24", "60"]),
)
def test_delivered_frames_show_the_frame_in_force(num_frames: int, fps: str, output: str) -> None:
    delivered = num_delivered(num_frames, fps=float(fps), output_fps=float(output))
    strip = Strip(0, delivered, 0, 1, str(Fraction(fps) / Fraction(output)))
    pictures = [np.full((1, 1, 3), i, np.uint8) for i in range(num_frames)]
    shown = [int(p[0, 0, 0]) for p in retime(pictures, strip)]
    assert shown == [min(num_frames - 1, int(j * Fraction(fps) / Fraction(output))) for j in range(delivered)]


def test_every_encoder_is_told_to_use_one_thread_and_bitexact_flags() -> None:
    for codec in CODECS:
        command = write_clip_command(clip_request(codec), width_px=64, height_px=48, target="out")
        for option, value in (
            ("-threads", "1"),
            ("-flags", "+bitexact"),
            ("-pix_fmt", "rgb24"),
        ):
            assert command[command.index(option) + 1] == value
        assert "out_color_matrix=bt709" in " ".join(command)
        assert "setparams=" in " ".join(command)


def test_joining_copies_packets() -> None:
    request = JoinClips("mp4", (("a", 1),), "24/1", ())
    command = join_clips_command(request, list_file="list", metadata_file="notes", target="film.mp4")
    assert command[command.index("-c") + 1] == "copy"
    assert [command[i + 1] for i, word in enumerate(command) if word == "-i"] == ["list", "notes"]


def test_chapters_follow_each_other_and_metadata_is_escaped() -> None:
    text = metadata_text(JoinClips("mp4", (("a", 48), ("b", 24)), "24/1", (("title", "a=b;c#d\\e"),)))
    assert "title=a\\=b\\;c\\#d\\\\e" in text
    assert text.count("TIMEBASE=1/1000000") == 2
    assert "START=0\nEND=2000000" in text
    assert "START=2000000\nEND=3000000" in text


def test_a_canceled_clip_leaves_no_ffmpeg_behind() -> None:
    class Stop(Progress):
        def advance(self, step: int, num_steps: int) -> None:
            self.canceled = step == 5
            super().advance(step, num_steps)

    with pytest.raises(TaskCanceled):
        Stage().run(clip_request("h264"), [moving_square()], Stop())


def test_what_ffmpeg_says_is_passed_on(tmp_path: Path) -> None:
    request = clip_request("h264")
    command = write_clip_command(
        request, width_px=64, height_px=48, target=str(tmp_path / "no" / "such" / "folder.mp4")
    )
    with pytest.raises(RuntimeError, match="No such file or directory"):
        run_ffmpeg(command, feed=[])


def test_what_a_killed_process_was_making_goes_when_another_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = "from pipelines.scratch import new_folder; print(new_folder(), flush=True); import time; time.sleep(60)"
    made = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert made.stdout is not None
    theirs, ours = Path(made.stdout.readline().strip()), new_folder()
    (theirs / "clip.mp4").write_bytes(b"half")
    assert remove_orphans() == []
    made.kill()
    made.wait(10)
    made.stdout.close()
    assert remove_orphans() == [theirs]
    assert ours.is_dir()
    assert not theirs.exists()
