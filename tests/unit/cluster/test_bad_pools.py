"""Places and pools that cannot be used are refused before anything is written, with what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_input import GOOD, run


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("film.avi", "end in .mp4"),
        ("nowhere/film.mp4", "folder that exists"),
        ("film.webm", "output.codec h264"),
        ("film.mov", "output.codec h264"),
        ("full", "new or empty folder"),
        ("file", "new or empty folder"),
        ("strangers", "new or empty folder"),
    ],
)
def test_bad_places_are_refused(
    out: str, words: str, tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("precious")
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "000000.png").write_text("a picture, but not from the farm")
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / ".longtake-frames").write_text("")
    (tmp_path / "strangers" / "notes.txt").write_text("x")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    board = tmp_path / "film.yaml"
    board.write_text(GOOD)
    argv = ["render", str(board), "--model", str(tiny_wan), "--store", str(tmp_path / "store")]
    code, answer, told = run(capsys, *argv, "--out", str(tmp_path / out))
    assert code == 2
    assert answer["errors"][0]["key"] == "out"
    assert words in told
    assert sorted(p.name for p in tmp_path.rglob("*") if p != board) == before


def gang(how: str) -> str:
    return f"pools: {{a: {{stages: [encode, decode]}}, b: {{stages: [denoise], {how}}}}}"


POOLS = {
    "no stage denoise": ("pools: {a: {stages: [encode, decode]}}", "must serve the stage denoise"),
    "unknown stage": ("pools: {a: {stages: [encode, denoize, decode]}}", "did you mean denoise?"),
    "unknown key": ("pools: {a: {stages: [encode, denoise, decode], gpu: 1}}", "did you mean gpus?"),
    "min above max": ("pools: {a: {stages: [encode, denoise, decode], replicas: {min: 3, max: 2}}}", "at most max"),
    "a GPU and a half": ("pools: {a: {stages: [encode, denoise, decode], gpus: 1.5}}", "whole number"),
    "no pools": ("pools: {}", "must not be empty"),
    "two dtypes": (
        "pools:\n  a: {stages: [encode, denoise, decode]}\n  b: {stages: [denoise], dtype: bfloat16}\n",
        "the same numerics",
    ),
    "ranks for all stages": (
        "pools: {a: {stages: [encode, denoise, decode], ranks: 2}}",
        "stages must be encode, denoise or decode alone",
    ),
    "parallel without ranks": (gang("parallel: {ulysses: 4}"), "ranks must be 4 for this parallel, got 1"),
    "degrees that are not the ranks": (
        gang("ranks: 4, parallel: {ulysses: 2}"),
        "ulysses x ring x guidance must be 4, the ranks, got 2",
    ),
    "heads that do not divide": (
        gang("ranks: 4, parallel: {ulysses: 4}"),
        "parallel.ulysses must divide the 2 heads of",
    ),
    "ranks that cannot share": (gang("ranks: 512, parallel: auto"), "ranks must be able to share"),
    "a step cache in a gang": (
        gang("ranks: 2, parallel: {ulysses: 2}, options: {cache: {kind: first_block}}"),
        "options.cache must be off",
    ),
    "shards on the host": (
        gang("ranks: 2, gpus: 1, parallel: {ulysses: 2, shard_weights: true}, options: {offload: group}"),
        "options.offload must not stand beside parallel.shard_weights",
    ),
    "a fraction of a GPU each": (gang("ranks: 2, gpus: 0.5, parallel: auto"), "gpus must be 0 or 1"),
    "two GPUs each": (gang("ranks: 2, gpus: 2, parallel: auto"), "gpus must be 0 or 1"),
    "attention that cannot be shared": (
        gang("ranks: 2, parallel: {ulysses: 2}, options: {attention: flex}"),
        "options.attention must be one of native,",
    ),
    "a ring that is not told sums": (
        gang("ranks: 2, gpus: 1, parallel: {ring: 2}, options: {attention: native}"),
        "options.attention must be one of flash,",
    ),
    "a ring in float32": (gang("ranks: 2, gpus: 1, dtype: float32, parallel: {ring: 2}"), "dtype must be bfloat16"),
    "compiled and split": (gang("ranks: 2, parallel: auto, options: {compile: true}"), "options.compile must be off"),
    "encoders without shards": (
        "pools: {a: {stages: [encode], ranks: 2}, b: {stages: [denoise, decode]}}",
        "shard_weights must be true",
    ),
    "decoders without tiles": (
        "pools: {a: {stages: [decode], ranks: 2}, b: {stages: [encode, denoise]}}",
        "vae_tiling must be true",
    ),
    "decoders with degrees": (
        "pools: {a: {stages: [decode], ranks: 2, parallel: {ring: 2}, options: {vae_tiling: true}}, "
        "b: {stages: [encode, denoise]}}",
        "are for pools that serve denoise",
    ),
    "more GPUs than there are": (
        "pools: {a: {stages: [encode, denoise, decode], gpus: 8}}",
        "asks for 1 x (1 CPU, 8 GPU)",
    ),
}


@pytest.mark.parametrize("name", POOLS)
def test_bad_pools_are_refused(name: str, tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = POOLS[name]
    board, pools = tmp_path / "film.yaml", tmp_path / "pools.yaml"
    board.write_text(GOOD)
    pools.write_text(text)
    argv = ["render", str(board), "--model", str(tiny_wan), "--store", str(tmp_path / "store"), "--pools", str(pools)]
    code, answer, told = run(capsys, *argv)
    assert code == 2
    assert words in told
    assert answer["errors"][0]["file"] == str(pools)
    assert answer["errors"][0]["line"]
    assert not (tmp_path / "store").exists()


def test_frames_between_frames_need_a_pool(tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board, pools = tmp_path / "film.yaml", tmp_path / "pools.yaml"
    pools.write_text("pools: {a: {stages: [encode, denoise, decode]}}")
    argv = ["plan", str(board), "--model", str(tiny_wan), "--store", str(tmp_path / "s"), "--pools", str(pools)]
    board.write_text(GOOD + "output: {fps: 24, interpolate: flow}\n")
    code, answer, told = run(capsys, *argv)
    assert (code, answer["errors"][0]["key"]) == (2, "pools")
    assert "must serve the stage interpolate, or output.interpolate be none" in told
    board.write_text(GOOD + "output: {fps: 24, interpolate: none}\n")
    assert run(capsys, *argv)[0] == 0


def test_a_folder_with_other_files_is_no_store(
    tiny_wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    board = tmp_path / "film.yaml"
    board.write_text(GOOD)
    argv = ["render", str(board), "--model", str(tiny_wan), "--store", str(tmp_path / "home")]
    code, _, told = run(capsys, *argv)
    assert code == 2
    assert "holds other files" in told
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_a_missing_storyboard_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer, _ = run(capsys, "render", str(tmp_path / "none.yaml"))
    assert code == 2
    assert answer["errors"][0]["file"].endswith("none.yaml")
