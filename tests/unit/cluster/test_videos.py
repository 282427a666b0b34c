"""/v1/videos, in the shape of OpenAI's API."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from service_case import BOARD, YAML, files_of

from farm.store.journal import Journal, Owner, new_orders, take_lease
from farm.store.store import Store


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


@pytest.mark.parametrize("key", ["num_inference_steps", "seconds", "seed", "num_frames", "fps", "guidance_scale"])
def test_true_is_no_number(key: str, client: TestClient) -> None:
    answer = client.post("/v1/videos", json={"prompt": "a red ball", key: True})
    assert answer.status_code == 400, answer.text
    film = client.post("/v1/films", content=BOARD, headers=YAML).json()["id"]
    assert client.post(f"/v1/films/{film}/priority", json={"priority": True}).status_code == 400
    assert client.post(f"/v1/films/{film}/requeue", json={"everything": 1}).status_code == 400
