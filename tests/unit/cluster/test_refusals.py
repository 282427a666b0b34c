"""What the service refuses, before it has read, written or decoded anything."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from service_case import BOARD, YAML, client_of, files_of, png, service_on, submit

from farm.plan.sources import source_task
from farm.store.jobs import read_job
from farm.store.store import Store


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
    ["../up.png", "a/../../up.png", "a//b.png", "/etc/passwd", "~/a.png", ".hidden", "a b.png", "ö.png", "x" * 200,
     "storyboard", "file0", "a\\b.png"],
)  # fmt: skip
def test_names_of_files_are_names_and_no_places(client: TestClient, store: Store, name: str) -> None:
    board = json.dumps({"shots": [{"id": "a", "prompt": "a red ball", "frames": 5, "image": name}]})
    answer = client.post("/v1/films", data={"storyboard": board}, files={"files": (name, png())})
    assert answer.status_code == 201, answer.text
    (picture,) = read_job(store, answer.json()["id"]).film.shots[0].files
    assert store.read(source_task(picture)) == png()
    alone = client.post("/v1/films", data={"storyboard": board}, files={"files": ("other.png", png())})
    assert alone.status_code == 400  # a file of the server's own is none of the request


@pytest.mark.parametrize("name", [b"a\tb", b"\x7f", b"x" * 1001])
def test_names_of_files_hold_nothing_strange(client: TestClient, store: Store, name: bytes) -> None:
    lines = [
        b"--x",
        b'content-disposition: form-data; name="files"; filename="' + name + b'"',
        b"",
        png(),
        b"--x--",
        b"",
    ]
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/films", content=b"\r\n".join(lines), headers=headers)
    assert answer.status_code == 400
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
