"""Headers of safetensors files: what torch's own reader accepts is read, all else is a fault of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from farm.errors import InputError
from farm.models.safetensors import MAX_HEADER_BYTES, read_header

GOOD: dict[str, Any] = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def write(folder: Path, header: Any, num_bytes: int = 24, *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "x.safetensors"
    file.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(num_bytes))
    return file


def test_shapes_and_metadata_are_read(tmp_path: Path) -> None:
    more = {"b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]}, "__metadata__": {"format": "pt"}}
    header = read_header(write(tmp_path, GOOD | more, 26), place="x")
    assert header.shapes == {"a": (2, 3), "b": ()}
    assert header.metadata == {"format": "pt"}
    assert read_header(write(tmp_path, {}, 0), place="x").shapes == {}


def tensor(**changed: Any) -> dict[str, Any]:
    return {"a": GOOD["a"] | changed}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"[" * 50_000, "cannot be read"),
        (b'{"a": 1e999}', "cannot be read"),
        (b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 24]}}', "whole numbers"),
        (b'{"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "a": {}}', "there twice"),
        (tensor(shape=[-2, -3]), "whole numbers of at least 0"),
        (tensor(shape=[2.0, 3.0]), "whole numbers"),
        (tensor(shape=[True, 6]), "whole numbers"),
        (tensor(shape=[10**30, 10**30]), "differ"),
        (tensor(shape=[1] * 40), "differ"),
        (tensor(shape="23"), "whole numbers"),
        (tensor(data_offsets=[-24, 0]), "whole numbers"),
        (tensor(data_offsets=[24, 0]), "differ"),
        (tensor(data_offsets=[0]), "cannot be read"),
        (tensor(dtype="F33"), "unknown dtype"),
        (tensor(dtype=["F32"]), "cannot be read"),
        (tensor(data_offsets=[8, 32]), "begins after a gap"),
        (GOOD | {"b": GOOD["a"]}, "overlaps another"),
        ({"a": None}, "cannot be read"),
        ([GOOD], "cannot be read"),
        ({"__metadata__": {"n": 1}}, "texts by name"),
        (b"\xff\xfe", "cannot be read"),
        (GOOD | {"b": {"dtype": "U8", "shape": [9], "data_offsets": [24, 33]}}, "must have .* bytes, got"),
    ],
)
def test_malformed_headers_are_faults_of_the_file(header: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        read_header(write(tmp_path, header), place="loras[0].path 'x'")


@pytest.mark.parametrize("length", [2**63, MAX_HEADER_BYTES + 1, 1000])
def test_a_header_that_is_longer_than_its_file_is_not_read(length: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cut short"):
        read_header(write(tmp_path, GOOD, length=length), place="x")
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="cut short at 0 bytes"):
        read_header(tmp_path / "empty", place="x")
