"""A checkpoint in the diffusers folder format, examined without torch: its card and its components' fingerprints.

Only safetensors and JSON are accepted. Weights are read whole once to be fingerprinted; the result is remembered by
path, size and time of change, so that planning again costs a `stat` per file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from farm.document import suggest
from farm.errors import InputError
from farm.models import cards
from farm.models.card import ModelCard
from farm.models.cards.builtin import BUILTIN
from farm.models.fetch import cache_folder, is_elsewhere, local_folder, pinned
from farm.models.safetensors import read_header

BUILTIN_FOLDER = Path(__file__).parents[2] / "pipelines" / "builtin" / "weights"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"}
WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # as diffusers and transformers name them
KNOWN_LIBRARIES = {"diffusers", "transformers"}
CONFIG_FILES = {  # of components without weights, by how their folders' names begin
    "tokenizer": ("tokenizer.json", "spiece.model", "vocab.json"),
    "scheduler": ("scheduler_config.json",),
    "image_processor": ("preprocessor_config.json",), "feature_extractor": ("preprocessor_config.json",),
    "guider": ("guider_config.json",),
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine: where it lies, what it can do, and the fingerprint of each component."""

    name: str  # as the storyboard says it
    folder: str
    card: ModelCard
    fingerprints: Mapping[str, str]
    origin: str = ""  # where other machines fetch it from; empty where they must have the same folder

    @property
    def place(self) -> str:
        """What a replica is told: see `fetch.local_folder`."""
        return self.origin or self.folder

    @property
    def fingerprint(self) -> str:
        """One short name for all components together."""
        return hashlib.sha256(json.dumps(dict(self.fingerprints), sort_keys=True).encode()).hexdigest()[:16]


def find_checkpoint(name: str, *, beside: Path) -> Checkpoint:
    """Resolve a storyboard's `model`: `builtin`, a folder (relative to `beside`), a hub id `org/name[@revision]`,
    or a URI that fsspec knows (s3://bucket/folder).

    Raises:
        InputError: there is no such model, or it cannot be used; says why and what to do.
    """
    if name == "builtin":
        if not (BUILTIN_FOLDER / "model_index.json").is_file():
            raise InputError("model 'builtin' is not part of this installation; name a folder or a hub id")
        checkpoint = read_checkpoint(BUILTIN_FOLDER, name=name)
        return replace(checkpoint, card=replace(checkpoint.card, **BUILTIN))
    folder = Path(os.path.expanduser(name))
    folder = folder if folder.is_absolute() else beside / folder
    try:
        is_folder = "://" not in name and folder.is_dir()
    except OSError as e:
        raise InputError(
            f"model must be builtin, a folder or a hub id (org/name), got {name[:60]!r}: {e.strerror}"
        ) from None
    if is_folder:
        return read_checkpoint(folder.resolve(), name=name)
    if "://" not in name and folder.is_file():
        raise InputError(
            f"model must be a folder in diffusers format, got the single file {name!r}: fetch the model's diffusers "
            "version, or convert it (from_single_file(...) and save_pretrained(folder) of its diffusers pipeline)"
        )
    if is_elsewhere(name):
        fetched = local_folder(name)
        return replace(read_checkpoint(fetched, name=name), origin=pinned(name, fetched))
    raise InputError(f"model must be builtin, a folder or a hub id (org/name), got {name!r}: there is no such folder")


def card_of(folder: str) -> ModelCard:
    """The card of the model in a folder that has been examined before."""
    index = _read_json(Path(folder) / "model_index.json", missing="")
    configs = defaultdict(dict, {c: _read_config(Path(folder) / c) for c in index if not c.startswith("_")})
    card = cards.read_card(index, configs)
    return replace(card, **BUILTIN) if Path(folder) == BUILTIN_FOLDER else card


def read_checkpoint(folder: Path, *, name: str) -> Checkpoint:
    """Examine a diffusers folder.

    Raises:
        InputError: no or unknown pipeline class, a missing or damaged component, pickled weights, custom code.
    """
    try:
        return _examine(folder, name=name)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError) as e:
        raise InputError(f"model {name!r} is damaged: {type(e).__name__}: {e}; fetch it again") from e


def _examine(folder: Path, *, name: str) -> Checkpoint:
    if (folder / "modular_model_index.json").is_file() and not (folder / "model_index.json").is_file():
        raise InputError(f"model {name!r} is a modular repository; use the same model's version with model_index.json")
    index = _read_json(folder / "model_index.json", missing=f"model {name!r} is not in diffusers format")
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in cards.PIPELINES:
        known = ", ".join(cards.PIPELINES)
        near = suggest(kind, cards.PIPELINES) if isinstance(kind, str) else ""
        raise InputError(f"model {name!r} must be of a known pipeline class ({known}), got {kind!r}{near}")
    listed = {
        k: v for k, v in index.items() if not k.startswith("_") and isinstance(v, list) and len(v) == 2 and all(v)
    }
    for component, (library, cls) in listed.items():
        if library not in KNOWN_LIBRARIES:
            raise InputError(
                f"model {name!r}: component {component} must be a class of diffusers or transformers, got "
                f"{library}.{cls}; checkpoints with code of their own are not loaded"
            )
        _check_component(folder / component, cls, name=name)
    configs = {c: _read_config(folder / c) for c in listed}
    core = {"vae", "scheduler", "unet" if kind in cards.WITH_UNET else "transformer"}
    if missing := sorted(core - listed.keys()):
        raise InputError(f"model {name!r}: model_index.json must name {', '.join(missing)}")
    card = replace(cards.read_card(index, configs), name=name)
    needed = sorted({c for components in card.components.values() for c in components})
    if missing := [c for c in needed if c not in listed]:
        raise InputError(f"model {name!r}: model_index.json must name {', '.join(missing)} for a {kind}")
    with ThreadPoolExecutor(4) as pool:
        prints = pool.map(lambda c: fingerprint_folder(folder / c), needed)
    _remembered.save()
    return Checkpoint(name, str(folder), card, dict(zip(needed, prints, strict=True)))


def _read_json(path: Path, *, missing: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{missing}: {path.name} is missing in {path.parent}") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{path} must be readable JSON: {e}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    for file in ("config.json", "scheduler_config.json", "tokenizer_config.json", "guider_config.json"):
        if (folder / file).is_file():
            return _read_json(folder / file, missing="")
    return {}


def _check_component(folder: Path, cls: str, *, name: str) -> None:
    if not folder.is_dir():
        raise InputError(f"model {name!r}: folder {folder.name}/ is missing")
    files = [f for f in folder.iterdir() if f.is_file()]
    weights = [f for f in files if f.suffix == ".safetensors"]
    pickled = [f for f in files if f.suffix in PICKLED]
    if pickled and not weights:
        raise InputError(
            f"model {name!r}: {folder.name}/{pickled[0].name} is a pickle, which can run code when loaded; "
            "convert it to safetensors (save_pretrained(..., safe_serialization=True))"
        )
    config = folder / "config.json"
    one_of = next((files for start, files in CONFIG_FILES.items() if folder.name.startswith(start)), ("config.json",))
    if cls == "ByT5Tokenizer":  # which knows bytes and needs no vocabulary
        one_of = ("tokenizer_config.json",)
    if not any((folder / file).is_file() for file in one_of):
        raise InputError(f"model {name!r}: {folder.name}/ must have {' or '.join(one_of)}")
    if config.is_file():
        if not weights:
            raise InputError(f"model {name!r}: {folder.name}/ has no safetensors weights")
        if not any((folder / f"{base}{end}").is_file() for base in WEIGHTS for end in ("", ".index.json")):
            raise InputError(
                f"model {name!r}: {folder.name}/ must hold {' or '.join(WEIGHTS)} (or its .index.json), got "
                f"{min(f.name for f in weights)}; rename a variant such as *.fp16.safetensors, or fetch the plain files"
            )
        if "auto_map" in _read_json(config, missing=""):
            raise InputError(f"model {name!r}: {folder.name} asks for code of its own (auto_map), which is not loaded")
    if not files:
        raise InputError(f"model {name!r}: folder {folder.name}/ is empty")
    for shards in folder.glob("*.index.json"):
        wanted = set(_read_json(shards, missing="").get("weight_map", {}).values())
        lacking = sorted(w for w in wanted if not (folder / w).is_file())
        if lacking:
            raise InputError(f"model {name!r}: {folder.name}/{lacking[0]} is missing")
    for file in weights:
        place = f"model {name!r}: {folder.name}/{file.name}"
        if not read_header(file, place=place).shapes:
            raise InputError(f"{place} is damaged: it holds no tensors; fetch it again")


class _Remembered:
    """Hashes of files by path, size and time of change, kept in the user's cache folder."""

    def __init__(self) -> None:
        self.file = cache_folder() / "fingerprints.json"
        self.reading = threading.Lock()
        self.changed = False

    @functools.cached_property
    def known(self) -> dict[str, str]:
        try:
            return dict(json.loads(self.file.read_text()))
        except (OSError, TypeError, ValueError):
            return {}

    def hash_of(self, path: Path) -> str:
        with self.reading:  # components are hashed by several threads, which must share one table
            known = self.known
        real, stat = path.resolve(), path.stat()
        entry = f"{real}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if entry not in known:
            with real.open("rb") as f:
                known[entry] = hashlib.file_digest(f, "sha256").hexdigest()
            self.changed = True
        return known[entry]

    def save(self) -> None:
        if not self.changed:
            return
        with contextlib.suppress(OSError):  # a read-only home only costs time
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(self.known))
            part.replace(self.file)
            self.changed = False


_remembered = _Remembered()


def num_parameters(folder: Path) -> int:
    """How many numbers a component's safetensors hold, from their headers."""
    headers = (read_header(file, place=file.name) for file in folder.glob("*.safetensors"))
    return sum(math.prod(shape) for header in headers for shape in header.shapes.values())


def check_fingerprints(folder: Path, components: Sequence[tuple[str, str]]) -> None:
    """Compare a fetched model with what its tasks were planned with.

    Raises:
        InputError: it is another one now.
    """
    for component, wanted in components:
        if fingerprint_folder(folder / component) != wanted:
            raise InputError(f"the model has changed where it lies since this was planned: {component}; render again")
    _remembered.save()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, remembered."""
    digest = _remembered.hash_of(path)
    _remembered.save()
    return digest


def fingerprint_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of a component's files."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix not in PICKLED | {".md"})
    lines = [f"{f.relative_to(folder).as_posix()} {_remembered.hash_of(f)}" for f in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
