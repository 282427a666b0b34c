"""A real S3 server on loopback, in a process of its own, and a proxy before it that does harm."""

from __future__ import annotations

import http.client
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "films"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[str]:
    """Yields the URL of a server with one empty bucket."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("PUT", f"/{BUCKET}")
                assert connection.getresponse().status == 200
                break
            except OSError:
                if time.monotonic() > end or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def credentials(url: str) -> dict[str, str]:
    """The environment in which an S3 client talks to that server."""
    return {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip


class Harm:
    """What the proxy does to requests, drawn from a seed: shares of all of them."""

    def __init__(self, *, seed: int = 0, fail: float = 0.0, cut: float = 0.0, delay_s: float = 0.0) -> None:
        self.rng, self.lock = random.Random(seed), threading.Lock()
        self.fail, self.cut, self.delay_s = fail, cut, delay_s
        self.count: Counter[str] = Counter()

    def draw(self) -> str:
        with self.lock:
            x = self.rng.random()
            kinds = ["503", "drop before", "drop after"]
            told = "cut" if x < self.cut else self.rng.choice(kinds) if x < self.cut + self.fail else "pass"
            self.count[told] += 1
            return told


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Yields the URL of a server on loopback that answers with `handler`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextmanager
def harmful_proxy(url: str, harm: Harm) -> Iterator[str]:
    """Yields the URL of a proxy that forwards to `url`, and sometimes does not."""
    host, port = url.removeprefix("http://").split(":")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told = harm.draw()
            time.sleep(harm.delay_s)
            if told == "503":
                self.send_response(503, "Slow Down")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if told == "drop before":
                self.close_connection = True
                return
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            if told == "drop after":  # done, but nobody is told
                self.close_connection = True
                return
            self.send_response(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if not answer.getheader("Content-Length"):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if told == "cut" and data:
                data = data[: len(data) // 2]
                self.close_connection = True
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # named by http.server

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as own:
        yield own
