"""The service over HTTP without Ray: what comes in, what is kept, who may see it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from service_case import BOARD, YAML, files_of, png, submit

from farm.store.journal import Journal, Owner, new_orders, take_lease
from farm.store.store import Store

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


def test_a_film_tells_what_is_not_as_it_may_have_been_meant(client: TestClient, store: Store) -> None:
    board = BOARD.replace("a red ball", "a red dog")
    answer = client.post("/v1/films", content=board, headers=YAML).json()
    (warning,) = answer["warnings"]
    assert warning["key"] == "shots[0].prompt"
    assert "does not know these words, and leaves them out: dog" in warning["message"]
    job = answer["id"]
    journal = take_lease(store, job, Owner("one"), now=lambda: 5.0)
    assert isinstance(journal, Journal)
    for event in ("submit", "finish"):
        journal.move(event, "")
    more = {"file": "", "line": None, "key": "shots[0]", "message": "shot one is black"}
    store.publish(f"films/{job}/warnings.json", json.dumps([warning, more]).encode())
    assert client.get(f"/v1/films/{job}").json()["warnings"] == [warning, more]
    assert client.get("/v1/films").json()["data"][0]["warnings"] == [warning, more]
