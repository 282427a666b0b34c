"""What a model family's file may say otherwise than here: how texts and frames are encoded, how the model is asked.

A family holds no weights and no state: components are handed to it. It calls diffusers' models, schedulers and encoders
in the order and with the arithmetic of the stock pipeline, so that one chunk has the stock pipeline's bits.

Legend: B batch (1), C latent channels, F latent frames, H and W latent rows and columns, T frames.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from farm.task import Decode, Denoise, EmbedFrames, EncodeFrames, EncodeText
from pipelines.frames import Frame
from pipelines.parallel import Split, exchange

Tensors = Mapping[str, torch.Tensor]
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # latents (B, C, F, H, W), timestep to the same shape


@dataclass(frozen=True)
class Pictures:
    """Known frames, uint8 (H, W, 3): those that a chunk begins with, those in between by their frame, the one it ends
    on, what shall be seen in it."""

    first: Sequence[Frame] = ()
    between: Sequence[tuple[int, Frame]] = ()
    last: Frame | None = None
    references: Sequence[Frame] = ()


@dataclass(frozen=True)
class Given:
    """What the model is given for one slice, besides noise."""

    text: Tensors
    negative: Tensors | None  # None without guidance
    condition: Tensors = field(default_factory=dict)  # what `encode_frames` and `embed_frames` have made
    context: torch.Tensor | None = None  # clean latents (B, C, K, H, W), the first of the slice
    name: str = ""  # of the slice: what step caches keep of one must not be taken for another's
    split: Split | None = None  # of a gang whose halves do one pass of guidance each


@dataclass
class Run:
    """One way from noise to latents: the scheduler, and what is carried from step to step."""

    request: Denoise
    scheduler: Any
    generator: torch.Generator  # the noise was drawn from it
    given: Given  # the whole latent, all its slices together
    carried: dict[str, torch.Tensor] = field(default_factory=dict)
    step: int = 0  # that is being done


class Family:
    """The defaults; a family's class overrides what differs."""

    streams = False  # whether `decoder` gives frames for one latent frame after another

    def encode_text(self, components: Mapping[str, Any], request: EncodeText, seen: Pictures) -> Tensors:
        """One prompt to `embeds` (1, tokens, dim) and whatever else belongs to it."""
        raise NotImplementedError(f"{type(self).__name__} reads no text")

    def encode_frames(self, vae: Any, request: EncodeFrames, pictures: Pictures) -> Tensors:
        """Known frames to what the autoencoder makes of them."""
        raise NotImplementedError(f"{type(self).__name__} takes no frames")

    def embed_frames(self, components: Mapping[str, Any], request: EmbedFrames, pictures: Pictures) -> Tensors:
        """Known frames to the embeddings of the image encoder."""
        raise NotImplementedError(f"{type(self).__name__} has no image encoder")

    def set_timesteps(self, scheduler: Any, request: Denoise, components: Mapping[str, Any], device: str) -> None:
        scheduler.set_timesteps(request.steps, device=device)

    def draw(self, request: Denoise, generator: torch.Generator) -> torch.Tensor:
        """Standard normal noise (B, C, F, H, W) in the stock pipeline's order, whatever it draws before included."""
        return torch.randn(request.latent_shape, generator=generator, dtype=torch.float32)

    def begin(self, run: Run, noise: torch.Tensor) -> torch.Tensor:
        """Noise to the latents that the first step takes."""
        return noise

    def end(self, run: Run, latents: torch.Tensor) -> torch.Tensor:
        """The latents after the last step to what is kept: the context stays as it was given."""
        if run.given.context is not None:
            latents[:, :, : run.given.context.shape[2]] = run.given.context
        return latents

    def make_predict(self, components: Mapping[str, Any], request: Denoise, given: Given) -> Predict:
        """The model with its guidance for one slice: latents and timestep to a prediction of the latents' shape."""
        raise NotImplementedError

    def step(self, run: Run, prediction: torch.Tensor, t: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """One step of the scheduler."""
        made: torch.Tensor = run.scheduler.step(prediction, t, latents, return_dict=False)[0]
        return made

    def decode(self, vae: Any, request: Decode, latents: torch.Tensor) -> torch.Tensor:
        """A whole stream of latents (B, C, F, H, W) to frames in [-1, 1], (1, 3, T, H, W)."""
        raise NotImplementedError

    def decoder(self, vae: Any) -> Any:
        """A decoder of one latent frame after another, of families that stream."""
        raise NotImplementedError


class StandIn:
    """For a component that a stock pipeline asks some plain values of, and that is not loaded."""

    def __init__(self, config: Mapping[str, Any], **values: Any) -> None:
        self.config = SimpleNamespace(**config)
        vars(self).update(values)


class Draws:
    """Standard normal noise that a stock pipeline draws anew at each step, from one generator, after other draws.

    Any step's can be asked for, so that another process which goes on from a step draws the same.
    """

    def __init__(self, seed: int, before: Sequence[Sequence[int]], shape: Sequence[int]) -> None:
        self.seed, self.before, self.shape = seed, before, tuple(shape)
        self.made, self.last = 0, torch.empty(0)
        self.generator = torch.Generator("cpu")

    def at(self, step: int) -> torch.Tensor:
        if step + 1 < self.made or not self.made:
            self.generator.manual_seed(self.seed)
            for shape in self.before:
                torch.randn(tuple(shape), generator=self.generator)
            self.made = 0
        while self.made <= step:
            self.last = torch.randn(self.shape, generator=self.generator)
            self.made += 1
        return self.last


def step_of(scheduler: Any, t: torch.Tensor) -> int:
    """Which of the scheduler's steps has this timestep."""
    return int((scheduler.timesteps == t).nonzero()[0])


def family_of(name: str) -> Family:
    """The family in pipelines/families/ that cards call by this name; only its own file is imported."""
    family: Family = importlib.import_module(f"pipelines.families.{name}").FAMILY
    return family


def cached_as(model: Any, name: str) -> AbstractContextManager[Any]:
    """Calls of a model whose step caches belong together, as the stock pipelines mark them."""
    if not getattr(model, "is_cache_enabled", False):
        return nullcontext()
    context: AbstractContextManager[Any] = model.cache_context(name)
    return context


def guided_in_turn(model: Any, call: Callable[[Tensors], torch.Tensor], given: Given, guidance: float) -> torch.Tensor:
    """Classifier-free guidance by two calls, the conditional one first: a batch of two would have other bits.

    The halves of a gang make one call each, to the same bits.
    """
    if given.negative is not None and given.split is not None:
        own = call(given.negative if given.split.half else given.text)
        conditional, unconditional = exchange(own, given.split)
        return unconditional + guidance * (conditional - unconditional)
    with cached_as(model, f"cond{given.name}"):
        conditional = call(given.text)
    if given.negative is None:
        return conditional
    with cached_as(model, f"uncond{given.name}"):
        unconditional = call(given.negative)
    return unconditional + guidance * (conditional - unconditional)


def guided_as_batch(
    model: Any, call: Callable[[Tensors, int], torch.Tensor], given: Given, guidance: float
) -> torch.Tensor:
    """The same by one call of a batch of two, the unconditional half first: `call` takes texts and their number.

    The halves of a gang make one call of one each, to nearly the same bits.
    """
    if given.negative is not None and given.split is not None:
        own = call(given.negative if given.split.half else given.text, 1)
        conditional, unconditional = exchange(own, given.split)
        return unconditional + guidance * (conditional - unconditional)
    with cached_as(model, f"cond_uncond{given.name}"):
        if given.negative is None:
            return call(given.text, 1)
        both = {k: torch.cat([given.negative[k], v]) for k, v in given.text.items()}
        unconditional, conditional = call(both, 2).chunk(2)
    return unconditional + guidance * (conditional - unconditional)


def as_video(frames: Sequence[Frame]) -> torch.Tensor:
    """uint8 frames (H, W, 3) to (1, 3, T, H, W) in [-1, 1], with the arithmetic of diffusers' VideoProcessor.

    Its layout in memory is that one's too, by which convolutions choose their kernels, and so their bits.
    """
    video_BTHWC = torch.from_numpy(np.stack(frames)[None].astype(np.float32) / 255.0)
    return 2.0 * video_BTHWC.permute(0, 4, 1, 2, 3) - 1.0
