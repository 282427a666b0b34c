"""Stages as plain objects: what they load, how they stop, what they tell."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import plan_of, run_plan
from PIL import Image
from safetensors.torch import load, save
from tiny_checkpoints import make_wan

from farm.errors import InputError, TaskCanceled
from farm.film.looks import Look
from farm.models.cards.wan import WAN21_RGB
from farm.task import Decode, Denoise, EncodeText, Slice
from pipelines import decode, denoise, encode
from pipelines.frames import read_lossless, write_lossless
from pipelines.stage import Progress

SHAPE = (1, 16, 3, 6, 8)
REQUEST = Denoise("wan", "text", SHAPE, 4, 1.0, 1.0, 0, (Slice(0, SHAPE[2], 0, None),))


@pytest.mark.parametrize(
    ("module", "own"),
    [
        (encode, {"tokenizer", "text_encoder"}),
        (denoise, {"transformer", "transformer_2", "scheduler"}),
        (decode, {"vae"}),
    ],
)
def test_a_stage_loads_nothing_but_its_own_components(module: object, own: set[str], tmp_path: Path) -> None:
    model = make_wan(tmp_path / "wan", two_experts=True)
    for folder in [f for f in model.iterdir() if f.is_dir() and f.name not in own]:
        shutil.rmtree(folder)
    module.Stage(str(model))


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path) -> None:
    model = make_wan(tmp_path / "wan")
    file = model / "text_encoder" / "model.safetensors"
    weights = load(file.read_bytes())
    del weights[next(k for k in weights if k.endswith("SelfAttention.q.weight"))]
    file.write_bytes(save(weights, {"format": "pt"}))
    with pytest.raises(InputError, match=r"must hold all weights of UMT5EncoderModel"):
        encode.Stage(str(model))


def test_the_denoise_stage_stops_between_two_steps(tiny_wan: Path) -> None:
    class StopAtTwo(Progress):
        def advance(self, step: int, num_steps: int, state: Callable[[], bytes] | None = None) -> None:
            self.canceled = step == 2
            super().advance(step, num_steps, state)

    progress = StopAtTwo()
    with pytest.raises(TaskCanceled, match="after step 2 of 4"):
        denoise.Stage(str(tiny_wan)).run(REQUEST, [save({"embeds": torch.zeros(1, 8, 32)})], progress)
    assert (progress.step, progress.num_steps) == (2, 4)


def test_a_stage_gives_the_same_bits_after_other_work(tiny_wan: Path) -> None:
    stage, texts = denoise.Stage(str(tiny_wan)), [save({"embeds": torch.ones(1, 8, 32)})]
    first = stage.run(REQUEST, texts, Progress()).artifact
    stage.run(replace(REQUEST, steps=7, seed=9), texts, Progress())
    assert stage.run(REQUEST, texts, Progress()).artifact == first


def test_embeddings_are_zero_after_the_last_token(tiny_wan: Path) -> None:
    made = encode.Stage(str(tiny_wan)).run(EncodeText("wan", "a red ball", 12), [], Progress()).artifact
    embeds = load(made)["embeds"]
    assert embeds.shape == (1, 12, 32)
    assert embeds[0, :4].abs().sum() > 0  # three words and the end mark
    assert not embeds[0, 4:].any()


def test_decode_keeps_as_many_frames_as_asked(tiny_wan: Path) -> None:
    latents = [save({"latents": torch.zeros(SHAPE)})]
    made = decode.Stage(str(tiny_wan)).run(Decode("wan", ((0, 3),), 0, True, 0, 7), latents, Progress()).artifact
    frames = list(read_lossless(made))
    assert len(frames) == 7
    assert frames[0].shape == (48, 64, 3)


def test_a_preview_is_a_small_picture() -> None:
    picture = Image.open(io.BytesIO(denoise.preview_png(torch.randn(SHAPE), WAN21_RGB)))
    assert picture.size == (64, 48)
    assert denoise.preview_png(torch.randn(1, 5, 3, 6, 8), WAN21_RGB) == b""  # no map is known for five channels


@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 5), rows=st.integers(16, 70), columns=st.integers(16, 70), seed=st.integers(0, 2**16))
def test_lossless_frames_are_lossless_and_their_bytes_repeat(frames: int, rows: int, columns: int, seed: int) -> None:
    video = np.random.default_rng(seed).integers(0, 256, (frames, rows, columns, 3), dtype=np.uint8)
    data = write_lossless(video, width_px=columns, height_px=rows)
    assert np.array_equal(np.stack(list(read_lossless(data))), video)
    assert write_lossless(video, width_px=columns, height_px=rows) == data


def test_the_whole_film_can_be_made_in_one_process(tiny_wan: Path) -> None:
    shots = [{"id": "a", "prompt": "a ball", "frames": 5}, {"id": "b", "prompt": "a cube", "frames": 5}]
    plan = plan_of({"size": "64x48", "steps": 1, "shots": shots}, tiny_wan)
    assert isinstance(run_plan(plan)[plan.film], Path)


def test_decoding_notes_what_can_be_seen() -> None:
    """What farm/film/looks.py judges by."""
    black = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
    assert decode.look_of(black) == Look(0.0, 0.0, 0.0)
    picture = torch.randint(0, 255, (1, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert decode.look_of(picture).motion is None
    still = decode.look_of(picture.expand(3, -1, -1, -1))
    assert still.motion == 0.0
    assert still.detail > 40
    assert decode.look_of(torch.cat([picture, black[:1]])).motion == pytest.approx(still.brightness)
