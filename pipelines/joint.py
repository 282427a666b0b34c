"""Attention between a video's tokens, which are split over ranks, and a prompt's, which every rank has whole.

For models whose attention diffusers' context parallelism does not serve: HunyuanVideo-1.5 masks queries as well as
keys, and Mochi attends to each sample's own number of tokens, past diffusers' dispatch. DeepSpeed-Ulysses
(`DistributedAttention`; Jacobs et al., "DeepSpeed Ulysses", 2023) gives each rank all tokens of the video for its share
of the heads; those of the prompt join them there with the same heads. Their results are gathered over heads, so every
rank goes on with the whole prompt. DeepSpeed is imported by gangs that ask for it.

Legend: B batch, S tokens of the video on this rank, T of the prompt, H heads, D their width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

Qkv = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class JointAttention:
    """MochiAttnProcessor2_0 and HunyuanVideo15AttnProcessor2_0 over the ranks of a group.

    Their results are those of one rank but for the order in which keys are added up.
    """

    _attention_backend: Any = None  # as diffusers asks of its processors
    _parallel_config: Any = None

    def __init__(self, group: Any, *, is_interleaved: bool) -> None:
        """Args:
        group: the ranks that share the heads; it must divide them.
        is_interleaved: rotary embeddings (S, H, D / 2) as Mochi's, else (S, D) as diffusers' own.
        """
        import deepspeed
        from deepspeed.sequence.layer import DistributedAttention

        deepspeed.init_distributed(dist_backend=dist.get_backend(group))
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.is_interleaved = is_interleaved
        self.over_ranks = DistributedAttention(self._attend, group, scatter_idx=2, gather_idx=1)

    def __call__(
        self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor, image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Args:
        hidden_states: (B, S, width); encoder_hidden_states: (B, T, text width); attention_mask: (B, T).
        """
        query, key, value = _heads(attn, hidden_states, (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k))
        if image_rotary_emb is not None:
            query, key = (self._turned(x, image_rotary_emb) for x in (query, key))
        text = _heads(
            attn, encoder_hidden_states, (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
            (attn.norm_added_q, attn.norm_added_k),
        )  # fmt: skip
        share = attn.heads // self.size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        own = tuple(x[:, :, mine] for x in text)
        told: list[torch.Tensor] = []
        seen = self.over_ranks(query, key, value, 0, text=own, mask=attention_mask.bool(), told=told)
        parts = [torch.empty_like(told[0]) for _ in range(self.size)]
        dist.all_gather(parts, told[0], group=self.group)
        video, prompt = seen.flatten(2, 3).to(query.dtype), torch.cat(parts, dim=2).flatten(2, 3).to(query.dtype)
        video = attn.to_out[1](attn.to_out[0](video))
        after = getattr(attn, "to_add_out", None)  # the last block has no use for the prompt's
        return video, prompt if after is None else after(prompt)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, text: Qkv, mask: torch.Tensor,
        told: list[torch.Tensor],
    ) -> torch.Tensor:  # fmt: skip
        """All tokens for this rank's heads; the prompt's results go to `told`, zero where its tokens are not valid."""
        num_video, videos, prompts = query.shape[1], list[torch.Tensor](), torch.zeros_like(text[0])
        for i, valid in enumerate(mask):
            pairs = zip((query, key, value), text, strict=True)
            q, k, v = (torch.cat([own[i], joining[i, valid]])[None].transpose(1, 2) for own, joining in pairs)
            out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)[0]
            videos.append(out[:num_video])
            prompts[i, valid] = out[num_video:]
        told.append(prompts.contiguous())
        return torch.stack(videos)

    def _turned(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """With rotary embeddings; (B, S, H, D)."""
        if not self.is_interleaved:
            from diffusers.models.embeddings import apply_rotary_emb

            turned: torch.Tensor = apply_rotary_emb(x, rope, sequence_dim=1)
            return turned
        cos, sin = rope
        even, odd = x[..., 0::2].float(), x[..., 1::2].float()
        pair = ((even * cos - odd * sin).to(x.dtype), (even * sin + odd * cos).to(x.dtype))
        return torch.stack(pair, dim=-1).flatten(-2)


def _heads(attn: Any, hidden: torch.Tensor, to: tuple[Any, Any, Any], norms: tuple[Any, Any]) -> Qkv:
    query, key, value = (project(hidden).unflatten(2, (attn.heads, -1)) for project in to)
    query, key = (x if norm is None else norm(x) for x, norm in zip((query, key), norms, strict=True))
    return query, key, value


def cut_prompts(model: Any) -> list[Any]:
    """Have HunyuanVideo-1.5's blocks meet the valid tokens of a prompt alone; they come first, and padding is long."""

    def first(block: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, text, temb, mask, *rest = args
        num_valid = int(mask.sum(dim=1).max())
        return (hidden, text[:, :num_valid], temb, mask[:, :num_valid], *rest)

    def later(block: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, text, temb, mask, *rest = args
        return (hidden, text, temb, mask[:, : text.shape[1]], *rest)

    blocks = list(model.transformer_blocks)
    return [block.register_forward_pre_hook(first if i == 0 else later) for i, block in enumerate(blocks)]
