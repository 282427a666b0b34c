"""`farm keys add|list|revoke`: the keys of the HTTP server."""

from __future__ import annotations

import argparse
import getpass
import sys
import time

from cluster.cli.answer import Answer
from cluster.cli.options import add_store
from cluster.prepare import open_store
from farm.errors import InputError, Problem
from farm.service.access import ROLES, add_key, list_keys, note_change, revoke_key


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("add", "list", "revoke"))
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument("--role", default="submitter", metavar="R", help=f"add: {', '.join(ROLES)}; default: submitter")
    add_store(parser)


def run(args: argparse.Namespace, answer: Answer) -> int:
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
