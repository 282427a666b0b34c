"""A service, its store, a client and keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from service_case import client_of, service_on

from farm.service.access import add_key, revoke_key
from farm.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    store.create()
    return store


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with client_of(service_on(store)) as client:
        yield client


@pytest.fixture
def keys(store: Store) -> dict[str, str]:
    people = [("ann", "submitter"), ("ben", "submitter"), ("eve", "viewer"), ("op", "operator"), ("old", "operator")]
    found = {name: add_key(store, name, role, at=1.0) for name, role in people}
    revoke_key(store, "old", at=2.0)
    return found
