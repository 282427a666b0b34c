"""LoRAs: as the stock pipelines load them, in the content key, and gone without a trace when a task has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import (
    CASES,
    SEED,
    board_of,
    both_kinds,
    in_our_layout,
    latents_behind,
    run,
    stock_call,
    stock_pipeline,
)
from in_process import plan_of
from lora_files import sha256_of, write_lora
from safetensors.torch import load, load_file, save_file
from tiny_families import save as save_model

from farm.errors import InputError
from farm.task import Denoise, EncodeText
from pipelines import denoise
from pipelines.frames import read_lossless
from pipelines.stage import Progress

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),  # Mochi
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # the stock pipeline's second LoRA
]
FAMILIES = ["wan, text", "ltx, text", "hunyuan, text", "cogvideox, text", "skyreels, text", "mochi, text"]


@pytest.mark.parametrize("name", FAMILIES)
def test_loras_equal_the_stock_pipelines(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES[name]
    folder = save_model(case.make, tmp_path / "model")
    pipe = stock_pipeline(case, folder)
    files = [write_lora(pipe, tmp_path / f"{n}.safetensors", seed=n) for n in range(2)]
    board, _, _ = board_of(case, tmp_path)
    plain, without = run(board, folder, {})
    board["loras"] = [{"path": str(files[0]), "weight": 0.7}, {"path": str(files[1]), "weight": -0.4}]
    plan, ours = run(board, folder, {sha256_of(f): f for f in files})
    (key,) = plan.shots[0].frames

    for n, file in enumerate(files):
        pipe.load_lora_weights(str(tmp_path), weight_name=file.name, adapter_name=f"n{n}")
    pipe.set_adapters(["n0", "n1"], [0.7, -0.4])
    expected, frames = both_kinds(pipe, stock_call(case, pipe, board), SEED)
    latents = latents_behind(plan, ours, key)
    assert torch.equal(latents, in_our_layout(expected, latents, case.layout))
    assert np.array_equal(np.stack(list(read_lossless(ours[key]))), frames)
    assert not torch.equal(latents, latents_behind(plain, without, plain.shots[0].frames[0]))


def test_each_expert_has_loras_of_its_own(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES["wan, image, two experts"]
    folder = save_model(case.make, tmp_path / "model")
    pipe = stock_pipeline(case, folder)
    files = {t: write_lora(pipe, tmp_path / f"{t}.safetensors", seed=len(t), transformer=t)
             for t in ("transformer", "transformer_2")}  # fmt: skip
    board, given, paths = board_of(case, tmp_path)
    board["loras"] = [{"path": str(file), "for": [target]} for target, file in files.items()]
    plan, ours = run(board, folder, paths | {sha256_of(f): f for f in files.values()})
    (key,) = plan.shots[0].frames
    for target, file in files.items():
        pipe.load_lora_weights(
            str(tmp_path), weight_name=file.name, adapter_name=target, load_into_transformer_2=target != "transformer"
        )
    expected, _ = both_kinds(pipe, stock_call(case, pipe, board, **given), SEED)
    assert torch.equal(latents_behind(plan, ours, key), expected)
    with pytest.raises(InputError, match=r"loras\[0\]\.for must say which expert it changes"):
        plan_of(board | {"loras": [{"path": str(files["transformer"])}]}, folder)


def test_a_task_without_loras_has_the_bits_of_a_replica_that_never_saw_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES["wan, text"]
    folder = save_model(case.make, tmp_path / "model")
    pipe = stock_pipeline(case, folder)
    files = [write_lora(pipe, tmp_path / f"{n}.safetensors", seed=n) for n in range(10)]
    board, _, _ = board_of(case, tmp_path)
    plan, made = run(board, folder, {})
    (task,) = (t for t in plan.tasks.values() if isinstance(t.request, Denoise))
    stage = denoise.Stage(str(folder))
    texts = [made[k] for k in task.inputs]

    def with_lora(n: int) -> torch.Tensor:
        lora_plan = plan_of(board | {"loras": [{"path": str(files[n])}]}, folder)
        (changed,) = (t for t in lora_plan.tasks.values() if isinstance(t.request, Denoise))
        return load(stage.run(changed.request, [*texts, files[n]], Progress()).artifact)["latents"]

    plain = load(stage.run(task.request, texts, Progress()).artifact)["latents"]
    first = with_lora(0)
    assert not torch.equal(first, plain)
    assert torch.equal(load(stage.run(task.request, texts, Progress()).artifact)["latents"], plain)
    others = [with_lora(n) for n in range(1, 10)]  # more than are kept
    assert len({tuple(t.flatten().tolist()) for t in others}) == 9
    assert len(stage.components["transformer"].peft_config) == 8
    assert torch.equal(with_lora(0), first)


def test_a_loras_weight_is_in_the_key_of_denoising_alone(tmp_path: Path) -> None:
    case = CASES["wan, text"]
    folder = save_model(case.make, tmp_path / "model")
    file = write_lora(stock_pipeline(case, folder), tmp_path / "l.safetensors", seed=1)
    board, _, _ = board_of(case, tmp_path)
    plans = [plan_of(board | {"loras": [{"path": str(file), "weight": w}]}, folder) for w in (0.5, 0.6)]

    def keys(plan: Any, kind: type) -> set[str]:
        return {k for k, t in plan.tasks.items() if isinstance(t.request, kind)}

    assert keys(plans[0], EncodeText) == keys(plans[1], EncodeText)
    assert not keys(plans[0], Denoise) & keys(plans[1], Denoise)
    assert plans[0].sources.keys() == plans[1].sources.keys()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"path": "gone.safetensors"}, "path must be a file"),
        ({"path": "cut.safetensors"}, "is damaged: must have"),
        ({"path": "l.safetensors", "for": ["transformer_2"]}, "for must be of transformer for"),
    ],
)
def test_bad_loras_are_refused_in_the_plan(how: dict[str, Any], told: str, tmp_path: Path) -> None:
    case = CASES["wan, text"]
    folder = save_model(case.make, tmp_path / "model")
    file = write_lora(stock_pipeline(case, folder), tmp_path / "l.safetensors", seed=1)
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    board, _, _ = board_of(case, tmp_path)
    asked = how | {"path": str(tmp_path / how["path"])}
    with pytest.raises(InputError, match=told):
        plan_of(board | {"loras": [asked]}, folder)
    with pytest.raises(InputError, match=r"loras\[1\] must not be there twice"):
        plan_of(board | {"loras": [{"path": str(file)}, {"path": str(file), "weight": 0.5}]}, folder)
    svd = save_model(CASES["svd, image"].make, tmp_path / "svd")
    other, _, _ = board_of(CASES["svd, image"], tmp_path)
    with pytest.raises(InputError, match=r"must not be there: diffusers loads none"):
        plan_of(other | {"loras": [{"path": str(file)}]}, svd)


def test_a_lora_of_another_model_is_refused_in_the_plan(tmp_path: Path) -> None:
    case = CASES["wan, text"]
    folder = save_model(case.make, tmp_path / "model")
    file = write_lora(stock_pipeline(case, folder), tmp_path / "l.safetensors", seed=1)
    save_file({k.replace("blocks.0", "blocks.7"): v for k, v in load_file(file).items()}, file)
    board, _, _ = board_of(case, tmp_path)
    with pytest.raises(InputError, match=r"'transformer\.blocks\.7\.attn1\.to_q\.lora_A\.weight' \(diffusers layout\)"):
        plan_of(board | {"loras": [{"path": str(file)}]}, folder)


def test_a_lora_that_is_not_finite_is_bad_input(tmp_path: Path) -> None:
    case = CASES["wan, text"]
    folder = save_model(case.make, tmp_path / "model")
    file = write_lora(stock_pipeline(case, folder), tmp_path / "lora.safetensors", seed=1)
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, file)
    board, _, _ = board_of(case, tmp_path)
    board["loras"] = [{"path": str(file)}]
    with pytest.raises(InputError, match=r"transformer\..*lora.*must hold finite numbers"):
        run(board, folder, {sha256_of(file): file})
