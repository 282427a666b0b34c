"""A batch as its users run it: every row ends once, whatever is wrong with others and whoever dies."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from emulated_cluster import emulated_cluster
from farm_process import Done, farm, finish, kill, start_farm, wait_until

from farm.store.journal import Journal, Owner, read_attempts, read_standing, take_lease
from farm.store.store import Store

TEMPLATE = """\
title: "{name}"
size: 64x48
fps: 8
steps: 4
seed: "{seed}"
shots:
  - {id: one, prompt: "a {colour} ball rolls over grass", frames: 9}
"""
POOLS = """\
pools:
  denoise: {stages: [encode, denoise], replicas: {min: 1, max: 1}}
  media: {stages: [decode, interpolate, upscale, assemble], replicas: {min: 1, max: 1}}
"""


def write(folder: Path, rows: list[dict[str, Any]]) -> tuple[str | Path, ...]:
    """The files of a batch; returns its command."""
    (folder / "films.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "template.yaml").write_text(TEMPLATE)
    (folder / "pools.yaml").write_text(POOLS)
    return ("batch", folder / "films.jsonl", "--template", folder / "template.yaml", "--pools", folder / "pools.yaml",
            "--store", folder / "store", "--results", folder / "results", "--json")  # fmt: skip


def results(folder: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(p) for p in sorted((folder / "results").glob("*.parquet"))]
    return sorted((row for t in tables for row in t.to_pylist()), key=lambda r: r["row"])


def rows_of(count: int) -> list[dict[str, Any]]:
    colours = ["red", "blue", "green", "yellow"]
    return [{"name": f"film {i}", "seed": i, "colour": colours[i % 4]} for i in range(count)]


@pytest.mark.timeout(400)
def test_a_bad_row_fails_alone_and_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    rows = rows_of(3)
    rows.insert(1, {**rows[0], "seed": -5})
    rows.append(rows[0])  # the same film again
    for i, row in enumerate(rows):
        row["lot"] = f"lot {i}"
    command = write(tmp_path, rows)
    done = farm(*command, timeout_s=300)
    assert done.code == 3, done.told
    told = results(tmp_path)
    assert [r["lot"] for r in told] == [row["lot"] for row in rows]
    (warning,) = done.answer["warnings"]
    assert warning["message"].endswith("template.yaml does not use: lot")
    assert [r["status"] for r in told] == ["completed", "refused", "completed", "completed", "completed"]
    assert "seed" in told[1]["error"]
    assert (told[0]["job"], told[0]["film_s"]) == (told[4]["job"], 9 / 8)
    assert all(Path(r["film"]).is_file() for r in told if r["status"] == "completed")
    store = Store(str(tmp_path / "store"))
    tries = [a for job in {r["job"] for r in told} - {""} for a in read_attempts(store, job)]
    assert sum(a.stage == "denoise" for a in tries) == 3
    assert len({a.task for a in tries if a.stage == "encode"}) == 4  # three prompts and the empty one
    again = farm(*command, timeout_s=100)
    assert (again.code, results(tmp_path)) == (3, told)
    assert again.answer["completed"] == 4


def test_a_batch_that_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    command = write(tmp_path, [{"name": "one"}])
    done = farm(*command)
    assert done.code == 2
    assert "must be a column" in done.told
    assert not (tmp_path / "store").exists()
    for more in (("--max-open", "0"), ("--priority", "101")):
        assert farm(*write(tmp_path, rows_of(1)), *more).code == 2


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_film_that_a_dead_controller_of_another_farm_holds_is_taken_over(tmp_path: Path) -> None:
    command = write(tmp_path, rows_of(1))
    assert farm(*command, timeout_s=200).code == 0
    (first,) = results(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    command = write(other, rows_of(1))
    store = Store(str(other / "store"))
    store.create()
    journal = take_lease(store, first["job"], Owner("elsewhere", "another-host", 1), now=time.time)
    assert isinstance(journal, Journal)
    journal.move("submit", "")
    assert farm(*command, timeout_s=200).code == 0
    assert [(r["job"], r["status"]) for r in results(other)] == [(first["job"], "completed")]
    assert read_standing(store, first["job"]).fence > journal.fence


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forty_rows_whose_driver_dies_twice(tmp_path: Path) -> None:
    command = write(tmp_path, rows_of(40))
    with emulated_cluster([{"num_cpus": 4}]) as cluster:
        told: list[Done] = []
        for at_least, number in ((5, signal.SIGKILL), (15, signal.SIGTERM)):
            process = start_farm(*command, "--address", cluster.address)
            tree = psutil.Process(process.pid)  # the controller renders without the driver, too
            wait_until(
                "the driver to connect", lambda tree=tree: any(p.net_connections() for p in tree.children()),
                timeout_s=60, during=process,
            )  # fmt: skip
            wanted = max(at_least, len(list(tmp_path.glob("store/films/*/film.mp4"))) + 3)
            wait_until(
                f"{wanted} films", lambda n=wanted: len(list(tmp_path.glob("store/films/*/film.mp4"))) >= n,
                timeout_s=300,
            )  # fmt: skip
            if number == signal.SIGKILL:
                kill(process)
            else:
                process.send_signal(number)
                told.append(finish(process, timeout_s=60))
                assert told[0].code == 130, (told[0].code, told[0].told)
        done = farm(*command, "--address", cluster.address, timeout_s=500)
    assert done.code == 0, done.told
    rows = results(tmp_path)
    assert [r["row"] for r in rows] == list(range(40))
    assert {r["status"] for r in rows} == {"completed"}
    store = Store(str(tmp_path / "store"))
    tries = [a for r in rows for a in read_attempts(store, r["job"]) if a.stage == "denoise"]
    assert len({a.task for a in tries if a.outcome == "succeeded"}) == 40
    assert sum(a.outcome == "succeeded" for a in tries) == 40  # the controller went on; nothing was done twice
