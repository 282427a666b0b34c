"""What stands before every route: who asks, from where, how much they send; and how errors are told.

Without any key in the store the server is bound to loopback, everybody is the operator, and Host and Origin must be
loopback too, so that no web page can reach it through a browser or by a name that is made to point here.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.service.errors import Forbidden, NotFound, NotReady, TooMuch
from cluster.service.service import Service
from farm.errors import InputError, Problem, StoreError
from farm.service.access import LOCAL, LOOPBACK, Caller
from farm.service.submission import AlreadyUsed

OPEN_PATHS = {"/healthz", "/readyz", "/openapi.json"}  # what says nothing about films
KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 409: "conflict_error", 411: "invalid_request_error", 413: "invalid_request_error",
    415: "invalid_request_error", 416: "invalid_request_error", 429: "rate_limit_error", 503: "service_unavailable",
}  # fmt: skip
SAFE = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]


def error_response(
    status: int, message: str, *, problems: Sequence[Problem] = (), code: str = "",
    headers: dict[str, str] | None = None,
) -> JSONResponse:  # fmt: skip
    """An error as OpenAI's clients read it, with every fault of a storyboard beside it."""
    param = problems[0].key if problems else None
    told = {"message": message, "type": KINDS.get(status, "server_error"), "param": param or None, "code": code or None}
    rows = [{"key": p.key, "line": p.line, "message": p.message} for p in problems]
    return JSONResponse({"error": told, "errors": rows}, status, headers)


class Guard:
    """ASGI middleware; puts the caller into `scope["state"]["caller"]`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *SAFE]}
            await send(message)

        most = self._most_bytes(scope)
        refused = await self._refusal(scope, most)
        if refused is not None:
            return await refused(scope, receive, send_safe)
        try:
            await self.app(scope, _Body(receive, most), send_safe)
        except _TooLarge:  # nothing of an answer has been sent: the body is read first
            await _too_large(most)(scope, receive, send_safe)
        return None

    def _most_bytes(self, scope: Scope) -> int:
        """A form's files go to the disk; everything else is held in memory."""
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        limits = self.service.limits
        is_form = kind.strip().lower().startswith(b"multipart/form-data")
        return limits.max_body_bytes if is_form else min(limits.max_storyboard_bytes, limits.max_body_bytes)

    async def _refusal(self, scope: Scope, most: int) -> JSONResponse | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        length = headers.get("content-length", "0")
        if not length.isdigit():
            return error_response(400, "Content-Length must be a number")
        if int(length) > most:
            return _too_large(most)
        if scope["path"] in OPEN_PATHS:
            return None
        try:
            if not self.service.keyring.is_fresh:
                await asyncio.to_thread(self.service.keyring.refresh)
            caller = self._caller(headers)
            if isinstance(caller, JSONResponse):
                return caller
            self.service.pace(caller)
        except TooMuch as e:
            return too_much(e)
        except (OSError, StoreError) as e:
            return unreachable(e)
        scope.setdefault("state", {})["caller"] = caller
        return None

    def _caller(self, headers: dict[str, str]) -> Caller | JSONResponse:
        keyring = self.service.keyring
        if self.service.is_open and not keyring.has_keys:
            for name in ("host", "origin"):
                told = headers.get(name)
                if told is not None and not _is_loopback(told if name == "origin" else f"//{told}"):
                    return error_response(403, f"{name.title()} must be loopback while there are no keys", code=name)
            return LOCAL
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        caller = keyring.caller_of(secret.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            told = "a key must be given as `Authorization: Bearer KEY`" + ("; this one is not known" if secret else "")
            return error_response(401, told, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return caller


class _TooLarge(Exception):
    pass


def _too_large(most: int) -> JSONResponse:
    return error_response(413, f"a request of this kind must have at most {most} bytes")


class _Body:
    """`receive`, which counts what comes in: a chunked body says no length."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.left = receive, limit

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.left -= len(message.get("body", b""))
            if self.left < 0:
                raise _TooLarge
        return message


def _is_loopback(address: str) -> bool:
    try:
        return (urlsplit(address).hostname or "") in LOOPBACK
    except ValueError:
        return False


def too_much(error: TooMuch) -> JSONResponse:
    wait_s = max(1, math.ceil(error.retry_after_s))
    return error_response(429, error.reason, code="rate_limit_exceeded", headers={"Retry-After": str(wait_s)})


def unreachable(error: Exception) -> JSONResponse:
    told = f"the store cannot be used now: {type(error).__name__}"  # no path of it: callers have no use for that
    return error_response(503, told, headers={"Retry-After": "5"})


def tell_errors(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Turn the farm's errors, and those of FastAPI, into answers.

    Args:
        routes: all that there are; a wrong method is answered with those that one of them has.
    """

    def handle(kind: type[Exception], make: Any) -> None:
        async def handler(request: Request, error: Exception) -> JSONResponse:
            answer: JSONResponse = make(error)
            return answer

        app.add_exception_handler(kind, handler)

    def of_input(error: InputError) -> JSONResponse:
        return error_response(400, str(error), problems=error.problems, code="invalid_request")

    def of_validation(error: RequestValidationError) -> JSONResponse:
        faults = [(".".join(map(str, e["loc"][1:])), e["msg"]) for e in error.errors()]
        problems = [Problem(f"{key or 'the request'}: {message}", key) for key, message in faults]
        return error_response(400, "; ".join(p.message for p in problems), problems=problems, code="invalid_request")

    handle(InputError, of_input)
    handle(RequestValidationError, of_validation)
    handle(NotFound, lambda e: error_response(404, str(e), code="not_found"))
    handle(NotReady, lambda e: error_response(409, str(e), code="not_ready"))
    handle(Forbidden, lambda e: error_response(403, str(e), code="forbidden"))
    handle(AlreadyUsed, lambda e: error_response(409, str(e), code="idempotency_key_reused"))
    handle(TooMuch, too_much)
    handle(StoreError, unreachable)
    handle(OSError, unreachable)

    async def of_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:  # starlette names the methods of one route of several on this path
            paths = [r for r in routes if isinstance(r, Route) and r.matches(request.scope)[0] == Match.PARTIAL]
            headers["Allow"] = ", ".join(sorted({m for r in paths for m in r.methods or ()}))
        return error_response(error.status_code, str(error.detail), headers=headers)

    app.add_exception_handler(HTTPException, of_http)


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: it is something else, or nested too deeply.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise InputError(f"the body must be JSON: {e}") from None
    if not isinstance(data, dict):
        raise InputError(f"the body must be a JSON object, got {type(data).__name__}")
    return data
