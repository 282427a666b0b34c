"""The farm behind Ray Serve: a FastAPI application whose replicas submit, read and stream, and never render.

`farm serve` runs it on this machine or a cluster; `serve deploy cluster/serve.yaml` in production. Films are rendered
by the farm's controller and its pools. A replica holds nothing that another one lacks, so any of them may die.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from farm.admission import Limits, load_limits
from farm.checkpoint import find_checkpoint
from farm.errors import InputError
from farm.pools import load_pools, pools_as_json, pools_from_json
from farm.store import Store

from .courier import Courier, check_secret
from .films_api import router as films
from .guard import Guard, error_response, tell_errors
from .order import farm_name
from .service import Service
from .videos_api import router as videos

log = logging.getLogger(__name__)
LINK_S = 10.0  # between looks whether the controller lives
IO_THREADS = 32  # of a replica: they wait for the store
VIEW_TIMEOUT_S = 3.0
VIEW_FRESH_S = 0.2  # many who look at one film ask its controller once
MAX_ONGOING = 1000  # requests of a replica at once, event streams included
APP_NAME = "longtake"
DESCRIPTION = "Storyboards become films. Sizes in px, times in seconds since the epoch."


def make_app(service: Service) -> FastAPI:
    """The application around one service; also for tests, without Ray."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(IO_THREADS))
        yield

    app = FastAPI(
        title="Longtake", version="1", description=DESCRIPTION, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    app.state.service = service

    @app.get("/healthz", tags=["server"])
    async def health() -> dict[str, str]:
        """This replica answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["server"], responses={503: {"description": "the store cannot be read"}})
    async def ready() -> JSONResponse:
        """The store can be read."""
        try:
            await asyncio.to_thread(service.store.check)
        except (InputError, OSError) as e:
            return error_response(503, f"the store cannot be read: {type(e).__name__}")
        return JSONResponse({"status": "ok"})

    tell_errors(app, [*app.routes, *films.routes, *videos.routes])
    app.include_router(films)
    app.include_router(videos)
    app.add_middleware(Guard, service=service)
    told = app.openapi()
    told["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    told["security"] = [{"key": []}, {}]  # none where the server is bound to loopback and has no keys
    return app


class Link:
    """The controller of a farm, as a server reaches it. A thread starts it, and starts it again; requests never wait
    for that."""

    def __init__(self, farm: str, uri: str, pools: dict[str, Any]) -> None:
        self.what = (farm, uri, pools)
        self.handle: Any = None
        self.seen: dict[str, tuple[float, dict[str, Any] | None]] = {}
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        import ray

        from actors.controller import start_controller

        while True:
            try:
                self.handle = start_controller(*self.what, adopts=True)
            except (ray.exceptions.RayError, TimeoutError) as e:
                self.handle = None
                log.warning("the controller does not answer: %s", type(e).__name__)
            time.sleep(LINK_S)

    async def view(self, name: str) -> dict[str, Any] | None:
        """A rendering as its controller sees it; None where it has none, or does not answer."""
        import ray

        now = time.monotonic()
        if self.handle is None:
            return None
        if name in self.seen and now - self.seen[name][0] < VIEW_FRESH_S:
            return self.seen[name][1]
        told: dict[str, Any] | None = None
        with suppress(TimeoutError, ray.exceptions.RayError):
            told = await asyncio.wait_for(_answer(self.handle.view.remote(name)), VIEW_TIMEOUT_S)
        if len(self.seen) > 10_000:
            self.seen.clear()
        self.seen[name] = (now, told)
        return told


async def _answer(ref: Any) -> dict[str, Any]:
    found: dict[str, Any] = await ref
    return found


def app_from(options: Mapping[str, Any]) -> FastAPI:
    """The application of one replica, from plain values.

    Args:
        options: of `options_of`, and `pools`.
    """
    store, pools = Store(options["store"]), pools_from_json(options["pools"])
    farm, uri = farm_name(store, options["pools"])
    places = zip(options["names"], options["models"], strict=True)
    models = {name: replace(find_checkpoint(place, beside=Path.cwd()), name=name) for name, place in places}
    service = Service(
        store, pools, models, Limits(**options["limits"]), Link(farm, uri, options["pools"]).view,
        webhook_secret=options["webhook_secret"], is_open=options["is_open"], replicas=options["replicas"],
    )  # fmt: skip
    return make_app(service)


def options_of(store: Store, models: Sequence[str], limits: Limits, *, is_open: bool) -> dict[str, Any]:
    """What replicas are told, but for the pools; paths are made absolute, because each has a folder of its own.

    Raises:
        InputError: a model cannot be used, or LONGTAKE_WEBHOOK_SECRET is none.
    """
    secret = os.environ.get("LONGTAKE_WEBHOOK_SECRET", "")
    if secret:
        check_secret(secret)
    for model in models:
        find_checkpoint(model, beside=Path.cwd())
    places = [str(Path(m).resolve()) if Path(m).is_dir() else m for m in models]
    return {
        "store": farm_name(store, {})[1], "models": places, "names": list(models), "limits": limits.model_dump(),
        "webhook_secret": secret, "is_open": is_open,
    }  # fmt: skip


def application(options: Mapping[str, Any], *, replicas: int = 2) -> Any:
    """The Serve application."""
    from ray import serve

    told = dict(options) | {"replicas": replicas}

    def build() -> FastAPI:
        return app_from(told)

    deployment = serve.deployment(
        serve.ingress(build)(), name="ingress", num_replicas=replicas, max_ongoing_requests=MAX_ONGOING,
        max_queued_requests=MAX_ONGOING, graceful_shutdown_timeout_s=10.0, ray_actor_options={"num_cpus": 0},
    )  # fmt: skip
    if not told["webhook_secret"]:
        return deployment.bind()
    courier = serve.deployment(Courier, name="courier", num_replicas=1, ray_actor_options={"num_cpus": 0})
    return deployment.bind(courier.bind(told["store"], told["webhook_secret"]))


def build(args: dict[str, Any]) -> Any:
    """What `serve deploy` calls (cluster/serve.yaml). Every request needs a key.

    Args:
        args: `store`, a URI; `pools`, a file; `models`, names, folders or hub ids; `limits`, a file; `replicas`.
    Raises:
        InputError: something is missing or cannot be used.
    """
    if unknown := sorted(args.keys() - {"store", "pools", "models", "limits", "replicas"}):
        raise InputError(f"args must be store, pools, models, limits and replicas, got {unknown[0]!r}")
    if not args.get("store") or not args.get("pools"):
        raise InputError("args must have store, the URI of a store, and pools, a file")
    store = Store(str(args["store"]))
    store.create()
    limits = load_limits(Path(args["limits"])) if args.get("limits") else Limits()
    options = options_of(store, list(args.get("models") or ["builtin"]), limits, is_open=False)
    options["pools"] = pools_as_json(load_pools(Path(args["pools"])))
    return application(options, replicas=int(args.get("replicas", 2)))
