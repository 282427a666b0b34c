"""The farm behind Ray Serve: a FastAPI application whose replicas submit, read and stream, and never render.

`farm serve` runs it on this machine or a cluster; `serve deploy cluster/serve.yaml` in production. Films are rendered
by the farm's controller and its pools. A replica holds nothing that another one lacks, so any of them may die.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from cluster.http.films import router as films
from cluster.http.guard import Guard, error_response, tell_errors
from cluster.http.videos import router as videos
from cluster.prepare import farm_name
from cluster.service.link import Link
from cluster.service.service import Service
from cluster.service.webhooks import Courier, check_secret
from farm.errors import InputError
from farm.models.checkpoint import find_checkpoint
from farm.pools.pools import load_pools, pools_as_json, pools_from_json
from farm.service.limits import Limits, load_limits
from farm.store.store import Store

log = logging.getLogger(__name__)
IO_THREADS = 32  # of a replica: they wait for the store
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
