"""The header of a safetensors file, read without torch and trusted in nothing.

The format: 8 bytes with the header's length, a JSON object of tensors, then their bytes, without gaps or overlaps
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import InputError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
METADATA = "__metadata__"


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(path: Path, *, place: str) -> Header:
    """Read a file's header and check it against the file's size, which catches truncated and foreign files.

    Args:
        place: where the file is named, for people.
    Raises:
        InputError: the file is cut short, foreign or malformed; says which.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise InputError(f"{place} is not a safetensors file, or cut short at {size} bytes")
        raw = f.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_without_twins)
        metadata = _metadata(header.pop(METADATA, {}))
        spans = {name: _span(name, told) for name, told in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise InputError(f"{place} is damaged: its header cannot be read ({e}); fetch it again") from None
    end = 0
    for name, (begin, stop) in sorted(spans.items(), key=lambda span: span[1]):
        if begin != end:
            what = "overlaps another" if begin < end else "begins after a gap"
            raise InputError(f"{place} is damaged: its tensor {name[:100]!r} {what}; fetch it again")
        end = stop
    if 8 + length + end != size:
        raise InputError(f"{place} is damaged: must have {8 + length + end} bytes, got {size}; fetch it again")
    return Header({name: tuple(told["shape"]) for name, told in header.items()}, metadata)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name is there twice")
    return made


def _metadata(told: Any) -> dict[str, str]:
    if not isinstance(told, dict) or not all(isinstance(v, str) for v in told.values()):
        raise ValueError("its metadata must be texts by name")
    return told


def _span(name: str, told: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end."""
    shape, (begin, end) = told["shape"], told["data_offsets"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError(f"shape and offsets of {name[:100]!r} must be whole numbers of at least 0")
    bits = BITS.get(told["dtype"])
    if bits is None:
        raise ValueError(f"{name[:100]!r} has the unknown dtype {str(told['dtype'])[:20]!r}")
    if len(shape) > 32 or math.prod(shape) * bits != (end - begin) * 8:
        raise ValueError(f"shape and bytes of {name[:100]!r} differ")
    return begin, end
