"""Webhooks: signed, tried again, and never sent where they must not go."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster.service import webhooks as courier
from cluster.service.fetching import Answer, request
from cluster.service.webhooks import TRIES, check_secret, deliver_due
from farm.errors import InputError
from farm.service.submission import Submission
from farm.store.journal import Journal, Owner, take_lease
from farm.store.store import Store

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
KEY = check_secret(SECRET)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    store.create()
    one = Submission(
        "0123456789abcdef", "film", "ann", 5.0, "A ball", "builtin", 96, 64, 8.0, 16, (("one", 17, 1),), "mp4"
    )  # fmt: skip
    store.put_record(f"jobs/{one.job}/submission.json", vars(one))
    store.put_record(f"jobs/{one.job}/job.json", {})
    courier.keep_webhook(store, one.job, "https://studio.example/hook")
    return store


def end(store: Store) -> None:
    journal = take_lease(store, "0123456789abcdef", Owner("one"), now=lambda: 100.0)
    assert isinstance(journal, Journal)
    journal.move("submit", "")
    journal.move("finish", "all done")


class Studio:
    """Whoever is told."""

    def __init__(self, *statuses: int | Exception) -> None:
        self.statuses, self.told = list(statuses), list[tuple[str, dict[str, str], bytes]]()

    def __call__(self, url: str, *, method: str, body: bytes, headers: dict[str, str]) -> Answer:
        assert method == "POST"
        self.told.append((url, headers, body))
        status = self.statuses.pop(0)
        if isinstance(status, Exception):
            raise status
        return Answer(status, b"", "")


def test_an_end_is_told_once_signed_so_that_others_can_check_it(store: Store) -> None:
    studio = Studio(204)
    assert deliver_due(store, KEY, now=50.0, send=studio) == 0  # it has not ended
    end(store)
    assert deliver_due(store, KEY, now=1e9, send=studio) == 1
    assert deliver_due(store, KEY, now=2e9, send=studio) == 0
    ((url, headers, body),) = studio.told
    assert url == "https://studio.example/hook"
    with openai.OpenAI(api_key="none", webhook_secret=SECRET) as client:
        client.webhooks.verify_signature(body.decode(), headers, tolerance=10**10)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body.decode() + " ", headers, tolerance=10**10)
    assert b'"type": "film.completed"' in body and b'"reason": "all done"' in body
    assert SECRET.encode() not in body + str(headers).encode()


@pytest.mark.parametrize("bad", [500, 302, 404, OSError("nobody there"), InputError("not a global address")])
def test_what_does_not_come_through_is_tried_again_later_and_given_up_at_last(store: Store, bad: Any) -> None:
    end(store)
    now, times = 1000.0, []
    studio = Studio(*[bad] * TRIES)
    while store.names("webhooks") != ["given-up"]:
        before = len(studio.told)
        assert deliver_due(store, KEY, now=now, send=studio) == 0
        times += [now] if len(studio.told) > before else []
        now += 5.0 if now < 2000 else 1800.0
        assert now < 1e6
    assert len(times) == TRIES
    assert times[1] - times[0] == pytest.approx(5, abs=5)
    assert times[-1] - times[-2] >= 6 * 3600
    assert store.names("webhooks/given-up") == ["0123456789abcdef.json"]


def test_a_film_that_was_deleted_is_told_to_nobody(store: Store) -> None:
    end(store)
    store.put_record("jobs/0123456789abcdef/deleted.json", {"at": 1.0})
    assert deliver_due(store, KEY, now=1e9, send=Studio()) == 0
    assert store.names("webhooks") == []


def test_the_address_is_checked_at_each_delivery(store: Store) -> None:
    """As it is really sent: the name leads to this machine now, whatever it said when the film was submitted."""
    end(store)

    def send(url: str, **more: Any) -> Answer:
        return request(url, **more, resolve=lambda host, port: ["127.0.0.1"])

    assert deliver_due(store, KEY, now=1e9, send=send) == 0
    assert store.record("webhooks/0123456789abcdef.json")["tries"] == 1


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", SECRET.removeprefix("whsec_"), SECRET + "!"])
def test_secrets_that_are_none(secret: str) -> None:
    with pytest.raises(InputError, match="must be whsec_ and at least 24 bytes"):
        check_secret(secret)
