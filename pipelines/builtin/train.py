"""Train the built-in model: `python -m pipelines.builtin.train autoencoder`, then `... transformer`.

Each phase is a fixed number of steps whose data, noise and learning rate depend only on (seed, step), so a run that was
stopped (`--slice-minutes`) goes on as if it had not been. State is kept in safetensors beside the output folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning waits make two threads slower than one

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from . import architecture, world

HERE = Path(__file__).parent
Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=["autoencoder", "transformer"])
    parser.add_argument("--out", type=Path, default=HERE / "weights")
    parser.add_argument("--work", type=Path, default=Path(".longtake-training"), help="folder of the training state")
    parser.add_argument("--steps", type=int, help="steps of the whole phase (default: 12000 and 16000)")
    parser.add_argument("--slice-minutes", type=float, default=1e9, help="stop after this long; run again to go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    train = train_autoencoder if args.phase == "autoencoder" else train_transformer
    train(args.out, args.work, steps=args.steps, seed=args.seed, until=time.monotonic() + 60 * args.slice_minutes)


class Run:
    """A model, its AdamW and a running average of its weights, with a state that can be saved and resumed."""

    def __init__(self, model: torch.nn.Module, file: Path, *, steps: int, peak: float, ema: float) -> None:
        self.model, self.file, self.steps, self.peak, self.ema_rate = model, file, steps, peak, ema
        self.named = dict(model.named_parameters())
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
        self.ema = {k: p.detach().clone() for k, p in self.named.items()}
        self.step = 0
        if file.exists():
            self._load()

    def learning_rate(self) -> float:
        """Warm-up over 200 steps, then a half cosine to zero at the last step."""
        done = self.step / self.steps
        return self.peak * min(1.0, (self.step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def update(self, loss: torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        rate = min(self.ema_rate, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for k, p in self.named.items():
                self.ema[k].lerp_(p, 1 - rate)

    def use_average(self) -> None:
        with torch.no_grad():
            for k, p in self.named.items():
                p.copy_(self.ema[k])

    def save(self) -> None:
        state = {f"model.{k}": p.detach() for k, p in self.named.items()} | {f"ema.{k}": v for k, v in self.ema.items()}
        for k, p in self.named.items():
            for part, value in self.optimizer.state[p].items():  # empty for what has had no gradient yet
                state[f"adam.{part}.{k}"] = value
        temporary = self.file.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in state.items()}, temporary, {"step": str(self.step)})
        temporary.replace(self.file)

    def _load(self) -> None:
        from safetensors import safe_open

        with safe_open(self.file, "pt") as f:
            self.step = int(f.metadata()["step"])
        state = load_file(self.file)
        with torch.no_grad():
            for k, p in self.named.items():
                p.copy_(state[f"model.{k}"])
                self.ema[k] = state[f"ema.{k}"]
                parts = ("step", "exp_avg", "exp_avg_sq")
                self.optimizer.state[p] = {a: state[f"adam.{a}.{k}"] for a in parts if f"adam.{a}.{k}" in state}


def drive(run: Run, loss_at: Callable[[int], torch.Tensor], *, until: float) -> bool:
    """Step until the phase or the slice ends; report every 100 steps, save every 500. True when the phase is done."""
    started, begun, recent = time.monotonic(), run.step, []
    while run.step < run.steps and time.monotonic() < until:
        loss = loss_at(run.step)
        recent.append(float(loss.detach()))
        run.update(loss)
        if run.step % 100 == 0:
            pace = (time.monotonic() - started) / (run.step - begun)
            print(f"step {run.step}/{run.steps} loss {np.mean(recent):.4f} {pace:.3f} s/step", flush=True)
            recent.clear()
        if run.step % 500 == 0:
            run.save()
    run.save()
    return run.step >= run.steps


# -- autoencoder -------------------------------------------------------------------------------------------------------

AUTOENCODER_SCHEDULE = [(0.10, 1, 24), (0.25, 5, 6), (0.45, 9, 4), (0.85, 17, 2), (1.0, 33, 1)]  # up to, frames, batch


class ClipPool:
    """Clips drawn ahead of time, one of them replaced at each step: fresh enough, and cheap on a busy core."""

    def __init__(self, *, size: int, num_frames: int, seed: int) -> None:
        self.num_frames = num_frames
        self.clips = [self._draw(np.random.default_rng((seed, num_frames, i))) for i in range(size)]

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        scene, first = world.draw_scene(rng), int(rng.integers(0, 200))
        frames = world.render(scene, num_frames=self.num_frames, first_frame=first)
        return frames, world.object_mask(scene, num_frames=self.num_frames, first_frame=first)

    def batch(self, rng: np.random.Generator, *, size: int) -> Batch:
        """Videos in [-1, 1] of shape (B, 3, T, H, W) and the object's mask (B, 1, T, H, W)."""
        self.clips[int(rng.integers(len(self.clips)))] = self._draw(rng)
        chosen = [self.clips[i] for i in rng.integers(len(self.clips), size=size)]
        video = torch.from_numpy(np.stack([c[0] for c in chosen])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return video, torch.from_numpy(np.stack([c[1] for c in chosen]))[:, None].float()


def train_autoencoder(out: Path, work: Path, *, steps: int | None, seed: int, until: float) -> None:
    steps = steps or 12_000
    torch.manual_seed(seed)
    vae = architecture.autoencoder()
    run = Run(vae, work / "autoencoder.safetensors", steps=steps, peak=2e-3, ema=0.998)
    pool: ClipPool | None = None

    def loss_at(step: int) -> torch.Tensor:
        nonlocal pool
        _, num_frames, batch = next(s for s in AUTOENCODER_SCHEDULE if step < s[0] * steps)
        if pool is None or pool.num_frames != num_frames:
            pool = ClipPool(size=1500 if num_frames == 1 else 300, num_frames=num_frames, seed=seed)
        rng = np.random.default_rng((seed, step))
        video, mask = pool.batch(rng, size=batch)
        z = vae.encode(video).latent_dist.mode()
        noise = torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32))
        decoded = vae.decode(z + 0.05 * noise).sample
        error = decoded - video
        weight = 1 + 6 * mask
        edges = sum((error.diff(dim=d).abs() * weight.narrow(d, 1, weight.shape[d] - 1)).mean() for d in (-1, -2))
        total: torch.Tensor = (error.abs() * weight).mean() + edges + 1e-3 * (z**2).mean()
        return total

    if drive(run, loss_at, until=until):
        run.use_average()
        set_latent_statistics(vae, seed=seed)
        vae.half().save_pretrained(out / "vae")
        print(json.dumps(measure_autoencoder(vae.float(), seed=seed + 1)))


@torch.no_grad()
def set_latent_statistics(vae: torch.nn.Module, *, seed: int) -> None:
    """Write the mean and standard deviation of each latent channel, over 200 clips, into the model's config."""
    rng = np.random.default_rng((seed, 1))
    z = torch.cat([vae.encode(video).latent_dist.mode() for video in held_out(rng, count=200, num_frames=17)])  # type: ignore[operator]  # diffusers is untyped
    vae.register_to_config(latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4)).tolist())  # type: ignore[operator]


def held_out(rng: np.random.Generator, *, count: int, num_frames: int) -> Iterator[torch.Tensor]:
    for _ in range(count):
        frames = world.render(world.draw_scene(rng), num_frames=num_frames, first_frame=int(rng.integers(0, 200)))
        yield torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


@torch.no_grad()
def measure_autoencoder(vae: torch.nn.Module, *, seed: int) -> dict[str, float]:
    """PSNR in dB on scenes that were not trained on: over all frames, of the first and the last."""
    figures: dict[str, float] = {}
    for num_frames, count in ((17, 40), (97, 6)):
        errors = []
        for video in held_out(np.random.default_rng((seed, num_frames)), count=count, num_frames=num_frames):
            decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample  # type: ignore[operator]
            errors.append((((decoded - video) / 2) ** 2).mean((0, 1, 3, 4)))
        psnr = -10 * torch.log10(torch.stack(errors).mean(0))
        mean = -10 * math.log10(float(torch.stack(errors).mean()))
        figures |= {
            f"psnr_{num_frames}": mean,
            f"first_{num_frames}": float(psnr[0]),
            f"last_{num_frames}": float(psnr[-1]),
        }
    return figures


def train_transformer(out: Path, work: Path, *, steps: int | None, seed: int, until: float) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    main()
