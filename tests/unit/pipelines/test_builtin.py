"""The built-in model's world, its examiner and its recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from farm.models.cards.builtin import BUILTIN
from pipelines.builtin import architecture, clips, evaluate, examiner, optimizer, world
from pipelines.frames import write_lossless

PARTS = ("colour", "shape", "motion", "ground", "sky", "camera")


def test_the_examiner_reads_what_the_world_draws() -> None:
    right = dict.fromkeys(PARTS, 0)
    for i in range(24):
        scene = world.draw_scene(np.random.default_rng((17, i)))
        agrees = examiner.examine(world.render(scene, num_frames=17)).agrees(scene.caption)
        right = {part: right[part] + agrees[part] for part in PARTS}
    assert right["sky"] == right["ground"] == 24
    assert min(right.values()) >= 22, right


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("colour", "a blue ball rolls right over sand at day"),
        ("shape", "a red cone rolls right over sand at day"),
        ("motion", "a red ball rolls left over sand at day"),
        ("motion", "a red ball bounces over sand at day"),
        ("ground", "a red ball rolls right over snow at day"),
        ("sky", "a red ball rolls right over sand at night"),
        ("camera", "a red ball rolls right over sand at day, camera pans left"),
    ],
)
def test_the_examiner_says_which_part_of_a_prompt_is_not_there(part: str, told: str) -> None:
    drawn = world.render(world.scene_of("a red ball rolls right over sand at day", seed=3), num_frames=17)
    agrees = examiner.examine(drawn).agrees(told)
    assert [p for p, is_right in agrees.items() if not is_right] == [part]


@pytest.mark.parametrize("motion", ["rolls right", "floats", "bounces", "stands"])
def test_a_cut_in_the_middle_shows_as_a_jump_and_going_on_does_not(motion: str) -> None:
    scene = world.scene_of(f"a blue cube {motion} over snow at day", seed=5)
    whole = world.render(scene, num_frames=29)
    assert evaluate.jump_px(examiner.examine(whole), join=17) <= 1.5
    shifted = np.concatenate([whole[:17], np.roll(whole[17:], 9, axis=2)])
    assert evaluate.jump_px(examiner.examine(shifted), join=17) > 1.5


def test_a_film_is_examined_window_by_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a green car rolls left over road at sunset"
    video = world.render(world.scene_of(prompt, seed=2), num_frames=40, fps=25)
    film = tmp_path / "film.mkv"
    film.write_bytes(write_lossless(video.repeat(2, 1).repeat(2, 2), width_px=192, height_px=128))
    told = evaluate.examine_film(film, prompt)  # FFV1 in Matroska at 25 frames a second: 12 frames at 8
    assert told["frames"] == 12
    assert told["windows"][0]["colour"] == "green"
    assert told["agrees"]["ground"] == told["agrees"]["sky"] == 1.0
    json.dumps(told)


def test_a_film_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_text("no film")
    with pytest.raises(evaluate.InputError, match="must be a video"):
        evaluate.examine_film(tmp_path / "film.mp4", None)


def test_the_tokenizer_knows_synonyms_and_drops_other_words() -> None:
    tokenizer = architecture.tokenizer()

    def words(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)[:-1]

    plain = words("a red ball rolls over grass at sunset, camera pans left")
    assert words("A crimson SPHERE quickly rolling over the42 lawn at dusk; camera panning left") == plain
    assert words("supercalifragilistic") == []
    assert all(len(words(w)) == 1 for w in world.VOCABULARY)
    assert "<unk>" not in words("every wörd 漢字 here is new")


def test_the_card_knows_the_worlds_words() -> None:
    assert set(BUILTIN["vocabulary"]) == {*world.VOCABULARY, *world.SYNONYMS}
    assert BUILTIN["middle_mark"] == world.MIDDLE


def test_whole_clips_are_what_the_autoencoder_makes_with_its_caches() -> None:
    torch.manual_seed(0)
    stock = architecture.autoencoder().eval()
    whole = clips.WholeClips(AutoencoderKLWan.from_config(stock.config))
    whole.vae.load_state_dict(stock.state_dict())
    with torch.no_grad():
        for num_frames in (1, 5, 21):
            video = torch.rand(1, 3, num_frames, 64, 96) * 2 - 1
            z = stock.encode(video).latent_dist.mode()
            assert torch.allclose(whole.encode(video), z, atol=1e-5)
            decoded = stock.decode(z).sample
            assert torch.allclose(whole.decode(z).clamp(-1, 1), decoded, atol=1e-5)


def test_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def weights_after(folder: Path, slices: list[int]) -> dict[str, torch.Tensor]:
        folder.mkdir()
        for until in slices:
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
            run = optimizer.Run(model, folder / "state.safetensors", steps=30, muon=1e-2, adamw=1e-2, ema=0.9)

            def loss_at(step: int, half: int, model: torch.nn.Module = model) -> torch.Tensor:
                x = torch.randn(16, 4, generator=torch.Generator().manual_seed(10 * step + half))
                return ((model(x) - x.flip(1)) ** 2).mean()

            def stop(step: int, until: int = until) -> None:
                if step >= until:
                    raise KeyboardInterrupt

            try:
                optimizer.drive(run, optimizer.Workers(model, 2), loss_at, until=float("inf"), before=stop)
            except KeyboardInterrupt:
                run.save()
        run.use_average()
        return model.state_dict()

    whole = weights_after(tmp_path / "whole", [30])
    parts = weights_after(tmp_path / "parts", [7, 19, 30])
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_pool_of_clips_is_the_same_when_training_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips.ClipPool, "SIZE", 3)
    monkeypatch.setattr(clips.ClipPool, "NUM_FRAMES", 2)
    monkeypatch.setattr(clips.ClipPool, "STEPS_A_CLIP", 2)
    pool = clips.ClipPool(seed=1, step=0)
    for step in range(9):
        pool.renew(step)
    resumed = clips.ClipPool(seed=1, step=9)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(pool.clips, resumed.clips, strict=True))
