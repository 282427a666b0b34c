"""Models in a bucket: fetched once, as far as they are needed, anew where they have changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_server import COMMIT, hub_server
from tiny_checkpoints import make_wan

from farm.errors import InputError
from farm.models.checkpoint import check_fingerprints, find_checkpoint
from farm.models.fetch import local_folder
from farm.store.jobs import _checkpoint


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint behind a URI, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = make_wan(tmp_path / "bucket" / "wan")
    (folder / "whole.safetensors").write_bytes(b"x" * 1000)  # as hubs have beside the folders: not a component's
    (folder / "vae" / "model.bin").write_bytes(b"pickled")
    return folder


def test_a_model_in_a_bucket_is_the_one_in_a_folder(bucket: Path) -> None:
    uri = f"file://{bucket}"
    there = find_checkpoint(uri, beside=Path())
    assert there.fingerprints == find_checkpoint(str(bucket), beside=Path()).fingerprints
    assert there.place == uri
    assert there.folder != str(bucket)
    fetched = {str(p.relative_to(there.folder)) for p in Path(there.folder).rglob("*")}
    assert not fetched & {"whole.safetensors", "vae/model.bin"}
    import json
    from dataclasses import asdict

    assert _checkpoint(json.loads(json.dumps(asdict(there)))) == there


def test_a_replica_fetches_the_components_of_its_stage_once(bucket: Path) -> None:
    uri = f"file://{bucket}"
    folder = local_folder(uri, ("vae",))
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"vae"}
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_ino
    threads = [threading.Thread(target=local_folder, args=(uri, ("vae", "scheduler"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert weights.stat().st_ino == before
    assert {p.name for p in folder.iterdir() if p.is_dir()} == {"vae", "scheduler"}


def test_what_has_changed_is_fetched_anew_and_what_is_gone_goes(bucket: Path) -> None:
    uri = f"file://{bucket}"
    first = find_checkpoint(uri, beside=Path())
    other = make_wan(bucket.parent / "other", seed=1)
    shutil.copytree(other / "vae", bucket / "vae", dirs_exist_ok=True)
    os.remove(bucket / "tokenizer" / "tokenizer_config.json")
    again = find_checkpoint(uri, beside=Path())
    changed = {c for c in again.fingerprints if again.fingerprints[c] != first.fingerprints[c]}
    assert changed == {"vae", "tokenizer"}
    assert not (Path(again.folder) / "tokenizer" / "tokenizer_config.json").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file:///no/such/bucket", "could not be fetched"),
        ("nothing://bucket/wan", "could not be fetched: Protocol not known"),
        ("not a model", "must be a folder on this machine"),
    ],
)
def test_what_cannot_be_fetched_is_refused(bucket: Path, name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        local_folder(name)


def test_a_folder_is_itself(bucket: Path) -> None:
    assert local_folder(str(bucket), ("vae",)) == bucket


def test_a_list_that_was_cut_short_costs_a_fetch_and_no_more(bucket: Path) -> None:
    uri = f"file://{bucket}"
    folder = local_folder(uri, ("vae",))
    noted = folder / "fetched.json"
    whole = noted.read_text()
    noted.write_text(whole[: len(whole) // 2])
    assert local_folder(uri, ("vae",)) == folder
    assert noted.read_text() == whole


def test_a_model_that_changed_since_the_plan_is_refused(bucket: Path) -> None:
    checkpoint = find_checkpoint(f"file://{bucket}", beside=Path())
    planned = tuple(checkpoint.fingerprints.items())
    check_fingerprints(Path(checkpoint.folder), planned)
    shutil.copytree(make_wan(bucket.parent / "other", seed=1) / "vae", bucket / "vae", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"has changed where it lies since this was planned: vae"):
        check_fingerprints(local_folder(checkpoint.place), planned)


def test_a_model_of_the_hub_is_pinned_to_its_commit_and_fetched_component_by_component(tmp_path: Path) -> None:
    folder = make_wan(tmp_path / "wan")
    (folder / "whole.safetensors").write_bytes(b"x" * 1000)
    (folder / "vae" / "model.bin").write_bytes(b"pickled")
    code = """if True:
        import sys
        from pathlib import Path
        from farm.models.checkpoint import find_checkpoint
        from farm.models.fetch import local_folder
        first = local_folder("org/wan@v1", ("vae",))
        print(sorted(p.name for p in first.iterdir()), flush=True)
        there = find_checkpoint("org/wan@v1", beside=Path())
        same = find_checkpoint(sys.argv[1], beside=Path())
        assert there.fingerprints == same.fingerprints
        print(there.place)
    """
    with hub_server(folder, "org/wan") as hub:
        environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }  # fmt: skip
        told = subprocess.run(
            [sys.executable, "-c", code, str(folder)], env=environment, text=True, capture_output=True, timeout=100
        )
    assert told.returncode == 0, told.stderr
    listed, place = told.stdout.splitlines()
    assert listed == "['model_index.json', 'vae']"
    assert place == f"org/wan@{COMMIT}"
    assert "v1" in hub.revisions
    weights = "vae/diffusion_pytorch_model.safetensors"
    assert hub.served[weights] == 1
    assert not {"whole.safetensors", "vae/model.bin"} & set(hub.served)
