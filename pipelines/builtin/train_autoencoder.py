"""The first phase: the autoencoder."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from pipelines.builtin import architecture, world
from pipelines.builtin.clips import ClipPool, WholeClips
from pipelines.builtin.optimizer import GO_ON_RATE, Options, Run, Workers, drive

# Up to this share of the steps: frames of a clip, clips in each half of a batch. Long clips come last: a causal decoder
# drifts beyond the length it was trained on.
AUTOENCODER_SCHEDULE = [(0.08, 1, 16), (0.18, 5, 4), (0.75, 17, 1), (0.92, 33, 1), (1.0, 49, 1)]
GO_ON_SCHEDULE = [(0.8, 17, 1), (0.93, 33, 1), (1.0, 49, 1)]  # of weights that have learned frames already
LATENT_NOISE, LATENT_SIZE = 0.5, 3e-3  # at most, so that what the transformer gets slightly wrong still decodes well


def train_autoencoder(out: Path, work: Path, options: Options) -> None:
    steps, seed = options.steps or 12_000, options.seed
    torch.manual_seed(seed)
    vae = architecture.autoencoder()
    if options.begin_with:
        vae = AutoencoderKLWan.from_pretrained(options.begin_with / "vae", dtype=torch.float32, disable_mmap=True)
    clips = WholeClips(vae, options.device)
    schedule, rate = (GO_ON_SCHEDULE, GO_ON_RATE) if options.begin_with else (AUTOENCODER_SCHEDULE, 1.0)
    run = Run(vae, work / "autoencoder.safetensors", steps=steps, muon=rate * 5e-3, adamw=rate * 2e-3, ema=0.998)
    pool = ClipPool(seed=seed, step=run.step)

    def loss_at(step: int, half: int) -> torch.Tensor:
        _, num_frames, batch = next(s for s in schedule if step < s[0] * steps)
        rng = np.random.default_rng((seed, step, half))
        video, mask = (x.to(options.device) for x in pool.batch(rng, size=batch, num_frames=num_frames))
        with torch.autocast(options.device, torch.bfloat16, cache_enabled=False):
            z = clips.encode(video)
            noise = torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32)).to(options.device)
            error = clips.decode(z + LATENT_NOISE * rng.random() * noise) - video
        weight = 1 + 10 * mask
        edges = sum((error.diff(dim=d).abs() * weight.narrow(d, 1, weight.shape[d] - 1)).mean() for d in (-1, -2))
        total: torch.Tensor = (error.abs() * weight).mean() + edges + LATENT_SIZE * (z**2).mean()
        return total

    if drive(run, Workers(vae, options.threads), loss_at, until=options.until, before=pool.renew):
        run.use_average()
        set_latent_statistics(clips, seed=seed)
        save_autoencoder(out, vae)
        print(json.dumps(measure_autoencoder(clips, seed=seed + 1)))


def save_autoencoder(out: Path, vae: AutoencoderKLWan) -> None:
    vae = copy.deepcopy(vae).cpu().half()
    for p in vae.parameters():
        p.data = p.data.contiguous()
    vae.save_pretrained(out / "vae")


@torch.no_grad()
def set_latent_statistics(clips: WholeClips, *, seed: int) -> None:
    """Write the mean and standard deviation of each latent channel, over 200 clips, into the model's config."""
    rng = np.random.default_rng((seed, 1))
    z = torch.cat([clips.encode(video) for video in held_out(rng, count=200, num_frames=17)])
    clips.vae.register_to_config(latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4)).tolist())


def held_out(rng: np.random.Generator, *, count: int, num_frames: int) -> Iterator[torch.Tensor]:
    for _ in range(count):
        frames = world.render(world.draw_scene(rng), num_frames=num_frames, first_frame=int(rng.integers(0, 200)))
        yield torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


@torch.no_grad()
def measure_autoencoder(clips: WholeClips, *, seed: int) -> dict[str, float]:
    """PSNR in dB on scenes that were not trained on: over all frames, of the first and the last."""
    figures: dict[str, float] = {}
    for num_frames, count in ((17, 40), (97, 6)):
        errors = []
        for video in held_out(np.random.default_rng((seed, num_frames)), count=count, num_frames=num_frames):
            decoded = clips.decode(clips.encode(video)).clamp(-1, 1).cpu()
            errors.append((((decoded - video) / 2) ** 2).mean((0, 1, 3, 4)))
        psnr = -10 * torch.log10(torch.stack(errors).mean(0))
        mean = -10 * math.log10(float(torch.stack(errors).mean()))
        figures |= {
            f"psnr_{num_frames}": mean,
            f"first_{num_frames}": float(psnr[0]),
            f"last_{num_frames}": float(psnr[-1]),
        }
    return figures
