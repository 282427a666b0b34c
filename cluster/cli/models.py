"""`farm models`: the families, or what the farm would do with one checkpoint."""

from __future__ import annotations

import argparse
import json

from cluster.cli.answer import Answer
from cluster.cli.options import add_json
from cluster.cli.tables import model_rows, model_table


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="PATH")
    add_json(parser)


def run(args: argparse.Namespace, answer: Answer) -> int:
    rows = model_rows(args.path)
    if args.json:
        print(json.dumps({"models": rows}))
        return 0
    for line in model_table(rows, is_one=args.path is not None):
        print(line)
    return 0
