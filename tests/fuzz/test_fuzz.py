"""Whatever a file holds, the answer is a plan or a sentence with exit code 2, soon and with little memory.

`make test` tries a few dozen of each kind, `make fuzz` 100,000 (FUZZ=100000).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster.cli.main import main
from farm.errors import InputError
from farm.film.manifest import Template, read_manifest, storyboard_of
from farm.film.resolve import resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import find_checkpoint
from farm.models.loras import fit_lora, layers_of
from farm.models.safetensors import Header, read_header

NUM_CASES = int(os.environ.get("FUZZ", "40"))
MOST_S, MOST_BYTES = 5.0, 500 * 2**20
ROOT = Path(__file__).parents[2]
fuzzed = settings(
    max_examples=NUM_CASES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None
)
BOARD: dict[str, Any] = yaml.safe_load("""
title: The long afternoon
size: 96x64
fps: 8
seed: 7
steps: 20
guidance: 4.0
negative_prompt: ""
style: at sunset
continuity: {mode: extend, chunk_frames: 17, overlap_frames: 5, context: latents, max_seam: 3, rerolls: 1}
output: {fps: 24, scale: 4, codec: h264, crf: 18, interpolate: flow}
loras: [{path: lora.safetensors, weight: 0.5}]
shots:
  - {id: opening, prompt: a red ball rolls over grass, seconds: 12}
  - {id: meadow, prompts: [{at: 0, prompt: a blue cube}, {at: 6, prompt: a car}], seconds: 20, transition: crossfade}
  - {id: hill, prompt: a cone, image: hill.png, image_fit: cover, frames: 41, seed: 3, steps: 4}
  - {id: on, prompt: a cone, continue_from: hill, seconds: 9, continuity: {mode: blend}, transition: {kind: wipeup}}
""")
POOLS: dict[str, Any] = yaml.safe_load("""
pools:
  encode: {stages: [encode], cpus: 1, replicas: {min: 0, max: 4}, price_per_hour: 0.5}
  denoise: {stages: [denoise], gpus: 1, ranks: 2, parallel: {ulysses: 2}, dtype: bfloat16, labels: {a: b},
            options: {offload: model, attention: sage, compile: true}, checkpoint: {seconds: 10, steps: 5}}
  media: {stages: [decode, interpolate, assemble], gpus: 0.5, memory_gib: 2, start_timeout_s: 5, drain_s: 1}
""")
STRANGE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.sampled_from([2**63, -1, 10**400, 0]), st.floats(),
    st.text(max_size=40),
    st.sampled_from(["", "~", "../x", "\u2028", "1e999", "0x10", "a" * 9000, "{a}", "24000/1001", "\ud800", "[", "- "]),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
    st.builds(lambda n: json.loads("[" * n + "]" * n), st.integers(1, 60)),
)  # fmt: skip


PIECES = [b"\n", b'"', b"[" * 300, b"\x00", b"\xff", b": ", b"- "]


def places_of(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(p for key, item in items for p in places_of(item, (*place, key)))]


@st.composite
def spoiled(draw: st.DrawFn, whole: dict[str, Any]) -> dict[str, Any]:
    """A whole document in which a few values, keys or items are others, gone, or there twice."""
    made = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 4))):
        places = places_of(made)[1:]
        if not places:
            break
        place = draw(st.sampled_from(places))
        around: Any = made
        for part in place[:-1]:
            around = around[part]
        how = draw(st.sampled_from(["value", "value", "value", "gone", "key", "twice"]))
        if how == "value":
            around[place[-1]] = draw(STRANGE)
        elif how == "gone":
            del around[place[-1]]
        elif how == "key" and isinstance(around, dict):
            around[draw(st.text(max_size=12))] = around.pop(place[-1])
        elif isinstance(around, list):
            around.append(copy.deepcopy(around[place[-1]]))
    return made


@st.composite
def bytes_near(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with a few of them others, gone, or more."""
    made = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(made) - 1)))
        piece = draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([b"\n", b'"', b"[" * 300, b"\x00", b"\xff", b": ", b"- "]))
        )
        made[at : at + draw(st.sampled_from([0, 1, 1, 8, 200]))] = piece
    return bytes(made)


def answered(work: Callable[[], object]) -> None:
    """Do it, within the bounds of this file. These are a hang's bounds, not a speed's."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    assert time.process_time() - began < MOST_S
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


def plan(*words: object) -> None:
    """`farm plan`: a plan, or exit code 2 and an object that says why."""
    out, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
        code = main(["plan", *map(str, words), "--json"])
    answer = json.loads(out.getvalue().splitlines()[-1])
    assert code in (0, 2), told.getvalue()
    assert "Traceback" not in told.getvalue()
    assert bool(answer["errors"]) == (code == 2)
    assert all(e["message"] for e in answer["errors"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (96, 64), "green").save(made / "hill.png")
    (made / "film.yaml").write_text(yaml.safe_dump(BOARD | {"loras": []}))
    return made


def as_yaml(data: Any) -> bytes:
    return json.dumps(data).encode()  # which is YAML, and can hold whatever there is


@fuzzed
@given(board=spoiled(BOARD | {"loras": []}))
def test_storyboards(board: dict[str, Any], folder: Path) -> None:
    file = folder / "spoiled.yaml"
    file.write_bytes(as_yaml(board))
    answered(lambda: plan(file, "--store", folder / "store"))


@fuzzed
@given(raw=bytes_near(yaml.safe_dump(BOARD | {"loras": []}, sort_keys=False).encode()))
def test_storyboards_as_bytes(raw: bytes, folder: Path) -> None:
    file = folder / "bytes.yaml"
    file.write_bytes(raw)
    answered(lambda: plan(file, "--store", folder / "store"))


@fuzzed
@given(pools=spoiled(POOLS))
def test_pools(pools: dict[str, Any], folder: Path) -> None:
    file = folder / "pools.yaml"
    file.write_bytes(as_yaml(pools))
    answered(lambda: plan(folder / "film.yaml", "--pools", file, "--store", folder / "store"))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures(kind: str, folder: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((96, 64), 50).convert("RGB").save(buffer, kind)
    board = folder / "picture.yaml"
    board.write_bytes(as_yaml({"shots": [{"id": "a", "prompt": "a ball", "frames": 5, "image": "any.png"}]}))

    @fuzzed
    @given(raw=bytes_near(buffer.getvalue()))
    def look(raw: bytes) -> None:
        (folder / "any.png").write_bytes(raw)
        answered(lambda: plan(board, "--store", folder / "store"))

    look()


TABLES = {
    "csv": b"colour;seed;name\nred;1;a\nblue;2,5;b\ngreen;;c\n",
    "jsonl": b'{"colour": "red", "seed": 1}\n{"colour": "blue", "seed": null}\n',
}
TEMPLATE = b'shots: [{id: a, prompt: "a {colour} ball", seed: "{seed}", frames: 5}]\n'


@pytest.mark.parametrize("kind", TABLES)
def test_manifests(kind: str, folder: Path) -> None:
    file, builtin = folder / f"films.{kind}", find_checkpoint("builtin", beside=Path())

    def fill() -> None:
        template = Template(TEMPLATE, file="t.yaml")
        try:
            rows = read_manifest(str(file))
        except InputError:
            return
        for row in rows:
            with contextlib.suppress(InputError):
                resolve(parse_storyboard(storyboard_of(row, template).encode(), file="t.yaml"), builtin)

    @fuzzed
    @given(raw=bytes_near(TABLES[kind]))
    def read(raw: bytes) -> None:
        file.write_bytes(raw)
        answered(fill)

    read()


HEADER = {
    "a.lora_A.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "a.lora_B.weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [24, 40]},
    "__metadata__": {"format": "pt"},
}


@fuzzed
@given(
    header=st.one_of(spoiled(HEADER).map(as_yaml), bytes_near(as_yaml(HEADER))), length=st.sampled_from([0, 0, 1, -9])
)
def test_headers_of_safetensors(header: bytes, length: int, folder: Path) -> None:
    file = folder / "x.safetensors"
    file.write_bytes(max(0, len(header) + length).to_bytes(8, "little") + header + bytes(40))

    def read() -> None:
        with contextlib.suppress(InputError):
            read_header(file, place="x")

    answered(read)


PARTS = [
    "lora_A", "lora_B", "lora_down", "lora_up", "alpha", "diff", "diff_b", "weight", "bias", "default", "dora_scale",
    "blocks", "0", "1", "attn1", "self_attn", "to_q", "q", "k_img", "transformer", "diffusion_model", "lora_unet",
    "lokr_w1", "head", "lora", "down", "",
]  # fmt: skip
NAMES = st.one_of(
    st.builds(
        lambda joint, parts: joint.join(parts), st.sampled_from("._"), st.lists(st.sampled_from(PARTS), max_size=8)
    ),
    st.text(max_size=30),
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 16, 48, 96, 2**40]), max_size=5).map(tuple)


@fuzzed
@given(shapes=st.dictionaries(NAMES, SHAPES, max_size=6))
def test_names_and_shapes_of_loras(shapes: dict[str, tuple[int, ...]]) -> None:
    builtin = find_checkpoint("builtin", beside=Path())
    layers = layers_of(Path(builtin.folder) / "transformer")

    def fit() -> None:
        with contextlib.suppress(InputError):
            assert fit_lora(Header(shapes, {}), layers, builtin.card, place="x").layers

    answered(fit)
