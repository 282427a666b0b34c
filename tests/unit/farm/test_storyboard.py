"""The storyboard's schema, on the design's own example and on its JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from in_process import resolve_board
from PIL import Image

from farm.film.storyboard import json_schema, parse_storyboard
from farm.models.checkpoint import find_checkpoint

EXAMPLE = """\
title: The long afternoon
model: builtin
size: 96x64
fps: 8
seed: 7
steps: 20
guidance: 4.0
negative_prompt: ""
style: at sunset
continuity: {mode: extend, chunk_frames: 17, overlap_frames: 5}
output: {fps: 24, scale: 4, codec: h264, crf: 18}
shots:
  - id: opening
    prompt: a red ball rolls over grass
    seconds: 12
  - id: meadow
    prompts: [{at: 0, prompt: a blue cube rolls over sand}, {at: 6, prompt: a blue cube bounces over sand}]
    seconds: 20
    transition: {kind: crossfade, seconds: 0.5}
  - id: hill
    prompt: a green cone spins over snow
    image: hill.png
    seconds: 5
  - id: on-and-on
    prompt: a green cone floats over snow
    continue_from: hill
    seconds: 9
"""


def test_the_designs_own_example_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 64)).save("hill.png")
    resolved = resolve_board(EXAMPLE, find_checkpoint("builtin", beside=Path()))
    assert [len(shot.chunks) for shot in resolved.film.shots] == [8, 13, 3, 6]
    assert resolved.film.num_delivered == 24 * (12 + 20 + 5 + 9) - 12
    assert not resolved.warnings


def test_the_json_schema_takes_the_example_and_refuses_a_misspelt_key() -> None:
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    board = yaml.safe_load(EXAMPLE)
    assert not list(validator.iter_errors(board))
    assert list(validator.iter_errors(board | {"sed": 3}))


def test_anchors_and_aliases_may_be_used() -> None:
    draft = parse_storyboard(
        b"negative_prompt: &n blurry\nshots:\n  - {id: a, prompt: x, frames: 5, negative_prompt: *n}\n", file="f"
    )
    assert not draft.problems
    assert draft.shots[0][1].negative_prompt == "blurry"


def test_a_faulty_shot_hides_no_fault_of_another() -> None:
    draft = parse_storyboard(
        b"shots:\n  - {id: A B, prompt: x, frames: 5}\n  - {id: b, prompt: x, frames: -1}\n", file="f"
    )
    assert {p.key for p in draft.problems} == {"shots[0].id", "shots[1].frames"}
