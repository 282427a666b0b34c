"""Prompts longer than an encoder reads: what is cut is told, and style and marks are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from in_process import plan_of

from farm.models.checkpoint import find_checkpoint
from farm.task import EncodeText
from pipelines.encode import Stage
from pipelines.prompts import fitted, num_tokens
from pipelines.stage import Progress


@pytest.fixture(scope="module")
def builtin() -> Stage:
    return Stage(find_checkpoint("builtin", beside=Path()).folder)


def request_of(prompt: str, *, keep: str = "", limit: int = 32) -> EncodeText:
    return EncodeText("wan", prompt + keep, limit, keep_chars=len(keep))


def test_a_prompt_that_just_fits_loses_nothing_and_one_word_more_is_told(builtin: Stage) -> None:
    tokenizer = builtin.components["tokenizer"]
    words = ["ball"]
    while num_tokens(tokenizer, " ".join([*words, "ball"])) <= 32:
        words.append("ball")
    just, more = " ".join(words), " ".join([*words, "cube"])
    assert fitted(request_of(just), tokenizer) == (request_of(just), {})
    same, cut = fitted(request_of(more), tokenizer)
    assert same.prompt == more  # the encoder cuts it itself, as the stock pipeline's
    assert cut == {"tokens": 33, "limit": 32, "lost": "cube"}


def test_style_and_mark_are_kept(builtin: Stage) -> None:
    tokenizer = builtin.components["tokenizer"]
    long = " ".join(["ball"] * 60)
    kept, cut = fitted(request_of(long, keep=" at night continued"), tokenizer)
    assert kept.prompt.endswith("ball at night continued")
    assert num_tokens(tokenizer, kept.prompt) == 32 and cut["tokens"] > 32
    assert kept.prompt.count("ball") + cut["lost"].count("ball") == 60


def test_the_stage_says_so_beside_the_artifact(builtin: Stage) -> None:
    long = request_of(" ".join(["ball"] * 60), keep=" continued")
    assert builtin.run(long, [], Progress()).info["cut"]["limit"] == 32
    assert builtin.run(request_of("a red ball"), [], Progress()).info == {}


def test_a_middle_chunk_of_a_long_prompt_still_has_its_mark() -> None:
    shots = [{"id": "a", "prompt": " ".join(["a red ball"] * 20), "frames": 29}]
    board: dict[str, Any] = {"steps": 1, "style": "at night", "shots": shots}
    plan = plan_of(board, Path("builtin"))
    texts = [t.request for t in plan.tasks.values() if isinstance(t.request, EncodeText)]
    tails = {t.prompt[-t.keep_chars :] for t in texts if t.keep_chars}
    assert {" at night", " at night continued"} <= tails


def test_short_prompts_have_the_keys_that_they_have_without_a_style(tiny_wan: Path) -> None:
    """512 tokens need more than 510 bytes."""
    one = plan_of({"style": "at night", "shots": [{"id": "a", "prompt": "a ball", "frames": 9}]}, tiny_wan)
    other = plan_of({"shots": [{"id": "a", "prompt": "a ball at night", "frames": 9}]}, tiny_wan)
    assert set(one.tasks) & set(other.tasks) >= {t.key for t in one.tasks.values() if t.stage == "encode"}
