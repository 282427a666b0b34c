"""A manifest: many films as rows, and the template storyboard that they fill in.

Parquet, JSON lines and CSV are tables of columns; a folder of storyboards is a manifest of one column. In a template a
text may hold `{column}`. A text that is nothing else takes the column's value as it is, a number as a number, and its
key is left out where the row has none; anywhere else the value is written into the text. `{{` and `}}` are braces.
"""

from __future__ import annotations

import csv
import io
import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.parquet as pq
import yaml

from farm.document import Loader, read_document
from farm.errors import InputError, Problem

STORYBOARD = "storyboard"  # the column of a whole storyboard, where there is no template
MAX_BYTES = 2**30
KINDS = (".parquet", ".jsonl", ".csv")
ABSENT: Any = object()


@dataclass(frozen=True)
class Row:
    """One film: its number, from 0, and its columns. `place` is where it comes from, for people."""

    number: int
    values: Mapping[str, Any]
    place: str
    is_text: bool = False  # CSV: numbers come as texts


def read_manifest(uri: str) -> list[Row]:
    """All rows of a manifest, in order.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        if fs.isdir(path):
            return _read_folder(fs, path, uri)
        if not path.endswith(KINDS):
            raise InputError(f"a manifest must be a folder of storyboards or end in {', '.join(KINDS)}, got {uri!r}")
        data = fs.cat_file(path)
    except FileNotFoundError:
        raise InputError(f"there is no manifest {uri!r}") from None
    except (OSError, ValueError, ImportError) as e:
        raise InputError(f"the manifest {uri!r} cannot be read: {e}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"a manifest must have at most {MAX_BYTES >> 20} MiB, got {len(data) >> 20}")
    rows = _rows_of(data, path.rsplit(".", 1)[-1], uri)
    if not rows:
        raise InputError(f"the manifest {uri!r} has no rows")
    return [Row(i, values, f"{uri}: row {i}", path.endswith(".csv")) for i, values in enumerate(rows)]


def _read_folder(fs: Any, path: str, uri: str) -> list[Row]:
    names = sorted(str(n) for n in fs.ls(path, detail=False) if str(n).endswith((".yaml", ".yml")))
    if not names:
        raise InputError(f"the folder {uri!r} must hold storyboards (*.yaml), and holds none")
    return [Row(i, {STORYBOARD: fs.cat_file(n).decode("utf-8-sig", "replace")}, n) for i, n in enumerate(names)]


def _rows_of(data: bytes, kind: str, uri: str) -> list[dict[str, Any]]:
    try:
        if kind == "parquet":
            rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
            return rows
        text = data.decode("utf-8-sig")
        if kind == "csv":
            return [dict(row) for row in csv.DictReader(io.StringIO(text), strict=True)]
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, OSError, csv.Error) as e:
        raise InputError(f"the manifest {uri!r} cannot be read: {e}") from None
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"the manifest {uri!r} must have a JSON object on each line, got {row!r} in row {i}")
    return rows


class Template:
    """A storyboard with columns in braces."""

    def __init__(self, raw: bytes, *, file: str) -> None:
        """Raises:
        InputError: it is no YAML.
        """
        document = read_document(raw, file=file)
        if document.problems:
            raise InputError(*document.problems)
        self.data, self.file = document.data, file

    def fill(self, row: Row) -> str:
        """The row's storyboard.

        Raises:
            InputError: the template names a column that the row lacks, or holds a lone brace.
        """
        return json.dumps(
            _filled(self.data, row), ensure_ascii=False, indent=1
        )  # which is YAML, and reads as it is meant


def storyboard_of(row: Row, template: Template | None) -> str:
    """A row's storyboard: the template's, else its own column.

    Raises:
        InputError: see `Template.fill`; or there is neither.
    """
    if template is not None:
        return template.fill(row)
    text = row.values.get(STORYBOARD)
    if not isinstance(text, str):
        told = f"a manifest without --template must have a column {STORYBOARD!r}; this one has {', '.join(row.values)}"
        raise InputError(Problem(told, file=row.place))
    return text


def _filled(value: Any, row: Row) -> Any:
    if isinstance(value, dict):
        filled = {key: _filled(item, row) for key, item in value.items()}
        return {key: item for key, item in filled.items() if item is not ABSENT}
    if isinstance(value, list):
        return [item for item in (_filled(v, row) for v in value) if item is not ABSENT]
    return _text(value, row) if isinstance(value, str) else value


def _text(text: str, row: Row) -> Any:
    try:
        parts = [
            (literal, name, spec, conversion) for literal, name, spec, conversion in string.Formatter().parse(text)
        ]
    except ValueError as e:
        told = f"the template's {text[:60]!r} must have pairs of braces, {{{{ and }}}} for braces: {e}"
        raise InputError(Problem(told, file=row.place)) from None
    if not any(name is not None for _, name, _, _ in parts):
        return "".join(literal for literal, _, _, _ in parts)
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion or name not in row.values):
            known = ", ".join(row.values)
            raise InputError(Problem(f"the template's {{{name}}} must be a column: {known}", file=row.place))
    if len(parts) == 1 and not parts[0][0]:
        value = row.values[str(parts[0][1])]
        return ABSENT if value is None or value == "" else _number(value) if row.is_text else value
    return "".join(literal + ("" if name is None else _plain(row.values[name])) for literal, name, _, _ in parts)


def _number(text: Any) -> Any:
    """A text of CSV that is a number in a storyboard is one here."""
    try:
        read = yaml.load(text, Loader=Loader)  # plain scalars of YAML 1.2 alone
    except yaml.YAMLError:
        return text
    return read if isinstance(read, int | float) and not isinstance(read, bool) else text


def _plain(value: Any) -> str:
    return "" if value is None else str(value)
