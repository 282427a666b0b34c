"""A pool's options: each does what diffusers' own does, and what changes bits changes keys."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from family_cases import CASES, SEED, board_of, both_kinds, in_our_layout, stock_call, stock_pipeline
from in_process import resolve_board, run_plan
from safetensors.torch import load
from tiny_families import save as save_model

from farm.errors import InputError
from farm.models.checkpoint import find_checkpoint
from farm.plan.plan import Plan, make_plan
from farm.pools.options import Options
from farm.pools.pools import Pool, default_pools, load_pools, numerics
from farm.task import Decode, Denoise, EmbedFrames, EncodeFrames, EncodeText
from pipelines.frames import read_lossless

STAGES = ["encode", "denoise", "decode", "interpolate", "assemble"]


def plan_with(board: dict[str, Any], folder: Path, **options: Any) -> Plan:
    checkpoint = find_checkpoint(str(folder), beside=folder)
    pools = {"all": Pool(stages=STAGES, options=Options(**options))}
    film = resolve_board(board, checkpoint).film
    return make_plan(film, (checkpoint,), numerics(pools), container="mp4", stills=False)


def keys_of(plan: Plan, kind: type) -> list[str]:
    return [k for k, t in plan.tasks.items() if isinstance(t.request, kind)]


OPTIONS = {
    "attention": ({"attention": "_native_math"}, lambda model: model.set_attention_backend("_native_math")),
    "first block": (
        {"cache": {"kind": "first_block", "threshold": 0.9}},
        lambda model: model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.9)),
    ),
    "taylorseer": (
        {"cache": {"kind": "taylorseer", "interval": 2}},
        lambda model: model.enable_cache(diffusers.TaylorSeerCacheConfig(cache_interval=2, use_lite_mode=True)),
    ),
}


@pytest.mark.parametrize("name", ["wan, text", "ltx, text", "hunyuan, text", "cogvideox, text"])
@pytest.mark.parametrize("option", OPTIONS)
def test_options_do_what_diffusers_own_do(option: str, name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case, (how, apply) = CASES[name], OPTIONS[option]
    folder = save_model(case.make, tmp_path / "model")
    board, _, _ = board_of(case, tmp_path)
    board["steps"] = 10 if option == "taylorseer" else 6
    plans = [plan_with(board, folder, **how), plan_with(board, folder)]
    assert keys_of(plans[0], EncodeText) == keys_of(plans[1], EncodeText)
    (key,), (plain,) = (keys_of(plan, Denoise) for plan in plans)
    assert key != plain
    pipe = stock_pipeline(case, folder)
    try:
        apply(pipe.transformer)
    except ValueError:  # diffusers has no such means for this model
        with pytest.raises(InputError, match=r"options of the pool must be possible for"):
            run_plan(plans[0])
        return
    latents = load(run_plan(plans[0])[key])["latents"]
    expected, _ = both_kinds(pipe, stock_call(case, pipe, board), SEED)
    assert torch.equal(latents, in_our_layout(expected, latents, case.layout))
    if "cache" in how:
        assert not torch.equal(latents, load(run_plan(plans[1])[plain])["latents"])


@pytest.mark.parametrize("name", ["wan, text", "hunyuan, text", "ltx, text"])
def test_tiled_decoding_equals_diffusers_own(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    folder = save_model(case.make, tmp_path / "model")
    side = 544 if name == "ltx, text" else 288  # more than a tile
    board, _, _ = board_of(case, tmp_path)
    board |= {"size": f"{side}x64", "steps": 1}
    plan = plan_with(board, folder, vae_tiling=True, vae_slicing=True)
    made = run_plan(plan)
    (key,) = plan.shots[0].frames
    assert key != plan_with(board, folder).shots[0].frames[0]
    pipe = stock_pipeline(case, folder)
    pipe.vae.enable_tiling()
    call = stock_call(case, pipe, board) | {"width": side, "height": 64, "num_inference_steps": 1}
    _, frames = both_kinds(pipe, call, SEED)
    assert np.array_equal(np.stack(list(read_lossless(made[key]))), frames)


def test_placement_is_in_no_key_and_approximations_are(tmp_path: Path) -> None:
    folder = save_model(CASES["wan, text"].make, tmp_path / "model")
    board, _, _ = board_of(CASES["wan, text"], tmp_path)
    plain = plan_with(board, folder)
    assert plan_with(board, folder, offload="group", vae_slicing=True).tasks.keys() == plain.tasks.keys()
    tiled = plan_with(board, folder, vae_tiling=True)
    assert keys_of(tiled, Denoise) == keys_of(plain, Denoise)
    assert keys_of(tiled, Decode) != keys_of(plain, Decode)
    for how in ({"compile": True}, {"quantize": {"transformer": "int8"}}):
        changed = plan_with(board, folder, **how)
        assert keys_of(changed, EncodeText) == keys_of(plain, EncodeText)
        assert not set(keys_of(changed, Denoise)) & set(keys_of(plain, Denoise))
    encoded = plan_with(board, folder, quantize={"text_encoder": "int8"})
    assert not set(keys_of(encoded, EncodeText)) & set(keys_of(plain, EncodeText))


def test_what_is_said_of_text_encoders_leaves_the_encodings_of_pictures_as_they_are(tmp_path: Path) -> None:
    case = CASES["wan, image, clip"]
    folder = save_model(case.make, tmp_path / "model")
    board, _, _ = board_of(case, tmp_path)
    plain, changed = plan_with(board, folder), plan_with(board, folder, quantize={"text_encoder": "int8"})
    assert keys_of(plain, EncodeFrames) and keys_of(plain, EmbedFrames)
    for kind in (EncodeFrames, EmbedFrames):
        assert keys_of(changed, kind) == keys_of(plain, kind)
    assert not set(keys_of(changed, EncodeText)) & set(keys_of(plain, EncodeText))


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")  # torchao's
def test_int8_weights_give_nearly_the_same(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = save_model(CASES["wan, text"].make, tmp_path / "model")
    board, _, _ = board_of(CASES["wan, text"], tmp_path)
    plans = [plan_with(board, folder), plan_with(board, folder, quantize={"transformer": "int8"})]
    exact, rough = (load(run_plan(p)[keys_of(p, Denoise)[0]])["latents"] for p in plans)
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("{offload: group}", "offload must be none in a pool without GPUs"),
        ("{quantize: {transformer: nf4}}", "quantize must be int8 in a pool without GPUs, got nf4"),
        ("{attention: sage}", "attention must be one of native, _native_math, flex in a pool without GPUs, got sage"),
        ("{cache: {kind: first}}", r"cache\.kind must be"),
        ("{tiling: true}", "did you mean vae_tiling"),
    ],
)
def test_options_that_cannot_work_are_refused(options: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text(f"pools:\n  all:\n    stages: [encode, denoise, decode]\n    options: {options}\n")
    with pytest.raises(InputError, match=told):
        load_pools(file)


def test_options_stand_where_their_stage_is(tmp_path: Path) -> None:
    file = tmp_path / "pools.yaml"
    file.write_text(
        "pools:\n  a: {stages: [encode, denoise], options: {vae_tiling: true}}\n"
        "  b: {stages: [decode], options: {compile: true}}\n"
    )
    with pytest.raises(InputError) as e:
        load_pools(file)
    assert "pools.a.options.vae_tiling must stand in a pool that serves decode" in str(e.value)
    assert "pools.b.options.compile must stand in a pool that serves denoise" in str(e.value)
    assert default_pools(num_cpus=2, num_gpus=0)["denoise"].options == Options()
    placed = {s for s in STAGES if Options(offload="model").placement_of(s)}
    assert placed == {"encode", "denoise", "decode"}  # the others load no model of diffusers


def test_tiled_takes_in_one_stream_have_the_frames_of_the_whole(tmp_path: Path) -> None:
    """Pictures smaller than a tile: every piece must be what the stream's own decoder gives."""
    torch.set_num_threads(1)
    folder = save_model(CASES["skyreels, text"].make, tmp_path / "model")
    board, _, _ = board_of(CASES["skyreels, text"], tmp_path)
    board["shots"][0]["frames"], board["steps"] = 20, 1
    board["continuity"] = {"chunk_frames": 9, "overlap_frames": 5, "context": "latents"}
    plans = [plan_with(board, folder), plan_with(board, folder, vae_tiling=True)]
    shown = []
    for plan in plans:
        made = run_plan(plan)
        shown.append(np.stack([f for k in plan.shots[0].frames for f in read_lossless(made[k])]))
    assert len(shown[0]) == 20
    assert np.array_equal(*shown)
