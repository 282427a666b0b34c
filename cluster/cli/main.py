"""The command line `farm`: which commands there are, and how each of them may end.

Exit codes: 0 done; 2 the input is at fault; 3 the render failed; 130 interrupted. Progress and faults go to standard
error; `--json` prints one object as the last line of standard output, also on failure. Each command is a file of this
folder with `add` (its options) and `run`; only the one that was called is imported.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from types import FrameType
from typing import Any

from cluster.cli.answer import Answer
from farm.document import suggest
from farm.errors import InputError, Problem, RenderError, StoreError

COMMANDS = {  # name: what it does
    "render": "render a storyboard to a film",
    "plan": "show what a storyboard would need, without rendering",
    "schema": "print the storyboard's JSON Schema",
    "models": "list the models, or examine a checkpoint folder",
    "fetch": "bring a model, or RIFE's weights, to this machine",
    "report": "draw the report of a job",
    "list": "list the jobs of a store",
    "show": "show what has happened to a job",
    "submit": "submit a storyboard to a farm that serves a store, and return at once",
    "wait": "wait until a job has ended; exit code 0 where it is completed, else 3",
    "download": "fetch a finished film, or a finished shot of it",
    "pause": "hand out no more of a job's tasks; what runs stops between two steps and keeps its state",
    "resume": "go on with a paused job",
    "cancel": "end a job; what is finished stays",
    "requeue": "give a job's failed tasks another chance",
    "priority": "say which job goes first: 0 to 100, 50 by default",
    "batch": "render a manifest of films (Parquet, JSONL, CSV or a folder of storyboards)",
    "serve": "take films in over HTTP (Ray Serve)",
    "keys": "add, list or revoke keys of the HTTP server",
    "stats": "show what renders have cost: by stage, pool and model, with retries",
    "store": "list, verify or clean up a store",
    "doctor": "check this machine, and what the pools ask for",
}
ORDERS = ("pause", "resume", "cancel", "requeue", "priority")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Whatever happens, its exit code is one of those above, and `--json` prints its object."""
    words = sys.argv[1:] if argv is None else argv
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read us has seen enough, as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run(words: Sequence[str]) -> int:
    called = next((word for word in words if not word.startswith("-")), "")
    if called and called not in COMMANDS:
        told = Problem(f"there is no command {called!r}{suggest(called, COMMANDS)}")
        return Answer(as_json="--json" in words).fail(2, [told])
    parser = make_parser(called)
    try:
        args = parser.parse_args(words)
    except SystemExit as e:
        return Answer(as_json=True).fail(2, []) if e.code == 2 and "--json" in words else int(e.code or 0)
    answer = Answer(as_json=getattr(args, "json", False))
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(args.run(args, answer))
    except InputError as e:
        return answer.fail(2, e.problems)
    except BrokenPipeError:
        raise
    except (RenderError, StoreError, OSError) as e:
        return answer.fail(3, [Problem(str(e))])
    except (KeyboardInterrupt, SystemExit):  # the latter is what Ray makes of SIGTERM
        return answer.fail(130, [Problem("interrupted; the same command goes on where it stopped")])
    except Exception as e:  # noqa: BLE001  # a fault of ours, or of a library: the contract of exit codes holds for it too
        if os.environ.get("LONGTAKE_TRACEBACK"):
            traceback.print_exc()
        return answer.fail(3, [Problem(unexpected(e))])
    finally:
        signal.signal(signal.SIGTERM, before)


def unexpected(error: Exception) -> str:
    """One sentence about an error that nobody has thought of."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    reason = str(error).strip().splitlines() or ["no reason given"]
    told = f"unexpected {type(error).__name__} at {where.filename.rpartition('/')[2]}:{where.lineno}: {reason[0][:500]}"
    return f"{told}; what is finished stays in the store; LONGTAKE_TRACEBACK=1 shows where it comes from"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def make_parser(called: str) -> argparse.ArgumentParser:
    """The parser of all commands, with the options of the one that is called."""
    parser = argparse.ArgumentParser(
        prog="farm", description="A render farm for AI video: a storyboard becomes a film."
    )
    parser.add_argument("--version", action="version", version=f"longtake {metadata.version('longtake')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == called:
            module: Any = importlib.import_module(f"cluster.cli.{'orders' if name in ORDERS else name}")
            add = partial(module.add, order=name) if name in ORDERS else module.add
            add(sub)
            sub.set_defaults(run=module.run)
    return parser
