"""How well long takes hold together: `make bench NAME=continuity` (TAKE_SECONDS=60 TAKES=3 in the environment).

Takes of the built-in model in `extend` (its three contexts), in `blend`, and with context `none` as the baseline, from
the same prompts and seeds, through the stages in this process. Joins against what happens inside chunks, what the
examiner sees in the first and the last five seconds, how far the sky's mean colour moves, and whether independent cut
detectors find a cut. They are asked about the sample film too, in which there are some.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from cut_detectors import scdet_cuts, transnet_cuts
from in_process import plan_of, run_plan
from measure import save

from farm.task import JoinClips, MeasureSeams
from pipelines.builtin import examiner, world
from pipelines.stage import as_bytes
from pipelines.strips import read_strip

SECONDS, TAKES = int(os.environ.get("TAKE_SECONDS", "60")), int(os.environ.get("TAKES", "3"))
ROOT = Path(__file__).parents[2]
WINDOW, ENDS_S, SKY_ROWS = 17, 5, 6
WAYS: dict[str, dict[str, Any]] = {
    "extend, latents": {"mode": "extend", "context": "latents"},
    "extend, frames": {"mode": "extend", "context": "frames"},
    "extend, last_frame": {"mode": "extend", "context": "last_frame"},
    "extend, none": {"mode": "extend", "context": "none"},
    "blend": {"mode": "blend"},
}


def main() -> None:
    torch.set_flush_denormal(True)
    scenes = [world.draw_scene(np.random.default_rng((2_000_003, i))) for i in range(TAKES)]
    goals = "mad_ratio median <= 1.15, max <= 1.6; delta_e <= 1; seen >= 0.95 at both ends; sky moves < 3"
    figures: dict[str, Any] = {"goals": goals, "takes": TAKES, "seconds": SECONDS}
    for name, continuity in WAYS.items():
        taken = [one_take(scene.caption, continuity, seed=100 * i) for i, scene in enumerate(scenes)]
        figures[name] = summed_up(taken)
        print(name, json.dumps(figures[name]), flush=True)
    figures["sample film"] = sample_film()
    save("continuity", figures)


def one_take(prompt: str, continuity: dict[str, Any], *, seed: int) -> dict[str, Any]:
    shots = [{"id": "take", "prompt": prompt, "seconds": SECONDS}]
    plan = plan_of({"continuity": continuity, "seed": seed, "shots": shots}, Path("builtin"))
    made = run_plan(plan)
    (shot,) = plan.shots
    measured = plan.tasks[shot.seams or ""]
    assert isinstance(measured.request, MeasureSeams)
    video = np.stack(list(read_strip(measured.request.shot, [made[k] for k in measured.inputs])))  # as it is seen
    seams = [json.loads(line) for line in as_bytes(made[measured.key]).splitlines()]
    ends = {"first": video[: ENDS_S * world.FPS], "last": video[-ENDS_S * world.FPS :]}
    sky = [_lab(f[:SKY_ROWS]) for f in (video[:8].mean(0), video[-8:].mean(0))]
    return {
        "seams": seams, "cuts": (transnet_cuts(video), scdet_cuts(video, fps=world.FPS)),
        "sky_moves": float(np.linalg.norm(sky[1] - sky[0])),
        **{name: seen(part, prompt) for name, part in ends.items()},
    }  # fmt: skip


def seen(video: np.ndarray, prompt: str) -> dict[str, float]:
    """Share of windows in which each part of the prompt is found."""
    windows = [video[i : i + WINDOW] for i in range(0, len(video) - WINDOW + 1, WINDOW)]
    found = [examiner.examine(w).agrees(prompt) for w in windows]
    return {k: float(np.mean([f[k] for f in found])) for k in found[0]}


def summed_up(takes: list[dict[str, Any]]) -> dict[str, Any]:
    seams = [s for take in takes for s in take["seams"]]
    told: dict[str, Any] = {"joins": len(seams)}
    for key in ("mad_ratio", "warp_ratio", "flow_jump", "delta_e"):
        values = [s[key] for s in seams if s[key] is not None]
        told[key] = {"median": round(float(np.median(values)), 3), "max": round(max(values), 3)} if values else None
    for end in ("first", "last"):
        told[end] = {k: round(float(np.mean([t[end][k] for t in takes])), 3) for k in takes[0][end]}
    told |= {name: sum(len(t["cuts"][i]) for t in takes) for i, name in enumerate(("transnet_cuts", "scdet_cuts"))}
    return told | {"sky_moves": round(max(t["sky_moves"] for t in takes), 2)}


def sample_film() -> dict[str, Any]:
    """Where its shots have changed (the ends of transitions), and where the detectors see changes: seconds."""
    plan = plan_of((ROOT / "examples" / "demo.yaml").read_text(), Path("builtin"))
    made = run_plan(plan)
    with av.open(str(made[plan.film])) as film:
        fps = float(film.streams.video[0].average_rate or 0)
        video = np.stack([f.to_ndarray(format="rgb24") for f in film.decode(video=0)])
    join = plan.tasks[plan.film].request
    assert isinstance(join, JoinClips)
    changes = np.cumsum([length for _, length in join.chapters])[:-1]
    found = {"changes": changes, "transnet": transnet_cuts(video), "scdet": scdet_cuts(video, fps=fps)}
    return {name: [round(float(i) / fps, 2) for i in frames] for name, frames in found.items()}


def _lab(pixels: np.ndarray) -> np.ndarray:
    mean = (pixels.mean((0, 1)) / 255).astype(np.float32)[None, None]
    return cv2.cvtColor(mean, cv2.COLOR_RGB2LAB)[0, 0]


if __name__ == "__main__":
    main()
