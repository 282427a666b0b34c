"""Checkpoints and threads for tests of the stages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import make_wan

from farm.models.checkpoint import Checkpoint, find_checkpoint


@pytest.fixture(scope="module")
def able(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny checkpoint that takes timesteps per token, with the contexts that the built-in model has."""
    checkpoint = find_checkpoint(str(make_wan(tmp_path_factory.mktemp("wan") / "w", per_token=True)), beside=Path())
    contexts = ("latents", "frames", "last_frame")
    return replace(checkpoint, card=replace(checkpoint.card, contexts=contexts))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
