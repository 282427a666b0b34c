"""`farm download`: a finished film, or a finished shot of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from cluster.cli.answer import Answer
from cluster.cli.options import add_server, opened, server, tell
from farm.errors import InputError, Problem


def add(parser: argparse.ArgumentParser) -> None:
    add_server(parser)
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--shot", default="", metavar="ID", help="its clip, which is there before the film is")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")


def run(args: argparse.Namespace, answer: Answer) -> int:
    if not args.out.absolute().parent.is_dir():
        raise InputError(Problem(f"--out must lie in a folder that exists, got {args.out}", "--out"))
    if client := server(args):
        with client:
            client.download(args.job, args.out, shot=args.shot)
    else:
        store = opened(args)
        folder, name = (f"films/{args.job}/shots", args.shot) if args.shot else (f"films/{args.job}", "film")
        found = next((n for n in store.names(folder) if n.rsplit(".", 1)[0] == name), None)
        if found is None:
            raise InputError(f"there is no finished {name} of job {args.job!r} in the store {store.uri}")
        part = args.out.with_name(f".{args.out.name}.part")
        part.write_bytes(store.cat(f"{folder}/{found}"))
        part.replace(args.out)
    return tell(args, {"job": args.job, "film": str(args.out)}, [str(args.out)])
