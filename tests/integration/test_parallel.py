"""Gangs on gloo: a task that several ranks share has one rank's result, in every family that can be split.

Latents agree within 1e-5 of their range. Ulysses alone is equal to the bit for Wan, as long as matrix kernels agree.
Two ranks are tried with every change; four, rings and sharded weights in the slow part.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families as tiny
import torch
from family_cases import CASES, Case, board_of, i2v, vace, wan
from in_process import plan_of, run_plan
from ranks import Ranks, bytes_of_a_pass, decode_on, denoise_on, encode_on, peaks_of_loading, ranks_of, small_tiles
from safetensors.torch import load, save

from farm.models.checkpoint import card_of
from farm.plan.plan import Plan, tasks_to_run
from farm.pools.parallel import Degrees, bytes_sent, work_of
from farm.task import Decode, Denoise, EncodeText
from pipelines import decode
from pipelines.frames import read_lossless
from pipelines.stage import Progress

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi
]
FOUR: dict[str, Any] = {"transformer": {"num_attention_heads": 4}}
SPLIT = {  # with four heads
    "wan, text": partial(wan, **FOUR),
    "wan, image, clip": partial(i2v, transformer={"num_attention_heads": 4, "image_dim": 8, "added_kv_proj_dim": 48}),
    "wan, image, two experts": partial(i2v, boundary_ratio=0.9, **FOUR),
    "wan, image, timesteps per token": partial(i2v, expand_timesteps=True, **FOUR),
    "vace, reference": partial(vace, **FOUR),
    "ltx, text": partial(tiny.ltx, "LTXPipeline", heads=4),
    "ltx, image": partial(tiny.ltx, "LTXPipeline", heads=4),
    "ltx, conditions, text": partial(tiny.ltx, "LTXConditionPipeline", heads=4),
    "ltx, conditions, first and last": partial(tiny.ltx, "LTXConditionPipeline", heads=4),
    "hunyuan, text": partial(tiny.hunyuan, "HunyuanVideoPipeline", heads=4),
    "hunyuan, image, concatenated": partial(
        tiny.hunyuan, "HunyuanVideoImageToVideoPipeline", way="latent_concat", heads=4
    ),
    "cogvideox, text": partial(tiny.cogvideox, "CogVideoXPipeline", heads=4),
    "cogvideox 1.5, text": partial(tiny.cogvideox, "CogVideoXPipeline", pairs=True, heads=4),
    "skyreels, text": partial(tiny.skyreels, num_attention_heads=4),
}
JOINT = {  # with DeepSpeed-Ulysses: the prompt whole on every rank
    "hunyuan 1.5, text": partial(tiny.hunyuan15, "HunyuanVideo15Pipeline", heads=4, layers=2),
    "hunyuan 1.5, image": partial(tiny.hunyuan15, "HunyuanVideo15ImageToVideoPipeline", heads=4, layers=2),
    "mochi, text": partial(tiny.mochi, heads=4),
}
GUIDED = [name for name in SPLIT if CASES[name].is_guided]
NO_COMPILER = pytest.mark.skipif(
    shutil.which("c++") is None, reason="DeepSpeed compiles an extension: needs a C++ compiler"
)


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    with ranks_of(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with ranks_of(4) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one rank makes of each case, kept for all ways to split it."""
    return {"folder": tmp_path_factory.mktemp("wholes")}


def whole_of(name: str, wholes: dict[str, Any]) -> tuple[Plan, dict[str, Any], str]:
    if name not in wholes:
        torch.set_num_threads(1)
        case: Case = CASES[name]
        place = wholes["folder"] / name
        place.mkdir()
        folder = tiny.save((SPLIT | JOINT).get(name, case.make), place / "model")
        board, _, paths = board_of(case, place)
        plan = plan_of(board, folder)
        (key,) = [k for k, t in plan.tasks.items() if isinstance(t.request, Denoise)]
        needed = tasks_to_run(plan.tasks, [key], lambda task: False)
        upto = replace(plan, tasks={k: t for k, t in plan.tasks.items() if k in needed})
        made = run_plan(upto, {k: paths[t.request.sha256] for k, t in plan.sources.items()})
        wholes[name] = (plan, made, key)
    found: tuple[Plan, dict[str, Any], str] = wholes[name]
    return found


def distance(name: str, wholes: dict[str, Any], ranks: Ranks, degrees: Degrees | None, **how: Any) -> float:
    """The largest difference from one rank's latents, in their range; all ranks must have the same."""
    plan, made, key = whole_of(name, wholes)
    task = plan.tasks[key]
    components = [c for c, _ in task.components]
    shared = ranks(denoise_on, task.model, components, task.request, [made[k] for k in task.inputs], degrees, **how)
    assert all(torch.equal(one, shared[0]) for one in shared)
    whole = load(made[key])["latents"]
    assert whole.shape == shared[0].shape and float(whole.std()) > 0.1
    return float((whole - shared[0]).abs().max() / (whole.max() - whole.min()))


@pytest.mark.parametrize("name", SPLIT)
def test_ulysses_on_two_ranks(name: str, wholes: dict[str, Any], two: Ranks) -> None:
    assert distance(name, wholes, two, Degrees(ulysses=2)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_ulysses_on_four_ranks(name: str, wholes: dict[str, Any], four: Ranks) -> None:
    assert distance(name, wholes, four, Degrees(ulysses=4)) <= 1e-5


def test_ulysses_has_the_bits_of_one_rank(wholes: dict[str, Any], two: Ranks) -> None:
    assert distance("wan, text", wholes, two, Degrees(ulysses=2)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_a_ring_of_two(name: str, wholes: dict[str, Any], two: Ranks) -> None:
    assert distance(name, wholes, two, Degrees(ring=2)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan, text", "ltx, text", "hunyuan, text", "cogvideox, text"])
def test_a_ring_of_four_and_both_ways_at_once(name: str, wholes: dict[str, Any], four: Ranks) -> None:
    assert distance(name, wholes, four, Degrees(ring=4)) <= 1e-5
    if name != "hunyuan, text":  # six tokens of text cannot be divided by four, and a ring takes no masks
        assert distance(name, wholes, four, Degrees(ulysses=2, ring=2)) <= 1e-5


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_on_two_halves(name: str, wholes: dict[str, Any], two: Ranks) -> None:
    alone = distance(name, wholes, two, Degrees(guidance=2))
    assert alone <= 1e-5
    if "ltx" not in name and "cogvideox" not in name:  # those batch the two passes in one process
        assert alone == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDED)
def test_guidance_on_two_halves_of_two_ranks(name: str, wholes: dict[str, Any], four: Ranks) -> None:
    assert distance(name, wholes, four, Degrees(guidance=2, ulysses=2)) <= 1e-5


@pytest.mark.slow
@NO_COMPILER
@pytest.mark.parametrize("name", JOINT)
def test_video_split_and_prompts_whole_on_two_ranks(name: str, wholes: dict[str, Any], two: Ranks) -> None:
    assert distance(name, wholes, two, Degrees(ulysses=2)) <= 1e-5


@pytest.mark.slow
@NO_COMPILER
@pytest.mark.parametrize("name", JOINT)
def test_video_split_and_prompts_whole_on_four_ranks(name: str, wholes: dict[str, Any], four: Ranks) -> None:
    assert distance(name, wholes, four, Degrees(ulysses=4)) <= 1e-5


@pytest.mark.slow
@NO_COMPILER
def test_mochi_on_two_halves_of_two_ranks(wholes: dict[str, Any], two: Ranks, four: Ranks) -> None:
    assert distance("mochi, text", wholes, two, Degrees(guidance=2)) <= 1e-5
    assert distance("mochi, text", wholes, four, Degrees(guidance=2, ulysses=2)) <= 1e-5


@pytest.mark.slow
def test_lengths_that_do_not_divide(wholes: dict[str, Any], two: Ranks, four: Ranks) -> None:
    """Three latent frames of 3 x 3 tokens are 27."""
    torch.set_num_threads(1)
    CASES["odd"], SPLIT["odd"] = replace(CASES["wan, text"], size=(48, 48)), SPLIT["wan, text"]
    CASES["masked"], SPLIT["masked"] = replace(CASES["hunyuan, text"], size=(40, 40)), SPLIT["hunyuan, text"]
    try:
        for degrees in (Degrees(ulysses=2), Degrees(ring=2), Degrees(guidance=2)):
            assert distance("odd", wholes, two, degrees) <= 1e-5
        for degrees in (Degrees(ulysses=4), Degrees(ring=4)):
            assert distance("odd", wholes, four, degrees) <= 1e-5
            assert distance("masked", wholes, four, degrees) <= 1e-5  # 75 tokens of video and a text with a mask
    finally:
        del CASES["odd"], SPLIT["odd"], CASES["masked"], SPLIT["masked"]


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [Degrees(ulysses=4), Degrees(ring=4), Degrees(ulysses=2, ring=2)], ids=str)
def test_what_is_exchanged_is_what_the_formula_says(degrees: Degrees, four: Ranks, tmp_path: Path) -> None:
    folder = tiny.save(SPLIT["wan, text"], tmp_path / "model")
    shape = (1, 16, 3, 8, 8)
    card = card_of(str(folder))
    told = four(bytes_of_a_pass, str(folder), degrees, shape)
    expected = bytes_sent(degrees, work_of(card, shape, num_latents=3, is_guided=False), word_bytes=4)
    for counted in told:
        assert counted == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
@NO_COMPILER
@pytest.mark.parametrize("name", ["wan, text", "hunyuan, text"])
def test_sharded_weights_alone_and_with_ulysses(name: str, wholes: dict[str, Any], two: Ranks) -> None:
    assert distance(name, wholes, two, Degrees(), shard_weights=True) <= 1e-5
    assert distance(name, wholes, two, Degrees(ulysses=2), shard_weights=True) <= 1e-5
    if CASES[name].is_guided:
        assert distance(name, wholes, two, Degrees(guidance=2), shard_weights=True) <= 1e-5


@pytest.mark.slow
@NO_COMPILER
@pytest.mark.parametrize("name", ["wan, text", "cogvideox, text", "hunyuan, text"])
def test_sharded_text_encoders(name: str, wholes: dict[str, Any], two: Ranks) -> None:
    plan, made, _ = whole_of(name, wholes)
    key, task = next((k, t) for k, t in plan.tasks.items() if isinstance(t.request, EncodeText))
    shared = two(encode_on, task.model, [c for c, _ in task.components], task.request)
    for tensor, whole in load(made[key]).items():
        for told in shared:
            assert (told[tensor].float() - whole.float()).abs().max() <= 1e-5 * whole.float().abs().max()


@pytest.mark.slow
@NO_COMPILER
def test_no_rank_ever_holds_more_than_its_share_and_a_block(tmp_path: Path, two: Ranks) -> None:
    """200 MB of weights, by the memory of the processes while they load and compute."""
    torch.manual_seed(0)
    wide = tiny.wan_transformer(num_attention_heads=8, attention_head_dim=64, ffn_dim=2048, num_layers=12)
    folder = tmp_path / "model"
    wide.save_pretrained(folder / "transformer", max_shard_size="20MB")
    (folder / "model_index.json").write_text('{"transformer": ["diffusers", "WanTransformer3DModel"]}')
    whole = sum(p.numel() for p in wide.parameters()) * 4
    two(peaks_of_loading, str(folder))  # what DeepSpeed itself takes, once
    for peak, shards, block in two(peaks_of_loading, str(folder)):
        assert shards <= whole / 2 + 4096 * 4  # each tensor is padded to the number of ranks
        assert peak <= whole / 2 + block + 20 * 2**20  # one file's buffer


TILED = ["wan, text", "ltx, text", "hunyuan, text", "cogvideox, text", "mochi, text"]


def test_a_film_of_one_tile_is_one_ranks(tmp_path: Path, two: Ranks) -> None:
    """A causal decoder is then not told which call goes on from another."""
    torch.set_num_threads(1)
    folder = tiny.save(CASES["wan, text"].make, tmp_path / "model")
    board, _, _ = board_of(CASES["wan, text"], tmp_path)
    request = next(t.request for t in plan_of(board, folder).tasks.values() if isinstance(t.request, Decode))
    latents = save({"latents": torch.randn((1, 16, 3, 6, 8), generator=torch.Generator().manual_seed(1))})
    whole = decode.Stage(str(folder), tiling=True).run(request, [latents], Progress()).artifact
    first, _ = two(decode_on, str(folder), request, [latents], 256)
    frames = [np.stack(list(read_lossless(x))) for x in (whole, first)]
    assert len(frames[0]) == 9
    assert np.array_equal(*frames)


def test_tiles_of_an_autoencoder_with_patches(tmp_path: Path, two: Ranks) -> None:
    """As that of Wan2.2 TI2V-5B: its output is cut into pixels after all tiles have been joined."""
    torch.set_num_threads(1)
    patched = {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True, "scale_factor_spatial": 16}
    folder = tiny.save(partial(wan, vae=patched), tmp_path / "model")
    request = Decode("wan", ((0, 3),), 0, True, 0, 9)
    latents = save({"latents": torch.randn((1, 16, 3, 6, 8), generator=torch.Generator().manual_seed(1))})
    stage = decode.Stage(str(folder), tiling=True)
    small_tiles(stage.vae, 64)
    whole = stage.run(request, [latents], Progress()).artifact
    first, _ = two(decode_on, str(folder), request, [latents], 64)
    assert np.array_equal(*(np.stack(list(read_lossless(x))) for x in (whole, first)))


@pytest.mark.parametrize("name", TILED)
def test_tiles_spread_over_ranks_give_the_frames_of_one(name: str, tmp_path: Path, two: Ranks) -> None:
    torch.set_num_threads(1)
    case, side = CASES[name], 64 if name == "ltx, text" else 32
    folder = tiny.save(case.make, tmp_path / "model")
    stage = decode.Stage(str(folder), tiling=True)
    small_tiles(stage.vae, side)
    board, _, _ = board_of(case, tmp_path)
    plan = plan_of(board, folder)
    request = next(t.request for t in plan.tasks.values() if isinstance(t.request, Decode))
    (denoised,) = [t.request for t in plan.tasks.values() if isinstance(t.request, Denoise)]
    shape = (*denoised.latent_shape[:3], *(2 * n for n in denoised.latent_shape[3:]))
    latents = save({"latents": torch.randn(shape, generator=torch.Generator().manual_seed(1))})
    calls = Counter[str]()
    inner = stage.vae.decoder.forward
    stage.vae.decoder.forward = lambda *a, **k: calls.update(["tiles"]) or inner(*a, **k)
    whole = stage.run(request, [latents], Progress()).artifact
    assert calls["tiles"] > 3
    first, second = two(decode_on, str(folder), request, [latents], side)
    assert second == b""
    assert np.array_equal(*(np.stack(list(read_lossless(x))) for x in (whole, first)))
