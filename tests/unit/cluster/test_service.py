"""The service over HTTP without Ray: what comes in, what is kept, who may see it, and what is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cluster.serve_app import make_app
from cluster.service import Service
from farm.access import LOCAL, add_key, revoke_key
from farm.admission import Limits
from farm.checkpoint import find_checkpoint
from farm.journal import Journal, Owner, new_orders, take_lease, write_attempt
from farm.ledger import compact
from farm.pools import default_pools
from farm.store import Store
from farm.task import Attempt

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


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    store.create()
    return store


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


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with client_of(service_on(store)) as client:
        yield client


def submit(client: TestClient, board: str = BOARD, **more: Any) -> Any:
    return client.post("/v1/films", content=board, headers=YAML | more.pop("headers", {}), **more)


def files_of(store: Store) -> list[str]:
    """All that was written, but for what is noted of keys."""
    return sorted(f.path for f in store.files("") if f.path.split("/")[0] not in ("keys", "layout.json"))


def png(size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "green").save(buffer, "PNG")
    return buffer.getvalue()


# -- submitting


def test_a_film_is_durable_when_the_answer_comes(client: TestClient, store: Store) -> None:
    answer = submit(client, params={"priority": 70})
    assert answer.status_code == 201, answer.text
    film = answer.json()
    assert (film["status"], film["priority"], film["frames"], film["by"]) == ("queued", 70, 17, "local")
    assert answer.headers["location"] == f"/v1/films/{film['id']}"
    wish = store.record(f"queue/{film['id']}.mp4.json")
    assert (wish["job"], wish["by"], wish["priority"], wish["farm"]) == (film["id"], "local", 70, "")
    assert store.cat(f"jobs/{film['id']}/storyboard.yaml").decode() == BOARD
    assert client.get(f"/v1/films/{film['id']}").json() == film


def test_a_key_makes_one_film_of_two_requests(client: TestClient) -> None:
    once = {"headers": {"idempotency-key": "monday"}}
    first, second = submit(client, **once), submit(client, **once)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert submit(client).json()["id"] != submit(client).json()["id"] != first.json()["id"]
    other = submit(client, BOARD.replace("red", "blue"), **once)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert len(client.get("/v1/films").json()["data"]) == 3


def test_a_key_whose_film_was_deleted_makes_no_film_that_nobody_can_see(client: TestClient, store: Store) -> None:
    asked: dict[str, Any] = {"json": {"prompt": "a red ball"}, "headers": {"idempotency-key": "monday"}}
    video = client.post("/v1/videos", **asked).json()["id"]
    assert client.delete(f"/v1/videos/{video}").status_code == 200
    again = client.post("/v1/videos", **asked)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert store.names("queue") == store.names("open/local") == []


def test_what_a_server_that_died_has_left_is_completed(client: TestClient, store: Store) -> None:
    once = {"headers": {"idempotency-key": "monday"}}
    job = submit(client, **once).json()["id"]
    store.remove(f"queue/{job}.mp4.json")  # as if it had died before it came to these
    store.remove(store.files("submissions")[0].path)
    assert client.get("/v1/films").json()["data"] == []
    assert submit(client, **once).json()["id"] == job
    assert store.record(f"queue/{job}.mp4.json")["job"] == job
    assert [f["id"] for f in client.get("/v1/films").json()["data"]] == [job]


def test_pictures_come_with_the_request_and_nothing_else_is_read(
    client: TestClient, store: Store, tmp_path: Path
) -> None:
    board = "shots:\n  - {id: one, prompt: a red ball rolls over grass, frames: 17, image: hill.png}\n"
    (tmp_path / "hill.png").write_bytes(png())
    for name in ("hill.png", str(tmp_path / "hill.png"), "../hill.png", "/etc/passwd", "s3://bucket/x.png"):
        answer = submit(client, board.replace("hill.png", name))
        assert answer.status_code == 400
        assert "shots[0].image must name a file of this request" in answer.json()["error"]["message"]
    assert files_of(store) == []
    answer = client.post("/v1/films", data={"storyboard": board}, files={"files": ("hill.png", png())})
    assert answer.status_code == 201, answer.text
    inside = client.post("/v1/films", data={"storyboard": board.replace("hill", "a/b/hill")},
                         files={"files": ("a/b/hill.png", png())})  # fmt: skip
    assert inside.status_code == 201, inside.text
    assert any(store.cat(path) == png() for path in files_of(store) if path.endswith(".png"))


@pytest.mark.parametrize("key", ["model", "continuity.model"])
def test_models_must_be_offered(client: TestClient, key: str, tmp_path: Path) -> None:
    line = f"model: {tmp_path}" if key == "model" else f"continuity: {{model: {tmp_path}}}"
    answer = submit(client, f"{line}\n{BOARD}")
    assert answer.status_code == 400
    assert f"{key} must be one of builtin, got" in answer.json()["error"]["message"]


def test_every_fault_is_told_with_its_line(client: TestClient, store: Store) -> None:
    answer = submit(client, "titel: x\nshots:\n  - {id: one, prompt: a ball, seconds: -1}\n")
    assert answer.status_code == 400
    assert [(e["key"], e["line"]) for e in answer.json()["errors"]] == [("titel", 1), ("shots[0].seconds", 3)]
    assert files_of(store) == []


def test_an_estimate_writes_nothing(client: TestClient, store: Store) -> None:
    told = client.post("/v1/estimates", content=BOARD, headers=YAML).json()
    assert told["to_run"] == told["tasks"] == sum(s["tasks"] for s in told["stages"].values())
    assert (told["gpu_s"], told["cost"]) == (None, None)  # nothing has ever run here
    assert files_of(store) == []


# -- reading


def test_films_are_listed_page_by_page(client: TestClient) -> None:
    jobs = [submit(client).json()["id"] for _ in range(5)]
    first = client.get("/v1/films", params={"limit": 2}).json()
    assert ([f["id"] for f in first["data"]], first["has_more"]) == (jobs[:2:-1], True)
    rest = client.get("/v1/films", params={"limit": 10, "after": first["last_id"]}).json()
    assert ([f["id"] for f in rest["data"]], rest["has_more"]) == (jobs[2::-1], False)
    assert [f["id"] for f in client.get("/v1/films", params={"order": "asc"}).json()["data"]] == jobs
    client.post(f"/v1/films/{jobs[1]}/cancel")
    assert [f["id"] for f in client.get("/v1/films", params={"status": "canceled"}).json()["data"]] == [jobs[1]]


def test_orders_to_a_film_that_waits_are_seen_at_once(client: TestClient, store: Store) -> None:
    job = submit(client).json()["id"]
    assert client.post(f"/v1/films/{job}/priority", json={"priority": 90}).json()["priority"] == 90
    assert store.record(f"queue/{job}.mp4.json")["priority"] == 90
    assert client.post(f"/v1/films/{job}/pause").json()["status"] == "paused"
    assert client.post(f"/v1/films/{job}/resume").json()["status"] == "queued"
    canceled = client.post(f"/v1/films/{job}/cancel").json()
    assert (canceled["status"], canceled["reason"]) == ("canceled", "canceled by order of local")
    assert store.names("queue") == []
    assert client.post(f"/v1/films/{job}/requeue").json()["status"] == "queued"
    assert store.names("queue") == [f"{job}.mp4.json"]
    orders = [o["order"] for _, o in new_orders(store, job, set())]
    assert orders == ["priority", "pause", "resume", "cancel", "requeue"]


def test_events_tell_every_state_once_and_go_on_behind_the_last(client: TestClient, store: Store) -> None:
    job = submit(client).json()["id"]
    journal = take_lease(store, job, Owner("one"), now=lambda: 5.0)
    assert isinstance(journal, Journal)
    for event in ("submit", "hand out", "finish"):
        journal.move(event, f"because of {event}")
    told = client.get(f"/v1/films/{job}/events", params={"timeout_s": 5}).text
    states = [json.loads(x.split("data: ")[1])["state"] for x in told.split("\n\n") if "event: state" in x]
    assert states == ["queued", "active", "completed"]
    assert 'event: end\ndata: {"status": "completed"' in told
    ids = [int(x.split("id: ")[1].split("\n")[0]) for x in told.split("\n\n") if "id: " in x]
    again = client.get(f"/v1/films/{job}/events", headers={"last-event-id": str(ids[1])}, params={"timeout_s": 5}).text
    assert "because of submit" not in again
    assert "because of finish" in again


def test_films_are_sent_whole_and_by_ranges(client: TestClient, store: Store) -> None:
    job = submit(client).json()["id"]
    assert client.get(f"/v1/films/{job}/content").status_code == 409
    data = bytes(range(256)) * 5000
    store.publish(f"films/{job}/film.mp4", data)
    whole = client.get(f"/v1/films/{job}/content")
    assert (whole.content, whole.headers["content-type"], whole.headers["accept-ranges"]) == (
        data,
        "video/mp4",
        "bytes",
    )
    for asked, part in (("bytes=5-9", data[5:10]), ("bytes=-7", data[-7:]), ("bytes=1279990-", data[1279990:])):
        answer = client.get(f"/v1/films/{job}/content", headers={"range": asked})
        assert (answer.status_code, answer.content) == (206, part)
    for asked in ("bytes=9-5", "bytes=a-b", "bytes=0-1,4-5", "bytes=-", "lines=1-2", "bytes=" + "9" * 5000 + "-"):
        answer = client.get(f"/v1/films/{job}/content", headers={"range": asked})
        assert (answer.status_code, answer.content == data) == (200, True)
    for asked in ("bytes=1280000-", "bytes=-0"):
        answer = client.get(f"/v1/films/{job}/content", headers={"range": asked})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{len(data)}")


# -- videos


def test_a_video_is_a_film_of_one_shot(client: TestClient, store: Store) -> None:
    told = client.post("/v1/videos", json={"prompt": "a red ball rolls over grass", "seconds": "2", "seed": 3}).json()
    assert told["id"].startswith("video_")
    assert (told["object"], told["status"], told["progress"], told["seconds"]) == ("video", "queued", 0, "2")
    assert (told["model"], told["size"], told["error"], told["expires_at"]) == ("builtin", "96x64", None, None)
    fields = {"prompt": "a red ball", "num_frames": "17", "size": "64x48"}
    form = client.post("/v1/videos", files={name: (None, value) for name, value in fields.items()}).json()
    assert (form["size"], form["seconds"]) == ("64x48", "2.125")
    bare = client.post("/v1/videos", json={"prompt": "a red ball"}).json()
    assert bare["seconds"] == "2.125"  # one chunk of the card
    remixed = client.post(f"/v1/videos/{told['id']}/remix", json={"prompt": "a blue ball rolls over sand"}).json()
    assert (remixed["remixed_from_video_id"], remixed["seconds"]) == (told["id"], "2")
    board = store.cat(f"jobs/{remixed['id'].removeprefix('video_')}/storyboard.yaml").decode()
    assert "blue" in board and "seed: 3" in board
    ids = [v["id"] for v in client.get("/v1/videos", params={"order": "asc"}).json()["data"]]
    assert ids == [told["id"], form["id"], bare["id"], remixed["id"]]
    assert client.delete(f"/v1/videos/{told['id']}").json() == {
        "id": told["id"], "object": "video.deleted", "deleted": True,
    }  # fmt: skip
    assert client.get(f"/v1/videos/{told['id']}").status_code == 404
    assert [o["order"] for _, o in new_orders(store, told["id"].removeprefix("video_"), set())] == ["cancel"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"), ({}, "prompt"), ({"prompt": "a", "model": "sora-2"}, "model"),
        ({"prompt": "a", "size": "97x64"}, "size"), ({"prompt": "a", "size": "huge"}, "size"),
        ({"prompt": "a", "seconds": "0"}, "seconds"), ({"prompt": "a", "colour": "red"}, "colour"),
        ({"prompt": "a", "seconds": "1e9"}, "seconds"),
        ({"prompt": "a", "num_inference_steps": 0}, "num_inference_steps"),
        ({"prompt": "a", "input_reference": "https://example.org/a.png"}, "input_reference"),
    ],
)  # fmt: skip
def test_a_video_that_cannot_be_made_is_refused(client: TestClient, store: Store, fields: Any, param: str) -> None:
    answer = client.post("/v1/videos", json=fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert files_of(store) == []


def test_states_are_told_in_the_four_words_that_clients_know(client: TestClient, store: Store) -> None:
    video = client.post("/v1/videos", json={"prompt": "a red ball"}).json()["id"]
    job = video.removeprefix("video_")

    def status() -> Any:
        client.app.state.service.ended.clear()  # type: ignore[attr-defined]  # a Starlette
        return client.get(f"/v1/videos/{video}").json()

    client.post(f"/v1/films/{job}/pause")
    assert status()["status"] == "queued"
    client.post(f"/v1/films/{job}/cancel")
    assert (status()["status"], status()["error"]["code"]) == ("failed", "canceled")
    journal = take_lease(store, job, Owner("one"), now=lambda: 1_000_500.0)
    assert isinstance(journal, Journal)
    journal.move("submit", "")
    journal.move("hand out", "")
    assert status()["status"] == "in_progress"
    journal.move("finish", "")
    done = status()
    assert (done["status"], done["progress"], done["completed_at"]) == ("completed", 100, 1_000_500)
    assert done["expires_at"] == 1_000_500 + 30 * 86_400
    store.publish(f"films/{job}/film.mp4", b"film")
    assert client.get(f"/v1/videos/{video}/content").content == b"film"
    client.app.state.service.now.now += 31 * 86_400  # type: ignore[attr-defined]  # the test's clock
    expired = client.get(f"/v1/videos/{video}/content")
    assert (expired.status_code, "expired" in expired.text) == (404, True)


# -- who may do what


@pytest.fixture
def keys(store: Store) -> dict[str, str]:
    people = [("ann", "submitter"), ("ben", "submitter"), ("eve", "viewer"), ("op", "operator"), ("old", "operator")]
    found = {name: add_key(store, name, role, at=1.0) for name, role in people}
    revoke_key(store, "old", at=2.0)
    return found


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
    monkeypatch.setattr("farm.submission.LEFT_S", -1.0)  # long after
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


# -- what is refused


@pytest.mark.parametrize("name", ["host", "origin"])
@pytest.mark.parametrize("told", ["example.org", "127.0.0.1.example.org", "169.254.169.254", "[::ffff:10.0.0.1]"])
def test_foreign_hosts_and_origins_are_refused_while_there_is_no_key(
    client: TestClient, store: Store, name: str, told: str
) -> None:
    value = told if name == "host" else f"http://{told}"
    answer = submit(client, headers={name: value})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, name)
    assert files_of(store) == []
    for good in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/v1/pools", headers={name: good if name == "host" else f"http://{good}"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "..%2f..%2fjobs", "0123456789abcdeg", "0123456789ABCDEF", "%00", "a" * 5000]
)
def test_ids_are_ids(client: TestClient, path: str) -> None:
    for place in (f"/v1/films/{path}", f"/v1/videos/video_{path}", f"/v1/films/0123456789abcdef/previews/{path}"):
        assert client.get(place).status_code in (400, 404)


def test_bodies_that_are_too_large_are_refused_with_and_without_a_length(store: Store) -> None:
    client = client_of(service_on(store, max_body_bytes=2000, max_storyboard_bytes=900))
    assert [submit(client, "x" * n).status_code for n in (900, 901)] == [400, 413]

    def pieces() -> Iterator[bytes]:
        for _ in range(91):
            yield b"y" * 10

    assert client.post("/v1/films", content=pieces(), headers=YAML).status_code == 413
    for size, status in ((901, 400), (2001, 413)):  # a form may bring files beside its storyboard
        assert client.post("/v1/films", files={"storyboard": "x" * size}).status_code == status
    assert client.get("/v1/pools", headers={"content-length": "many"}).status_code in (400, 200)
    assert files_of(store) == []


@pytest.mark.parametrize(
    "board",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
        ) + "shots: *i\n",
        "[" * 100_000, "!!python/object/apply:os.system ['true']", "shots: [{id: a, prompt: !!binary YQ==, frames: 5}]",
        "\x00", "- " * 50_000, "{", "shots: &a [*a]",
    ],
)  # fmt: skip
def test_yaml_that_blows_up_is_refused(client: TestClient, store: Store, board: str) -> None:
    assert submit(client, board).status_code == 400
    assert files_of(store) == []


def test_html_in_titles_comes_back_as_data(client: TestClient) -> None:
    evil = "<script>alert(1)</script>"
    answer = submit(client, f'title: "{evil}"\nshots: [{{id: a, prompt: "{evil} a ball", frames: 17}}]\n')
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["title"] == evil


@pytest.mark.parametrize(
    "name",
    [
        "a\r\nx-evil: 1",
        "../up.png",
        "a/../../up.png",
        "a//b.png",
        "a/./b.png",
        "/etc/passwd",
        ".hidden",
        "a b.png",
        "ö.png",
        "x" * 200,
    ],
)
def test_names_of_files_hold_nothing_strange(client: TestClient, store: Store, name: str) -> None:
    answer = client.post("/v1/films", data={"storyboard": BOARD}, files={"files": (name, png())})
    assert answer.status_code == 400
    assert "x-evil" not in answer.headers
    assert files_of(store) == []


def test_pictures_are_looked_at_before_anything_is_decoded(store: Store) -> None:
    client = client_of(service_on(store, max_image_px=100 * 100, max_image_bytes=5000))
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")  # 400 megapixels in some kilobytes
    for data in (png((101, 100)), b"GIF89a" + bytes(100), b"<svg/>", b"", bomb.getvalue()[:4000], bytes(5001)):
        answer = client.post("/v1/films", data={"storyboard": BOARD}, files={"files": ("a.png", data)})
        assert answer.status_code == 400, answer.text
    assert client.post("/v1/films", data={"storyboard": BOARD}, files={"files": ("a.png", png())}).status_code == 201


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/films"), ("DELETE", "/v1/films"), ("PATCH", "/v1/videos")])
def test_methods_that_are_not_there(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, "GET" in answer.headers["allow"]) == (405, True)
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_other_kinds_of_content_are_refused(client: TestClient) -> None:
    assert client.post("/v1/films", content=BOARD, headers={"content-type": "text/html"}).status_code == 415
    assert client.post("/v1/videos", content="a", headers={"content-type": "text/plain"}).status_code == 415
    for body in ("[1]", "nonsense", "[" * 100_000, '{"a": NaN'):
        headers = {"content-type": "application/json"}
        assert client.post("/v1/videos", content=body, headers=headers).status_code == 400


def test_a_store_that_is_out_of_order_is_told_as_such(
    client: TestClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: str) -> Any:
        raise OSError(f"{store.root} is out of order")

    monkeypatch.setattr(client.app.state.service.store, "names", broken)  # type: ignore[attr-defined]  # a Starlette
    answer = client.get("/v1/films")
    assert answer.status_code == 503
    assert store.root not in answer.text


def test_webhooks_are_refused_where_there_are_none_and_where_they_must_not_go(store: Store) -> None:
    service = service_on(store)
    client = client_of(service)
    assert "sends none" in submit(client, params={"webhook": "https://example.org"}).text
    service.webhook_secret = "whsec_" + "A" * 44
    for url in ("http://example.org", "https://127.0.0.1/x", "https://169.254.169.254/latest", "https://[::1]/", "x"):
        answer = submit(client, params={"webhook": url})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "webhook")
    assert files_of(store) == []


def test_what_is_far_too_large_is_refused_before_it_is_cut_into_chunks(client: TestClient, store: Store) -> None:
    shot = "{id: a, prompt: a ball, frames: 10000000, continuity: {context: none, chunk_frames: 1, overlap_frames: 0}}"
    answer = submit(client, f"shots: [{shot}]")
    assert "all frames together must be at most 100000 on this server, got 10000000" in answer.text
    many = "\n".join(f"  - {{id: s{i}, prompt: a ball, frames: 1}}" for i in range(501))
    assert "the number of shots must be at most 500" in submit(client, f"shots:\n{many}\n").text
    uses = ", ".join(["hill.png"] * 8)
    shots = "\n".join(f"  - {{id: s{i}, prompt: a ball, frames: 17, references: [{uses}]}}" for i in range(9))
    answer = client.post("/v1/films", data={"storyboard": f"shots:\n{shots}\n"}, files={"files": ("hill.png", png())})
    assert "pictures are used must be at most 64 on this server, got 72" in answer.text
    assert files_of(store) == []


def test_json_may_hold_characters_in_pairs(client: TestClient) -> None:
    board = {
        "title": "A \U0001f600 ball",
        "shots": [{"id": "a", "prompt": "a red ball rolls over grass", "frames": 17}],
    }
    answer = client.post("/v1/films", content=json.dumps(board), headers={"content-type": "application/json"})
    assert answer.json()["title"] == board["title"]
