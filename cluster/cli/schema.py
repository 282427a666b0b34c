"""`farm schema`: the storyboard's JSON Schema."""

from __future__ import annotations

import argparse

from cluster.cli.answer import Answer
from farm.film.storyboard import json_schema


def add(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(args: argparse.Namespace, answer: Answer) -> int:
    print(json_schema())
    return 0
