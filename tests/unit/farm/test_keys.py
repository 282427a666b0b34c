"""Content keys outlive names: what is pinned here changes only with a stage's version and a line in CHANGELOG.md.

`python tests/unit/farm/test_keys.py` writes the pins anew.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from farm import keys, task
from farm.film.resolve import resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import find_checkpoint
from farm.plan.plan import make_plan
from farm.task import Denoise, EncodeText, Known, Slice

ROOT = Path(__file__).parents[3]
PINS = ROOT / "tests" / "data" / "pinned_keys.json"
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
NUMERICS = dict.fromkeys(("encode", "denoise", "decode", "interpolate", "assemble"), (("dtype", "float32"),))


def keys_of(example: Path) -> list[list[str]]:
    """Stage, label and key of every task; of a model whose weights have no content, as it may be trained anew."""
    model = find_checkpoint("builtin", beside=Path())
    model = replace(model, fingerprints={name: f"fingerprint of {name}" for name in model.fingerprints})
    film = resolve(parse_storyboard(example.read_bytes(), file=str(example)), model).film
    film = replace(film, interpolate="rife" if film.interpolate != "none" else "none")  # whatever is installed here
    plan = make_plan(film, (model,), NUMERICS, container="mp4", stills=True)
    return [[t.stage, t.label, t.key] for t in plan.tasks.values()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_keys_of_the_examples_are_what_they_were(example: Path) -> None:
    assert keys_of(example) == json.loads(PINS.read_text())[example.stem]


def some_request() -> Denoise:
    return Denoise("wan", "text", (1, 16, 3, 6, 8), 2, 3.0, 3.0, 7, (Slice(0, 3, 0, None),))


def key_of(request: Any) -> str:
    return keys.make_task("denoise", request, extension="safetensors").key


def test_a_class_and_its_fields_may_be_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    request = some_request()
    renamed = make_dataclass(
        "Sample",
        [(f"renamed_{f.name}", Any, dataclasses.field(default=f.default)) for f in fields(request)],
        frozen=True,
    )
    frozen = keys.FROZEN[Denoise]
    monkeypatch.setitem(keys.FROZEN, renamed, frozen)
    monkeypatch.setitem(keys.PARAMETERS, renamed, keys._rows(renamed, frozen))
    other = renamed(*(getattr(request, f.name) for f in fields(request)))
    assert key_of(other) == key_of(request)


def test_an_optional_parameter_changes_no_key_until_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Longer(Denoise):
        sharpness: float = 0.5

    frozen = replace(keys.FROZEN[Denoise], optional={**keys.FROZEN[Denoise].optional, "sharpness": 0.5})
    monkeypatch.setitem(keys.FROZEN, Longer, frozen)
    monkeypatch.setitem(keys.PARAMETERS, Longer, keys._rows(Longer, frozen))
    values = [getattr(some_request(), f.name) for f in fields(Denoise)]
    assert key_of(Longer(*values)) == key_of(some_request())
    assert key_of(Longer(*values, sharpness=0.6)) != key_of(some_request())


def test_defaults_are_left_out_of_records_inside_requests_too() -> None:
    plain = EncodeText("wan", "a ball", 512, known=Known(64, 48))
    assert keys.parameters_of(plain) == {
        "family": "wan", "prompt": "a ball", "max_tokens": 512, "known": {"width_px": 64, "height_px": 48},
    }  # fmt: skip


def test_every_request_and_every_record_inside_one_is_frozen() -> None:
    todo, seen = list(get_args(task.Request)), set()
    while todo:
        kind = todo.pop()
        if isinstance(kind, type) and is_dataclass(kind) and kind not in seen:
            seen.add(kind)
            todo += get_type_hints(kind).values()
        todo += get_args(kind)
    assert seen == set(keys.FROZEN)


def test_frozen_defaults_are_those_of_the_classes() -> None:
    for kind, frozen in keys.FROZEN.items():
        defaults = [f.default for f in fields(kind) if f.default is not dataclasses.MISSING]
        assert defaults == list(frozen.optional.values()), kind


if __name__ == "__main__":
    PINS.write_text(json.dumps({path.stem: keys_of(path) for path in EXAMPLES}, indent=0) + "\n")
