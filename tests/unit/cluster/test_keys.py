"""Who may do what over HTTP: keys, roles, quotas."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from service_case import client_of, files_of, service_on, submit

from farm.service.access import LOCAL
from farm.store.journal import Journal, Owner, take_lease, write_attempt
from farm.store.ledger import compact
from farm.store.store import Store
from farm.task import Attempt


def test_roles(store: Store, keys: dict[str, str]) -> None:
    service = service_on(store)
    ann, ben, eve, op = (client_of(service, key=keys[name]) for name in ("ann", "ben", "eve", "op"))
    job = submit(ann).json()["id"]
    assert [c.get(f"/v1/films/{job}").status_code for c in (ann, ben, eve, op)] == [200, 404, 200, 200]
    assert [len(c.get("/v1/films").json()["data"]) for c in (ann, ben, eve, op)] == [1, 0, 1, 1]
    assert [submit(c).status_code for c in (ben, eve, op)] == [201, 403, 201]
    assert eve.post("/v1/videos", json={"prompt": "a"}).status_code == 403
    for path in ("pause", "resume", "cancel", "requeue"):
        assert [c.post(f"/v1/films/{job}/{path}").status_code for c in (ben, eve, ann, op)] == [404, 403, 202, 202]
    assert ben.get("/v1/films", params={"by": "ann"}).json()["data"] == []
    for part in ("tasks", "events?timeout_s=0", "content", "shots/one/content", "previews/preview-x.png"):
        assert ben.get(f"/v1/films/{job}/{part}").status_code == 404


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", "Basic YTpi", "Bearer ltk_", "bearer  x y"])
def test_without_a_key_that_is_known_nothing_is_answered(store: Store, keys: dict[str, str], header: str) -> None:
    client = client_of(service_on(store))
    for path in ("/v1/films", "/v1/videos", "/v1/pools", "/v1/models", "/v1/nothing"):
        answer = client.get(path, headers={"authorization": header} if header else {})
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert client.get("/v1/films", headers={"authorization": f"Bearer {keys['old']}"}).status_code == 401
    assert submit(client).status_code == 401
    assert files_of(store) == []


def test_an_api_that_is_not_bound_to_loopback_is_never_open(store: Store) -> None:
    assert client_of(service_on(store, is_open=False)).get("/v1/films").status_code == 401


def test_a_key_is_hashed_and_its_changes_are_noted(store: Store, keys: dict[str, str]) -> None:
    service = service_on(store)
    client = client_of(service, key=keys["ann"])
    job = submit(client).json()["id"]
    client.post(f"/v1/films/{job}/cancel")
    everything = b"".join(store.cat(f.path) for f in store.files(""))
    assert not any(secret.encode() in everything for secret in keys.values())
    days = store.names("audit")
    told = [(r["by"], r["what"], r["job"]) for day in days for r in store.records(f"audit/{day}")]
    assert told == [("ann", "submit", job), ("ann", "cancel", job)]


def test_quotas_are_told_with_when_to_come_again(store: Store, keys: dict[str, str]) -> None:
    service = service_on(store, max_films=2)
    ann, ben = (client_of(service, key=keys[name]) for name in ("ann", "ben"))
    jobs = [submit(ann).json()["id"] for _ in range(2)]
    refused = submit(ann)
    assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
    assert "may have 2 films that have not ended" in refused.json()["error"]["message"]
    assert submit(ben).status_code == 201
    ann.post(f"/v1/films/{jobs[0]}/cancel")
    assert submit(ann).status_code == 201
    again = client_of(service_on(store, max_films=2), key=keys["ann"])  # a server that has just started
    assert submit(again).status_code == 429


def test_servers_share_a_quota_and_what_a_dead_one_left_is_not_counted_for_ever(
    store: Store, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = [service_on(store, max_queued_s=5.0) for _ in range(3)]
    clients = [client_of(service, key=keys["ann"]) for service in services]  # two films of 2.125 s and no third
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: submit(clients[i % 3]).status_code, range(24)))
    assert 1 <= answers.count(201) <= 2
    assert set(answers) == {201, 429}
    assert len(store.names("open/ann")) == len(store.names("queue")) == answers.count(201)
    while len(store.names("queue")) < 2:
        assert submit(clients[0]).status_code == 201
    store.publish("open/ann/0123456789abcdef.mp4@2125.json", b"{}")  # by a server that died before it had queued it
    clients[1].post(f"/v1/films/{store.names('queue')[0][:16]}/cancel")
    assert submit(clients[0]).status_code == 429
    monkeypatch.setattr("farm.service.submission.LEFT_S", -1.0)  # long after
    assert submit(client_of(service_on(store, max_queued_s=5.0), key=keys["ann"])).status_code == 201
    assert sorted(n.partition("@")[0] for n in store.names("open/ann")) == [n[:-5] for n in store.names("queue")]
    for name in store.names("queue"):
        clients[2].post(f"/v1/films/{name[:16]}/cancel")
    assert store.names("open/ann") == store.names("queue") == []


def test_the_gpu_hours_of_a_deleted_film_count(store: Store, keys: dict[str, str]) -> None:
    ann = client_of(service_on(store, gpu_hours_per_day=1.0), key=keys["ann"])
    video = ann.post("/v1/videos", json={"prompt": "a red ball"}).json()["id"]
    job = video.removeprefix("video_")
    journal = take_lease(store, job, Owner("one"), now=lambda: 1_000_000.0)
    assert isinstance(journal, Journal)
    journal.move("submit", "")
    at = {"queued_at": 1_000_000.0, "started_at": 1_000_000.0, "ended_at": 1_004_000.0}
    where = {"stage": "denoise", "label": "one", "pool": "large", "replica": "r", "node": "n"}
    write_attempt(
        store, Attempt(attempt_id="a", job=job, task="t", outcome="succeeded", gpus=1.0, run_s=4000.0, **at, **where)
    )
    compact(store, job)
    assert ann.delete(f"/v1/videos/{video}").status_code == 200
    refused = client_of(service_on(store, gpu_hours_per_day=1.0), key=keys["ann"])
    assert "this one has used 1.11" in submit(refused).json()["error"]["message"]


def test_event_streams_of_a_key_are_bounded(store: Store) -> None:
    service = service_on(store, max_streams=1)
    client = client_of(service)
    job = submit(client).json()["id"]
    path = f"/v1/films/{job}/events?timeout_s=0"
    assert [client.get(path).status_code for _ in range(3)] == [200] * 3  # each has ended before the next
    with service.streaming(LOCAL):
        assert client.get(path).status_code == 429


def test_a_key_that_asks_too_often_waits(store: Store) -> None:
    client = client_of(service_on(store, requests_per_s=5.0))
    answers = [client.get("/v1/pools") for _ in range(15)]
    assert {a.status_code for a in answers[:10]} == {200}
    assert answers[-1].status_code == 429
    assert answers[-1].headers["retry-after"] == "1"
