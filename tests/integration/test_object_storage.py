"""A store on S3: the same films as on a folder, through a network that drops, throttles, delays and truncates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from farm_process import farm
from s3_server import BUCKET, Harm, credentials, harmful_proxy, s3_server
from tiny_checkpoints import make_wan

from farm.errors import DamagedError, InputError
from farm.keys import make_task
from farm.models.checkpoint import find_checkpoint
from farm.models.fetch import local_folder
from farm.store.store import Store, artifact_path
from farm.task import EncodeText

TASK = make_task("encode", EncodeText("wan", "a ball", 8), extension="safetensors", label="a ball")
BOARD = "steps: 2\nsize: 48x32\nshots: [{id: a, prompt: a red ball rolls, frames: 21}]\n"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


def store_at(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    for key, value in credentials(url).items():
        monkeypatch.setenv(key, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    return Store(f"s3://{BUCKET}/{name}")


def test_a_bucket_keeps_the_first_artifact_and_sets_damaged_ones_aside(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(server, "one", monkeypatch)
    store.create()
    assert not store.has(TASK)
    assert store.put(TASK, b"first")["size"] == 5
    assert store.put(TASK, b"second!")["size"] == 5
    assert store.read(TASK) == b"first"
    store.publish(artifact_path(TASK), b"fir")
    with pytest.raises(DamagedError, match="set aside"):
        store.read(TASK)
    assert not store.has(TASK)
    assert len(store.names("damaged")) == 2
    store.put(TASK, b"first")
    assert store.read(TASK) == b"first"


def test_a_bucket_of_other_things_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store_at(server, "photos", monkeypatch).publish("holiday.jpg", b"x")
    with pytest.raises(InputError, match="holds other files"):
        store_at(server, "photos", monkeypatch).check()


def test_harm_on_the_way_costs_time_and_no_bytes(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harm = Harm(seed=0, fail=0.2, cut=0.1)
    with harmful_proxy(server, harm) as url:
        store = store_at(url, "harm", monkeypatch)
        store.create()
        tasks = [make_task("encode", EncodeText("wan", f"harm {i}", 8), extension="safetensors") for i in range(6)]
        for i, task in enumerate(tasks):
            assert not store.has(task)
            store.put(task, bytes([i]) * 5000)
        for i, task in enumerate(tasks):
            assert store.has(task)
            assert store.read(task) == bytes([i]) * 5000
    assert set(harm.count) >= {"503", "drop before", "drop after", "cut", "pass"}


@pytest.mark.slow
def test_a_film_on_a_bucket_through_a_bad_network_is_the_film_on_a_folder(server: str, tmp_path: Path) -> None:
    board = tmp_path / "film.yaml"
    board.write_text(BOARD)
    plain = farm("render", board, "--store", tmp_path / "store", "--out", tmp_path / "plain", "--json")
    assert plain.code == 0, plain.told
    with harmful_proxy(server, Harm(seed=1, fail=0.1, cut=0.05, delay_s=0.02)) as url:
        argv = ["render", board, "--store", f"s3://{BUCKET}/film", "--out", tmp_path / "far", "--json"]
        far = farm(*argv, **credentials(url))
        assert far.code == 0, far.told
        again = farm("plan", board, "--store", f"s3://{BUCKET}/film", "--json", **credentials(url))
    assert far.answer["film"] == str(tmp_path / "far")
    assert far.answer["shots"][0]["clip"].startswith(f"s3://{BUCKET}/film/films/")
    assert again.answer["tasks"]["reused"] == again.answer["tasks"]["total"]
    pictures = [sorted((tmp_path / name).glob("*.png")) for name in ("plain", "far")]
    assert len(pictures[0]) == 21
    assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]


def test_a_damaged_artifact_is_rendered_again(tmp_path: Path) -> None:
    board, store = tmp_path / "film.yaml", tmp_path / "store"
    board.write_text(BOARD)
    whole = farm("render", board, "--store", store, "--out", tmp_path / "a", "--json")
    assert whole.code == 0, whole.told
    latents = [
        p for p in (store / "artifacts").glob("*/*.json") if json.loads(p.read_text())["parts"]["kind"] == "Denoise"
    ]
    for record in latents:
        artifact = record.with_suffix(".safetensors")
        artifact.write_bytes(artifact.read_bytes()[:-7])
    for folder in ("frames", "films"):
        for path in sorted((store / folder).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    for record in (store / "artifacts").glob("*/*.json"):  # all that is made of them is gone as well
        if json.loads(record.read_text())["parts"]["stage"] == "assemble":
            record.unlink()
    done = farm("render", board, "--store", store, "--out", tmp_path / "b", "--json")
    assert done.code == 0, done.told
    assert len(list((store / "damaged").glob("*.record"))) == len(latents) == 2
    assert [p.read_bytes() for p in sorted((tmp_path / "a").glob("*.png"))] == [
        p.read_bytes() for p in sorted((tmp_path / "b").glob("*.png"))
    ]


def test_whatever_is_damaged_of_a_finished_film_is_mended_in_one_run(tmp_path: Path) -> None:
    board, store = tmp_path / "film.yaml", tmp_path / "store"
    board.write_text(BOARD)
    command = ("render", board, "--store", store, "--json", "--out")
    whole = farm(*command, tmp_path / "a")
    assert whole.code == 0, whole.told
    artifacts = [p for p in (store / "artifacts").glob("*/*") if p.suffix != ".json"]
    targets = [p for p in artifacts if json.loads(p.with_suffix(".json").read_text())["parts"]["stage"] == "assemble"]
    assert {p.suffix for p in targets} == {".mp4", ".jsonl", ".zip"}
    for path in (*targets, *(store / "frames").glob("*/*.mkv")):  # and what they would be made of
        path.write_bytes(path.read_bytes()[:-7])
    mended = farm(*command, tmp_path / "b")
    assert mended.code == 0, mended.told
    assert len(list((store / "damaged").glob("*.record"))) == len(targets) + 2
    for path in targets:  # of one artifact only the record is damaged
        record = path.with_suffix(".json")
        record.write_text(record.read_text()[:-20])
    again = farm(*command, tmp_path / "c")
    assert again.code == 0, again.told
    pictures = [[p.read_bytes() for p in sorted((tmp_path / name).glob("*.png"))] for name in "abc"]
    assert pictures[0] == pictures[1] == pictures[2]
    assert farm("store", "verify", "--store", store).code == 0


def test_a_model_in_a_bucket_is_fetched_component_by_component(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_wan(tmp_path / "wan")
    harm = Harm(fail=0.1, cut=0.05)
    with harmful_proxy(server, harm) as url:
        store = store_at(url, "models", monkeypatch)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            store.publish(f"wan/{path.relative_to(folder)}", path.read_bytes())
        origin = f"s3://{BUCKET}/models/wan"
        alone = local_folder(origin, ("vae",))
        assert {p.name for p in alone.iterdir() if p.is_dir()} == {"vae"}
        there = find_checkpoint(origin, beside=Path())
    assert there.fingerprints == find_checkpoint(str(folder), beside=Path()).fingerprints
