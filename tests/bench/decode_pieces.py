"""A minute of latents decoded in three ways must give the same bits: `make bench NAME=decode_pieces`.

Whole, by diffusers' own `vae.decode`; as a stream, chunk by chunk through one stage; and in pieces dealt out to three
processes in turn, each of which decodes a halo first. With the times of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from in_process import plan_of
from measure import save
from safetensors.torch import save as save_tensors

from farm.models.checkpoint import BUILTIN_FOLDER
from farm.task import Decode, Denoise
from pipelines import decode
from pipelines.builtin import world
from pipelines.families import wan
from pipelines.frames import read_lossless
from pipelines.stage import Progress, as_bytes

SECONDS, PROCESSES = 60, 3


def main() -> None:
    plan = plan_of({"shots": [{"id": "a", "prompt": "a red ball rolls", "seconds": SECONDS}]}, Path("builtin"))
    tasks = [plan.tasks[k] for k in plan.shots[0].frames]
    artifacts, latents = cut(plan, a_minute())
    whole, whole_s = timed(lambda: decoded_whole(latents))
    stage = decode.Stage(tasks[0].model)
    stream, stream_s = timed(
        lambda: [f for t in tasks for f in run(stage, t.request, [artifacts[k] for k in t.inputs])]
    )
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        work = [(tasks[0].model, t.request, [artifacts[k] for k in t.inputs]) for t in tasks]
        shares = [work[i::PROCESSES] for i in range(PROCESSES)]
        parts, pieces_s = timed(lambda: list(pool.map(decoded_apart, shares)))
    pieces: list[np.ndarray] = []
    for i in range(len(tasks)):
        pieces += parts[i % PROCESSES][i // PROCESSES]
    save("decode_pieces", {
        "frames": len(whole), "pieces": len(tasks),
        "seconds": {"whole": whole_s, "stream": stream_s, "pieces": pieces_s},
        "greatest difference": {name: int(np.abs(whole.astype(int) - np.stack(other).astype(int)).max())
                                for name, other in (("stream", stream), ("pieces", pieces))},
    })  # fmt: skip


@torch.no_grad()
def a_minute() -> torch.Tensor:
    """Latents of a drawn take, as long as the planned stream."""
    frames = world.render(world.scene_of("a red ball rolls over grass at day"), num_frames=SECONDS * 8 + 13)
    vae = decode.Stage(str(BUILTIN_FOLDER)).vae
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return wan.encode_video(vae, video)


def cut(plan: Any, latents: torch.Tensor) -> tuple[dict[str, bytes], torch.Tensor]:
    """The latents as the planned denoise tasks would put them out, by key, and all of the stream."""
    artifacts, end = {}, 0
    for key, task in plan.tasks.items():
        if isinstance(task.request, Denoise):
            length, known = task.request.latent_shape[2], task.request.context_latents
            first = end - known
            end = first + length
            artifacts[key] = save_tensors({"latents": latents[:, :, first:end].contiguous()})
    return artifacts, latents[:, :, :end]


@torch.no_grad()
def decoded_whole(latents: torch.Tensor) -> np.ndarray:
    vae = decode.Stage(str(BUILTIN_FOLDER)).vae
    mean, inverse_std = wan._statistics(vae, latents)
    video = vae.decode(latents / inverse_std + mean, return_dict=False)[0]
    return decode.as_uint8(video[0]).numpy()[: SECONDS * 8]


def run(stage: decode.Stage, request: Decode, inputs: list[bytes]) -> list[np.ndarray]:
    return list(read_lossless(as_bytes(stage.run(request, inputs, Progress()).artifact)))


def decoded_apart(work: list[tuple[str, Decode, list[bytes]]]) -> list[list[np.ndarray]]:
    """In a process that never decodes two neighbours."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    stage = decode.Stage(work[0][0])
    return [run(stage, request, inputs) for _, request, inputs in work]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.monotonic()
    return work(), round(time.monotonic() - started, 2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    main()
