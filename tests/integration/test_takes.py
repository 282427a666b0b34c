"""Long takes through Ray: streams, context, pictures and transitions have the same bits whoever renders them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from farm_process import farm, finish, replicas_of, start_farm, wait_for_checkpoint, wait_until
from PIL import Image

BOARD = """\
title: Takes
size: 64x48
fps: 8
steps: 3
shots:
  - {id: one, prompts: [{at: 0, prompt: a red ball rolls}, {at: 2, prompt: a blue cube rolls}], seconds: 5}
  - {id: two, prompt: a green car, image: picture.png, frames: 30, transition: {kind: crossfade, seconds: 0.5},
     continuity: {context: frames}}
  - {id: three, prompt: a white cone floats, continue_from: one, frames: 25, transition: {kind: wipeup, seconds: 1}}
"""
NUM_DELIVERED = 40 + 30 + 25 - 4 - 8


def write_board(folder: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / "picture.png")
    board = folder / "film.yaml"
    board.write_text(BOARD)
    return board


def frames_of(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(folder.glob("*.png"))]


def write_pools(folder: Path, replicas: int) -> Path:
    pools, bounds = folder / f"pools{replicas}.yaml", f"replicas: {{min: {replicas}, max: {replicas}}}"
    options = f"{bounds}, checkpoint: {{seconds: 0, steps: 20}}"
    pools.write_text(f"pools: {{all: {{stages: [encode, denoise, decode, assemble], {options}}}}}\n")
    return pools


def test_takes_have_the_same_bits_on_one_replica_and_on_three(tmp_path: Path) -> None:
    board, made = write_board(tmp_path), []
    for replicas in (1, 3):
        store, out = tmp_path / f"store{replicas}", tmp_path / f"frames{replicas}"
        options = ("--store", store, "--pools", write_pools(tmp_path, replicas), "--out", out, "--json")
        done = farm("render", board, *options)
        assert done.code == 0, done.told
        assert done.answer["frames"] == NUM_DELIVERED
        assert [s["chunks"] for s in done.answer["shots"]] == [3, 3, 2]
        made.append(frames_of(out))
    assert len(made[0]) == NUM_DELIVERED
    assert made[0] == made[1]
    (tmp_path / "picture.png").unlink()  # the store has it
    again = farm("plan", board, "--store", tmp_path / "store1", "--json")
    assert again.code == 2
    assert again.answer["errors"][0]["key"] == "shots[1].image"


BLENDED = """\
title: One long take
model: {model}
size: 64x48
steps: 40
continuity: {{mode: blend, chunk_frames: 9, overlap_frames: 5}}
shots:
  - {{id: one, prompt: a red ball rolls, frames: 61}}
"""


def lent(store: Path) -> int:
    """How many slices were predicted by other replicas than the owner."""
    rows = [json.loads(p.read_text()) for p in store.glob("jobs/*/attempts/*.json")]
    return sum(row["info"].get("slices_given", 0) for row in rows)


def test_a_blended_take_has_the_same_bits_alone_and_with_helpers(tiny_wan: Path, tmp_path: Path) -> None:
    board, made = tmp_path / "film.yaml", []
    board.write_text(BLENDED.format(model=tiny_wan))
    for replicas in (1, 3):
        store, out = tmp_path / f"store{replicas}", tmp_path / f"frames{replicas}"
        options = ("--store", store, "--pools", write_pools(tmp_path, replicas), "--out", out, "--json")
        done = farm("render", board, *options)
        assert done.code == 0, done.told
        assert done.answer["shots"][0]["chunks"] == 14
        assert len(done.answer["seams"]) == 13
        made.append(frames_of(out))
        assert (lent(store) > 0) == (replicas > 1)
    assert len(made[0]) == 61
    assert made[0] == made[1]


@pytest.mark.slow
def test_a_helper_that_is_killed_costs_its_slices_of_a_step(tiny_wan: Path, tmp_path: Path) -> None:
    board, pools = tmp_path / "film.yaml", write_pools(tmp_path, 3)
    board.write_text(BLENDED.format(model=tiny_wan).replace("steps: 40", "steps: 120"))
    whole = farm("render", board, "--store", tmp_path / "whole", "--pools", pools, "--out", tmp_path / "a", "--json")
    assert whole.code == 0, whole.told
    process = start_farm(
        "render", board, "--store", tmp_path / "store", "--pools", pools, "--out", tmp_path / "b", "--json"
    )
    wait_for_checkpoint(tmp_path / "store", process)
    min(replicas_of(process), key=lambda p: p.cpu_times().user).kill()
    done = finish(process)
    assert done.code == 0, done.told
    assert frames_of(tmp_path / "a") == frames_of(tmp_path / "b")


@pytest.mark.slow
def test_a_replica_that_is_killed_in_a_take_costs_no_bits(tmp_path: Path) -> None:
    board, pools = write_board(tmp_path), write_pools(tmp_path, 2)
    whole = farm("render", board, "--store", tmp_path / "whole", "--pools", pools, "--out", tmp_path / "a", "--json")
    assert whole.code == 0, whole.told
    store = tmp_path / "store"
    process = start_farm("render", board, "--store", store, "--pools", pools, "--out", tmp_path / "b", "--json")
    made = store / "artifacts"
    wait_until("some chunks to be denoised", lambda: len(list(made.glob("*/*.safetensors"))) > 6, during=process)
    replicas_of(process)[0].kill()
    done = finish(process)
    assert done.code == 0, done.told
    assert done.answer["tasks"]["run"] == whole.answer["tasks"]["run"]
    assert frames_of(tmp_path / "a") == frames_of(tmp_path / "b")


def test_tries_that_are_not_needed_count_as_reused_and_a_shot_has_its_own_model(tiny_wan: Path, tmp_path: Path) -> None:
    board, store = tmp_path / "film.yaml", tmp_path / "store"
    board.write_text(f"""\
size: 64x48
fps: 8
steps: 2
output: {{fps: 20, interpolate: flow}}
shots:
  - {{id: one, prompt: a red ball rolls, frames: 25, continuity: {{max_seam: 100, rerolls: 2}}}}
  - {{id: two, prompt: a blue cube, frames: 9, model: {tiny_wan}}}
""")
    done = farm("render", board, "--store", store, "--out", tmp_path / "a", "--json")
    assert done.code == 0, done.told
    tasks = done.answer["tasks"]
    assert tasks["run"] + tasks["reused"] == tasks["total"]
    assert tasks["reused"] == 2 * 3 + 1  # two more tries at the second chunk; latents that no chunk goes on from
    assert "interpolate" in done.answer["stage_s"]
    assert len(frames_of(tmp_path / "a")) == done.answer["frames"] == 63 + 23
    again = farm("render", board, "--store", store, "--out", tmp_path / "b", "--json")
    assert again.answer["tasks"]["run"] == 0
    assert again.answer["job"] == done.answer["job"]
    assert frames_of(tmp_path / "a") == frames_of(tmp_path / "b")
