"""How the rows of a manifest ended: Parquet files in a folder, a line a row."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from farm.film.manifest import STORYBOARD, Row

FLUSH_S, FLUSH_ROWS = 10.0, 200
OWN = pa.schema(
    [("row", pa.int64()), ("status", pa.string()), ("job", pa.string()), ("film", pa.string())]
    + [(name, pa.float64()) for name in ("film_s", "wall_s", "gpu_s", "cost")]
    + [(name, pa.string()) for name in ("error", "storyboard", "warnings")]
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How a row ended: completed, failed, canceled, or refused, which is bad input; seconds of film, of waiting and of
    GPUs; which storyboard it was, by its hash: a row whose storyboard has changed since has no result."""

    row: int
    status: str
    job: str = ""
    film: str = ""
    film_s: float = 0.0
    wall_s: float = 0.0
    gpu_s: float = 0.0
    cost: float = 0.0
    error: str = ""
    storyboard: str = ""
    warnings: str = ""


class Results:
    """Parquet files in a folder, each written whole; of two lines of one row the later counts.

    The manifest's own columns follow ours, so that a result needs no join; one that has the name of ours is called
    `manifest_NAME`. Its column of whole storyboards is left out.
    """

    def __init__(self, uri: str, rows: Sequence[Row]) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(uri)
        self.uri, self.rows, self.flushed_at = uri, list[Result](), time.monotonic()
        self.manifest = {row.number: row.values for row in rows}
        self.columns = columns_of(rows)
        self.num_parts = 0  # that this process has written
        self.schema = pa.schema([*OWN, *(pa.field(name, kind) for name, kind in self.columns.values())])

    def done(self) -> dict[tuple[int, str], str]:
        """The status of each row that has a result, by its number and its storyboard's hash."""
        try:
            names = [n for n in self.fs.ls(self.root, detail=False) if str(n).endswith(".parquet")]
        except FileNotFoundError:
            return {}
        columns = ["row", "storyboard", "status"]
        tables = [pq.read_table(io.BytesIO(self.fs.cat_file(n)), columns=columns) for n in sorted(names)]
        return {(r["row"], r["storyboard"]): r["status"] for t in tables for r in t.to_pylist()}

    def flush_in_time(self) -> None:
        if len(self.rows) >= FLUSH_ROWS or time.monotonic() - self.flushed_at > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        self.flushed_at = time.monotonic()
        if not self.rows:
            return
        buffer = io.BytesIO()
        lines = [asdict(r) | self._of_manifest(r.row) for r in self.rows]
        pq.write_table(pa.Table.from_pylist(lines, schema=self.schema), buffer)
        part = f"{int(time.time() * 1000):015d}-{os.getpid()}-{self.num_parts:06d}"  # several in a millisecond, too
        name = f"{self.root}/part-{part}.parquet"
        self.num_parts += 1
        self.fs.makedirs(self.root, exist_ok=True)
        self.fs.pipe_file(f"{name}.part", buffer.getvalue())
        self.fs.mv(f"{name}.part", name)
        self.rows.clear()

    def _of_manifest(self, row: int) -> dict[str, Any]:
        values = {str(name): value for name, value in self.manifest[row].items()}
        return {
            name: _as_text(values.get(column)) if kind == pa.string() else values.get(column)
            for column, (name, kind) in self.columns.items()
        }


def columns_of(rows: Sequence[Row]) -> dict[str, tuple[str, pa.DataType]]:
    """The manifest's own columns, what they are called in results, and their types: text where values differ."""
    found: dict[str, tuple[str, pa.DataType]] = {}
    for column in dict.fromkeys(str(c) for row in rows for c in row.values):
        if column == STORYBOARD:
            continue
        try:
            kind = pa.array([{str(k): v for k, v in row.values.items()}.get(column) for row in rows]).type
            pq.write_table(pa.table({"x": pa.nulls(0, kind)}), io.BytesIO())  # not all that can be held can be kept
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            kind = pa.string()
        name = f"manifest_{column}" if column in OWN.names else column
        found[column] = (name, pa.string() if pa.types.is_null(kind) else kind)
    return found


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()  # half of a pair, which JSON can hold
