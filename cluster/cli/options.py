"""Options that several commands have, and what they do first with them."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from cluster.prepare import open_store
from farm.errors import InputError, Problem
from farm.store.store import Store


def given(text: str) -> str:
    """An option's value; an empty one comes from a shell variable that was not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def given_path(text: str) -> Path:
    return Path(given(text)).expanduser()  # a shell leaves --out=~/film.mp4 as it is


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=given, metavar="URI", help="where finished work lives (default: $LONGTAKE_STORE or .longtake)"
    )


def add_pools(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pools", type=given_path, metavar="FILE", help="which stages run on which hardware (YAML)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def add_autoscaling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--autoscaling", choices=("yes", "no", "auto"), default="auto",
        help="whether the Ray cluster adds nodes; auto: looked for on its head",
    )  # fmt: skip


def add_server(parser: argparse.ArgumentParser) -> None:
    """Of commands that reach jobs in a store or over HTTP."""
    add_store(parser)
    add_json(parser)
    parser.add_argument("--url", metavar="URL", help="ask this server instead (default: $LONGTAKE_URL; $LONGTAKE_KEY)")


def add_storyboard(parser: argparse.ArgumentParser) -> None:
    """Of commands that plan a storyboard for this machine or a cluster."""
    parser.add_argument("storyboard", type=given_path, metavar="STORYBOARD")
    parser.set_defaults(raw=None)  # its bytes, where they do not come from that file
    parser.add_argument("--model", help="render with this model instead: builtin, a folder, or org/name[@revision]")
    add_pools(parser)
    add_store(parser)
    parser.add_argument("--only", action="append", metavar="SHOT", help="this shot alone; may be given again")
    parser.add_argument("--draft", action="store_true", help="a quarter of the steps at half the size")
    add_json(parser)


def opened(args: argparse.Namespace) -> Store:
    store = open_store(args.store)
    store.check()
    return store


def tell(args: argparse.Namespace, data: dict[str, Any], lines: list[str]) -> int:
    """Print a command's answer: as JSON where that is asked for."""
    print(json.dumps(data) if args.json else "\n".join(lines))
    return 0


def check_priority(priority: int | None) -> None:
    if priority is not None and not 0 <= priority <= 100:
        raise InputError(Problem(f"the priority must be from 0 to 100, got {priority}", "priority"))


def server(args: argparse.Namespace) -> Any:
    """The server that was named; None where a store is meant. HTTP is imported only then."""
    if args.url and args.store:
        raise InputError(Problem("one of --url and --store must be given, not both", "--url"))
    url = args.url or (None if args.store else os.environ.get("LONGTAKE_URL"))
    if not url:
        return None
    from cluster.client import Client

    return Client(url, os.environ.get("LONGTAKE_KEY"))
