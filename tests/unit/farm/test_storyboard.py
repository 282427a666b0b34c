"""The storyboard's schema, on the design's own example and on its JSON Schema."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from in_process import resolve_board
from PIL import Image

from farm.film.chunks import rate_of
from farm.film.resolve import resolve
from farm.film.storyboard import Draft, json_schema, parse_storyboard
from farm.models.checkpoint import find_checkpoint
from farm.plan.plan import make_plan
from farm.pools.pools import default_pools, numerics
from farm.task import WriteClip

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


def draft_of(**more: Any) -> Draft:
    shots = [{"id": "a", "prompt": "x", "frames": 24}, {"id": "b", "prompt": "x", "frames": 24, **more.pop("shot", {})}]
    return parse_storyboard(json.dumps({"shots": shots, **more}).encode(), file="film.yaml")


def test_a_rate_may_be_a_ratio() -> None:
    builtin = find_checkpoint("builtin", beside=Path())
    film = resolve(draft_of(fps="24000/1001", output={"fps": "30000/1001"}), builtin).film
    assert (rate_of(film.fps), rate_of(film.output_fps)) == (Fraction(24000, 1001), Fraction(30000, 1001))
    assert [s.num_delivered for s in film.shots] == [30, 30]
    how = numerics(default_pools(num_cpus=1, num_gpus=0))
    plan = make_plan(film, [builtin], how, container="mp4", stills=False)
    assert {t.request.fps for t in plan.tasks.values() if isinstance(t.request, WriteClip)} == {"30000/1001"}
    for fps in ("24000/0", "1001", "a/b", "1/1000", "1000000/1"):
        assert draft_of(fps=fps).problems


@given(st.fractions(min_value="0.1", max_value=240, max_denominator=1001))
def test_a_rate_is_what_it_was_written_as(fps: Fraction) -> None:
    assert rate_of(float(fps)) == fps


@given(st.decimals(min_value="0.1", max_value="240", places=4))
def test_a_decimal_rate_stays_one(fps: Decimal) -> None:
    assert rate_of(float(fps)) == Fraction(str(float(fps)))


def test_a_transition_may_be_named_alone() -> None:
    plain, whole = draft_of(shot={"transition": "fadeblack"}), draft_of(shot={"transition": {"kind": "fadeblack"}})
    assert not plain.problems
    assert plain.shots == whole.shots
    (fault,) = draft_of(shot={"transition": "crosfade"}).problems
    assert "did you mean crossfade?" in fault.message


@pytest.mark.parametrize(
    ("word", "ours"), [("duration", "seconds"), ("num_frames", "frames"), ("cfg_scale", "guidance")]
)
def test_words_of_other_programs_suggest_ours(word: str, ours: str) -> None:
    (fault,) = draft_of(shot={word: 5}).problems
    assert fault.message.endswith(f"; did you mean {ours}?")


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.new("RGB", (96, 64)).save(tmp_path / "a.png")
    draft = draft_of(shot={"image": "~/a.png"})
    assert not draft.problems
    assert draft.document.path_of("~/a.png") == tmp_path / "a.png"


@pytest.mark.parametrize("at", [10**400, float("inf"), float("nan"), -(10**400)])
def test_times_beyond_all_numbers_are_refused(at: float) -> None:
    shot = {"id": "a", "prompts": [{"at": 0, "prompt": "x"}, {"at": at, "prompt": "y"}], "frames": 5}
    raw = json.dumps({"shots": [shot]}).replace("Infinity", ".inf").replace("NaN", ".nan")
    problems = parse_storyboard(raw.encode(), file="film.yaml").problems
    assert [p.key for p in problems] == ["shots[0].prompts[1].at"]
