"""`farm stats`: what renders have cost, from the ledger."""

from __future__ import annotations

import argparse
import re

from cluster.cli.answer import Answer
from cluster.cli.options import add_json, add_store, opened, tell
from farm.errors import InputError, Problem


def add(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    add_json(parser)
    parser.add_argument("--since", default="", metavar="YYYY-MM-DD", help="from this day on")


def run(args: argparse.Namespace, answer: Answer) -> int:
    from farm.store.housekeeping import stats

    if args.since and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", args.since):
        raise InputError(Problem(f"--since must be a day as 2026-11-20, got {args.since!r}", "since"))
    told = stats(opened(args), since=args.since)
    total, per = told["total"], told["film_s"]
    lines = [
        f"{told['films']} finished films of {per:.1f} s in all; {total['attempts']} attempts, "
        f"{total['replica_s']:.1f} replica seconds ({total['wasted_s']:.1f} without success), "
        f"{total['gpu_s']:.1f} GPU seconds"
    ]
    if per:
        lines.append(
            f"for each second of film: {told['replica_s_per_film_s']:.2f} replica seconds, "
            f"{told['gpu_s_per_film_s']:.2f} GPU seconds, cost {told['cost_per_film_s']:.5f}"
        )
    for title, group in (("stage", "by_stage"), ("pool", "by_pool"), ("model", "by_model")):
        lines += [
            "",
            f"{title:<24} {'attempts':>8} {'replica s':>10} {'wasted s':>9} {'GPU s':>10} {'cost':>10} {'kJ':>8}",
        ]
        for name, t in sorted(told[group].items(), key=lambda item: -item[1]["replica_s"]):
            lines.append(
                f"{name[:24]:<24} {t['attempts']:>8} {t['replica_s']:>10.1f} {t['wasted_s']:>9.1f} {t['gpu_s']:>10.1f} "
                f"{t['cost']:>10.4f} {t['energy_j'] / 1000:>8.1f}"
            )
    lines += ["", "attempts without success: " + (
        ", ".join(f"{count} {cause}" for cause, count in sorted(told["retries"].items())) or "none"
    )]  # fmt: skip
    return tell(args, told, lines)
