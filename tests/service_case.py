"""A service on a store in memory or on disk, and a client for it, without Ray."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from cluster.http.app import make_app
from cluster.service.service import Service
from farm.models.checkpoint import find_checkpoint
from farm.pools.pools import default_pools
from farm.service.limits import Limits
from farm.store.store import Store

BOARD = "title: A ball\nshots:\n  - {id: one, prompt: a red ball rolls over grass, frames: 17}\n"
YAML = {"content-type": "application/yaml"}
HERE = "http://127.0.0.1:8000"


class Clock:
    """A time of day that tests set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


def service_on(store: Store, *, is_open: bool = True, **limits: Any) -> Service:
    async def nobody(name: str) -> None:
        return None

    models = {"builtin": find_checkpoint("builtin", beside=Path())}
    pools = default_pools(num_cpus=2, num_gpus=0)
    told = {"requests_per_s": 10_000.0} | limits
    return Service(store, pools, models, Limits(**told), nobody, is_open=is_open, now=Clock())


def client_of(service: Service, *, key: str = "") -> TestClient:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return TestClient(make_app(service), base_url=HERE, headers=headers, raise_server_exceptions=False)


def submit(client: TestClient, board: str = BOARD, **more: Any) -> Any:
    return client.post("/v1/films", content=board, headers=YAML | more.pop("headers", {}), **more)


def files_of(store: Store) -> list[str]:
    """All that was written, but for what is noted of keys."""
    return sorted(f.path for f in store.files("") if f.path.split("/")[0] not in ("keys", "layout.json"))


def png(size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "green").save(buffer, "PNG")
    return buffer.getvalue()
