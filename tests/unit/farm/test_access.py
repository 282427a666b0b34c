"""Keys: shown once, kept as hashes, refused when they are revoked."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from farm.errors import InputError
from farm.service.access import FRESH_S, Caller, Keyring, add_key, list_keys, revoke_key
from farm.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    store.create()
    return store


def test_a_key_is_known_by_its_hash_until_it_is_revoked(store: Store) -> None:
    now = [100.0]
    keyring = Keyring(store, lambda: now[0])
    keyring.refresh()
    assert not keyring.has_keys
    secret = add_key(store, "ann", "viewer", at=1.0)
    assert len(secret) > 40
    assert secret.encode() not in store.cat("keys/ann.json")
    keyring.refresh()
    assert keyring.caller_of(secret) is None  # not yet
    now[0] += FRESH_S
    keyring.refresh()
    assert keyring.caller_of(secret) == Caller("ann", "viewer")
    assert keyring.caller_of(secret + "x") is keyring.caller_of("") is keyring.caller_of("\ud800") is None
    revoke_key(store, "ann", at=2.0)
    now[0] += FRESH_S
    keyring.refresh()
    assert keyring.caller_of(secret) is None
    assert keyring.has_keys  # a revoked key still counts
    assert list_keys(store) == [{"name": "ann", "role": "viewer", "added_at": 1.0, "revoked_at": 2.0}]


@pytest.mark.parametrize(("name", "role"), [("ann", "viewer"), ("Ann", "viewer"), ("../x", "viewer"), ("", "viewer"),
                                            ("a" * 41, "viewer"), ("local", "operator"), ("ben", "admin")])  # fmt: skip
def test_names_and_roles_that_cannot_be(store: Store, name: str, role: str) -> None:
    add_key(store, "ann", "viewer", at=1.0)
    with pytest.raises(InputError):
        add_key(store, name, role, at=2.0)
    assert [k["name"] for k in list_keys(store)] == ["ann"]


def test_a_key_that_is_not_there_cannot_be_revoked(store: Store) -> None:
    for name in ("ann", "../layout"):
        with pytest.raises(InputError, match="there is no key"):
            revoke_key(store, name, at=1.0)


def test_roles() -> None:
    viewer, ann, op = Caller("eve", "viewer"), Caller("ann", "submitter"), Caller("op", "operator")
    assert [c.may_submit for c in (viewer, ann, op)] == [False, True, True]
    assert [c.may_see("ben") for c in (viewer, ann, op)] == [True, False, True]
    assert [c.may_change("ben") for c in (viewer, ann, op)] == [False, False, True]
    assert [c.may_change("ann") for c in (viewer, ann, op)] == [False, True, True]
    assert not viewer.may_change("eve")


def test_of_many_requests_at_once_one_reads_the_keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    add_key(store, "ann", "viewer", at=1.0)
    names, listed = store.names, list[str]()

    def slow_names(folder: str) -> list[str]:
        listed.append(folder)
        time.sleep(0.05)
        return names(folder)

    monkeypatch.setattr(store, "names", slow_names)
    keyring = Keyring(store, lambda: 0.0)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: keyring.refresh(), range(8)))
    assert listed.count("keys/revoked") == 1
    assert keyring.has_keys


def test_a_damaged_key_opens_no_door(store: Store) -> None:
    """With no key at all everybody is the operator; one that cannot be read is a key all the same."""
    secret = add_key(store, "ann", "operator", at=1.0)
    store.publish("keys/ann.json", b"{")
    ring = Keyring(store, lambda: 1.0)
    ring.refresh()
    assert ring.has_keys
    assert ring.caller_of(secret) is None
