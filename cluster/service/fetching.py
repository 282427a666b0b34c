"""Requests to addresses that callers name, without being led to places that only this machine can reach (SSRF).

https alone; a name is resolved once and the connection goes to that address, so a name that changes its answer gains
nothing; every address of the name must be global; redirects are followed by hand, each checked anew; time and size are
bounded. Proxies of the environment are not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from farm.errors import InputError

MAX_REDIRECTS, TIMEOUT_S, DEADLINE_S = 3, 10.0, 30.0
PIECE_BYTES = 64 * 1024
Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    location: str


def addresses_of(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_global(address: str) -> bool:
    """Whether an address lies in the open internet; one of IPv4 that is written as IPv6 counts as what it is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_global(str(inner))
    return ip.is_global and not ip.is_multicast


def check_url(url: str, resolve: Resolve = addresses_of) -> tuple[str, int, str]:
    """The host, the port and one address that may be connected to.

    Raises:
        InputError: the URL is not https, cannot be resolved, or leads to an address that is not global.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError:
        raise InputError(f"a URL must be valid, got {url[:100]!r}") from None
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.password:
        raise InputError(f"a URL must begin with https:// and hold no user, got {url[:100]!r}")
    if any(not 32 < ord(c) < 127 for c in url):
        raise InputError("a URL must hold ASCII characters alone, without blanks")
    try:
        found = resolve(parts.hostname, port)
    except (OSError, UnicodeError):
        raise InputError(f"a URL's host must be known, got {parts.hostname[:100]!r}") from None
    try:
        bad = not found or not all(map(is_global, found))
    except ValueError:
        bad = True
    if bad:
        raise InputError(f"a URL must lead to an address of the open internet, got {parts.hostname[:100]!r}")
    return parts.hostname, port, found[0]


class _Connection(http.client.HTTPSConnection):
    """To an address that has been checked; the certificate must be that of the name."""

    def __init__(self, host: str, port: int, address: str, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S, context=context)
        self.address, self.tls, self.is_cut = address, context, False

    def connect(self) -> None:
        plain = socket.create_connection((self.address, self.port), TIMEOUT_S)
        self.sock = self.tls.wrap_socket(plain, server_hostname=self.host)

    def cut(self) -> None:
        """End the connection, whoever waits for it."""
        self.is_cut = True
        if self.sock is not None:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)


def request(
    url: str, *, method: str = "GET", body: bytes = b"", headers: Mapping[str, str] | None = None, max_bytes: int = 0,
    resolve: Resolve = addresses_of, context: ssl.SSLContext | None = None,
) -> Answer:  # fmt: skip
    """One request; redirects are not followed.

    Args:
        max_bytes: of the answer's body; it is not read beyond them.
    Raises:
        InputError: of the URL, see `check_url`, or of an answer that is too large.
        OSError: it did not come through, or took too long.
    """
    host, port, address = check_url(url, resolve)
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _Connection(host, port, address, context or ssl.create_default_context())
    timer = threading.Timer(DEADLINE_S, connection.cut)  # a server that sends a byte now and then is never idle
    timer.daemon = True
    timer.start()
    try:
        connection.request(method, target, body or None, dict(headers or {}))
        answer = connection.getresponse()
        pieces, size = [], 0
        while max_bytes and (piece := answer.read1(PIECE_BYTES)):
            size += len(piece)
            if size > max_bytes:
                raise InputError(f"what a URL answers must have at most {max_bytes} bytes")
            pieces.append(piece)
        if connection.is_cut:
            raise TimeoutError(f"{host} took more than {DEADLINE_S:g} s")
        return Answer(answer.status, b"".join(pieces), answer.headers.get("location") or "")
    except http.client.HTTPException as e:
        raise OSError(f"{host} does not speak HTTP: {type(e).__name__}") from None
    finally:
        timer.cancel()
        connection.close()


def fetch(
    url: str, *, max_bytes: int, resolve: Resolve = addresses_of, context: ssl.SSLContext | None = None
) -> bytes:  # fmt: skip
    """What lies at an address.

    Raises:
        InputError: it cannot be had; says why.
    """
    for _ in range(MAX_REDIRECTS + 1):
        try:
            answer = request(url, max_bytes=max_bytes, resolve=resolve, context=context)
        except OSError as e:
            raise InputError(f"{url[:100]!r} cannot be fetched: {type(e).__name__}") from None
        if answer.status == 200:
            return answer.body
        if answer.status not in (301, 302, 303, 307, 308) or not answer.location:
            raise InputError(f"{url[:100]!r} cannot be fetched: it answers {answer.status}")
        try:
            url = urljoin(url, answer.location)
        except ValueError:
            raise InputError(f"{url[:100]!r} leads on to no URL") from None
    raise InputError(f"a URL must lead on at most {MAX_REDIRECTS} times")
