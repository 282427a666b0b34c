"""Models that lie in a bucket or on the hub, brought to this machine once, and only as far as they are needed.

A replica fetches the components of its stage; whoever plans needs all of them, to fingerprint them. One process of a
machine fetches at a time, the others wait for it. A file appears whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from farm.errors import InputError
from farm.patience import is_passing, patiently

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
WANTED = (".json", ".safetensors", ".model", ".txt")
TELL_EVERY_S = 5.0


def is_elsewhere(origin: str) -> bool:
    """Whether a model's name is that of a bucket, or has the form of a hub id; a folder of that name goes before."""
    return "://" in origin or (HUB_ID.fullmatch(origin) is not None and not origin.startswith("."))


def local_folder(origin: str, components: Sequence[str] | None = None) -> Path:
    """The folder on this machine that holds a model; fetched first where it lies elsewhere.

    Args:
        origin: a folder, a hub id `org/name[@revision]`, or a URI that fsspec knows.
        components: those that are needed; all where not given.

    Raises:
        InputError: it cannot be had.
    """
    folder = Path(origin)
    if "://" not in origin and folder.is_dir():
        return folder
    if not is_elsewhere(origin):
        raise InputError(f"model {origin!r} must be a folder on this machine, a hub id or a URI, and is none of these")
    try:
        return _from_bucket(origin, components) if "://" in origin else _from_hub(origin, components)
    except Exception as e:
        if not (isinstance(e, OSError | ValueError | ImportError | NotImplementedError) or is_passing(e)):
            raise
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        where = "fetched" if "://" in origin else "had from the hub, and is not a folder here"
        raise InputError(f"model {origin!r} could not be {where}: {reason}") from e


def pinned(origin: str, folder: Path) -> str:
    """A hub id with the revision that lies in a folder of the hub's cache, so that every node fetches the same."""
    return origin if "://" in origin else f"{origin.partition('@')[0]}@{folder.name}"


def _from_hub(origin: str, components: Sequence[str] | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    repo, _, revision = origin.partition("@")
    parts = [f"{c}/*" for c in components] if components is not None else ["*/*"]
    patterns = ["model_index.json", *(f"{part}{suffix}" for part in parts for suffix in WANTED)]
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except HfHubHTTPError as e:
        raise OSError(str(e)) from e


def _from_bucket(origin: str, components: Sequence[str] | None) -> Path:
    import fsspec

    fs, root = fsspec.core.url_to_fs(origin.rstrip("/"))
    folder = cache_folder() / "models" / hashlib.sha256(origin.rstrip("/").encode()).hexdigest()[:16]
    with _alone(folder):
        fs.invalidate_cache()
        listed = patiently(partial(fs.find, root, detail=True))
        found = {path.removeprefix(f"{root}/"): info for path, info in listed.items()}
        if "model_index.json" not in found:
            raise FileNotFoundError(f"there is no model_index.json in {origin}")
        wanted = [name for name in sorted(found) if _is_wanted(name, components)]
        noted = folder / "fetched.json"
        have: dict[str, Any] = {}
        with suppress(OSError, ValueError):  # absent, or cut short: everything is fetched anew
            have = json.loads(noted.read_text())
        lacking = [name for name in wanted if have.get(name) != _version(found[name]) or not (folder / name).is_file()]
        total, done, told_at = sum(found[name]["size"] for name in lacking), 0, 0.0
        for name in lacking:
            if time.monotonic() - told_at > TELL_EVERY_S:
                print(f"farm: fetching {origin}: {done / 2**30:.1f} of {total / 2**30:.1f} GiB", file=sys.stderr)
                told_at = time.monotonic()
            part = folder / f"{name}.part"
            part.parent.mkdir(parents=True, exist_ok=True)
            patiently(partial(fs.get_file, f"{root}/{name}", str(part)))
            if part.stat().st_size != found[name]["size"]:
                raise OSError(f"{name} came cut short: {part.stat().st_size} of {found[name]['size']} bytes")
            part.replace(folder / name)
            done += found[name]["size"]
            have[name] = _version(found[name])
            part = noted.with_suffix(".part")
            part.write_text(json.dumps(have))
            part.replace(noted)
        for name in set(have) - set(found):  # gone from the bucket: it must not be loaded beside what is new
            (folder / name).unlink(missing_ok=True)
    return folder


def _is_wanted(name: str, components: Sequence[str] | None) -> bool:
    component, _, rest = name.partition("/")
    if not rest:
        return name == "model_index.json"
    return name.endswith(WANTED) and (components is None or component in components)


def _version(info: dict[str, Any]) -> list[Any]:
    """What tells one version of a remote file from another."""
    named = next((info[k] for k in ("ETag", "etag", "md5Hash", "mtime", "LastModified") if info.get(k)), "")
    return [info["size"], str(named)]


def cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "longtake"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield
