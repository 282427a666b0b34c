"""Results of a batch: a line a row, with the manifest's own columns as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from farm.film.manifest import Row, Template, unused_columns
from farm.store.results import Result, Results


def test_results_carry_the_manifests_own_columns_with_their_types(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"scene": "a", "take": 1, "row": 7, "mixed": 1, "tags": ["x"], "none": None, "storyboard": "shots: []"},
        {"scene": "b", "take": None, "row": 8, "mixed": "two", "tags": [], "none": None, "storyboard": "shots: []"},
    ]
    results = Results(str(tmp_path), [Row(i, v, "m") for i, v in enumerate(values)])
    results.rows.append(Result(1, "completed", "j", storyboard="h"))
    results.flush()
    results.rows.append(Result(0, "failed", error="no", storyboard="h"))
    results.flush()
    tables = [pq.read_table(p) for p in sorted(tmp_path.glob("*.parquet"))]
    assert tables[0].schema == tables[1].schema
    (second,), (first,) = (t.to_pylist() for t in tables)
    assert {k: first[k] for k in ("row", "status", "error", "scene", "take", "manifest_row", "mixed", "tags")} == {
        "row": 0, "status": "failed", "error": "no", "scene": "a", "take": 1, "manifest_row": 7, "mixed": "1",
        "tags": ["x"],
    }  # fmt: skip
    assert (second["take"], second["mixed"], second["none"], second["storyboard"]) == (None, "two", None, "h")
    odd = [Row(0, {"a": {}, "b": [{}], "c": "\ud800"}, "m"), Row(1, {"a": {}, "b": [], "c": "x"}, "m")]
    of_odd = Results(str(tmp_path / "odd"), odd)
    of_odd.rows += [Result(0, "completed"), Result(1, "completed")]
    of_odd.flush()
    (table,) = [pq.read_table(p).to_pylist() for p in (tmp_path / "odd").glob("*.parquet")]
    assert [(row["a"], row["b"], row["c"]) for row in table] == [("{}", "[{}]", "?"), ("{}", "[]", "x")]
    assert results.done() == {(1, "h"): "completed", (0, "h"): "failed"}


def test_columns_that_no_film_is_made_of_are_found(tmp_path: Path) -> None:
    rows = [Row(0, {"colour": "red", "sed": 1, "lot": 2}, "m"), Row(1, {"colour": "red", "note": "x"}, "m")]
    raw = b"title: '{lot} {{sed}}'\nshots: [{id: a, prompt: 'a {colour} ball', frames: 5}]\n"
    assert unused_columns(rows, Template(raw, file="t.yaml")) == ["sed", "note"]
    assert unused_columns([Row(0, {"storyboard": "", "lot": 1}, "m")], None) == ["lot"]
