"""YAML as users write it: values with the line of every key, and faults told in the user's own words.

Only plain data is built (no tags), anchors may be used but not to blow up (`MAX_NODES`), and a key may stand only once.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from farm.errors import InputError, Problem

MAX_BYTES = 32 * 2**20
MAX_NODES = 2_000_000
MAX_DEPTH = 32
MAX_FLOW_DEPTH = 1000  # brackets in prompts count too

Place = tuple[str | int, ...]
Fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(Fast):
    """Plain scalars as YAML 1.2's core schema reads them: no 1:30 as 90, no 021 as 17, no `on` as true, no dates."""

    yaml_implicit_resolvers: dict[str, Any] = {}


Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|false|False)$"), list("tTfF"))
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^([-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN))$"),
    list("-+.0123456789"),
)
HINTS = {  # the parser's words: what the writer probably has to do
    "mapping values are not allowed": "put text that holds ': ' in quotes",
    "did not find expected key": "put text that starts with a quote, [ or { in quotes of the other kind",
    "cannot start any token": "indent with blanks, not tabs, and put text that starts with @ % or ` in quotes",
    "did not find expected '-' indicator": "indent all items of a list alike",
    "found another document": "write one storyboard a file",
    "could not find expected ':'": "write `key: value`, and indent what belongs to a key",
}


@dataclass(frozen=True)
class Document:
    """A YAML file as plain data, and the line (from 1) on which each of its keys and items stands."""

    data: Any
    lines: dict[Place, int]
    file: str
    problems: tuple[Problem, ...] = ()  # keys without a value, keys that stand twice, tags
    uploads: Mapping[str, Path] | None = None  # the files that came with it, by the names that it uses; no others then

    def path_of(self, name: str) -> Path:
        """The file that a name in the document means: relative to the document, `~` is the user's home."""
        if self.uploads is not None:
            return self.uploads.get(name, Path("/") / "no such file" / "in the request")
        return Path(self.file).parent / os.path.expanduser(name)

    def problem(self, place: Place, message: str) -> Problem:
        """A fault at `place`, or at the nearest place around it that stands in the file."""
        line = next((self.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self.lines), None)
        return Problem(message, dotted(place), self.file, line)


def dotted(place: Place) -> str:
    """`("shots", 3, "seconds")` as users write it: `shots[3].seconds`."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place)
    return text.removeprefix(".")


def read_document(raw: bytes, *, file: str) -> Document:
    """Parse YAML.

    Raises:
        InputError: not UTF-8 text, not YAML, or too large. Smaller faults are in the document's `problems`.
    """
    if len(raw) > MAX_BYTES:
        raise InputError(Problem(f"the file must have at most {MAX_BYTES >> 20} MiB, got {len(raw) >> 20}", file=file))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(Problem(f"the file must be YAML in UTF-8, got byte {raw[e.start]:#04x}", file=file)) from None
    if _is_too_deep(text):
        raise InputError(Problem("the file is nested too deeply", "", file, 1))
    try:
        root = yaml.compose(text, Loader=Loader)
    except (yaml.YAMLError, RecursionError) as e:
        mark = getattr(e, "problem_mark", None)
        reason = getattr(e, "problem", None) or str(e).split("\n")[0] or "nested too deeply"
        hint = next((f"; {words}" for part, words in HINTS.items() if part in reason), "")
        raise InputError(
            Problem(f"not valid YAML: {reason}{hint}", "", file, mark.line + 1 if mark else None)
        ) from None
    if root is None:
        raise InputError(Problem("the file is empty", file=file))
    builder = _Builder(file)
    data = builder.build(root, ())
    return Document(data, builder.lines, file, tuple(builder.problems))


def _is_too_deep(text: str) -> bool:
    """Whether brackets or dashes nest so deeply that the C parser would overflow its stack (it does at some 50,000)."""
    depth = deepest = 0
    for bracket in re.finditer(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if bracket[0] in "[{" else -1))
        deepest = max(deepest, depth)
    return deepest > MAX_FLOW_DEPTH or re.search(r"(?:[-?:]\s+){1000}", text) is not None


SCALARS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": lambda text: float(re.sub(r"\.(?=inf|nan)", "", text.lower())),
    "bool": lambda text: text.lower() == "true",
}


KINDS = {*SCALARS, "null", "seq", "map"}
ELSEWHERE = {  # how other programs call our keys
    "duration": "seconds", "length": "seconds", "num_frames": "frames", "frame_count": "frames",
    "resolution": "size", "width": "size", "height": "size", "frame_rate": "fps", "framerate": "fps",
    "cfg": "guidance", "cfg_scale": "guidance", "guidance_scale": "guidance", "num_inference_steps": "steps",
    "negative": "negative_prompt", "text": "prompt", "description": "prompt", "lora": "loras", "checkpoint": "model",
    "first_image": "image", "first_frame": "image", "last_frame": "last_image", "end_image": "last_image",
    "name": "id", "scenes": "shots", "clips": "shots", "strength": "weight", "file": "path", "quality": "crf",
}  # fmt: skip


class _Builder:
    def __init__(self, file: str) -> None:
        self.file, self.lines, self.num_nodes = file, dict[Place, int](), 0
        self.problems: list[Problem] = []

    def build(self, node: Any, place: Place) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(place, line)
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES or len(place) > MAX_DEPTH:
            what = "nested too deeply" if len(place) > MAX_DEPTH else "too large once its aliases are expanded"
            raise InputError(Problem(f"the file is {what}", "", self.file, line))
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in KINDS:
            self._fault(node, place, f"YAML tags are not used here, got {node.tag}")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*place, i)) for i, item in enumerate(node.value)]
        if kind == "null":
            self._fault(node, place, f"{dotted(place)} has no value: write one, or leave the key out")
        else:
            try:
                return SCALARS[kind](node.value)
            except ValueError as e:
                self._fault(node, place, f"{dotted(place)} cannot be read: {str(e).splitlines()[0][:100]}")
        return None

    def _mapping(self, node: Any, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str):
                self._fault(key_node, place, "keys must be plain words")
            elif key in result:
                self._fault(key_node, (*place, key), f"{dotted((*place, key))} stands twice")
            else:
                self.lines[(*place, key)] = key_node.start_mark.line + 1
                result[key] = self.build(value_node, (*place, key))
        return result

    def _fault(self, node: Any, place: Place, message: str) -> None:
        self.problems.append(Problem(message, dotted(place), self.file, node.start_mark.line + 1))


WANTED = {
    "int_type": "be a whole number", "int_from_float": "be a whole number", "float_type": "be a number",
    "string_type": "be text", "bool_type": "be true or false", "list_type": "be a list",
    "dict_type": "be a mapping of keys to values", "model_type": "be a mapping of keys to values",
    "model_attributes_type": "be a mapping of keys to values", "finite_number": "be a finite number",
    "int_parsing_size": "be a whole number below 2**63",
}  # fmt: skip
PATTERNS = {  # what a pattern of the schemas means, for people
    r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$": "be WIDTHxHEIGHT, such as 832x480",
    r"^[a-z0-9][a-z0-9_-]*$": "be made of lower-case letters, digits, - and _, a letter or digit first",
    r"^[^\x00-\x1f]*$": "be without control characters",
    r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$": "be without control characters",
    r"^[a-z]+$": "be one lower-case word",
}


def check(model: type[BaseModel], data: Any, document: Document, place: Place) -> tuple[Any, list[Problem]]:
    """Validate `data`, which stands at `place`: the model object (None where faulty) and all faults."""
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        found: dict[str, Problem] = {}
        for e in error.errors(include_url=False):
            problem = _translate(e, model, data, document, place)
            if problem is not None:
                found.setdefault(problem.key + problem.message.partition(" must")[0], problem)
        return None, list(found.values())


def _translate(e: Any, model: type[BaseModel], data: Any, document: Document, place: Place) -> Problem | None:
    inner: list[str | int] = []
    value = data
    for part in e["loc"]:  # a union adds names to the path that are not in the file
        known = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if known:
            value = value[part]
            inner.append(part)
        elif e["type"] == "missing" and part == e["loc"][-1]:
            inner.append(part)
    where = (*place, *inner)
    name, kind, context = dotted(where), e["type"], e.get("ctx", {})
    if kind == "extra_forbidden":
        near = suggest(str(inner[-1]), _keys_beside(model, inner))
        around = dotted(where[:-1]) or "the top level"
        return document.problem(where, f"{inner[-1]!r} is not a key of {around}{near}")
    if kind == "missing":
        return document.problem(where, f"{name} is required")
    if value is None:
        return None  # the document has told that there is no value
    wanted = WANTED.get(kind) or {
        "greater_than": f"be greater than {context.get('gt')}",
        "greater_than_equal": f"be at least {context.get('ge')}",
        "less_than": f"be less than {context.get('lt')}",
        "less_than_equal": f"be at most {context.get('le')}",
        "literal_error": f"be one of {context.get('expected')}",
        "string_pattern_mismatch": PATTERNS.get(str(context.get("pattern")), f"be like {context.get('pattern')}"),
        "string_too_short": "not be empty",
        "too_short": "not be empty",
        "string_too_long": f"be at most {context.get('max_length')} characters long",
        "too_long": f"be at most {context.get('max_length')} items long",
    }.get(kind, e["msg"])
    near = ""
    if kind == "literal_error":
        close = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", str(context.get("expected", ""))), n=1)
        near = f"; did you mean {close[0]}?" if close else ""
    if kind == "string_type" and isinstance(value, int | float):
        near = "; put it in quotes"
    return document.problem(where, f"{name or 'the file'} must {wanted}, got {_short(value)}{near}")


@functools.cache
def _schema(model: Any) -> dict[str, Any]:
    schema: dict[str, Any] = model.model_json_schema()
    return schema


def _keys_beside(model: Any, inner: list[str | int]) -> Iterable[str]:
    """The keys that are allowed where the last part of `inner` stands."""
    schema = _schema(model)
    node: Any = schema
    for part in inner[:-1]:
        node = node.get("items", {}) if isinstance(part, int) else node.get("properties", {}).get(part, {})
        refs = [node.get("$ref")] + [option.get("$ref") for option in node.get("anyOf", [])]
        named = next((r for r in refs if r), None)
        if named:
            node = schema["$defs"][named.rsplit("/", 1)[-1]]
    return list(node.get("properties", {}))


def suggest(word: Any, known: Iterable[str]) -> str:
    """`; did you mean seed?` where a known word is near, else what is known."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if (usual := ELSEWHERE.get(str(word), "")) in known:
        near = [usual]
    if near:
        return f"; did you mean {near[0]}?"
    return f"; it knows {', '.join(known)}" if known else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)
