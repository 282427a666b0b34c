"""The service under load: `make bench NAME=service_load`.

A farm with stand-in stages behind two replicas of the HTTP server and HAProxy (`farm serve --haproxy`); clients in a
process of their own, niced, but less than Ray nices its workers: what they wait for a processor would count as the
server's. First an open loop: 20 submits and 40 status reads a second, each sent at its own time whatever became of
those before; latencies count from that time. The same with shorter stages, so that the farm makes more films meanwhile.
Then 2,000 films as fast as 50 clients can, while 200 event streams are open. Then a lighter load during which the
controller, a replica of the server and all of Serve are killed, by clients that ask again with the same
Idempotency-Key. At last the open loop again, through Serve's own proxy. It takes about a quarter of an hour.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from measure import save
from serving import free_port

STEADY_S, SUBMITS_PER_S, READS_PER_S = 100.0, 20, 40
BURST_FILMS, CLIENTS, STREAMS = 2000, 50, 200
KILLS_S, KILLS_PER_S = 90.0, 4
KILL_AT_S = {"controller": 15.0, "replica": 35.0, "serve": 55.0}
CALM_S = {"encode": 0.2, "denoise": 0.2, "decode": 0.2, "assemble": 0.2}  # 3.3 films a second: three tasks in media
FAST_S = {"encode": 0.05, "denoise": 0.2, "decode": 0.05, "assemble": 0.05}  # 8 to 10: equal prompts are encoded once
DRAIN_S = 1800.0
NICE = 5  # of the clients; Ray makes its workers 15
RUNS = [["steady"], ["steady_fast", "burst", "kills"], ["own_proxy"]]  # each on a farm of its own
ACTS = {"steady": "steady", "steady_fast": "steady", "own_proxy": "steady", "burst": "burst", "kills": "kills"}
ENDED = ("completed", "failed", "canceled")
SERVE = ("ServeController", "ProxyActor", "HAProxyManager", "ServeReplica", "haproxy")
LIMITS = {"max_films": 100_000, "max_queued_s": 1e7, "requests_per_s": 10_000}


# -- the clients


def board(number: int) -> dict[str, Any]:
    """A film of one shot; each is another one."""
    shot = {"id": "one", "prompt": f"a ball of kind {number % 8} rolls over grass", "frames": 9}
    return {"title": f"Number {number}", "size": "64x48", "fps": 8, "steps": 4, "seed": number, "shots": [shot]}


class Clients:
    """What they have asked for and been answered."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.films: list[str] = []
        self.seconds: dict[str, list[float]] = {"submit": [], "read": []}
        self.answers: Counter[str] = Counter()

    async def submit(self, number: int, since: float, once: str = "") -> str | None:
        """The film's id where it was accepted."""
        headers = {"Idempotency-Key": once} if once else {}
        async with self.session.post("/v1/films", json=board(number), headers=headers) as answer:
            told = await answer.json()
        self.answers[f"submit {answer.status}"] += 1
        self.seconds["submit"].append(time.monotonic() - since)
        return str(told["id"]) if answer.status in (200, 201) else None

    async def read(self, since: float) -> None:
        async with self.session.get(f"/v1/films/{random.choice(self.films)}") as answer:
            await answer.read()
        self.answers[f"read {answer.status}"] += 1
        self.seconds["read"].append(time.monotonic() - since)

    async def status(self, job: str) -> str:
        async with self.session.get(f"/v1/films/{job}") as answer:
            return str((await answer.json())["status"]) if answer.status == 200 else "unknown"


Act = Callable[[str, int, float], Coroutine[Any, Any, Any]]


async def open_loop(rates: dict[str, float], seconds: float, act: Act) -> None:
    """Do something at even times, never waiting for what came before."""
    start = time.monotonic() + 0.1
    times = sorted((start + i / rate, what, i) for what, rate in rates.items() for i in range(int(rate * seconds)))
    running = []
    for at, what, number in times:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        running.append(asyncio.ensure_future(act(what, number, at)))
    await asyncio.gather(*running)


async def steady(clients: Clients) -> dict[str, Any]:
    clients.films.append(str(await clients.submit(1, time.monotonic())))
    clients.seconds["submit"].clear()

    async def act(what: str, number: int, at: float) -> None:
        if what == "read":
            return await clients.read(at)
        job = await clients.submit(1000 + number, at)
        clients.films += [job] if job else []

    await open_loop({"submit": SUBMITS_PER_S, "read": READS_PER_S}, STEADY_S, act)
    return {"accepted": len(clients.films), **{f"{what}_ms": quantiles(s) for what, s in clients.seconds.items()}}


async def burst(clients: Clients) -> dict[str, Any]:
    numbers, start = iter(range(100_000, 100_000 + BURST_FILMS)), time.monotonic()
    events: Counter[str] = Counter()
    streams: list[asyncio.Task[None]] = []

    async def listen(job: str) -> None:
        path = f"/v1/films/{job}/events?timeout_s={DRAIN_S}"
        async with asyncio.timeout(DRAIN_S), clients.session.get(path) as answer:
            events[f"stream {answer.status}"] += 1
            async for line in answer.content:
                if line.startswith(b"event: "):
                    events[line[7:].decode().strip()] += 1

    async def client() -> None:
        for number in numbers:
            while True:
                job = await clients.submit(number, time.monotonic())
                if job:
                    break
                await asyncio.sleep(1.0)
            clients.films.append(job)
            if len(streams) < STREAMS:
                streams.append(asyncio.ensure_future(listen(job)))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    took = time.monotonic() - start
    states = await until_ended(clients)
    done, waiting = await asyncio.wait(streams, timeout=60)
    failed = sum(task.exception() is not None for task in done)
    return {
        "films": BURST_FILMS,
        "took_s": took,
        "films_per_s": BURST_FILMS / took,
        "all_ended_after_s": time.monotonic() - start,
        "submit_ms": quantiles(clients.seconds["submit"]),
        "states": states,
        "events": dict(events),
        "streams_that_did_not_end": len(waiting) + failed,
    }


async def kills(clients: Clients) -> dict[str, Any]:
    """Clients that ask until they are answered, twice with one key at times."""
    jobs: dict[int, set[str]] = {}

    async def until_answered(number: int, once: str) -> str:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with suppress(aiohttp.ClientError, TimeoutError, ValueError):
                async with asyncio.timeout(15):
                    if job := await clients.submit(number, time.monotonic(), once):
                        return job
            await asyncio.sleep(0.5)
        raise TimeoutError(f"film {number} was not accepted in 120 s")

    async def act(what: str, number: int, at: float) -> None:
        asked = [until_answered(200_000 + number, f"once-{number}") for _ in range(1 + (number % 4 == 0))]
        jobs[number] = set(await asyncio.gather(*asked))
        clients.films += sorted(jobs[number])

    await open_loop({"submit": KILLS_PER_S}, KILLS_S, act)
    states = await until_ended(clients)
    return {
        "asked": len(jobs),
        "films": len(set(clients.films)),
        "keys_with_two_films": sum(len(j) > 1 for j in jobs.values()),
        "states": states,
    }


async def until_ended(clients: Clients) -> dict[str, int]:
    """How all films have ended; `open` for those that have not in time."""
    left, told, end = sorted(set(clients.films)), Counter[str](), time.monotonic() + DRAIN_S
    while left and time.monotonic() < end:
        still: list[str] = []
        for i, job in enumerate(left):
            if len(still) >= 20:  # the queue is long: what comes after these has not ended either, most likely
                still += left[i:]
                break
            state = "unknown"
            with suppress(aiohttp.ClientError, TimeoutError):
                state = await clients.status(job)
            if state in ENDED:
                told[state] += 1
            else:
                still.append(job)
        left = still
        await asyncio.sleep(2.0)
    return dict(told) | ({"open": len(left)} if left else {})


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(s * 1000 for s in seconds)
    at = {
        name: ordered[min(len(ordered) - 1, int(q * len(ordered)))]
        for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
    return {**{k: round(v, 1) for k, v in at.items()}, "most": round(ordered[-1], 1), "requests": len(ordered)}


async def generate(phase: str, url: str) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    connector = aiohttp.TCPConnector(limit=0)
    key = {"Authorization": f"Bearer {os.environ['LONGTAKE_KEY']}"}
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector, headers=key) as session:
        clients = Clients(session)
        told = await {"steady": steady, "burst": burst, "kills": kills}[ACTS[phase]](clients)
        return told | {"answers": dict(clients.answers)}


# -- the farm


class Watch:
    """Memory and CPU seconds of our processes, by what they are."""

    def __init__(self) -> None:
        self.memory: dict[str, list[float]] = {}

    def look(self) -> None:
        for process, title in ours():
            with suppress(psutil.Error):
                self.memory.setdefault(f"{title} {process.pid}", []).append(process.memory_info().rss / 2**20)

    def told(self) -> dict[str, dict[str, float]]:
        """MiB after a tenth of the time, when everything is loaded, and at the end."""
        return {
            title: {"early": round(m[len(m) // 10], 1), "end": round(m[-1], 1), "most": round(max(m), 1)}
            for title, m in self.memory.items() if len(m) > 20
        }  # fmt: skip


def ours() -> list[tuple[psutil.Process, str]]:
    """Ray's processes that this one has started, with short titles."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            line = " ".join(process.cmdline()[:1])
            for title in ("Controller", *SERVE, "Replica", "raylet", "gcs_server"):
                if line.startswith(f"ray::{title}") or line.endswith(f"/{title}"):
                    found.append((process, title))
                    break
    return found


def cpu_seconds() -> dict[str, float]:
    told: Counter[str] = Counter()
    for process, title in ours():
        with suppress(psutil.Error):
            times = process.cpu_times()
            told[title] += times.user + times.system
    return dict(told)


def kill(what: str) -> int:
    titles = {"controller": ("Controller",), "replica": ("ServeReplica",), "serve": SERVE}[what]
    found = [p for p, title in ours() if title in titles]
    for process in found[: 1 if what != "serve" else None]:
        process.kill()
    return len(found)


def run(phase: str, url: str) -> dict[str, Any]:
    """One phase, with what its processes took."""
    watch, before, start = Watch(), cpu_seconds(), time.monotonic()
    command = [sys.executable, __file__, "--generate", phase, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.nice(NICE)) as process:
        to_kill = dict(KILL_AT_S) if phase == "kills" else {}
        while process.poll() is None:
            watch.look()
            for what, at in list(to_kill.items()):
                if time.monotonic() - start > at:
                    print(f"killing {what}: {kill(what)} processes", file=sys.stderr)
                    del to_kill[what]
            time.sleep(1.0)
        assert process.stdout
        told = json.loads(process.stdout.read().splitlines()[-1])
    took = time.monotonic() - start
    told["memory_mib"] = watch.told()
    if phase != "kills":  # what a process took is not told when it has gone
        told["cores_busy"] = {t: round((s - before.get(t, 0.0)) / took, 3) for t, s in cpu_seconds().items()}
    return told


def serve_phases(phases: Sequence[str]) -> dict[str, Any]:
    """Phases one after another on one farm."""
    from cluster.prepare import farm_name
    from cluster.ray import Connection
    from farm.pools.pools import Bounds, Pool, pools_as_json
    from farm.service.access import add_key
    from farm.store.store import Store

    stand_in_s = FAST_S if {*RUNS[1]}.intersection(phases) else CALM_S
    os.environ["STAND_IN_S"] = json.dumps(stand_in_s)
    folder, port = Path(tempfile.mkdtemp(prefix="service-load-")), free_port()
    store = Store(str(folder / "store"))
    store.create()
    os.environ["LONGTAKE_KEY"] = add_key(store, "bench", "submitter", at=time.time())
    two = Bounds(min=2, max=2)
    pools = {
        "denoise": Pool(stages=["encode", "denoise"], replicas=two),
        "media": Pool(stages=["decode", "interpolate", "upscale", "assemble"], replicas=two),
    }
    told = pools_as_json(pools)
    with closing(Connection(None, pools, haproxy="own_proxy" not in phases)):
        from ray import serve

        from actors.controller import start_controller
        from cluster.http.app import application, options_of
        from farm.service.limits import Limits

        start_controller(*farm_name(store, told), told, package="stand_ins", adopts=True)
        serve.start(
            proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )  # fmt: skip
        options = options_of(store, ["builtin"], Limits(**LIMITS), is_open=False)
        serve.run(application(options | {"pools": told}), name="load")
        time.sleep(20)  # replicas load
        figures = {}
        for phase in phases:
            figures[phase] = {"stand_in_s": stand_in_s, **run(phase, f"http://127.0.0.1:{port}")}
            print(phase, json.dumps(figures[phase], indent=1), file=sys.stderr)
        with suppress(Exception):
            serve.shutdown()
    return figures


def main() -> None:
    figures: dict[str, Any] = {"goals": "p99 of submits 250 ms, of reads 100 ms; nothing accepted is lost; memory flat"}
    for phases in RUNS:
        command = [sys.executable, __file__, "--phases", *phases]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
        figures |= json.loads(done.stdout.splitlines()[-1])
    save("service_load", figures)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--phases"]:  # those alone, kept nowhere
        print(json.dumps(serve_phases(sys.argv[2:])))
    elif sys.argv[1:2] == ["--generate"]:
        print(json.dumps(asyncio.run(generate(*sys.argv[2:]))))
    else:
        main()
