"""The second phase: the transformer and its text encoder, on clips that were encoded beforehand."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from farm.models.cards.builtin import BUILTIN
from pipelines.builtin import architecture, world
from pipelines.builtin.clips import WholeClips
from pipelines.builtin.optimizer import GO_ON_RATE, Options, Run, Workers, drive

MAX_TOKENS: int = BUILTIN["max_tokens"]
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
