"""Who may do what: API keys with a role each, and a note of every change that somebody made.

A key is shown once, when it is added; the store has its hash alone. It is drawn with 256 bits, so one round of SHA-256
protects it as well as a slow hash would. A revoked key stays in the store, so that its name is never used again and the
server does not open itself when the last one goes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from farm.errors import InputError, Problem
from farm.store.store import Store

Role = Literal["viewer", "submitter", "operator"]
ROLES: tuple[Role, ...] = get_args(Role)
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
PREFIX = "ltk_"
FRESH_S = 5.0  # how soon a new or a revoked key counts


@dataclass(frozen=True)
class Caller:
    """Who asks: a viewer sees all films, a submitter has films of its own, an operator does everything."""

    name: str
    role: Role

    def may_see(self, owner: str) -> bool:
        return self.role != "submitter" or owner == self.name

    @property
    def may_submit(self) -> bool:
        return self.role != "viewer"

    def may_change(self, owner: str) -> bool:
        return self.role == "operator" or (self.role == "submitter" and owner == self.name)


LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOCAL = Caller("local", "operator")  # whoever asks on loopback, where there are no keys


def add_key(store: Store, name: str, role: str, *, at: float) -> str:
    """Make a key. Returns it: it cannot be shown again.

    Raises:
        InputError: a name that cannot be used, or has been; an unknown role.
    """
    if not NAME.fullmatch(name) or name == LOCAL.name:
        told = f"must be 1 to 40 of a-z 0-9 - _ and not {LOCAL.name!r}, got {name!r}"
        raise InputError(Problem(f"a key's name {told}", "name"))
    if role not in ROLES:
        raise InputError(Problem(f"--role must be one of {', '.join(ROLES)}, got {role!r}", "role"))
    secret = PREFIX + secrets.token_urlsafe(32)
    record = {"name": name, "role": role, "sha256": _hash(secret), "added_at": at}
    if not store.put_record(f"keys/{name}.json", record):
        raise InputError(Problem(f"a key's name must be new, got {name!r}, which has been used", "name"))
    return secret


def revoke_key(store: Store, name: str, *, at: float) -> None:
    """Raises:
    InputError: there is no such key.
    """
    if not NAME.fullmatch(name) or f"{name}.json" not in store.names("keys"):
        raise InputError(Problem(f"there is no key {name!r} in the store {store.uri}", "name"))
    store.put_record(f"keys/revoked/{name}.json", {"revoked_at": at})


def list_keys(store: Store) -> list[dict[str, Any]]:
    """Every key that was ever added, by name, without its hash."""
    gone = {name: store.record(f"keys/revoked/{name}") for name in store.names("keys/revoked")}
    rows = []
    for record in store.records("keys"):
        revoked_at = gone.get(f"{record['name']}.json", {}).get("revoked_at")
        rows.append({k: record[k] for k in ("name", "role", "added_at")} | {"revoked_at": revoked_at})
    return rows


class Keyring:
    """The keys of a store as a server knows them. Reads block; one that fails leaves what was known."""

    def __init__(self, store: Store, now: Callable[[], float]) -> None:
        self.store, self.now = store, now
        self.callers: list[tuple[str, Caller]] = []  # by hash
        self.has_keys = False
        self.read_at = float("-inf")
        self.reading = threading.Lock()

    @property
    def is_fresh(self) -> bool:
        return self.now() - self.read_at < FRESH_S

    def refresh(self) -> None:
        """Read the keys again, where they are not fresh; of many requests at once one does, and the others wait."""
        with self.reading:
            if self.is_fresh:
                return
            gone = set(self.store.names("keys/revoked"))
            records = list(self.store.records("keys"))
            self.callers = [
                (r["sha256"], Caller(r["name"], r["role"])) for r in records if f"{r['name']}.json" not in gone
            ]  # fmt: skip
            has_any = any(name.endswith(".json") for name in self.store.names("keys"))  # damaged ones, too
            self.has_keys = self.has_keys or has_any
            self.read_at = self.now()

    def caller_of(self, secret: str) -> Caller | None:
        """Whose key this is. Takes as long whether it is one or not."""
        told, found = _hash(secret), None
        for known, caller in self.callers:
            if hmac.compare_digest(known, told):
                found = caller
        return found


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def note_change(store: Store, *, at: float, by: str, what: str, job: str = "", **more: Any) -> None:
    """Keep for good who changed what: `audit/day=.../`."""
    day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
    record = {"at": at, "by": by, "what": what, "job": job, **more}
    store.put_record(f"audit/day={day}/{int(at * 1000):015d}-{uuid.uuid4().hex[:8]}.json", record)
