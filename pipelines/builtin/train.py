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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning waits make two threads slower than one

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.models.autoencoders import autoencoder_kl_wan
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--begin-with", type=Path, help="a model folder to go on from, instead of random weights")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.work.mkdir(parents=True, exist_ok=True)
    train = train_autoencoder if args.phase == "autoencoder" else train_transformer
    until = time.monotonic() + 60 * args.slice_minutes
    train(args.out, args.work, Options(args.steps, args.seed, args.threads, args.device, args.begin_with, until))


@dataclass(frozen=True)
class Options:
    steps: int | None
    seed: int
    threads: int
    device: str
    begin_with: Path | None
    until: float  # time.monotonic() at which the slice ends


class Run:
    """A model, its optimizers and a running average of its weights, with a state that can be saved and resumed.

    Matrices and convolution kernels are stepped by Muon (orthogonalised momentum, scaled to AdamW's update size), which
    learns here in about 0.6 of AdamW's steps; all else, and what touches the input or the output, by AdamW.
    """

    def __init__(
        self, model: torch.nn.Module, file: Path, *, steps: int, muon: float, adamw: float, ema: float
    ) -> None:
        self.model, self.file, self.steps, self.ema_rate = model, file, steps, ema
        self.named = dict(model.named_parameters())
        self.ema = {k: p.detach().clone() for k, p in self.named.items()}
        self.as_matrix = {k: _as_matrix(p) for k, p in self.named.items() if _is_hidden(k, p)}
        rest = {k: p for k, p in self.named.items() if k not in self.as_matrix}
        scaled: Any = dict(weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(list(self.as_matrix.values()), lr=muon, **scaled),
            torch.optim.AdamW(list(rest.values()), lr=adamw, betas=(0.9, 0.99), weight_decay=1e-4),
        ]
        self.stepped: list[dict[str, torch.Tensor]] = [self.as_matrix, {**rest}]
        self.peaks = (muon, adamw)
        self.step = 0
        if file.exists():
            self._load()

    def learning_rate(self) -> float:
        """As a share of the peak: warm-up over 100 steps, then a half cosine to zero at the last step."""
        done = self.step / self.steps
        return min(1.0, (self.step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def update(self, gradients: Sequence[torch.Tensor]) -> None:
        """One step with gradients in the order of the model's parameters."""
        gradient_of = dict(zip(self.named, gradients, strict=True))
        for k, p in self.named.items():
            p.grad = gradient_of[k]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for k, matrix in self.as_matrix.items():
            matrix.grad = _as_matrix(gradient_of[k])
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * self.learning_rate()
            optimizer.step()
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
        for optimizer, stepped in zip(self.optimizers, self.stepped, strict=True):
            for k, p in stepped.items():
                for part, value in optimizer.state[p].items():  # empty for what has had no gradient yet
                    state[f"{part}|{k}"] = value
        temporary = self.file.with_suffix(".part")
        save_file({k: v.contiguous() for k, v in state.items()}, temporary, {"step": str(self.step)})
        temporary.replace(self.file)

    def _load(self) -> None:
        with safe_open(self.file, "pt") as f:
            self.step = int(f.metadata()["step"])
        device = next(iter(self.named.values())).device
        state = load_file(self.file, device=str(device))
        with torch.no_grad():
            for k, p in self.named.items():
                p.copy_(state[f"model.{k}"])
                self.ema[k] = state[f"ema.{k}"]
        for optimizer, stepped in zip(self.optimizers, self.stepped, strict=True):
            for k, tensor in stepped.items():
                parts = {name.split("|")[0]: v for name, v in state.items() if name.endswith(f"|{k}")}
                optimizer.state[tensor] = parts


def _is_hidden(name: str, p: torch.Tensor) -> bool:
    outer = (
        "conv_in.",
        "conv_out.",
        "patch_embedding.",
        "proj_out.",
        "shared.",
        "embed_tokens.",
        "scale_shift",
        "bias",
    )
    return p.ndim >= 2 and p.shape[0] > 1 and p[0].numel() > 1 and not any(o in name for o in outer)


def _as_matrix(p: torch.Tensor) -> torch.Tensor:
    """A view (out, everything else) that shares the tensor's memory, whichever way its channels lie."""
    p = p.detach()
    return p.view(p.shape[0], -1) if p.is_contiguous() else p.movedim(1, -1).view(p.shape[0], -1)


class Workers:
    """Gradients of a batch in halves, one half a thread: on a few CPU cores faster than two threads in each operation.

    The number of halves is fixed, and they are added in order, so the number of cores does not decide the weights.
    """

    HALVES = 2

    def __init__(self, model: torch.nn.Module, threads: int) -> None:
        self.parameters = list(model.parameters())
        self.threads = ThreadPoolExecutor(min(threads, self.HALVES), initializer=self._start)

    @staticmethod
    def _start() -> None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)

    def gradients(self, loss_of: Callable[[int], torch.Tensor]) -> tuple[list[torch.Tensor], float]:
        """The mean over the halves of the gradients of `loss_of(half)`, and the mean loss."""

        def one(half: int) -> tuple[tuple[torch.Tensor | None, ...], float]:
            loss = loss_of(half)
            return torch.autograd.grad(loss, self.parameters, allow_unused=True), float(loss.detach())

        done = list(self.threads.map(one, range(self.HALVES)))
        total = [
            sum((g for g in parts if g is not None), torch.zeros_like(p)) / self.HALVES
            for p, *parts in zip(self.parameters, *(g for g, _ in done), strict=True)
        ]
        return total, sum(loss for _, loss in done) / self.HALVES


def drive(
    run: Run,
    workers: Workers,
    loss_at: Callable[[int, int], torch.Tensor],
    *,
    until: float,
    before: Callable[[int], None] = lambda step: None,
) -> bool:
    """Step until the phase or the slice ends; report every 100 steps, save every 500. True when the phase is done."""
    started, begun, recent = time.monotonic(), run.step, []
    while run.step < run.steps and time.monotonic() < until:
        before(run.step)
        gradients, loss = workers.gradients(partial(loss_at, run.step))
        recent.append(loss)
        run.update(gradients)
        if run.step % 100 == 0:
            pace = (time.monotonic() - started) / (run.step - begun)
            print(f"step {run.step}/{run.steps} loss {np.mean(recent):.4f} {pace:.3f} s/step", flush=True)
            recent.clear()
        if run.step % 500 == 0:
            run.save()
    run.save()
    return run.step >= run.steps


# -- autoencoder -------------------------------------------------------------------------------------------------------

# Up to this share of the steps: frames of a clip, clips in each half of a batch. Long clips come last: a causal decoder
# drifts beyond the length it was trained on.
AUTOENCODER_SCHEDULE = [(0.08, 1, 16), (0.18, 5, 4), (0.75, 17, 1), (0.92, 33, 1), (1.0, 49, 1)]
GO_ON_SCHEDULE = [(0.8, 17, 1), (0.93, 33, 1), (1.0, 49, 1)]  # of weights that have learned frames already
LATENT_NOISE, LATENT_SIZE = 0.5, 3e-3  # at most, so that what the transformer gets slightly wrong still decodes well
GO_ON_RATE = 0.6  # of the peak learning rates


class WholeClips:
    """An AutoencoderKLWan run over whole clips at once instead of four frames at a time with caches.

    The numbers are the same (a test compares them to 1e-5); training is three times as fast.
    """

    def __init__(self, vae: AutoencoderKLWan, device: str = "cpu") -> None:
        self.vae, self.device = vae.to(device), device
        for module in vae.modules():
            if isinstance(module, autoencoder_kl_wan.WanResample):
                module.forward = partial(self._resample, module)
            elif isinstance(module, torch.nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            elif isinstance(module, torch.nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def _resample(module: Any, x: torch.Tensor, *_: Any) -> torch.Tensor:
        """As the module with caches: the first frame stays one frame, those after it halve or double."""
        if module.mode == "upsample3d" and x.shape[2] > 1:
            later = module.time_conv(x[:, :, 1:]).unflatten(1, (2, x.shape[1]))  # (B, 2, C, T, H, W)
            x = torch.cat([x[:, :, :1], later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], 2)
        batch, num_frames = x.shape[0], x.shape[2]
        x = module.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, num_frames)).transpose(1, 2)
        if module.mode == "downsample3d" and num_frames > 1:
            x = torch.cat([x[:, :, :1], module.time_conv(x)], 2)
        return x

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Video (B, 3, T, H, W) in [-1, 1] to the mode of its latents (B, C, F, H / 8, W / 8)."""
        video = video.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        patches = autoencoder_kl_wan.patchify(video, self.vae.config.patch_size)
        moments: torch.Tensor = self.vae.quant_conv(self.vae.encoder(patches))
        return moments.float().chunk(2, dim=1)[0]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents to video, not clamped."""
        patches = self.vae.decoder(self.vae.post_quant_conv(z))
        video: torch.Tensor = autoencoder_kl_wan.unpatchify(patches, self.vae.config.patch_size)
        return video.float()


class ClipPool:
    """Clips drawn ahead of time, of which every eighth step replaces one: fresh enough, and cheap on a busy core."""

    NUM_FRAMES, SIZE, STEPS_A_CLIP = 65, 300, 8

    def __init__(self, *, seed: int, step: int) -> None:
        """The pool as it stands before a step."""
        self.seed = seed
        renewed = (step + self.STEPS_A_CLIP - 1) // self.STEPS_A_CLIP
        self.clips = [self._draw(i, (renewed + self.SIZE - 1 - i) // self.SIZE) for i in range(self.SIZE)]

    def _draw(self, slot: int, generation: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, 5, slot, generation))
        scene, first = world.draw_scene(rng), int(rng.integers(0, 200))
        frames = world.render(scene, num_frames=self.NUM_FRAMES, first_frame=first)
        return frames, world.object_mask(scene, num_frames=self.NUM_FRAMES, first_frame=first)

    def renew(self, step: int) -> None:
        if step % self.STEPS_A_CLIP == 0:
            generation, slot = divmod(step // self.STEPS_A_CLIP, self.SIZE)
            self.clips[slot] = self._draw(slot, generation + 1)

    def batch(self, rng: np.random.Generator, *, size: int, num_frames: int) -> Batch:
        """Videos in [-1, 1] of shape (B, 3, T, H, W), half of them mirrored, and the object's mask (B, 1, T, H, W)."""
        videos, masks = [], []
        for i in rng.integers(len(self.clips), size=size):
            first, way = int(rng.integers(self.NUM_FRAMES - num_frames + 1)), int(rng.choice((-1, 1)))
            frames, mask = (array[first : first + num_frames, :, ::way] for array in self.clips[i])
            videos.append(frames)
            masks.append(mask)
        video = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return video, torch.from_numpy(np.stack(masks))[:, None].float()


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


# -- transformer and text encoder --------------------------------------------------------------------------------------

CLIP_LATENTS = 10  # latent frames of an encoded clip: 37 frames
WINDOW_LATENTS = 5  # what the model sees at once: 17 frames
START_CONTEXTS = {0: 0.55, 1: 0.20, 2: 0.12, 3: 0.08, 4: 0.05}  # clean latent frames at a stream's start: how often
MIDDLE_CONTEXTS = {0: 0.25, 1: 0.15, 2: 0.35, 3: 0.15, 4: 0.10}  # and in the middle of one
START_SHARE, CAPTION_DROP = 0.6, 0.1
CONTEXT_NOISE = 0.15  # at most, on the context, so that the faults of one chunk do not grow in the next
OBJECT_WEIGHT = 4.0  # of the part of the picture where objects are; the rest counts 1
SIGMA_MEAN, SIGMA_SPREAD = 0.0, 1.2  # of the logit of the noise level: shapes and motion are lost at middle levels
BATCH = 32
SHARD_CLIPS, SHARDS = 250, 16


class Denoiser(torch.nn.Module):
    """What is trained together: the transformer and the text encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer, self.text_encoder = architecture.transformer(), architecture.text_encoder()

    def begin_with(self, folder: Path) -> None:
        """Take the weights of a saved model."""
        for part in (self.transformer, self.text_encoder):
            name = "transformer" if part is self.transformer else "text_encoder"
            saved = type(part).from_pretrained(folder / name, dtype=torch.float32)
            part.load_state_dict(saved.state_dict())

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) to embeddings (B, L, D), zero after the last token as WanPipeline makes them."""
        hidden: torch.Tensor = self.text_encoder(ids, mask).last_hidden_state
        return hidden * mask[..., None]


def encode_clips(out: Path, work: Path, *, seed: int, shards: range, device: str = "cpu") -> None:
    """Draw and encode clips: files of normalised latents (N, C, F, H, W) in float16 with the scenes' captions."""
    vae = AutoencoderKLWan.from_pretrained(out / "vae", dtype=torch.float32, disable_mmap=True).eval()
    clips = WholeClips(vae, device)
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
                latents.append((clips.encode(video).cpu() - mean) / std)
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


def train_transformer(out: Path, work: Path, options: Options) -> None:
    steps, seed = options.steps or 16_000, options.seed
    device = options.device
    encode_clips(out, work, seed=seed, shards=range(SHARDS), device=device)
    latents, captions = load_clips(work)
    torch.manual_seed(seed)
    model, tokenizer = Denoiser(), architecture.tokenizer()
    if options.begin_with:
        model.begin_with(options.begin_with)
    model.to(device)
    rate = GO_ON_RATE if options.begin_with else 1.0
    run = Run(model, work / "transformer.safetensors", steps=steps, muon=rate * 3e-3, adamw=rate * 2e-3, ema=0.999)
    weight_HW = torch.ones(latents.shape[3:], device=device)
    weight_HW[2:7, 4:9] = OBJECT_WEIGHT  # fixed, so that it does not move what is learned, only how fast
    weight_HW /= weight_HW.mean()

    def loss_at(step: int, half: int) -> torch.Tensor:
        rng, batch = np.random.default_rng((seed, 8, step, half)), BATCH // Workers.HALVES
        chosen = rng.integers(len(captions), size=batch)
        starts = np.where(rng.random(batch) < START_SHARE, 0, rng.integers(1, CLIP_LATENTS - WINDOW_LATENTS + 1, batch))
        marks = ["" if a == 0 else f" {world.MIDDLE}" for a in starts]
        texts = [("" if rng.random() < CAPTION_DROP else captions[i]) + m for i, m in zip(chosen, marks, strict=True)]
        tokens = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        clean = torch.stack(
            [latents[i, :, a : a + WINDOW_LATENTS] for i, a in zip(chosen, starts, strict=True)]
        ).float()  # (B, C, F, H, W)
        context = [_draw(rng, START_CONTEXTS if a == 0 else MIDDLE_CONTEXTS) for a in starts]
        is_new = torch.arange(WINDOW_LATENTS)[None] >= torch.tensor(context)[:, None]  # (B, F)
        sigma = torch.from_numpy(1 / (1 + np.exp(-rng.normal(SIGMA_MEAN, SIGMA_SPREAD, batch)))).float()
        sigma_F = sigma[:, None] * is_new
        blur_F = torch.from_numpy(rng.uniform(0, CONTEXT_NOISE, batch)).float()[:, None] * ~is_new
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        clean, noise, is_new, sigma_F, blur_F = (x.to(device) for x in (clean, noise, is_new, sigma_F, blur_F))
        s, blur = (x[:, None, :, None, None] for x in (sigma_F, blur_F))
        tokens_per_frame = clean.shape[3] // 2 * (clean.shape[4] // 2)
        timestep = (sigma_F * 1000).repeat_interleave(tokens_per_frame, dim=1)
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            text = model.embed(tokens.input_ids.to(device), tokens.attention_mask.to(device))
            seen = (1 - s) * clean + (s + blur) * noise
            predicted = model.transformer(seen, timestep, text, return_dict=False)[0]
        error = ((predicted.float() - (noise - clean)) ** 2 * weight_HW).mean((1, 3, 4))  # (B, F)
        total: torch.Tensor = (error * is_new).sum() / is_new.sum()
        return total

    backends = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(backends):  # on CPUs the fused kernel's backward is slow for short sequences
        done = drive(run, Workers(model, options.threads), loss_at, until=options.until)
    run.use_average()
    save_pipeline(out, model)
    print("phase complete" if done else "slice complete: run again to go on", flush=True)


def _draw(rng: np.random.Generator, shares: dict[int, float]) -> int:
    return int(rng.choice(list(shares), p=list(shares.values())))


def save_pipeline(out: Path, model: Denoiser) -> None:
    """Write the whole model in diffusers format, half precision, as stock WanPipeline loads it."""
    vae = AutoencoderKLWan.from_pretrained(out / "vae", dtype=torch.float16)
    text_encoder, transformer = (copy.deepcopy(m).cpu().half() for m in (model.text_encoder, model.transformer))
    pipe = WanPipeline(
        tokenizer=architecture.tokenizer(), text_encoder=text_encoder, vae=vae, scheduler=architecture.scheduler(),
        transformer=transformer, expand_timesteps=True,
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
