"""What the farm costs over a plain loop around the stock pipeline: `make bench NAME=cost` (about 8 minutes).

12 one-chunk shots of at least 2 s of denoise each, in alternating pairs, each side in a fresh process, one torch
thread in all, counted after a warm-up. The loop calls diffusers' WanPipeline, writes each clip with the same ffmpeg
command and takes the same checksums; the farm has one pool with one replica for all stages. CPU seconds of the farm
are those of all its processes, Ray's included.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import cpu_by_group, cpu_seconds_of_tree, save, spread

NUM_SHOTS, PAIRS = 12, 5
SIZE, FRAMES = (128, 96), 17
DENOISE_S = 2.2


def main() -> None:
    from tiny_checkpoints import make_wan

    folder = Path(tempfile.mkdtemp(prefix="cost-"))
    model = make_wan(folder / "wan", layers=4, heads=8, scheduler="euler")
    steps = json.loads(run("calibrate", model, 20))["steps"]
    pairs = []
    for _ in range(PAIRS):
        pairs.append({side: json.loads(run(side, model, steps)) for side in ("loop", "farm")})
    tasks = pairs[0]["farm"]["tasks"]
    ratios = [p["farm"]["cpu_s"] / p["loop"]["cpu_s"] for p in pairs]
    added = [(p["farm"]["wall_s"] - p["loop"]["wall_s"]) / tasks * 1000 for p in pairs]
    save(
        "cost",
        {
            "shots": NUM_SHOTS, "steps": steps, "tasks": tasks,
            "goals": "CPU ratio at most 1.10; at most 30 ms added per task",
            "cpu_ratio": spread(ratios), "added_ms_per_task": spread(added),
            "loop_cpu_s": spread([p["loop"]["cpu_s"] for p in pairs]),
            "farm_cpu_s": spread([p["farm"]["cpu_s"] for p in pairs]),
            "loop_wall_s": spread([p["loop"]["wall_s"] for p in pairs]),
            "farm_cpu_s_by_group": {
                name: spread([p["farm"]["groups"][name] for p in pairs]) for name in pairs[0]["farm"]["groups"]
            },
            "stage_s": {
                name: spread([p["farm"]["stage_s"][name] for p in pairs]) for name in pairs[0]["farm"]["stage_s"]
            },
            "farm_wall_s": spread([p["farm"]["wall_s"] for p in pairs]),
        },
    )  # fmt: skip


def run(side: str, model: Path, steps: int) -> str:
    """One side in a fresh process; its last line is its answer."""
    command = [sys.executable, __file__, side, str(model), str(steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    return done.stdout.splitlines()[-1]


def shots(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"s{i}", "prompt": f"a red ball {i}", "frames": FRAMES, "seed": i} for i in range(first, first + count)
    ]


def loop(model: str, steps: int) -> dict[str, Any]:
    """The plain loop: one process, the stock pipeline, clips and checksums."""
    import numpy as np
    import torch
    from diffusers import WanPipeline

    from farm.task import JoinClips, Strip, WriteClip
    from pipelines.assemble import Stage, run_ffmpeg
    from pipelines.ffmpeg_commands import write_clip_command
    from pipelines.load import own_memory
    from pipelines.stage import Progress

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    pipe = WanPipeline.from_pretrained(model, dtype=torch.float32)
    for module in (pipe.text_encoder, pipe.transformer, pipe.vae):
        own_memory(module)
    pipe.set_progress_bar_config(disable=True)
    request = WriteClip(Strip(0, FRAMES, 0, 1, "1/1"), "8/1", *SIZE, "h264", 18)
    folder = Path(tempfile.mkdtemp(prefix="loop-"))

    def film(wanted: list[dict[str, Any]]) -> None:
        clips = []
        for shot in wanted:
            generator = torch.Generator("cpu").manual_seed(shot["seed"])
            video = pipe(
                shot["prompt"], width=SIZE[0], height=SIZE[1], num_frames=FRAMES, num_inference_steps=steps,
                guidance_scale=5.0, generator=generator, output_type="pil",
            ).frames[0]  # fmt: skip
            clip = folder / f"{shot['id']}.mp4"
            command = write_clip_command(request, width_px=SIZE[0], height_px=SIZE[1], target=str(clip))
            run_ffmpeg(command, feed=(np.asarray(f).tobytes() for f in video))
            hashlib.sha256(clip.read_bytes()).hexdigest()
            clips.append(clip)
        join = JoinClips("mp4", tuple((s["id"], FRAMES) for s in wanted), "8/1", (("title", "x"),))
        joined = Stage().run(join, clips, Progress()).artifact
        hashlib.sha256(joined.read_bytes()).hexdigest()

    film(shots(1000, 1))
    cpu, started = cpu_seconds_of_tree(os.getpid()), time.monotonic()
    film(shots(0, NUM_SHOTS))
    return {"wall_s": time.monotonic() - started, "cpu_s": cpu_seconds_of_tree(os.getpid()) - cpu}


def farm(model: str, steps: int) -> dict[str, Any]:
    """The farm: a local Ray, one replica that serves all stages, a film in an empty store."""
    from cluster.ray import Connection
    from farm.film.film import job_id_of
    from farm.models.checkpoint import find_checkpoint
    from farm.pools.pools import Pool, pools_as_json
    from farm.store.jobs import Job, write_job
    from farm.store.store import Store

    pools = {"all": Pool(stages=["encode", "denoise", "decode", "assemble"])}
    connection = Connection(None, pools)
    from doors import submit, wait_for_end
    from in_process import resolve_board

    from actors.controller import start_controller

    root = tempfile.mkdtemp(prefix="cost-store-")
    store = Store(root)
    store.create()
    checkpoint = find_checkpoint(model, beside=Path())
    controller = start_controller("cost", root, pools_as_json(pools))

    def film(wanted: list[dict[str, Any]]) -> dict[str, Any]:
        settings = {"size": f"{SIZE[0]}x{SIZE[1]}", "fps": 8, "steps": steps, "guidance": 5.0, "shots": wanted}
        made = resolve_board(settings, checkpoint).film
        job = Job(job_id_of(made, checkpoint), made, (checkpoint,), "")
        write_job(store, job)
        view = wait_for_end(controller, submit(controller, job.id))
        assert view["status"] == "completed", view
        return view

    film(shots(1000, 1))
    cpu, groups, started = cpu_seconds_of_tree(os.getpid()), cpu_by_group(os.getpid()), time.monotonic()
    view = film(shots(0, NUM_SHOTS))
    answer = {
        "wall_s": time.monotonic() - started, "cpu_s": cpu_seconds_of_tree(os.getpid()) - cpu, "tasks": view["run"],
        "stage_s": view["stage_s"],
        "groups": {name: s - groups[name] for name, s in cpu_by_group(os.getpid()).items()},
    }  # fmt: skip
    connection.close()
    return answer


def calibrate(model: str, steps: int) -> dict[str, Any]:
    """How many steps take `DENOISE_S` on one thread."""
    import torch

    from farm.task import Denoise
    from pipelines.denoise import Stage
    from pipelines.family import Given, family_of

    torch.set_num_threads(1)
    stage = Stage(model)
    shape = (1, 16, 5, SIZE[1] // 8, SIZE[0] // 8)
    text, family = {"embeds": torch.zeros(1, 512, 32)}, family_of("wan")
    request = Denoise("wan", "text", shape, 1, 5.0, 5.0, 0, ())
    predict = family.make_predict(stage.components, request, Given(text, text))
    noise = family.draw(request, torch.Generator().manual_seed(0))
    with torch.no_grad():
        predict(noise, torch.tensor(500.0))
        started = time.monotonic()
        for _ in range(steps):
            predict(noise, torch.tensor(500.0))
    return {"steps": min(1000, int(DENOISE_S / ((time.monotonic() - started) / steps)) + 1)}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        print(
            json.dumps({"loop": loop, "farm": farm, "calibrate": calibrate}[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
        )
