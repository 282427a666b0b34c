"""Step checkpoints in the store: how far a denoise task had come, until its artifact exists.

One immutable file each, named by step and its own hash, so that what a stopped writer left half done, or two replicas
at one task wrote, can do no harm: `checkpoints/<2 hex>/<key>/<step>-<made with>-<sha>.safetensors`.
"""

from __future__ import annotations

import hashlib

from farm.keys import hash_json
from farm.store.store import Store


def _folder(key: str) -> str:
    return f"checkpoints/{key[:2]}/{key}"


def keep_step(store: Store, key: str, step: int, data: bytes, *, made_with: dict[str, str]) -> None:
    """Keep the state after a step, in place of earlier ones."""
    before = store.names(_folder(key))
    name = f"{step:06d}-{hash_json(made_with)[:8]}-{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
    store.put_if_absent(f"{_folder(key)}/{name}", data)
    for old in before:
        if old < name:
            store.remove(f"{_folder(key)}/{old}")


def read_step(store: Store, key: str, *, made_with: dict[str, str]) -> bytes | None:
    """The latest state that is whole and was made by the same versions on the same kind of CPU; None without one."""
    for name in reversed(store.names(_folder(key))):
        _, made, told = name.removesuffix(".safetensors").split("-") if name.count("-") == 2 else ("", "", "")
        if made != hash_json(made_with)[:8]:
            continue
        try:
            data = store.cat(f"{_folder(key)}/{name}")
        except FileNotFoundError:
            continue
        if hashlib.sha256(data).hexdigest()[:32] == told:
            return data
    return None


def forget_steps(store: Store, key: str) -> None:
    """Delete them all: the artifact exists."""
    for name in store.names(_folder(key)):
        store.remove(f"{_folder(key)}/{name}")
    store.remove_folder(_folder(key))
