"""Prompts longer than an encoder reads: what is cut is told; style and marks, which stand last, are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from farm.task import EncodeText


def fitted(request: EncodeText, tokenizer: Any) -> tuple[EncodeText, dict[str, Any]]:
    """The request with a prompt that fits, and what of it was cut: `tokens`, `limit` and the `lost` words.

    A prompt that fits is left alone, and so is one without a style or mark: its encoder cuts it as the stock pipeline
    does. Else the words before those are cut from their end.
    """
    num = num_tokens(tokenizer, request.prompt)
    if num <= request.max_tokens:
        return request, {}
    tail = request.prompt[len(request.prompt) - request.keep_chars :]
    words = request.prompt[: len(request.prompt) - request.keep_chars].split(" ")
    low, high = 0, len(words)  # how many words fit
    while low < high:
        middle = (low + high + 1) // 2
        fits = num_tokens(tokenizer, " ".join(words[:middle]) + tail) <= request.max_tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    cut = {"tokens": num, "limit": request.max_tokens, "lost": " ".join(words[low:])}
    return replace(request, prompt=" ".join(words[:low]) + tail) if tail else request, cut


def num_tokens(tokenizer: Any, text: str) -> int:
    """With the special ones that the tokenizer adds, as in the stock pipelines' `max_length`."""
    return len(tokenizer(text, truncation=False, verbose=False).input_ids)
