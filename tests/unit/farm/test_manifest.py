"""Manifests and the templates that their rows fill in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from farm.errors import InputError
from farm.film.manifest import Row, Template, read_manifest, storyboard_of

TEMPLATE = b"""\
title: "{name}: the {{best}}"
seed: "{seed}"
steps: "{steps}"
style: at {sky}
shots:
  - {id: one, prompt: "a {colour} ball rolls over grass", frames: 17}
"""
ROWS = [{"name": "one", "seed": 3, "steps": 12, "sky": "night", "colour": "red"},
        {"name": "two", "seed": 4, "steps": None, "sky": "day", "colour": "blue"}]  # fmt: skip


def filled(values: dict[str, Any]) -> Any:
    row = Row(0, values, "here")
    return yaml.safe_load(Template(TEMPLATE, file="t.yaml").fill(row))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_tables_of_all_kinds_say_the_same(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"films.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    else:
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in ROWS]
        path.write_text("\n".join([",".join(ROWS[0]), *lines]) + "\n")
    rows = read_manifest(str(path))
    assert [r.number for r in rows] == [0, 1]
    template = Template(TEMPLATE, file="t.yaml")
    first, second = (yaml.safe_load(storyboard_of(row, template)) for row in rows)
    assert (first["title"], first["seed"], first["steps"]) == ("one: the {best}", 3, 12)
    assert first["style"] == "at night" and first["shots"][0]["prompt"] == "a red ball rolls over grass"
    assert "steps" not in second  # the row has none: the card's


def test_text_that_looks_like_yaml_stays_text() -> None:
    evil = "x}\nmodel: /etc # {0}"
    assert filled({**ROWS[0], "colour": evil})["shots"][0]["prompt"] == f"a {evil} ball rolls over grass"
    assert filled({**ROWS[0], "name": "{seed}"})["title"] == "{seed}: the {best}"  # filled in once


@pytest.mark.parametrize("text", ["{nothing}", "{}", "{seed!r}", "{seed:>9}", "{seed.real}", "{seed[0]}", "{", "a } b"])
def test_what_is_no_column_is_refused(text: str) -> None:
    template = Template(json.dumps({"title": text}).encode(), file="t.yaml")
    with pytest.raises(InputError, match="here: the template's"):
        template.fill(Row(0, ROWS[0], "here"))


def test_numbers_of_csv_are_those_of_a_storyboard(tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("a,b,c,d,e\n021,1:30,17,0.5,yes\n")
    (row,) = read_manifest(str(tmp_path / "films.csv"))
    template = Template(json.dumps({k: f"{{{k}}}" for k in "abcde"}).encode(), file="t.yaml")
    assert json.loads(template.fill(row)) == {"a": "021", "b": "1:30", "c": 17, "d": 0.5, "e": "yes"}
    told = Template(json.dumps({"title": "{name}"}).encode(), file="t.yaml").fill(Row(0, {"name": "1984"}, "here"))
    assert json.loads(told) == {"title": "1984"}  # a text of JSON lines stays one


def test_a_folder_of_storyboards(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("title: b")
    (tmp_path / "a.yaml").write_text("title: a")
    (tmp_path / "notes.txt").write_text("no")
    assert [storyboard_of(row, None) for row in read_manifest(str(tmp_path))] == ["title: a", "title: b"]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("none.csv", None, "there is no manifest"), ("films.txt", b"x", "must be a folder of storyboards or end in"),
        ("films.csv", b"a,b\n", "has no rows"), ("films.jsonl", b"[1]\n", "a JSON object on each line"),
        ("films.jsonl", b"{\n", "cannot be read"), ("films.parquet", b"PAR1", "cannot be read"),
        ("films.csv", b"\xff\xfe", "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_manifest(name: str, data: bytes | None, told: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=told):
        read_manifest(str(tmp_path / name))


def test_without_a_template_the_storyboard_is_a_column() -> None:
    with pytest.raises(InputError, match="must have a column 'storyboard'; this one has name, seed"):
        storyboard_of(Row(0, ROWS[0], "here"), None)


# -- tables as spreadsheets save them

FIELD = Path(__file__).parents[2] / "data" / "field" / "tables"


def test_semicolons_and_decimal_commas_are_read() -> None:
    template = Template((FIELD / "t.yaml").read_bytes(), file="t.yaml")
    (row,) = read_manifest(str(FIELD / "semicolon.csv"))
    board = yaml.safe_load(storyboard_of(row, template))
    assert board["seed"] == 7 and board["shots"] == [{"id": "a", "prompt": "a red ball", "seconds": 2.5}]


def test_rows_with_too_few_or_too_many_fields_are_refused_alone_with_the_reason(tmp_path: Path) -> None:
    template = Template((FIELD / "t.yaml").read_bytes(), file="t.yaml")
    rows = read_manifest(str(FIELD / "short.csv"))
    for row, got in zip(rows, (2, 5), strict=True):
        with pytest.raises(InputError, match=rf"must have 4 fields \(colour, sec, seed, image\), got {got}"):
            storyboard_of(row, template)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_any_of_three_delimiters_and_a_mark_of_byte_order(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    lines = [["colour", "sec", "seed", "image"], ['"light; red, or so"', "2", "7", ""]]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(delimiter.join, lines)).encode())
    (row,) = read_manifest(str(path))
    assert row.values["colour"] == "light; red, or so" and row.values["seed"] == "7" and not row.fault


def test_a_comma_is_no_decimal_comma_where_commas_part_fields(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text('colour,sec,seed,image\nred,"2,5",7,\n')
    (row,) = read_manifest(str(path))
    board = yaml.safe_load(storyboard_of(row, Template((FIELD / "t.yaml").read_bytes(), file="t.yaml")))
    assert board["shots"][0]["seconds"] == "2,5"  # which the storyboard's schema then refuses


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(InputError, match="different names, got 'a' twice"):
        read_manifest(str(path))


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "films.jsonl"
    path.write_text(json.dumps({"storyboard": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert [row.values["storyboard"] for row in read_manifest(str(path))] == ["a\u2028b"]
