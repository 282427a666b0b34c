"""Addresses that callers name lead into the open internet, or nowhere."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.service import fetching
from cluster.service.fetching import check_url, fetch, is_global
from farm.errors import InputError

PRIVATE = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_global_is_refused(address: str) -> None:
    assert not is_global(address)
    with pytest.raises(InputError, match="address of the open internet"):
        check_url("https://example.org/a.png", lambda host, port: [address])
    with pytest.raises(InputError, match="address of the open internet"):  # one of several is enough
        check_url("https://example.org/a.png", lambda host, port: ["93.184.216.34", address])


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "::ffff:93.184.216.34"])
def test_what_is_global_may_be_asked(address: str) -> None:
    assert check_url("https://example.org:8443/a", lambda host, port: [address]) == ("example.org", 8443, address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png", "file:///etc/passwd", "ftp://example.org", "https://", "https://a@example.org/",
        "https://a:b@example.org/", "https://example.org:99999/", "https://[::1", "gopher://example.org",
        "//example.org",
        "https://example.org/a\r\nHost: evil", "https://example.org/a b", "javascript:alert(1)", "",
    ],
)  # fmt: skip
def test_only_plain_https_is_understood(url: str) -> None:
    with pytest.raises(InputError, match="a URL"):
        check_url(url, lambda host, port: ["93.184.216.34"])


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "017700000001", "127.1", "localhost", "[::1]"]
)
def test_loopback_in_other_words(host: str) -> None:
    """As the system's own resolver reads them."""
    with pytest.raises(InputError, match=r"open internet|must be known"):
        check_url(f"https://{host}/a.png")


# -- a server on loopback, which the test alone lets through


@contextmanager
def https_server(
    folder: Path, handler: type[http.server.BaseHTTPRequestHandler]
) -> Iterator[tuple[int, ssl.SSLContext]]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pictures.example")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("pictures.example")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
    made = made.not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, critical=False)
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(pem + secret)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "cert.pem")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], ssl.create_default_context(cadata=pem.decode())
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class Pictures(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/").replace("_", "/"))
            self.end_headers()
            return
        data = b"x" * (20_000 if self.path == "/large" else 10)
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def test_a_picture_is_fetched_from_the_address_that_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "is_global", lambda a: a == "127.0.0.1")
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if host == "pictures.example" else ["10.0.0.1"]

    with https_server(tmp_path, Pictures) as (port, context):
        base = f"https://pictures.example:{port}"

        def get(path: str, *, max_bytes: int = 10_000) -> bytes:
            return fetch(base + path, max_bytes=max_bytes, resolve=resolve, context=context)

        assert get("/a.png") == b"x" * 10
        assert asked == ["pictures.example"]  # once: what the name says later does not matter
        assert get("/to/_a.png") == b"x" * 10
        for path, told in (
            ("/large", "at most 10000 bytes"), ("/missing", "answers 404"),
            ("/to/https:__inside.example_a", "open internet"), ("/to/http:__pictures.example_a", "begin with https"),
            ("/to/" * 5 + "_a", "lead on at most 3 times"), ("/to/file:___etc_passwd", "begin with https"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=told):
                get(path)
        with pytest.raises(InputError, match="cannot be fetched: SSL"):  # the certificate of another name
            fetch(f"https://other.example:{port}/a", max_bytes=10, resolve=lambda h, p: ["127.0.0.1"], context=context)


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "is_global", lambda a: True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch(f"https://127.0.0.1:{port}/", max_bytes=10)


def test_ipv4_inside_ipv6_is_read_as_what_it_is() -> None:
    assert ipaddress.ip_address("::ffff:8.8.8.8").version == 6
    assert is_global("::ffff:8.8.8.8")
    assert not is_global("2002:0a00:0001::")
