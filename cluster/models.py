"""`farm models`: the families that the farm knows, or what it would do with one checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from farm.cards import FAMILIES, ModelCard
from farm.checkpoint import find_checkpoint
from farm.errors import InputError


def show_models(path: str | None, *, as_json: bool) -> int:
    rows: list[dict[str, Any]] = []
    if path is None:
        try:
            rows.append(_row(find_checkpoint("builtin", beside=Path()).card, "builtin"))
        except InputError as e:
            if not as_json:
                print(f"builtin: {e}\n")
        rows += [_row(card, pipeline) for pipeline, card in FAMILIES.items()]
    else:
        checkpoint = find_checkpoint(path, beside=Path.cwd())
        rows = [_row(checkpoint.card, path) | {"fingerprints": dict(checkpoint.fingerprints)}]
    if as_json:
        print(json.dumps({"models": rows}))
        return 0
    for row in rows:
        print(row["model"])
        for key, value in row.items():
            if key not in ("model", "latent_rgb", "fingerprints"):
                print(f"  {key:<20} {value}")
        for component, fingerprint in row.get("fingerprints", {}).items():
            print(f"  {component:<20} sha256 {fingerprint[:16]}")
    return 0


def _row(card: ModelCard, model: str) -> dict[str, Any]:
    told = asdict(card) | {"rule": str(card.rule), "size": f"{card.size[0]}x{card.size[1]}"}
    for key in ("modes", "contexts"):
        told[key] = ", ".join(told[key]) or "none"
    for key in ("latent_rgb", "name", "per_token_timesteps", "latent_channels"):
        told.pop(key)
    return {"model": model} | told
