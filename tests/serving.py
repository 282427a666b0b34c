"""`farm serve` in a process of its own, on loopback."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import httpx2
from farm_process import end_tree, start_farm

START_TIMEOUT_S = 180.0
POOLS = """\
pools:
  denoise: {stages: [encode, denoise], replicas: {min: 1, max: 1}}
  media: {stages: [decode, interpolate, upscale, assemble], replicas: {min: 1, max: 1}}
"""


@dataclass
class Server:
    url: str
    store: Path
    process: subprocess.Popen[str]
    told: list[str] = field(default_factory=list)  # standard error


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _keep(pipe: IO[str], told: list[str]) -> None:
    with pipe:
        told += iter(pipe.readline, "")


@contextmanager
def serving(folder: Path, *argv: str, pools: str = POOLS) -> Iterator[Server]:
    """A server whose store lies in `folder`; it is stopped as Ctrl-C would."""
    file, store, port = folder / "pools.yaml", folder / "store", free_port()
    file.write_text(pools)
    process = start_farm("serve", "--store", store, "--pools", file, "--port", str(port), *argv)
    server = Server(f"http://127.0.0.1:{port}", store, process)
    assert process.stdout and process.stderr
    readers = [
        threading.Thread(target=_keep, args=pair, daemon=True)
        for pair in ((process.stdout, []), (process.stderr, server.told))
    ]  # fmt: skip
    for reader in readers:
        reader.start()
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while not _answers(server.url):
            assert process.poll() is None, "".join(server.told)
            assert time.monotonic() < end, "".join(server.told)
            time.sleep(0.2)
        yield server
        process.terminate()
        assert process.wait(60) == 130, "".join(server.told)
    finally:
        if process.poll() is None:
            end_tree(process.pid)
            process.wait(20)
        for reader in readers:
            reader.join(20)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
