"""Checkpoints that cannot be used are refused before anything is written, with what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import GOOD, run


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def unknown_class(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name="WanPipelin")


def custom_code(folder: Path) -> None:
    edit(folder / "model_index.json", vae=["my_code", "MyVae"])


def auto_map(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", auto_map={"AutoModel": "evil.Model"})


def no_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def no_weights(folder: Path) -> None:
    next((folder / "vae").glob("*.safetensors")).unlink()


def pickled(folder: Path) -> None:
    weights = next((folder / "transformer").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))


def truncated(folder: Path) -> None:
    weights = next((folder / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])


def garbage(folder: Path) -> None:
    next((folder / "vae").glob("*.safetensors")).write_bytes(b"hello world, this is no checkpoint")


def only_a_variant(folder: Path) -> None:
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".fp16.safetensors"))


def modular(folder: Path) -> None:
    (folder / "model_index.json").rename(folder / "modular_model_index.json")


def one_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"GGUF")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def class_list(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name=["WanPipeline"])


def patch_number(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", patch_size=2)


def no_config(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def no_tensors(folder: Path) -> None:
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.write_bytes((2).to_bytes(8, "little") + b"{}")


def no_time(folder: Path) -> None:
    edit(folder / "vae" / "config.json", scale_factor_temporal=0)


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no model_index.json": (no_index, "not in diffusers format"),
    "broken model_index.json": (broken_index, "readable JSON"),
    "unknown pipeline class": (unknown_class, "did you mean WanPipeline?"),
    "code of its own": (custom_code, "code of their own"),
    "a component with code of its own": (auto_map, "auto_map"),
    "a missing component": (no_vae, "vae/ is missing"),
    "no weights": (no_weights, "no safetensors"),
    "pickled weights": (pickled, "pickle"),
    "truncated weights": (truncated, "damaged: must have"),
    "a list of classes": (class_list, "known pipeline class"),
    "a patch size that is a number": (patch_number, "damaged"),
    "no config": (no_config, "must have config.json"),
    "no tokenizer.json": (no_tokenizer, "must have tokenizer.json"),
    "no tensors": (no_tensors, "damaged"),
    "a factor of zero": (no_time, "scale factors must be at least 1"),
    "only a variant of the weights": (only_a_variant, "got diffusion_pytorch_model.fp16.safetensors; rename"),
    "a modular repository": (modular, "is a modular repository"),
    "a single file": (one_file, "got the single file"),
    "weights that are none": (garbage, "not a safetensors file"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bad_checkpoints_are_refused(
    name: str, tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = CHECKPOINTS[name]
    folder = tmp_path / "model"
    shutil.copytree(tiny_wan, folder)
    spoil(folder)
    board = tmp_path / "film.yaml"
    board.write_text(f"model: model\n{GOOD}")
    code, answer, told = run(capsys, "render", str(board), "--store", str(tmp_path / "store"))
    assert code == 2
    assert "Traceback" not in told
    assert any(words in e["message"] and e["key"] == "model" and e["line"] == 1 for e in answer["errors"]), told
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("model", ["no/such-model", "./nowhere", "nonsense", "x" * 5000])
def test_models_that_are_nowhere_are_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = tmp_path / "film.yaml"
    board.write_text(f"model: {model}\n{GOOD}")
    code, answer, _ = run(capsys, "plan", str(board))
    assert code == 2
    assert answer["errors"][0]["key"] == "model"
