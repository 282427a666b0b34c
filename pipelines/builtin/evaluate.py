"""Measure the built-in model, or examine any clip of its world.

    python -m pipelines.builtin.evaluate [--only autoencoder prompts images continuation guidance speed] [--cases N]
    python -m pipelines.builtin.evaluate FILM --prompt "a red ball rolls over grass at day" --json

Prompts, images and noise come from seeds that training never uses. Chunks go through the farm's own stages.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from farm.errors import InputError
from farm.models.cards.builtin import BUILTIN
from farm.models.checkpoint import BUILTIN_FOLDER, read_checkpoint
from farm.task import Denoise, EncodeText, Slice
from pipelines import decode, denoise, encode
from pipelines.builtin import examiner, world
from pipelines.families import wan
from pipelines.stage import Progress, as_bytes

Array = NDArray[Any]
Video = NDArray[np.uint8]  # (T, H, W, C)
HELD_OUT = 1_000_003  # seeds of evaluation begin here
CHUNK, OVERLAP = int(BUILTIN["chunk_frames"]), 5
CHUNK_LATENTS, OVERLAP_LATENTS = (CHUNK - 1) // 4 + 1, (OVERLAP - 1) // 4 + 1
PARTS = ("colour", "shape", "motion", "ground", "sky", "camera")
CHANCE = {"colour": 1 / 7, "shape": 1 / 4, "motion": 1 / 5, "ground": 1 / 4, "sky": 1 / 3, "camera": 1 / 4}


class Model:
    """The built-in model through the farm's stages, in one process."""

    def __init__(self, folder: Path) -> None:
        for _ in range(2):  # the first time imports what loading needs
            started = time.monotonic()
            self.encode, self.denoise, self.decode = (s.Stage(str(folder)) for s in (encode, denoise, decode))
            self.load_s = time.monotonic() - started
        self.vae = self.decode.vae
        self.settings = read_checkpoint(folder, name="builtin").card.settings_of("denoise")

    def text(self, prompt: str) -> bytes:
        request = EncodeText("wan", prompt, BUILTIN["max_tokens"])
        return as_bytes(self.encode.run(request, [], Progress()).artifact)

    def generate(
        self,
        prompt: str,
        *,
        seed: int,
        context: torch.Tensor | None = None,
        context_latents: int = 0,
        middle: bool = False,
    ) -> torch.Tensor:
        """One chunk at the card's default steps and guidance: latents (1, C, F, H, W).

        Args:
            context: latents whose last `context_latents` frames the chunk begins with.
            middle: of a stream, where the first latent frame stands for four frames.
        """
        mark = f" {world.MIDDLE}" if middle else ""
        inputs = [self.text(prompt + mark), self.text(mark.strip())]
        if context is not None:
            inputs.append(save({"latents": context.contiguous()}))
        shape = (1, 16, CHUNK_LATENTS, world.HEIGHT // 8, world.WIDTH // 8)
        guidance = float(BUILTIN["guidance"])
        slices = (Slice(0, CHUNK_LATENTS, 0, 1),)
        request = Denoise(
            "wan", "text", shape, int(BUILTIN["steps"]), guidance, guidance, seed, slices,
            context_latents=context_latents, settings=self.settings,
        )  # fmt: skip
        return denoise.load_latents(self.denoise.run(request, inputs, Progress()).artifact)

    @torch.no_grad()
    def frames(self, latents: torch.Tensor) -> Video:
        return decode.as_uint8(wan.decode_latents(self.vae, latents)[0]).numpy()

    @torch.no_grad()
    def latents(self, frames: Video) -> torch.Tensor:
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        return wan.encode_video(self.vae, video)

    def take(self, prompt: str, *, seed: int, chunks: int, kind: str) -> Video:
        """A long shot in `extend`, context `latents` or `frames`, as the farm plans it."""
        chunk = self.generate(prompt, seed=seed)
        if kind == "latents":
            whole = chunk
            for k in range(1, chunks):
                chunk = self.generate(
                    prompt, seed=seed + k, context=chunk, context_latents=OVERLAP_LATENTS, middle=True
                )
                whole = torch.cat([whole, chunk[:, :, OVERLAP_LATENTS:]], 2)
            return self.frames(whole)
        video = self.frames(chunk)
        for k in range(1, chunks):
            known = self.latents(video[-OVERLAP:])
            chunk = self.generate(prompt, seed=seed + k, context=known, context_latents=OVERLAP_LATENTS)
            video = np.concatenate([video, self.frames(chunk)[OVERLAP:]])
        return video


def held_out(count: int, *, salt: int) -> Iterator[tuple[world.Scene, int]]:
    """Scenes and seeds for noise that training never saw."""
    for i in range(count):
        yield world.draw_scene(np.random.default_rng((HELD_OUT, salt, i))), HELD_OUT + 1000 * salt + i


def psnr_db(a: Array, b: Array) -> float:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))


# -- what is measured --------------------------------------------------------------------------------------------------


def measure_autoencoder(model: Model, cases: int) -> dict[str, Any]:
    """PSNR in dB on held-out scenes: over all frames, inside the object, of the first and the last frame."""
    squared: dict[str, list[float]] = {k: [] for k in ("all", "object", "first", "last")}
    for scene, _ in held_out(cases, salt=1):
        video, mask = world.render(scene, num_frames=17), world.object_mask(scene, num_frames=17)
        error = (model.frames(model.latents(video)).astype(np.float64) - video) ** 2
        for key, part in {"all": error, "object": error[mask], "first": error[0], "last": error[-1]}.items():
            squared[key].append(float(part.mean()))
    long = []
    for scene, _ in held_out(max(cases // 8, 4), salt=2):
        video = world.render(scene, num_frames=97)
        long.append(((model.frames(model.latents(video)).astype(np.float64) - video) ** 2).mean((1, 2, 3)))
    curve = 10 * np.log10(255**2 / np.mean(long, axis=0))
    figures = {f"{k}_db": float(10 * np.log10(255**2 / np.mean(v))) for k, v in squared.items()}
    return figures | {"frame_1_of_97_db": float(curve[0]), "frame_97_of_97_db": float(curve[-1]),
                      "lowest_of_97_db": float(curve.min())}  # fmt: skip


def measure_prompts(model: Model, cases: int) -> dict[str, Any]:
    """Shares of held-out prompts whose parts the examiner finds in the clip."""
    right = []
    for scene, seed in held_out(cases, salt=3):
        right.append(examiner.examine(model.frames(model.generate(scene.caption, seed=seed))).agrees(scene.caption))
    return _shares(right) | {"chance": CHANCE}


def measure_images(model: Model, cases: int) -> dict[str, Any]:
    """From the first frame of a held-out scene: how well it is kept, and which parts of the prompt follow."""
    kept, right = [], []
    for scene, seed in held_out(cases, salt=4):
        image = model.latents(world.render(scene, num_frames=1))
        video = model.frames(model.generate(scene.caption, seed=seed, context=image, context_latents=1))
        kept.append(psnr_db(video[0], model.frames(image)[0]))
        right.append(examiner.examine(video).agrees(scene.caption))
    return _shares(right) | {"first_frame_db": {"median": float(np.median(kept)), "least": float(np.min(kept))}}


def measure_continuation(model: Model, cases: int, *, long_cases: int, chunks: int = 9) -> dict[str, Any]:
    """At the join of one continuation, and after eight of them; for both kinds of context."""
    figures: dict[str, Any] = {}
    for kind in ("latents", "frames"):
        jumps, right = [], []
        for i, (scene, seed) in enumerate(held_out(cases, salt=5)):
            video = model.take(scene.caption, seed=seed, chunks=chunks if i < long_cases else 2, kind=kind)
            jumps.append(jump_px(examiner.examine(video[: 2 * CHUNK - OVERLAP]), join=CHUNK))
            if i < long_cases:
                right.append(examiner.examine(video[-CHUNK:]).agrees(scene.caption))
        smooth = [j <= 1.5 for j in jumps]
        figures[kind] = {
            "continuous": float(np.mean(smooth)), "jump_px_median": float(np.nanmedian(jumps)),
            f"after_{chunks - 1}": _shares(right),
        }  # fmt: skip
    return figures


def jump_px(found: examiner.Finding, *, join: int) -> float:
    """How much further the object moves across a join than it does elsewhere, in px of 96x64; infinite where unseen.

    Its speed there is the largest move from frame to frame among the three before and the three after the join.
    """
    at = np.array([found.x_px, found.bottom_px]).T
    moves = np.linalg.norm(np.diff(at, axis=0), axis=1)  # moves[i]: from frame i to i + 1
    across, around = moves[join - 1], np.concatenate([moves[join - 4 : join - 1], moves[join : join + 3]])
    return float(across - np.max(around)) if np.isfinite(across) and np.isfinite(around).all() else float("inf")


def measure_guidance(model: Model, cases: int) -> dict[str, Any]:
    """The same seed with two colours: mean absolute difference (of 255) inside the object and elsewhere."""
    inside, outside = [], []
    for scene, seed in held_out(cases, salt=6):
        other = "blue" if scene.colour != "blue" else "red"
        videos = [
            model.frames(model.generate(scene.caption.replace(scene.colour, colour, 1), seed=seed)).astype(np.float64)
            for colour in (scene.colour, other)
        ]
        mask = world.object_mask(scene, num_frames=CHUNK)
        difference = np.abs(videos[0] - videos[1]).mean(-1)
        inside.append(float(difference[mask].mean()))
        outside.append(float(difference[~mask].mean()))
    return {"inside": float(np.mean(inside)), "outside": float(np.mean(outside))}


def measure_speed(model: Model, cases: int) -> dict[str, Any]:
    """Seconds for one chunk of 17 frames (the least of five), and for loading after imports; 2 threads, float32."""

    def least(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            started = time.monotonic()
            work()
            times.append(time.monotonic() - started)
        return min(times)

    latents = model.generate("a red ball rolls over grass at day", seed=1)
    return {
        "load_s": model.load_s,
        "denoise_s": least(lambda: model.generate("a red ball rolls over grass at day", seed=1)),
        "decode_s": least(lambda: model.frames(latents)),
        "threads": torch.get_num_threads(),
    }


def _shares(right: list[dict[str, bool]]) -> dict[str, Any]:
    return {"cases": len(right)} | {k: float(np.mean([r[k] for r in right])) for k in PARTS}


# -- command -----------------------------------------------------------------------------------------------------------


def read_film(path: Path, *, fps: float) -> Video:
    """Decode a clip and take its frames at `fps`, by time.

    Raises:
        InputError: it is not a video, or shorter than three frames.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = Fraction(stream.average_rate or 0)
            frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
    except (OSError, IndexError, av.FFmpegError) as e:
        raise InputError(f"{path} must be a video: {e}") from e
    count = int(len(frames) / rate * Fraction(fps)) if rate else 0
    if count < 3:
        raise InputError(f"{path} must have at least 3 frames at {fps:g} a second, got {count}")
    return np.stack([frames[min(int(i * rate / Fraction(fps)), len(frames) - 1)] for i in range(count)])


def examine_film(path: Path, prompt: str | None) -> dict[str, Any]:
    """What a film shows, window by window of one chunk; with a prompt, which parts of it each window shows."""
    video = read_film(path, fps=world.FPS)
    windows = []
    for first in range(0, max(len(video) - CHUNK, 0) + 1, CHUNK):
        found = examiner.examine(video[first : first + CHUNK])
        agrees = {"agrees": found.agrees(prompt)} if prompt else {}
        windows.append({"first_frame": first} | found.as_json() | agrees)
    shares = {k: float(np.mean([w["agrees"][k] for w in windows])) for k in PARTS} if prompt else {}
    return {"film": str(path), "prompt": prompt, "frames": len(video), "agrees": shares, "windows": windows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", nargs="?", type=Path)
    parser.add_argument("--prompt")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--model", type=Path, default=BUILTIN_FOLDER)
    parser.add_argument(
        "--only", nargs="+", choices=["autoencoder", "prompts", "images", "continuation", "guidance", "speed"]
    )
    parser.add_argument("--cases", type=int, default=200, help="of prompts; half as many images and continuations")
    parser.add_argument("--long-cases", type=int, default=30, help="continuations that go on to the eighth")
    args = parser.parse_args()
    if args.film is not None:
        try:
            result = examine_film(args.film, args.prompt)
        except InputError as e:
            print(f"evaluate: {e}", file=sys.stderr)
            return 2
    else:
        torch.set_flush_denormal(True)
        model, half = Model(args.model), max(args.cases // 2, 1)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "autoencoder": lambda: measure_autoencoder(model, max(args.cases // 4, 4)),
            "prompts": lambda: measure_prompts(model, args.cases),
            "images": lambda: measure_images(model, half),
            "continuation": lambda: measure_continuation(model, half, long_cases=min(args.long_cases, half)),
            "guidance": lambda: measure_guidance(model, max(args.cases // 10, 2)),
            "speed": lambda: measure_speed(model, 1),
        }
        result = {}
        for name in args.only or measures:
            result[name] = measures[name]()
            if not args.json:
                print(f"{name}: {json.dumps(result[name])}", flush=True)
    if args.json or args.film is not None:
        print(json.dumps(result, indent=None if args.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
