"""LoRA files that tests make."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def write_lora(pipe: Any, file: Path, *, seed: int, transformer: str = "transformer") -> Path:
    """Random changes to the attention of one of a pipeline's transformers, in the pipeline's own format."""
    torch.manual_seed(seed)
    module = getattr(pipe, transformer)
    module.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_v"]), "made")
    layers = get_peft_model_state_dict(module, adapter_name="made")
    pipe.save_lora_weights(file.parent, transformer_lora_layers=layers, weight_name=file.name)
    module.delete_adapters("made")
    return file


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
