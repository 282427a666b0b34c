"""What an edit of one shot of twenty costs: `make bench NAME=incremental` (about three minutes).

The film is rendered whole, then with another seed for one shot. Compared are the summed run seconds of the stages, by
the ledger: one twentieth of the whole render's, without assembly, is the bound.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml
from farm_process import farm
from measure import save

NUM_SHOTS, EDITED = 20, 7


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="incremental-"))
    shots: list[dict[str, Any]] = [
        {"id": f"s{i}", "prompt": f"a red ball rolls over grass {i}", "frames": 53, "seed": i} for i in range(NUM_SHOTS)
    ]
    board: dict[str, Any] = {"title": "Twenty", "size": "96x64", "fps": 8, "steps": 20, "shots": shots}
    whole = render(folder, board)
    shots[EDITED]["seed"] = 1000
    edit = render(folder, board)
    totals = {name: seconds(stage_s) for name, (stage_s, _) in (("whole", whole), ("edit", edit))}
    save(
        "incremental",
        {
            "shots": NUM_SHOTS, "frames_a_shot": 53, "goal": "edit at most whole / 20 plus assembly plus 5 %",
            "whole_s": totals["whole"], "edit_s": totals["edit"], "share": totals["edit"] / totals["whole"],
            "goal_share": 1.05 / NUM_SHOTS, "edit_assembly_s": edit[0].get("assemble", 0.0),
            "tasks_whole": whole[1], "tasks_edit": edit[1], "by_stage": {"whole": whole[0], "edit": edit[0]},
        },
    )  # fmt: skip


def render(folder: Path, board: dict[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
    """Run seconds by stage, and the counts of tasks."""
    path = folder / "film.yaml"
    path.write_text(yaml.safe_dump(board))
    done = farm("render", path, "--store", folder / "store", "--out", folder / "film.mp4", "--json", made_pools=True)
    assert done.code == 0, done.told
    return done.answer["stage_s"], done.answer["tasks"]


def seconds(stage_s: dict[str, float]) -> float:
    """Of all stages but assembly."""
    return sum(s for stage, s in stage_s.items() if stage != "assemble")


if __name__ == "__main__":
    main()
