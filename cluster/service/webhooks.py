"""Webhooks: telling an address that a film has ended, signed, again and again until it answers.

What is to be told lies in the store (`webhooks/`), put there before a submission is answered, and goes when it has been
delivered or after TRIES. Signed as standardwebhooks.com says, which OpenAI's client checks too: HMAC-SHA256 over
`id.timestamp.body`. The address is checked at each delivery (`fetching`); redirects are not followed. A delivery may
come twice, with the same `webhook-id`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.service.fetching import Answer, check_url, request
from farm.errors import FarmError, InputError, Problem
from farm.service.submission import read_submission, where
from farm.states import ENDED
from farm.store.store import Store

log = logging.getLogger(__name__)
LOOK_S = 2.0
TRIES, FIRST_WAIT_S, MAX_WAIT_S = 12, 5.0, 6 * 3600.0  # a day, almost, in all
PREFIX = "whsec_"
Send = Callable[..., Answer]


def check_secret(text: str) -> bytes:
    """The key of a secret as `whsec_` and base64.

    Raises:
        InputError: it is something else, or has fewer than 24 bytes.
    """
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not text.startswith(PREFIX) or len(key) < 24:
        raise InputError("LONGTAKE_WEBHOOK_SECRET must be whsec_ and at least 24 bytes in base64")
    return key


def signed(key: bytes, *, name: str, at: int, body: bytes) -> dict[str, str]:
    """The headers of a delivery."""
    told = hmac.new(key, f"{name}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "content-type": "application/json", "user-agent": "longtake", "webhook-id": name, "webhook-timestamp": str(at),
        "webhook-signature": "v1," + base64.b64encode(told).decode(),
    }  # fmt: skip


def keep_webhook(store: Store, job: str, url: str) -> None:
    """Note that somebody wants to be told of a film's end; before its submission is answered, and after it was kept."""
    store.put_record(f"webhooks/{job}.json", {"url": url, "tries": 0, "next_at": 0.0})


def check_webhook(url: str, secret: str) -> None:
    """Raises:
    InputError: this server sends none, or not there.
    """
    if not secret:
        raise InputError(Problem("webhook must not be there: this server sends none", "webhook"))
    try:
        check_url(url)
    except InputError as e:
        raise e.at(key="webhook") from None


def deliver_due(store: Store, key: bytes, *, now: float, send: Send = request) -> int:
    """Tell of every film that has ended, where it is time for another try. Returns how many were delivered."""
    delivered = 0
    for name in store.names("webhooks"):
        if name.endswith(".json"):
            try:
                delivered += _deliver(store, name, key, now, send)
            except (ValueError, KeyError, TypeError) as e:  # of one record: the others must not wait for it
                log.warning("webhooks/%s cannot be delivered: %s", name, e)
    return delivered


def _deliver(store: Store, name: str, key: bytes, now: float, send: Send) -> bool:
    path, job = f"webhooks/{name}", name.removesuffix(".json")
    record = store.record(path)
    if record["next_at"] > now:
        return False
    one = read_submission(store, job)
    if one is None:
        if "deleted.json" in store.names(f"jobs/{job}"):
            store.remove(path)
        return False
    told = where(store, one)
    if told.state not in ENDED:
        return False
    event = {
        "object": "event", "type": f"{one.kind}.{told.state}", "created_at": int(told.ended_at or now),
        "data": {"id": f"video_{one.job}" if one.kind == "video" else one.job, "status": told.state,
                 "reason": told.reason, "title": one.title, "seconds": one.seconds},
    }  # fmt: skip
    event["id"] = f"evt_{one.job}_{told.state}_{int(told.ended_at or 0)}"
    if _is_taken(send, record["url"], key, event, now):
        store.remove(path)
        return True
    _put_off(store, path, record, now)
    return False


def _is_taken(send: Send, url: str, key: bytes, event: Mapping[str, Any], now: float) -> bool:
    body = json.dumps(event).encode()
    headers = signed(key, name=str(event["id"]), at=int(now), body=body)
    try:
        status = send(url, method="POST", body=body, headers=headers).status
    except (InputError, OSError) as e:
        log.warning("the webhook of %s did not come through: %s", event["id"], type(e).__name__)
        return False
    return 200 <= status < 300


def _put_off(store: Store, path: str, record: Mapping[str, Any], now: float) -> None:
    tries = int(record["tries"]) + 1
    if tries >= TRIES:
        store.publish(
            path.replace("webhooks/", "webhooks/given-up/", 1), json.dumps({**record, "tries": tries}).encode()
        )
        store.remove(path)
        return
    wait_s = min(FIRST_WAIT_S * 3.0 ** (tries - 1), MAX_WAIT_S)
    store.publish(path, json.dumps({**record, "tries": tries, "next_at": now + wait_s}).encode())


class Courier:
    """A Serve deployment of one replica, which Serve starts again when it dies. It answers nobody."""

    def __init__(self, store: str, secret: str) -> None:
        self.store, self.key = Store(store), check_secret(secret)
        self.thread = threading.Thread(target=self._deliver, daemon=True)
        self.thread.start()

    def _deliver(self) -> None:
        while True:
            try:
                deliver_due(self.store, self.key, now=time.time())
            except (OSError, FarmError, ValueError) as e:  # the store is out of order for a while
                log.warning("webhooks wait: %s", e)
            time.sleep(LOOK_S)

    def check_health(self) -> None:
        """Raises:
        RuntimeError: the thread has ended.
        """
        if not self.thread.is_alive():
            raise RuntimeError("the courier's thread has ended")
