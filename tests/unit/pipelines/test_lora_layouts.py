"""LoRAs as people have them: every layout changes the layers it names by up x down x alpha / rank, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES, board_of, run, stock_pipeline
from in_process import plan_of, resolve_board
from lora_files import sha256_of, write_lora
from safetensors.torch import load_file, save_file
from tiny_families import save as save_model

from farm.errors import InputError
from farm.models.checkpoint import find_checkpoint
from farm.models.safetensors import Header, read_header
from farm.task import Lora
from pipelines import denoise
from pipelines.loras import use_loras

FIELD = Path(__file__).parents[2] / "data" / "field" / "loras"
Tensors = dict[str, torch.Tensor]
WAN = {  # by hand, so that it is not the table under test
    "self_attn.q": "attn1.to_q", "self_attn.k": "attn1.to_k", "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0", "cross_attn.q": "attn2.to_q", "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v", "cross_attn.o": "attn2.to_out.0", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2",
}  # fmt: skip


def loaded(case: str, tmp_path: Path, file: Path) -> tuple[Any, str]:
    """The transformer of a family with a LoRA, and the adapter's name."""
    model = save_model(CASES[case].make, tmp_path / "model")
    stage = denoise.Stage(str(model))
    digest = sha256_of(file)
    use_loras(stage.card, stage.components, [Lora(digest, 1.0, ("transformer",))], [file])
    return stage.components["transformer"], f"lora_{digest[:16]}"


def changes(transformer: Any, adapter: str) -> Tensors:
    """What an adapter adds to each weight."""
    return {
        name: layer.get_delta_weight(adapter)
        for name, layer in transformer.named_modules()
        if adapter in getattr(layer, "lora_A", {})
    }


def assert_same(got: Tensors, wanted: Tensors) -> None:
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(got[name], tensor, atol=1e-6), name


@pytest.mark.parametrize(
    ("name", "num_layers"),
    [("musubi_selfattn_only", 8), ("musubi_block1_only", 10), ("musubi_no_alpha", 20)],
)
def test_musubis_files_of_some_layers_change_exactly_those(name: str, num_layers: int, tmp_path: Path) -> None:
    file = FIELD / f"{name}.safetensors"
    weights, wanted = load_file(file), {}
    for key, down in weights.items():
        if key.endswith(".lora_down.weight"):
            layer = key.removesuffix(".lora_down.weight")
            alpha = weights[f"{layer}.alpha"].item() if f"{layer}.alpha" in weights else len(down)
            block, original = re.fullmatch(r"lora_unet_blocks_(\d)_(.*)", layer).groups()  # type: ignore[union-attr]
            module = next(m for o, m in WAN.items() if o.replace(".", "_") == original)
            wanted[f"blocks.{block}.{module}"] = weights[f"{layer}.lora_up.weight"] @ down * (alpha / len(down))
    assert len(wanted) == num_layers
    assert_same(changes(*loaded("wan, text", tmp_path, file)), wanted)


def test_what_fits_of_another_variants_lora_is_applied_and_the_rest_is_counted(tmp_path: Path) -> None:
    file = FIELD / "lightx2v_i2v_on_wan22_i2v.safetensors"
    weights, wanted, biases = load_file(file), {}, {}
    for key, down in weights.items():
        if key.endswith(".lora_down.weight") and "_img" not in key:
            layer = key.removesuffix(".lora_down.weight")
            block, original = re.fullmatch(r"diffusion_model\.blocks\.(\d)\.(.*)", layer).groups()  # type: ignore[union-attr]
            module = f"blocks.{block}.{WAN[original]}"
            wanted[module], biases[module] = weights[f"{layer}.lora_up.weight"] @ down, weights[f"{layer}.diff_b"]
    transformer, adapter = loaded("wan, text", tmp_path, file)
    assert_same(changes(transformer, adapter), wanted)
    for module, bias in biases.items():
        assert torch.equal(transformer.get_submodule(module).lora_B[adapter].bias, bias)

    board, _, _ = board_of(CASES["wan, text"], tmp_path)
    told = resolve_board(board | {"loras": [{"path": str(file)}]}, find_checkpoint("model", beside=tmp_path)).warnings
    (warning,) = [w for w in told if "left out" in w.message]
    assert warning.key == "loras[0]"
    assert "changes 20 layers of transformer" in warning.message
    assert "8 tensors of layers that the model lacks (k_img)" in warning.message
    assert "6 tensors of layers that the model lacks (v_img)" in warning.message
    assert "10 differences of weights of norms" in warning.message


def in_layout(weights: Tensors, layout: str) -> Tensors:
    """A file of diffusers' in another layout."""
    made = {}
    for key, tensor in weights.items():
        name = key.removeprefix("transformer.")
        block, layer, part = re.fullmatch(r"blocks\.(\d)\.(.*)\.lora_([AB])\.weight", name).groups()  # type: ignore[union-attr]
        original = next(o for o, m in WAN.items() if m == layer)
        half = {"A": "down", "B": "up"}[part]
        made[
            {
                "PEFT": f"base_model.model.{name}",
                "DiffSynth": f"blocks.{block}.{original}.lora_{part}.default.weight",
                "original": f"diffusion_model.blocks.{block}.{original}.lora_{half}.weight",
                "kohya": f"lora_unet_blocks_{block}_{original.replace('.', '_')}.lora_{half}.weight",
                "old diffusers": f"transformer.blocks.{block}.{layer}.lora.{half}.weight",
            }[layout]
        ] = tensor
        if layout == "kohya" and part == "A":
            made[f"lora_unet_blocks_{block}_{original.replace('.', '_')}.alpha"] = torch.tensor(float(len(tensor)))
    return made


def test_one_lora_in_five_layouts_has_the_same_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    case = CASES["wan, text"]
    folder = save_model(case.make, tmp_path / "model")
    file = write_lora(stock_pipeline(case, folder), tmp_path / "diffusers.safetensors", seed=1)
    board, _, _ = board_of(case, tmp_path)

    def frames_with(one: Path) -> bytes:
        plan, made = run(board | {"loras": [{"path": str(one)}]}, folder, {sha256_of(one): one})
        return made[plan.shots[0].frames[0]]

    wanted = frames_with(file)
    for layout in ("PEFT", "DiffSynth", "original", "kohya", "old diffusers"):
        other = tmp_path / f"{layout.replace(' ', '')}.safetensors"
        save_file(in_layout(load_file(file), layout), other)
        assert frames_with(other) == wanted, layout


def test_layers_that_diffusers_splits_share_what_goes_down(tmp_path: Path) -> None:
    """HunyuanVideo's queries, keys and values are one layer in the original; of its single blocks the MLP, too."""
    model = save_model(CASES["hunyuan, text"].make, tmp_path / "model")
    modules = dict(denoise.Stage(str(model)).components["transformer"].named_modules())
    double, single = "transformer_blocks.0.attn", "single_transformer_blocks.0"
    fused = {
        "double_blocks.0.img_attn_qkv": [f"{double}.to_q", f"{double}.to_k", f"{double}.to_v"],
        "double_blocks.0.txt_attn_qkv": [f"{double}.add_q_proj", f"{double}.add_k_proj", f"{double}.add_v_proj"],
        "single_blocks.0.linear1": [*(f"{single}.attn.to_{x}" for x in "qkv"), f"{single}.proj_mlp"],
        "double_blocks.0.img_mlp.fc1": ["transformer_blocks.0.ff.net.0.proj"],
    }
    weights, wanted = {}, {}
    generator = torch.Generator().manual_seed(0)
    for original, names in fused.items():
        sizes = [modules[n].out_features for n in names]
        down = torch.randn(2, modules[names[0]].in_features, generator=generator)
        up = torch.randn(sum(sizes), 2, generator=generator)
        weights |= {f"diffusion_model.{original}.lora_A.weight": down, f"diffusion_model.{original}.lora_B.weight": up}
        wanted |= dict(zip(names, torch.split(up @ down, sizes), strict=True))
    file = tmp_path / "lora.safetensors"
    save_file(weights, file)
    assert_same(changes(*loaded("hunyuan, text", tmp_path, file)), wanted)


def test_a_difference_of_a_whole_weight_is_applied(tmp_path: Path) -> None:
    difference, bias = torch.randn(64, 24), torch.randn(64)
    file = tmp_path / "lora.safetensors"
    save_file({"diffusion_model.head.head.diff": difference, "diffusion_model.head.head.diff_b": bias}, file)
    transformer, adapter = loaded("wan, text", tmp_path, file)
    assert_same(changes(transformer, adapter), {"proj_out": difference})
    assert torch.equal(transformer.proj_out.lora_B[adapter].bias, bias)


def test_a_difference_of_a_convolution_is_applied(tmp_path: Path) -> None:
    difference, file = torch.randn(24, 16, 1, 2, 2), tmp_path / "lora.safetensors"
    save_file({"diffusion_model.patch_embedding.diff": difference}, file)
    transformer, adapter = loaded("wan, text", tmp_path, file)
    x = torch.randn(1, 16, 1, 4, 4)
    layer = transformer.patch_embedding
    wanted = torch.nn.functional.conv3d(
        x, layer.base_layer.weight + difference, layer.base_layer.bias, stride=(1, 2, 2)
    )
    assert torch.allclose(layer(x), wanted, atol=1e-4)
    assert adapter in layer.lora_A


def test_a_lora_works_on_weights_that_are_brought_layer_by_layer(tmp_path: Path) -> None:
    """Offloading's hooks are set on the layers that there are; those of a LoRA come later."""
    from diffusers.hooks import apply_group_offloading
    from diffusers.hooks.group_offloading import _GROUP_OFFLOADING

    stage = denoise.Stage(str(save_model(CASES["wan, text"].make, tmp_path / "model")))
    transformer = stage.components["transformer"]
    cpu = torch.device("cpu")
    apply_group_offloading(transformer, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    file = FIELD / "musubi_no_alpha.safetensors"
    use_loras(stage.card, stage.components, [Lora(sha256_of(file), 1.0, ("transformer",))], [file])
    changed = [m for n, m in transformer.named_modules() if ".lora_A." in n]
    assert changed
    assert all(m._diffusers_hook.get_hook(_GROUP_OFFLOADING) is not None for m in changed)


def test_a_dora_scales_each_row_to_its_magnitude(tmp_path: Path) -> None:
    """Liu et al., "DoRA" (2024): m (W + BA) / ||W + BA||, by rows."""
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 24, generator=generator), torch.randn(24, 2, generator=generator)
    magnitude, file = torch.rand(24, 1, generator=generator) + 0.5, tmp_path / "dora.safetensors"
    layer = "diffusion_model.blocks.0.self_attn.q"
    save_file(
        {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.dora_scale": magnitude}, file
    )
    transformer, _ = loaded("wan, text", tmp_path, file)
    module, x = transformer.blocks[0].attn1.to_q, torch.randn(3, 24, generator=generator)
    changed = module.base_layer.weight + up @ down
    wanted = x @ (magnitude * changed / changed.norm(dim=1, keepdim=True)).T + module.base_layer.bias
    assert torch.allclose(module(x), wanted, atol=1e-5)


def test_a_films_lora_is_read_once_and_not_for_each_shot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []

    def counted(path: Path, *, place: str) -> Header:
        reads.append(path)
        return read_header(path, place=place)

    monkeypatch.setattr("farm.film.pictures.read_header", counted)
    save_model(CASES["wan, text"].make, tmp_path / "model")
    file = FIELD / "musubi_no_alpha.safetensors"
    shots = [{"id": f"s{i}", "prompt": "x", "frames": 5, "seed": i} for i in range(20)]
    board = {"size": "64x48", "shots": shots, "loras": [{"path": str(file)}]}
    film = resolve_board(board, find_checkpoint("model", beside=tmp_path)).film
    assert all(shot.loras for shot in film.shots)
    assert reads == [file]


LAYER = "diffusion_model.blocks.0.self_attn.q"
PAIR = {f"{LAYER}.lora_down.weight": torch.ones(2, 24), f"{LAYER}.lora_up.weight": torch.ones(24, 2)}


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({f"{LAYER}.lokr_w1": torch.ones(2, 2), f"{LAYER}.lokr_w2": torch.ones(12, 12)}, "got a LoKr"),
        ({f"{LAYER}.hada_w1_a": torch.ones(2, 2)}, "got a LoHa"),
        (PAIR | {"diffusion_model.blocks.7.ffn.0.lora_down.weight": torch.ones(2, 24)}, r"blocks\.7\.ffn\.0.*original"),
        (PAIR | {f"{LAYER}.lora_up.weight": torch.ones(48, 2)}, r"must have the shape \[24, 2\], got \[48, 2\]"),
        (PAIR | {f"{LAYER}.lora_down.weight": torch.ones(3, 24)}, r"lora_up.weight' must have the shape \[24, 3\]"),
        ({f"{LAYER}.lora_down.weight": torch.ones(2, 24)}, "lacks its other half"),
        (PAIR | {f"{LAYER}.alpha": torch.ones(3)}, "rank and alpha"),
        ({"blocks.0.attn1.to_q.weight": torch.ones(24, 24)}, "is it a whole model"),
        ({"lora_te_text_model_q.lora_down.weight": torch.ones(2, 24)}, "1 tensors of text encoders"),
        ({"diffusion_model.blocks.0.norm3.diff": torch.ones(24)}, "1 differences of weights of norms"),
        (PAIR | {f"{LAYER}.lora_A.weight": torch.ones(2, 24)}, "are the same part"),
        ({}, "must change at least one layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied_is_refused_when_it_is_planned(weights: Tensors, told: str, tmp_path: Path) -> None:
    folder, file = save_model(CASES["wan, text"].make, tmp_path / "model"), tmp_path / "lora.safetensors"
    save_file(weights, file)
    board, _, _ = board_of(CASES["wan, text"], tmp_path)
    with pytest.raises(InputError, match=told):
        plan_of(board | {"loras": [{"path": str(file)}]}, folder)


def test_a_files_own_configuration_of_peft_is_used_or_refused(tmp_path: Path) -> None:
    """diffusers keeps rank and alpha in the file; there alpha over rank scales what the adapter adds."""
    config = '{"transformer.r": 2, "transformer.lora_alpha": 8, "transformer.target_modules": ["blocks.0.attn1.to_q"]}'
    file = tmp_path / "lora.safetensors"
    save_file(PAIR, file, metadata={"lora_adapter_metadata": config})
    transformer, adapter = loaded("wan, text", tmp_path, file)
    assert_same(changes(transformer, adapter), {"blocks.0.attn1.to_q": torch.full((24, 24), 8.0)})
    for bad in ("[1]", "{", '{"transformer.no_such_key": 1}'):
        save_file(PAIR, file, metadata={"lora_adapter_metadata": bad})
        with pytest.raises(InputError, match="a LoRA"):
            loaded("wan, text", tmp_path, file)
