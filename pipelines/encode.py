"""The encode stage: one prompt to embeddings. It loads the tokenizer and the text encoder, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import save

from farm.task import EncodeText

from .families import wan
from .load import best_device, load_component
from .stage import Artifact, Progress, Result


class Stage:
    def __init__(self, model: str, *, dtype: str = "float32") -> None:
        device = best_device()
        self.components = {
            c: load_component(model, c, dtype=dtype, device=device) for c in ("tokenizer", "text_encoder")
        }

    @torch.no_grad()
    def run(self, request: EncodeText, inputs: Sequence[Artifact], progress: Progress) -> Result:
        """Returns safetensors with `embeds` (1, max_tokens, dim). Prompts go one by one: a batch would change bits."""
        embeds = wan.encode_prompt(self.components, request.prompt, max_tokens=request.max_tokens)
        progress.advance(1, 1)
        return Result(save({"embeds": embeds.cpu().contiguous()}))
