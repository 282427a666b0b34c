"""The service as its users meet it: `farm serve` with the built-in model, asked by OpenAI's own client and by ours."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import httpx2
import openai
import psutil
import pytest
import yaml
from emulated_cluster import head_node
from farm_process import farm, wait_until
from PIL import Image
from serving import POOLS, Server, free_port, serving

import cluster
from farm.service.access import add_key
from farm.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
MARK = "LONGTAKE_TEST"
BOARD = """\
title: Two shots
size: 64x48
fps: 8
steps: 8
shots:
  - {id: one, prompt: a red ball rolls over grass, frames: 17}
  - {id: two, prompt: a blue cube spins over sand, frames: 9}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("serve")) as server:
        yield server


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as client:
        yield client


def frames_of(data: bytes) -> int:
    with av.open(io.BytesIO(data)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.timeout(600)
def test_the_openai_client_makes_a_video(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        video = client.videos.create_and_poll(
            prompt="a red ball rolls over grass", model="builtin", seconds="2", size="64x48", poll_interval_ms=200,
            extra_body={"seed": 3, "num_inference_steps": 8},
        )  # type: ignore[arg-type]  # sizes and lengths of the hosted models are typed  # fmt: skip
        assert (video.status, video.progress, video.model, video.size, video.seconds) == (
            "completed", 100, "builtin", "64x48", "2",
        ), video.error  # fmt: skip
        assert video.completed_at and video.expires_at and video.created_at <= video.completed_at < video.expires_at
        assert client.videos.retrieve(video.id) == video
        assert [v.id for v in client.videos.list(limit=5)] == [video.id]
        data = client.videos.download_content(video.id).read()
        assert frames_of(data) == 16
        picture = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").read()))
        assert (picture.format, picture.size) == ("JPEG", (64, 48))
        sheet = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="spritesheet").read()))
        assert sheet.size[0] > 10 * 128
        remixed = client.videos.remix(video.id, prompt="a blue cube spins over sand")
        assert remixed.remixed_from_video_id == video.id
        assert client.videos.delete(remixed.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(remixed.id)
        with pytest.raises(openai.BadRequestError, match="model must be one of builtin"):
            client.videos.create(prompt="a ball", model="sora-2")


@pytest.mark.timeout(600)
def test_a_picture_begins_a_video(server: Server) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "green").save(buffer, "PNG")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        video = client.videos.create_and_poll(
            prompt="a red ball rolls over grass", input_reference=("hill.png", buffer.getvalue(), "image/png"),
            size="64x48", poll_interval_ms=200, extra_body={"num_frames": 17, "num_inference_steps": 8},
        )  # type: ignore[arg-type]  # as above  # fmt: skip
        assert video.status == "completed", video.error
        first = Image.open(io.BytesIO(client.videos.download_content(video.id, variant="thumbnail").read()))
        red, green, blue = first.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]  # three numbers
        assert green > red + 20 and green > blue + 20


@pytest.mark.timeout(600)
def test_a_film_tells_of_itself_until_it_ends(server: Server, api: httpx2.Client) -> None:
    made = api.post("/v1/films", content=BOARD, headers={"content-type": "application/yaml"})
    assert made.status_code == 201, made.text
    job = made.json()["id"]
    with api.stream("GET", f"/v1/films/{job}/events", params={"timeout_s": 300}, timeout=320) as stream:
        told = "".join(stream.iter_text())
    assert told.count("event: end") == 1 and '"status": "completed"' in told
    assert [word in told for word in ('"queued"', '"active"', '"completed"')] == [True] * 3
    film = api.get(f"/v1/films/{job}").json()
    assert (film["status"], film["progress"], film["frames"]) == ("completed", 1.0, 26)
    whole = api.get(film["film"]).content
    assert frames_of(whole) == 26
    assert api.get(film["film"], headers={"range": "bytes=10-19"}).content == whole[10:20]
    assert [frames_of(api.get(s["clip"]).content) for s in film["shots"]] == [17, 9]
    tasks = api.get(f"/v1/films/{job}/tasks").json()["data"]
    assert all(t["is_done"] for t in tasks)
    assert all(a["outcome"] == "succeeded" for t in tasks for a in t["attempts"])
    assert any(t["attempts"] for t in tasks)
    other, kind = BOARD.replace("red", "green"), {"content-type": "application/yaml"}
    estimate = api.post("/v1/estimates", content=other, headers=kind).json()
    assert estimate["to_run"] > 0 and estimate["replica_s"] > 0


@pytest.mark.timeout(600)
def test_a_film_is_paused_resumed_and_canceled(server: Server, api: httpx2.Client) -> None:
    board = BOARD.replace("steps: 8", "steps: 200").replace("frames: 17", "frames: 45")
    job = api.post("/v1/films", content=board, headers={"content-type": "application/yaml"}).json()["id"]

    def until(*states: str) -> dict[str, object]:
        with api.stream("GET", f"/v1/films/{job}/events", params={"timeout_s": 240}, timeout=260) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: ") and any(f'"status":"{s}"' in line.replace(" ", "") for s in states):
                    return dict(api.get(f"/v1/films/{job}").json())
        raise AssertionError(f"it never was {states}")

    until("active")
    assert api.post(f"/v1/films/{job}/pause").status_code == 202
    until("paused")
    assert api.post(f"/v1/films/{job}/resume").status_code == 202
    until("active")
    assert api.post(f"/v1/films/{job}/cancel").status_code == 202
    assert until("canceled")["status"] == "canceled"


@pytest.mark.timeout(600)
def test_the_command_line_goes_through_the_server(server: Server, tmp_path: Path) -> None:
    board = tmp_path / "board.yaml"
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 48), "green").save(tmp_path / "pictures" / "hill.png")
    board.write_text(BOARD.replace("frames: 9", "frames: 9, image: pictures/hill.png"))
    there = {"LONGTAKE_URL": server.url}
    done = farm("submit", board, "--json", **there)
    assert done.code == 0, done.told
    job = done.answer["id"]
    assert farm("wait", job, "--timeout-s", "200", **there).code == 0
    shown = farm("show", job, "--json", **there).answer
    assert (shown["status"], all(t["is_done"] for t in shown["tasks"])) == ("completed", True)
    assert job in [row["job"] for row in farm("list", "--json", "--url", server.url).answer["jobs"]]
    assert farm("download", job, "--out", tmp_path / "film.mp4", **there).code == 0
    assert frames_of((tmp_path / "film.mp4").read_bytes()) == 26
    assert farm("download", job, "--shot", "two", "--out", tmp_path / "two.mp4", **there).code == 0
    assert frames_of((tmp_path / "two.mp4").read_bytes()) == 9
    board.write_text(board.read_text().replace("title: Two", "titel: Two"))
    refused = farm("submit", board, **there)
    assert refused.code == 2
    assert f"{board}:1: " in refused.told and "titel" in refused.told
    direct = farm("submit", board.with_name("board2.yaml"), "--store", server.store)
    assert (direct.code, "cannot be read" in direct.told) == (2, True)
    board.with_name("board2.yaml").write_text(BOARD.replace("Two shots", "Straight into the store"))
    where = ("--store", server.store, "--pools", server.store.parent / "pools.yaml")
    direct = farm("submit", board.with_name("board2.yaml"), *where, "--json")
    assert farm("wait", direct.answer["job"], "--store", server.store, "--timeout-s", "200").code == 0
    again = farm("download", direct.answer["job"], "--store", server.store, "--out", tmp_path / "direct.mp4")
    assert again.code == 0 and frames_of((tmp_path / "direct.mp4").read_bytes()) == 26


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_service_is_deployed_by_its_file_and_outlives_the_controller_and_its_own_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = str(tmp_path)
    monkeypatch.setenv(MARK, mark)
    told = yaml.safe_load((Path(cluster.__file__).parent / "serve.yaml").read_text())
    (tmp_path / "pools.yaml").write_text(POOLS)
    store = Store(str(tmp_path / "store"))
    store.create()
    key, port = add_key(store, "ann", "submitter", at=time.time()), free_port()
    told["http_options"] |= {"host": "127.0.0.1", "port": port}
    told["proxy_location"] = "HeadOnly"
    told["applications"][0]["args"] |= {"store": store.root, "pools": str(tmp_path / "pools.yaml")}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(told))
    with head_node(num_cpus=4) as (_, dashboard):
        command = [Path(sys.executable).with_name("serve"), "deploy", "--address", dashboard, tmp_path / "serve.yaml"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as api:
            wait_until("the service to answer", lambda: is_ready(api), timeout_s=120)
            assert api.get("/v1/films").status_code == 401
            api.headers["authorization"] = f"Bearer {key}"
            jobs = []
            for i in range(6):
                board = BOARD.replace("title: Two shots", f"title: Number {i}\nseed: {i}")
                jobs.append(posted(api, board, f"once-{i}"))
                if i in (2, 4):  # the controller, then a replica of the server
                    title = "Controller" if i == 2 else "ServeReplica:longtake:ingress"
                    wait_until(f"{title} to be there, and its end", partial(kill_actor, title, mark))
            assert [posted(api, BOARD.replace("title: Two shots", f"title: Number {i}\nseed: {i}"), f"once-{i}")
                    for i in range(6)] == jobs  # fmt: skip
            states = "completed", "failed", "canceled"
            wait_until("all films to end", lambda: all(state_of(api, j) in states for j in jobs), timeout_s=200)
            assert {state_of(api, j) for j in jobs} == {"completed"}
            assert len(api.get("/v1/films").json()["data"]) == 6


def is_ready(api: httpx2.Client) -> bool:
    try:
        return api.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def posted(api: httpx2.Client, board: str, once: str) -> str:
    """The film of a request that is made until it is answered."""
    headers = {"content-type": "application/yaml", "idempotency-key": once}
    for _ in range(30):
        try:
            answer = api.post("/v1/films", content=board, headers=headers)
            if answer.status_code in (200, 201):
                return str(answer.json()["id"])
        except httpx2.TransportError:
            pass
        time.sleep(1)
    raise AssertionError("no answer")


def state_of(api: httpx2.Client, job: str) -> str:
    try:
        answer = api.get(f"/v1/films/{job}")
    except httpx2.TransportError:
        return "unknown"
    return str(answer.json()["status"]) if answer.status_code == 200 else "unknown"


def kill_actor(title: str, mark: str) -> bool:
    """End a process that Ray names so, of those that this test has started; False where there is none yet."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_ours = process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
            if is_ours and "".join(process.cmdline()[:1]).startswith(f"ray::{title}"):
                process.kill()
                return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousands_of_requests_that_the_schema_allows_and_forbids(tmp_path: Path) -> None:
    """By schemathesis, with all of its checks but one: a storyboard is refused for more than a schema can say."""
    (tmp_path / "limits.yaml").write_text("requests_per_s: 100000\nmax_films: 30\n")
    with serving(tmp_path, "--limits", str(tmp_path / "limits.yaml")) as server:
        command = [
            Path(sys.executable).with_name("st"), "run", f"{server.url}/openapi.json", "--checks", "all",
            "--exclude-checks", "positive_data_acceptance", "--continue-on-failure", "--max-examples", "70",
            "--request-timeout", "30", "--seed", "1",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=800, check=False)
    generated = re.search(r"(\d+) generated", done.stdout)
    assert done.returncode == 0, done.stdout[-6000:]
    assert generated and int(generated[1]) >= 2000, done.stdout[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_haproxy_stands_before_the_server(tmp_path: Path) -> None:
    """Streams, ranges, forms and refusals pass through it as they do through Serve's own proxy."""
    store = Store(str(tmp_path / "store"))
    store.create()
    key = add_key(store, "ann", "submitter", at=time.time())
    with serving(tmp_path, "--haproxy") as server:
        with httpx2.Client(base_url=server.url, timeout=60) as api:
            assert api.get("/v1/films").status_code == 401
            api.headers["authorization"] = f"Bearer {key}"
            job = posted(api, BOARD, "once")
            with api.stream("GET", f"/v1/films/{job}/events", params={"timeout_s": 300}, timeout=320) as stream:
                events = (line for line in stream.iter_lines() if line.startswith("event: "))
                next(events)
                assert state_of(api, job) in ("queued", "active")  # they come as they happen
                assert list(events)[-1] == "event: end"
            whole = api.get(f"/v1/films/{job}/content").content
            assert frames_of(whole) == 26
            part = api.get(f"/v1/films/{job}/content", headers={"range": "bytes=10-19"})
            assert (part.status_code, part.content) == (206, whole[10:20])
            assert api.post("/v1/films", files={"storyboard": BOARD}).status_code == 201
            pieces = (b"x" * 2**20 for _ in range(4))
            assert api.post("/v1/films", content=pieces, headers={"content-type": "text/yaml"}).status_code == 413
        ports = {int(server.url.rsplit(":")[-1]), *range(30_000, 31_000)}  # the server's, and those of its replicas
        ours = psutil.Process(server.process.pid).children(recursive=True)
        addresses = [address for process in ours for address in listening(process) if address.port in ports]
        assert len(addresses) == 3
        assert {address.ip for address in addresses} == {"127.0.0.1"}


def listening(process: psutil.Process) -> list[Any]:
    with contextlib.suppress(psutil.Error):
        return [c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return []


def test_what_no_server_may_start_with(tmp_path: Path) -> None:
    done = farm("serve", "--host", "0.0.0.0", "--store", tmp_path / "store")
    assert done.code == 2
    assert "--host must be 127.0.0.1, without --address, while there is no key" in done.told
    assert not (tmp_path / "store").exists()
    done = farm("serve", "--haproxy", "--store", tmp_path / "store")
    assert (done.code, "--haproxy must not be given while there is no key" in done.told) == (2, True)
    Store(str(tmp_path / "store")).create()
    add_key(Store(str(tmp_path / "store")), "ann", "viewer", at=time.time())
    done = farm("serve", "--haproxy", "--store", tmp_path / "store", "--address", "127.0.0.1:6379")
    assert (done.code, "RAY_SERVE_ENABLE_HA_PROXY=1" in done.told) == (2, True)
