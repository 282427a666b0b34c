"""A transformer's tokens split over the ranks of a gang, by diffusers' context parallelism: Ulysses, ring or both.

diffusers' hooks split the tokens where a model's plan says so and gather them at the end; attention exchanges heads
(Ulysses) or keys and values (ring) between. Only self-attention takes part: prompts that are attended to from outside
of the sequence stay whole on every rank, with their masks. `enable_parallelism` is not used: it wants one device mesh
of all processes, and divides by the number of accelerators.

Legend: B batch, S tokens of the video, T of the text, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.hooks import context_parallel as hooks
from diffusers.models import attention_dispatch
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelInput,
    ContextParallelOutput,
    ParallelConfig,
    gather_size_by_comm,
)
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from farm.errors import InputError
from pipelines.joint import JointAttention, cut_prompts
from pipelines.parallel import Split


def _at(dim: int, ndim: int, *, output: bool = False) -> ContextParallelInput:
    return ContextParallelInput(split_dim=dim, expected_dims=ndim, split_output=output)


TOKENS, ALL = _at(1, 3), ContextParallelOutput(gather_dim=1, expected_dims=3)
ROPE_4D = {0: _at(1, 4, output=True), 1: _at(1, 4, output=True)}  # (1, S, 1, D)
ROPE_3D = {0: _at(1, 3, output=True), 1: _at(1, 3, output=True)}  # (B, S, D)
ROPE_2D = {0: _at(0, 2, output=True), 1: _at(0, 2, output=True)}  # (S, D)
PLANS: dict[str, dict[str, Any]] = {
    "WanTransformer3DModel": {
        "rope": ROPE_4D, "blocks.0": {"hidden_states": TOKENS}, "": {"timestep": _at(1, 2)}, "proj_out": ALL,
    },
    "WanVACETransformer3DModel": {
        "rope": ROPE_4D, "vace_blocks.*": {"hidden_states": TOKENS}, "vace_blocks.0": {"control_hidden_states": TOKENS},
        "blocks.0": {"hidden_states": TOKENS}, "proj_out": ALL,
    },
    # a timestep for every latent frame: they scale the tokens after the last block, where all are together again
    "SkyReelsV2Transformer3DModel": {
        "rope": ROPE_4D, "blocks.*": {"temb": _at(2, 4)}, "blocks.0": {"hidden_states": TOKENS}, "norm_out": ALL,
    },
    # not diffusers' own plan, which splits the text, whose mask then fits no head, and forgets timesteps per token
    "LTXVideoTransformer3DModel": {
        "": {"hidden_states": TOKENS, "timestep": _at(1, 2)}, "rope": ROPE_3D, "proj_out": ALL,
    },
    "HunyuanVideoTransformer3DModel": {
        "rope": ROPE_2D, "transformer_blocks.0": {"hidden_states": TOKENS, "encoder_hidden_states": TOKENS},
        "proj_out": ALL,
    },
    "CogVideoXTransformer3DModel": {
        "": {"image_rotary_emb": [_at(0, 2), _at(0, 2)]},
        "transformer_blocks.0": {"hidden_states": TOKENS, "encoder_hidden_states": TOKENS}, "proj_out": ALL,
    },
    # these two with JointAttention, which has the whole prompt on every rank
    "HunyuanVideo15Transformer3DModel": {
        "rope": ROPE_2D, "transformer_blocks.0": {"hidden_states": TOKENS}, "proj_out": ALL,
    },
    "MochiTransformer3DModel": {
        "rope": {0: _at(0, 3, output=True), 1: _at(0, 3, output=True)},  # (S, heads, D / 2)
        "transformer_blocks.0": {"hidden_states": TOKENS}, "proj_out": ALL,
    },
}  # fmt: skip
JOINT = {"HunyuanVideo15Transformer3DModel", "MochiTransformer3DModel"}
SELF_ATTENTION = ("blocks", "vace_blocks", "transformer_blocks", "single_transformer_blocks")


@dataclass(frozen=True)
class _Mesh:
    """A process group in the place of a one-dimensional device mesh, of which diffusers asks no more than this."""

    group: Any

    def get_group(self, *dims: Any) -> Any:
        return self.group

    def size(self, *dims: Any) -> int:
        return 1 if self.group is None else int(self.group.size())


class SequenceSplit:
    """One transformer, split. Its results are those of one rank: exactly where Ulysses alone splits and matrix
    kernels agree, else within float32's last bits."""

    def __init__(self, model: Any, split: Split) -> None:
        """Raises:
        InputError: there is no plan for this model.
        """
        kind = type(model).__name__
        if kind not in PLANS:
            raise InputError(f"parallel: ulysses and ring must be 1 for {kind}, which has no plan for its tokens")
        if kind in JOINT and split.degrees.ring > 1:
            raise InputError(f"parallel: ring must be 1 for {kind}, got {split.degrees.ring}")
        self.model, self.plan, self.degrees = model, PLANS[kind], split.degrees
        ulysses, ring = split.degrees.ulysses, split.degrees.ring
        config = self.config = ContextParallelConfig(ulysses_degree=ulysses, ring_degree=ring)
        config._flattened_mesh, config._ulysses_mesh = _Mesh(split.sequence), _Mesh(split.ulysses)
        config._ring_mesh, config._ring_local_rank = _Mesh(split.ring), split.ring_index
        self.lengths: list[int] = []  # of what is split, in the forward pass that runs
        self.handles: list[Any] = [model.register_forward_pre_hook(self._before, with_kwargs=True)]
        hooks._all_gather_anything = _gather_padded
        self.processors, self.changed, self.replaced = list[Any](), list[Any](), list[tuple[Any, Any]]()
        for attention in _self_attentions(model):
            if kind == "CogVideoXTransformer3DModel":
                attention.set_processor(SplitCogVideoXAttention())
            elif kind in JOINT:
                self.replaced.append((attention, attention.processor))
                attention.processor = JointAttention(split.ulysses, is_interleaved=kind == "MochiTransformer3DModel")
            self.processors.append(attention.processor)
        whole = ParallelConfig(context_parallel_config=config)
        on_cpu = dist.get_backend(split.sequence) == "gloo"
        for processor in self.processors:
            if kind not in JOINT:
                _check_backend(processor._attention_backend)
            processor._parallel_config = whole
            if ring > 1 and not on_cpu and processor._attention_backend is None:
                processor._attention_backend = AttentionBackendName._NATIVE_FLASH  # it tells the log-sum-exp
                self.changed.append(processor)
        if ring > 1 and on_cpu:
            attention_dispatch._native_attention_forward_op = _attention_on_cpu
        if kind == "HunyuanVideoTransformer3DModel":
            self.handles += _split_text_masks(model, self)
        elif kind == "HunyuanVideo15Transformer3DModel":
            self.handles += cut_prompts(model)
        hooks.apply_context_parallel(model, config, self.plan)

    def remove(self) -> None:
        """Make the model whole again."""
        for handle in self.handles:
            handle.remove()
        for processor in self.processors:
            processor._parallel_config = None
        for processor in self.changed:
            processor._attention_backend = None
        for attention, processor in self.replaced:
            attention.processor = processor
        hooks.remove_context_parallel(self.model, self.plan)

    def _before(self, model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before a forward pass: which of diffusers' two ways its lengths need."""
        self.use_lengths(_lengths(model, kwargs))
        timestep = kwargs.get("timestep")
        is_packed = kwargs["hidden_states"].ndim == 3  # LTX
        if is_packed and timestep is not None and timestep.shape[1:] == (1,):  # one for all tokens: not to split
            kwargs["timestep"] = timestep.squeeze(1)
        return args, kwargs

    def use_lengths(self, lengths: list[int]) -> None:
        """Choose how parts are split and gathered: diffusers has a way for equal ones, and others for unequal ones.

        Raises:
            InputError: neither can.
        """
        size, ulysses, ring = self.degrees.sequence, self.degrees.ulysses, self.degrees.ring
        is_uneven, told = any(n % size for n in lengths), " and ".join(map(str, lengths))
        if min(lengths) < size:
            raise InputError(f"parallel: ulysses x ring must be at most the number of tokens, {told}, got {size}")
        if is_uneven and ulysses > 1 and ring > 1:
            raise InputError(
                f"parallel: ulysses x ring must divide {told} tokens where both are above 1, got {ulysses} x {ring}; "
                "use one of the two"
            )
        if is_uneven and type(self.model).__name__ in JOINT:
            raise InputError(f"parallel: ulysses must divide {told} tokens, got {ulysses}")
        self.lengths = lengths
        self.config.ulysses_anything, self.config.ring_anything = is_uneven and ulysses > 1, is_uneven and ring > 1


def _check_backend(backend: Any) -> None:
    """Raises:
    InputError: it takes no part in context parallelism: each rank would attend to its own tokens, without an error.
    """
    registry = attention_dispatch._AttentionBackendRegistry
    name = AttentionBackendName(backend) if backend is not None else registry._active_backend
    if name.value not in registry._supports_context_parallel:
        raise InputError(f"options.attention must be a backend that ranks can share tokens with, got {name.value}")


def _lengths(model: Any, kwargs: Mapping[str, Any]) -> list[int]:
    """How many tokens of the video, and of the text where that is split too, a forward pass will have."""
    hidden, config, kind = kwargs["hidden_states"], model.config, type(model).__name__
    if hidden.ndim == 3:
        return [hidden.shape[1]]
    if kind == "CogVideoXTransformer3DModel":
        frames, (rows, columns), pairs = hidden.shape[1], hidden.shape[3:], config.patch_size_t or 1
        video = -(-frames // pairs) * (rows // config.patch_size) * (columns // config.patch_size)
        return [video, kwargs["encoder_hidden_states"].shape[1]]
    frames, rows, columns = hidden.shape[2:]
    if kind == "HunyuanVideoTransformer3DModel" or kind in JOINT:
        side = config.patch_size
        video = (frames // getattr(config, "patch_size_t", 1)) * (rows // side) * (columns // side)
        return [video] if kind in JOINT else [video, kwargs["encoder_hidden_states"].shape[1]]
    t, h, w = config.patch_size
    return [(frames // t) * (rows // h) * (columns // w)]


def _self_attentions(model: Any) -> Iterator[Any]:
    """The attentions among the tokens that are split."""
    for name, module in model.named_modules():
        parts = name.split(".")
        is_own = parts[0] in SELF_ATTENTION and len(parts) == 3 and parts[2] in ("attn", "attn1")
        if is_own and hasattr(module, "processor"):
            yield module


def _split_text_masks(model: Any, own: SequenceSplit) -> list[Any]:
    """HunyuanVideo's blocks get a mask of the whole sequence, but keys come as video, text, video, text ... by rank.

    With Ulysses alone the mask is put into that order. A ring takes no masks: there the text is cut to what the mask
    lets through. That lies at its beginning, as the model's own arithmetic supposes.
    """

    def in_order(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if own.degrees.ring > 1:
            return (*args[:3], None, *args[4:])
        video, text = (p.tensor_split(own.degrees.sequence, dim=-1) for p in args[3].split(own.lengths, dim=-1))
        return (*args[:3], torch.cat([p for pair in zip(video, text, strict=True) for p in pair], dim=-1), *args[4:])

    def cut(module: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        if own.degrees.ring == 1:
            return out
        own.use_lengths([own.lengths[0], int(args[2].sum())])
        return out[:, : own.lengths[1]]

    blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
    return [b.register_forward_pre_hook(in_order) for b in blocks] + [model.context_embedder.register_forward_hook(cut)]


class SplitCogVideoXAttention:
    """CogVideoXAttnProcessor2_0 through diffusers' attention dispatch, which it does not use itself.

    With a plan alone each rank would attend to its own tokens, without an error. On one rank its bits are those of the
    stock processor.
    """

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None, image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        from diffusers.models.embeddings import apply_rotary_emb

        num_text = encoder_hidden_states.shape[1]
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (to(both).unflatten(2, (attn.heads, -1)) for to in (attn.to_q, attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([x[:, :num_text], apply_rotary_emb(x[:, num_text:], image_rotary_emb, sequence_dim=1)], dim=1)
                for x in (query, key)
            )
        out = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        out = attn.to_out[1](attn.to_out[0](out.flatten(2, 3)))
        return out[:, num_text:], out[:, :num_text]


def _gather_padded(tensor: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
    """Parts of unequal lengths from all ranks, along `dim`; padded, because gloo gathers equal shapes only."""
    sizes = gather_size_by_comm(tensor.shape[dim], group)
    first = tensor.transpose(0, dim)
    padded = F.pad(first, (0, 0) * (first.ndim - 1) + (0, max(sizes) - first.shape[0])).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([p[:size] for p, size in zip(parts, sizes, strict=True)]).transpose(0, dim)


def _attention_on_cpu(
    ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    return_lse: bool = False, _save_ctx: bool = True, _parallel_config: Any = None,
) -> Any:  # fmt: skip
    """Attention (B, S, heads, dim) with the log-sum-exp (B, S, heads), which a ring merges partial results by.

    The kernel is the one that scaled_dot_product_attention uses on the CPU: equal bits.
    """
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = op(*heads_first, attn_mask=attn_mask, scale=scale)
    out = out.transpose(1, 2)
    return (out, lse.transpose(1, 2)) if return_lse else out


def split_all(models: Sequence[Any], split: Split) -> list[SequenceSplit]:
    """Split all transformers of a stage in the same way; none where one rank holds a whole sequence."""
    return [SequenceSplit(model, split) for model in models] if split.degrees.sequence > 1 else []
