"""Train the built-in model: `python -m pipelines.builtin.train autoencoder`, then `... transformer`.

Each phase is a fixed number of steps whose data, noise and learning rate depend only on (seed, step), so a run that was
stopped (`--slice-minutes`) goes on as if it had not been. State is kept in safetensors beside the output folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning waits make two threads slower than one

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from farm.cards import BUILTIN

from . import architecture, world

HERE = Path(__file__).parent
MAX_TOKENS: int = BUILTIN["max_tokens"]
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
def set_latent_statistics(vae: Any, *, seed: int) -> None:
    """Write the mean and standard deviation of each latent channel, over 200 clips, into the model's config."""
    rng = np.random.default_rng((seed, 1))
    z = torch.cat([vae.encode(video).latent_dist.mode() for video in held_out(rng, count=200, num_frames=17)])
    vae.register_to_config(latents_mean=z.mean((0, 2, 3, 4)).tolist(), latents_std=z.std((0, 2, 3, 4)).tolist())


def held_out(rng: np.random.Generator, *, count: int, num_frames: int) -> Iterator[torch.Tensor]:
    for _ in range(count):
        frames = world.render(world.draw_scene(rng), num_frames=num_frames, first_frame=int(rng.integers(0, 200)))
        yield torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


@torch.no_grad()
def measure_autoencoder(vae: Any, *, seed: int) -> dict[str, float]:
    """PSNR in dB on scenes that were not trained on: over all frames, of the first and the last."""
    figures: dict[str, float] = {}
    for num_frames, count in ((17, 40), (97, 6)):
        errors = []
        for video in held_out(np.random.default_rng((seed, num_frames)), count=count, num_frames=num_frames):
            decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample
            errors.append((((decoded - video) / 2) ** 2).mean((0, 1, 3, 4)))
        psnr = -10 * torch.log10(torch.stack(errors).mean(0))
        mean = -10 * math.log10(float(torch.stack(errors).mean()))
        figures |= {
            f"psnr_{num_frames}": mean,
            f"first_{num_frames}": float(psnr[0]),
            f"last_{num_frames}": float(psnr[-1]),
        }
    return figures


# -- transformer and text encoder --------------------------------------------------------------------------------------

CLIP_LATENTS = 10  # latent frames of an encoded clip: 37 frames
WINDOW_LATENTS = 5  # what the model sees at once: 17 frames
START_CONTEXTS = {0: 0.60, 1: 0.20, 2: 0.10, 3: 0.10}  # clean latent frames at the start of a stream, and how often
MIDDLE_CONTEXTS = {0: 0.15, 1: 0.20, 2: 0.40, 3: 0.25}  # and in the middle of one
START_SHARE, CAPTION_DROP = 0.6, 0.1
SHARD_CLIPS, SHARDS = 250, 8


class Denoiser(torch.nn.Module):
    """What is trained together: the transformer and the text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer, self.text_encoder = architecture.transformer(), architecture.text_encoder()

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) to embeddings (B, L, D), zero after the last token as WanPipeline makes them."""
        hidden: torch.Tensor = self.text_encoder(ids, mask).last_hidden_state
        return hidden * mask[..., None]


def encode_clips(out: Path, work: Path, *, seed: int, shards: range) -> None:
    """Draw and encode clips: files of normalised latents (N, C, F, H, W) in float16 with the scenes' captions."""
    vae = AutoencoderKLWan.from_pretrained(out / "vae", dtype=torch.float32).eval()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    for shard in shards:
        file = work / f"latents-{shard:03d}.safetensors"
        if file.exists():
            continue
        latents, captions = [], []
        for i in range(SHARD_CLIPS):
            rng = np.random.default_rng((seed, 7, shard, i))
            scene, first = world.draw_scene(rng), int(rng.integers(0, 200))
            frames = world.render(scene, num_frames=4 * CLIP_LATENTS - 3, first_frame=first)
            video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
            with torch.no_grad():
                latents.append((vae.encode(video).latent_dist.mode() - mean) / std)
            captions.append(scene.caption)
        temporary = file.with_suffix(".part")
        save_file({"latents": torch.cat(latents).half()}, temporary, {"captions": json.dumps(captions)})
        temporary.replace(file)
        print(f"encoded {file.name}", flush=True)


def load_clips(work: Path) -> tuple[torch.Tensor, list[str]]:
    latents, captions = [], []
    for file in sorted(work.glob("latents-*.safetensors")):
        with safe_open(file, "pt") as f:
            latents.append(f.get_tensor("latents"))
            captions += json.loads(f.metadata()["captions"])
    return torch.cat(latents), captions


def train_transformer(out: Path, work: Path, *, steps: int | None, seed: int, until: float) -> None:
    steps, batch = steps or 16_000, 32
    encode_clips(out, work, seed=seed, shards=range(SHARDS))
    latents, captions = load_clips(work)
    torch.manual_seed(seed)
    model, tokenizer = Denoiser(), architecture.tokenizer()
    run = Run(model, work / "transformer.safetensors", steps=steps, peak=2e-3, ema=0.999)

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((seed, 8, step))
        chosen = rng.integers(len(captions), size=batch)
        texts = ["" if rng.random() < CAPTION_DROP else captions[i] for i in chosen]
        tokens = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        starts = np.where(rng.random(batch) < START_SHARE, 0, rng.integers(1, CLIP_LATENTS - WINDOW_LATENTS + 1, batch))
        clean = torch.stack(
            [latents[i, :, a : a + WINDOW_LATENTS] for i, a in zip(chosen, starts, strict=True)]
        ).float()
        context = [_draw(rng, START_CONTEXTS if a == 0 else MIDDLE_CONTEXTS) for a in starts]
        is_new = torch.arange(WINDOW_LATENTS)[None] >= torch.tensor(context)[:, None]  # (B, F)
        sigma = torch.from_numpy(1 / (1 + np.exp(-rng.normal(0.4, 1.1, batch)))).float()
        sigma_F = sigma[:, None] * is_new
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        s = sigma_F[:, None, :, None, None]
        tokens_per_frame = clean.shape[3] // 2 * (clean.shape[4] // 2)
        timestep = (sigma_F * 1000).repeat_interleave(tokens_per_frame, dim=1)
        with torch.autocast("cpu", torch.bfloat16):
            text = model.embed(tokens.input_ids, tokens.attention_mask)
            predicted = model.transformer((1 - s) * clean + s * noise, timestep, text, return_dict=False)[0]
        error = ((predicted.float() - (noise - clean)) ** 2).mean((1, 3, 4))  # (B, F)
        total: torch.Tensor = (error * is_new).sum() / is_new.sum()
        return total

    done = drive(run, loss_at, until=until)
    run.use_average()
    save_pipeline(out, model)
    print("phase complete" if done else "slice complete: run again to go on", flush=True)


def _draw(rng: np.random.Generator, shares: dict[int, float]) -> int:
    return int(rng.choice(list(shares), p=list(shares.values())))


def save_pipeline(out: Path, model: Denoiser) -> None:
    """Write the whole model in diffusers format, half precision, as stock WanPipeline loads it."""
    vae = AutoencoderKLWan.from_pretrained(out / "vae", dtype=torch.float16)
    pipe = WanPipeline(
        tokenizer=architecture.tokenizer(), text_encoder=copy.deepcopy(model.text_encoder).half(), vae=vae,
        scheduler=architecture.scheduler(), transformer=copy.deepcopy(model.transformer).half(), expand_timesteps=True,
    )  # fmt: skip
    pipe.save_pretrained(out, safe_serialization=True)
    for file in out.glob("*/config.json"):  # diffusers writes where it loaded from
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()
