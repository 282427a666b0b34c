"""How a LoRA fits a transformer, read from the headers of both: which layers it changes, and what is left out.

Layouts seen in the field, all of them brought to the names of diffusers' modules:

- diffusers: `transformer.blocks.0.attn1.to_q.lora_A.weight`
- PEFT: `base_model.model.blocks.0...`; DiffSynth: without a prefix, `.lora_A.default.weight`
- the model's original names, as ComfyUI has them: `diffusion_model.blocks.0.self_attn.q.lora_down.weight`
- kohya and musubi: `lora_unet_blocks_0_self_attn_q.lora_down.weight`, with `.alpha` or without

The same function decides at plan time, with the shapes of a checkpoint's files, and when a replica loads the LoRA,
with those of its modules.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from farm.errors import InputError
from farm.models.card import ModelCard
from farm.models.safetensors import Header, read_header

Shapes = Mapping[str, tuple[int, ...]]
PREFIXES = {  # of tensors' names, and what the layout is called
    "transformer.": "diffusers", "diffusion_model.": "original", "base_model.model.": "PEFT",
    "lora_unet_": "kohya", "model.diffusion_model.": "original",
}  # fmt: skip
TEXT_ENCODERS = ("lora_te", "text_encoder", "te1.", "te2.")
PARTS = {  # of a changed layer, by how their names end
    "down": re.compile(r"\.(lora_A|lora_down|lora\.down|lora_linear_layer\.down)(\.default)?(\.weight)?"),
    "up": re.compile(r"\.(lora_B|lora_up|lora\.up|lora_linear_layer\.up)(\.default)?(\.weight)?"),
    "bias": re.compile(r"\.(lora_B(\.default)?\.bias|diff_b)"),
    "alpha": re.compile(r"\.alpha"),
    "magnitude": re.compile(r"\.(dora_scale|lora_magnitude_vector(\.default)?(\.weight)?)"),
    "difference": re.compile(r"\.diff"),
}
OTHER_KINDS = {"lokr_": "LoKr", "hada_": "LoHa", "oft_": "OFT", "boft_": "BOFT", "glora_": "GLoRA", "lora_mid": "LoCon"}


@dataclass(frozen=True)
class Part:
    """A tensor of the file, or the rows of it that belong to one of the layers that it changes together."""

    tensor: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class LoraFit:
    """What a LoRA changes."""

    layout: str
    layers: Mapping[str, Mapping[str, Part]]  # by module: down, up, and perhaps alpha, bias, magnitude; or difference
    left_out: Mapping[str, int]  # tensors that change nothing, by what they are

    @property
    def omissions(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in self.left_out.items())


@dataclass
class _Gathered:
    parts: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))  # by layer as it is named there
    left_out: Counter[str] = field(default_factory=Counter)
    prefixes: Counter[str] = field(default_factory=Counter)


def layers_of(folder: Path) -> Shapes:
    """The weights of a component's layers, by module, from the headers of its files."""
    made: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, shape in read_header(file, place=f"{folder.name}/{file.name}").shapes.items():
            if name.endswith(".weight"):
                made[name.removesuffix(".weight")] = shape
    return made


def fit_lora(header: Header, layers: Shapes, card: ModelCard, *, place: str) -> LoraFit:
    """Bring a LoRA's tensors to a transformer's layers.

    Args:
        layers: shape of each layer's weight, by module.
        place: where the LoRA is named, for people.
    Raises:
        InputError: it is of another kind or another model, or contradicts itself; names the first tensor in the way.
    """
    gathered = _gather(header.shapes, card, place)
    layout = gathered.prefixes.most_common(1)[0][0] if gathered.prefixes else "unknown"
    names = _names_of(layers, card)
    made: dict[str, dict[str, Part]] = {}
    for name, parts in gathered.parts.items():
        variant = next((v for v in card.lora_optional if v in name), "")
        modules = names.get(name, ())
        if not modules and variant:
            gathered.left_out[f"tensors of layers that the model lacks ({variant})"] += len(parts)
            continue
        if not modules:
            first = next(iter(parts.values()))
            raise InputError(
                f"{place} must fit {card.name}, but {first!r} ({layout} layout) changes a layer that the model lacks; "
                "use a LoRA that was made for this model"
            )
        made |= _fit_layer(header.shapes, modules, parts, layers, gathered.left_out, place)
    if not made:
        what = f"; it holds {', '.join(f'{c} {w}' for w, c in gathered.left_out.items())}" if gathered.left_out else ""
        raise InputError(f"{place} must change at least one layer of {card.name}, got none in {layout} layout{what}")
    return LoraFit(layout, made, dict(gathered.left_out))


def _gather(shapes: Shapes, card: ModelCard, place: str) -> _Gathered:
    """The file's tensors by the layer that they change, as the file names it."""
    made = _Gathered()
    for tensor in sorted(shapes):
        if tensor.startswith(TEXT_ENCODERS):
            made.left_out["tensors of text encoders"] += 1
            continue
        for mark, kind in OTHER_KINDS.items():
            if f".{mark}" in tensor:
                raise InputError(
                    f"{place} must be a LoRA or a DoRA, got a {kind} ({tensor!r}); merge it into the model's weights "
                    "with the tool that made it, or have it made as a LoRA"
                )
        prefix = next((p for p in PREFIXES if tensor.startswith(p)), "")
        for part, ending in PARTS.items():
            found = [m for m in ending.finditer(tensor) if m.end() == len(tensor)]
            if found:
                layer = tensor[len(prefix) : found[0].start()]
                if part in made.parts[layer]:
                    raise InputError(
                        f"{place} is damaged: {tensor!r} and {made.parts[layer][part]!r} are the same part"
                    )
                made.parts[layer][part] = tensor
                made.prefixes[PREFIXES.get(prefix, "no-prefix")] += 1
                break
        else:
            raise InputError(
                f"{place} must be a LoRA for {card.name}, but its tensor {tensor[:200]!r} is no part of one; is it a "
                "whole model, or of another kind?"
            )
    return made


def _names_of(layers: Shapes, card: ModelCard) -> dict[str, tuple[str, ...]]:
    """Every name by which a file may call a layer, or several layers that the original model has as one."""
    made: dict[str, tuple[str, ...]] = {}
    for original, targets in card.lora_names:
        pattern = re.compile(re.escape(targets[0]).replace(r"\{n\}", r"(\d+)"))
        for match in filter(None, map(pattern.fullmatch, layers)):
            number = match[1] if match.groups() else ""
            modules = tuple(t.replace("{n}", number) for t in targets)
            if all(m in layers for m in modules):
                made[original.replace("{n}", number)] = modules
    made |= {name: (name,) for name in layers}
    return {name.replace(".", "_"): modules for name, modules in made.items()} | made


def _fit_layer(
    shapes: Shapes, modules: tuple[str, ...], parts: Mapping[str, str], layers: Shapes, left_out: Counter[str],
    place: str,
) -> dict[str, dict[str, Part]]:  # fmt: skip
    """One layer of the file, which may be several of the model: those share what goes down, and split what goes up."""
    first, out = layers[modules[0]], sum(layers[m][0] for m in modules)
    is_pair = bool({"down", "up"} & parts.keys())
    kept = parts.keys() & ({"down", "up", "alpha", "bias", "magnitude"} if is_pair else {"difference", "bias"})
    if len(first) < 2 or not (is_pair or "difference" in parts):  # peft changes no norms, and no biases alone
        kept = set()
    for part in parts.keys() - kept:
        what = {"difference": "differences of weights", "bias": "differences of biases"}.get(part, "stray tensors")
        left_out[f"{what} of {'norms' if len(first) < 2 else 'layers without a LoRA'}"] += 1
    if not kept:
        return {}
    got = {part: shapes[parts[part]] for part in kept}
    if is_pair:
        if not {"down", "up"} <= kept:
            lone = parts.get("down", parts.get("up"))
            raise InputError(f"{place} is damaged: {lone!r} lacks its other half; fetch it again")
        rank = got["down"][0] if got["down"] else 0
        if rank < 1 or math.prod(got.get("alpha", ())) != 1:
            raise InputError(f"{place} is damaged: rank and alpha of {parts['down']!r} must be numbers above 0")
        if len(modules) > 1 and "magnitude" in kept:
            raise InputError(f"{place} must not be a DoRA of layers that diffusers splits ({parts['magnitude']!r})")
    else:
        rank = 0
    want = {
        "down": (rank, *first[1:]), "up": (out, rank, *(1 for _ in first[2:])), "alpha": got.get("alpha"),
        "difference": (out, *first[1:]), "bias": (out,), "magnitude": (out,),
    }  # fmt: skip
    for part in sorted(kept):
        shape = (math.prod(got[part]),) if part == "magnitude" else got[part]  # kohya's is a column
        if shape != want[part]:
            raise InputError(
                f"{place} must fit the model: {parts[part]!r} must have the shape {list(want[part] or ())}, got "
                f"{list(got[part])}; is it for another size of it?"
            )
    made: dict[str, dict[str, Part]] = {}
    row = 0
    for module in modules:
        rows = (row, row := row + layers[module][0]) if len(modules) > 1 else None
        made[module] = {p: Part(parts[p], None if p in ("down", "alpha") else rows) for p in kept}
    return made
