"""A manifest: many films as rows, and the template storyboard that they fill in.

Parquet, JSON lines and CSV (with commas, semicolons or tabs) are tables of columns; a folder of storyboards is a
manifest of one column. In a template a text may hold `{column}`. A text that is nothing else takes the column's value
as it is, a number as a number, and its key is left out where the row has none; anywhere else the value is written
into the text. `{{` and `}}` are braces.
"""

from __future__ import annotations

import csv
import io
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
DELIMITERS = (",", ";", "\t")
DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
ABSENT: Any = object()


@dataclass(frozen=True)
class Row:
    """One film: its number, from 0, and its columns. `place` is where it comes from, for people."""

    number: int
    values: Mapping[str, Any]
    place: str
    is_text: bool = False  # CSV: numbers come as texts
    fault: str = ""  # why it cannot be used: it has too few fields, or too many
    has_decimal_commas: bool = False


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
    kind = path.rsplit(".", 1)[-1]
    rows = _csv_rows(data, uri) if kind == "csv" else _rows_of(data, kind, uri)
    if not rows:
        raise InputError(f"the manifest {uri!r} has no rows")
    return rows


def _read_folder(fs: Any, path: str, uri: str) -> list[Row]:
    names = sorted(str(n) for n in fs.ls(path, detail=False) if str(n).endswith((".yaml", ".yml")))
    if not names:
        raise InputError(f"the folder {uri!r} must hold storyboards (*.yaml), and holds none")
    return [Row(i, {STORYBOARD: fs.cat_file(n).decode("utf-8-sig", "replace")}, n) for i, n in enumerate(names)]


def _rows_of(data: bytes, kind: str, uri: str) -> list[Row]:
    """Of Parquet and of JSON lines, which end in line feeds alone: U+2028 may stand inside a text."""
    try:
        if kind == "parquet":
            found: list[Any] = pq.read_table(io.BytesIO(data)).to_pylist()
        else:
            found = [json.loads(line) for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    except (ValueError, OSError) as e:
        raise InputError(f"the manifest {uri!r} cannot be read: {e}") from None
    for i, row in enumerate(found):
        if not isinstance(row, dict):
            raise InputError(f"the manifest {uri!r} must have a JSON object on each line, got {row!r} in row {i}")
    return [Row(i, values, f"{uri}: row {i}") for i, values in enumerate(found)]


def _csv_rows(data: bytes, uri: str) -> list[Row]:
    """Of a table as spreadsheets save it: commas, semicolons or tabs, whichever the first line has most of."""
    try:
        text = data.decode("utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=head.count)  # the first of equals
        lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        columns, *rows = [line for line in lines if line] or [[]]
    except (ValueError, csv.Error) as e:
        raise InputError(f"the manifest {uri!r} cannot be read: {e}") from None
    if twice := sorted({c for c in columns if columns.count(c) > 1}):
        raise InputError(f"the manifest {uri!r} must have columns of different names, got {twice[0]!r} twice")
    made = []
    for i, fields in enumerate(rows):
        fault = ""
        if len(fields) != len(columns):
            fault = f"must have {len(columns)} fields ({', '.join(columns)}), got {len(fields)}"
        values = dict(zip(columns, fields, strict=False))
        made.append(Row(i, values, f"{uri}: row {i}", True, fault, has_decimal_commas=delimiter != ","))
    return made


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
        self.columns = frozenset(_names(self.data))

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
    if row.fault:
        raise InputError(Problem(f"the row {row.fault}", file=row.place))
    if template is not None:
        return template.fill(row)
    text = row.values.get(STORYBOARD)
    if not isinstance(text, str):
        told = f"a manifest without --template must have a column {STORYBOARD!r}; this one has {', '.join(row.values)}"
        raise InputError(Problem(told, file=row.place))
    return text


def unused_columns(rows: Sequence[Row], template: Template | None) -> list[str]:
    """The columns of a manifest that no film is made of."""
    used = {STORYBOARD} if template is None else template.columns
    return [c for c in dict.fromkeys(str(c) for row in rows for c in row.values) if c not in used]


def _names(value: Any) -> Iterator[str]:
    """The columns that a template names."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _names(item)
    elif isinstance(value, str):
        with suppress(ValueError):  # a lone brace, which filling it refuses
            yield from (name for _, name, _, _ in string.Formatter().parse(value) if name)


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
        return ABSENT if value is None or value == "" else _number(value, row) if row.is_text else value
    return "".join(literal + ("" if name is None else _plain(row.values[name])) for literal, name, _, _ in parts)


def _number(text: Any, row: Row) -> Any:
    """A text of CSV that is a number in a storyboard is one here; with a decimal comma where commas part no fields."""
    if row.has_decimal_commas and DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        read = yaml.load(text, Loader=Loader)  # plain scalars of YAML 1.2 alone
    except yaml.YAMLError:
        return text
    return read if isinstance(read, int | float) and not isinstance(read, bool) else text


def _plain(value: Any) -> str:
    return "" if value is None else str(value)
