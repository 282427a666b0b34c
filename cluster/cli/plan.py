"""`farm plan`: what would run and what exists already; needs neither torch nor Ray."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from cluster.cli.answer import Answer
from cluster.cli.deliver import Target
from cluster.cli.options import add_storyboard
from cluster.cli.order import read_order
from cluster.cli.tables import plan_table
from farm.store.history import reasons, summary

add = add_storyboard


def run(args: argparse.Namespace, answer: Answer) -> int:
    order = read_order(args, answer, target=Target())
    answer.data["status"] = "planned"
    answer.warn(order.warnings)
    why = summary(order.plan, reasons(order.store, order.job, order.plan, order.missing))
    if args.json:
        answer.data["why"] = why
        answer.data["loras"] = [
            {"model": model, "path": path, "for": target, "layers": len(fit.layers), "left_out": dict(fit.left_out)}
            for (model, path, target), fit in order.loras.items()
        ]
        answer.data["gangs"] = {
            name: {**asdict(g.degrees), "step_s": g.step_s, "compute_s": g.compute_s, "exchange_s": g.exchange_s}
            for name, g in order.gangs.items()
        }
        return answer.finish(0)
    for line in plan_table(order.job, order.plan, order.missing, why):
        print(line)
    for (model, path, target), fit in order.loras.items():
        print(f"\n{path} ({fit.layout} layout) changes {len(fit.layers)} layers of {model}'s {target}")
    for name, gang in order.gangs.items():
        ranks = order.pools[name].ranks
        print(f"\npool {name}: {ranks} ranks as {gang} (an estimate; farm/pools/parallel.py says by what)")
    return 0
