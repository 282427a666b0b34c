"""A storyboard resolved and planned for one checkpoint, and run by the stages in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from farm.film.resolve import Resolved, resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import Checkpoint, find_checkpoint
from farm.plan.plan import Plan, make_plan
from farm.pools.pools import default_pools, numerics
from pipelines.in_process import run_plan

__all__ = ["plan_of", "resolve_board", "run_plan"]

Board = dict[str, Any] | str


def resolve_board(board: Board, checkpoint: Checkpoint) -> Resolved:
    text = board if isinstance(board, str) else yaml.safe_dump(board)
    return resolve(parse_storyboard(text.encode(), file="board.yaml"), checkpoint)


def plan_of(board: Board, model: Path, *, stills: bool = False, container: str = "mp4") -> Plan:
    checkpoint = find_checkpoint(str(model), beside=Path.cwd())
    pools = default_pools(num_cpus=2, num_gpus=0)
    return make_plan(
        resolve_board(board, checkpoint).film, (checkpoint,), numerics(pools), container=container, stills=stills
    )
