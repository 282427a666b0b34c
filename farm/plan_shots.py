"""Plans what generates: prompts and pictures are encoded, chunks denoised in order, latents decoded as one stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoint
from .film import Film, FilmImage, FilmShot
from .keys import make_task
from .task import Decode, Denoise, EncodeFrames, EncodeImage, EncodeText, SourceImage, Task

Numerics = Mapping[str, tuple[tuple[str, Any], ...]]  # stage to what its pools fix: dtype and the like


@dataclass(frozen=True)
class _Span:
    """Where a stretch of a stream of latents lies: in which task's output, and from which latent frame of it."""

    first: int  # latent frame of the stream
    end: int
    key: str
    offset: int  # of `first` in the output


class ShotPlanner:
    """The tasks that lead to the frames of shots."""

    def __init__(self, film: Film, checkpoint: Checkpoint, numerics: Numerics) -> None:
        self.film, self.checkpoint, self.numerics, self.card = film, checkpoint, numerics, checkpoint.card
        self.tasks: dict[str, Task] = {}
        self.sources: dict[str, Task] = {}
        self.shot_tasks: dict[str, list[str]] = {}
        self.streams: dict[str, list[_Span]] = {}  # of each shot, what it goes on from included
        self.frames: dict[str, list[str]] = {}  # decode tasks of each shot
        self.past: dict[str, list[str]] = {}  # and those of the shots that it goes on from

    def add(self, task: Task) -> str:
        self.tasks.setdefault(task.key, task)
        return task.key

    def take(self, shot: FilmShot, by_id: Mapping[str, FilmShot]) -> None:
        """Plan a shot, after the one that it goes on from."""
        if shot.id in self.shot_tasks:
            return
        source = shot.continue_from
        if source is not None:
            self.take(by_id[source], by_id)
        self.streams[shot.id] = list(self.streams[source]) if source else []
        self.past[shot.id] = [*self.past[source], *self.frames[source]] if source else []
        self.frames[shot.id] = []
        self.shot_tasks[shot.id] = []
        if shot.is_one_stream:
            self._one_stream(shot)
        else:
            self._own_streams(shot)

    def _one_stream(self, shot: FilmShot) -> None:
        """All chunks in one long latent: each begins with clean latent frames of the one before."""
        stream = self.streams[shot.id]
        for k, chunk in enumerate(shot.chunks):
            done = chunk.first_latent + chunk.context_latents
            inputs = (stream[-1].key,) if chunk.context_latents else self._image(shot)
            known = chunk.context_latents or len(inputs)
            key = self._denoise(shot, k, context=inputs, context_latents=known, is_middle=done > 0)
            end = chunk.first_latent + chunk.num_latents
            stream.append(_Span(done, end, key, done - chunk.first_latent))
        self._decode_stream(shot)

    def _decode_stream(self, shot: FilmShot) -> None:
        """One decode task for each chunk, of the latent frames that it added."""
        rule, stream = self.card.rule, self.streams[shot.id]
        at, end = shot.before_frames, shot.before_frames + shot.num_frames
        near = self.past[shot.id][-1] if self.past[shot.id] else ""
        for span in stream:
            until = min(rule.num_frames(span.end), end)
            if until <= at:
                continue
            first = max(i for i in range(span.first, span.end) if rule.num_frames(i) <= at) if at else 0
            halo = min(self.card.halo_latents, first)
            begins = first - halo
            parts = [s for s in stream if s.end > begins and s.first < span.end]
            spans = tuple(
                (s.offset + max(begins - s.first, 0), min(s.end, span.end) - max(s.first, begins)) for s in parts
            )
            request = Decode(spans, halo, begins == 0, at - rule.num_frames(first), until - at)
            near = self._decode(shot, request, tuple(s.key for s in parts), num_latents=span.end - first, near=near)
            at = until

    def _own_streams(self, shot: FilmShot) -> None:
        """Every chunk is a stream that begins with the end of the one before, encoded anew (or with nothing)."""
        rule = self.card.rule
        frames = list(zip(self.past[shot.id], self.lengths(self.past[shot.id]), strict=True))
        for k, chunk in enumerate(shot.chunks):
            inputs: tuple[str, ...] = self._image(shot) if not chunk.context_latents else ()
            overlap = rule.num_frames(chunk.context_latents)
            if overlap:
                needed: list[str] = []
                have = 0
                for key, length in reversed(frames):
                    if have < overlap:
                        needed, have = [key, *needed], have + length
                inputs = (self._encode_vae(EncodeFrames(overlap), tuple(needed), shot),)
            known = chunk.context_latents or len(inputs)
            denoise = self._denoise(shot, k, context=inputs, context_latents=known, is_middle=False)
            request = Decode(((0, chunk.num_latents),), 0, True, overlap, chunk.kept)
            decode = self._decode(shot, request, (denoise,), num_latents=chunk.num_latents, near=denoise)
            frames.append((decode, chunk.kept))

    def lengths(self, keys: Iterable[str]) -> list[int]:
        return [self.tasks[k].request.num_frames for k in keys]  # type: ignore[union-attr]  # all of them are Decode

    def _denoise(
        self, shot: FilmShot, k: int, *, context: tuple[str, ...], context_latents: int, is_middle: bool
    ) -> str:
        film, card, chunk = self.film, self.card, shot.chunks[k]
        guided = shot.guidance > 1  # as in stock diffusers, the high-noise expert's guidance decides
        mark = f" {card.middle_mark}" if is_middle and card.middle_mark else ""
        prompts = [(f"{shot.prompt_at(chunk.first_frame)}{mark}", shot.id)]
        prompts += [(f"{shot.negative_prompt}{mark}".strip(), "negative prompt")] if guided else []
        texts = tuple(self._encode_text(prompt, label, shot) for prompt, label in prompts)
        rows, columns = film.height_px // card.spatial_factor, film.width_px // card.spatial_factor
        request = Denoise(
            latent_shape=(1, card.latent_channels, chunk.num_latents, rows, columns), steps=shot.steps,
            guidance=shot.guidance, guidance_low=shot.guidance_low, boundary_ratio=card.boundary_ratio,
            per_token_timesteps=card.per_token_timesteps, seed=shot.seed + k, context_latents=context_latents,
        )  # fmt: skip
        return self._model_task(
            request, "denoise", inputs=(*texts, *context), label=_label_of(shot, k), shot=shot,
            cost=chunk.num_latents * rows * columns * shot.steps * len(texts), near=context[0] if context else "",
        )  # fmt: skip

    def _decode(self, shot: FilmShot, request: Decode, inputs: tuple[str, ...], *, num_latents: int, near: str) -> str:
        card, film = self.card, self.film
        volume = num_latents * film.height_px * film.width_px // card.spatial_factor**2
        label = _label_of(shot, len(self.frames[shot.id]))
        key = self._model_task(request, "decode", inputs=inputs, label=label, shot=shot, cost=18 * volume, near=near)
        self.frames[shot.id].append(key)
        return key

    def _encode_text(self, prompt: str, label: str, shot: FilmShot) -> str:
        request = EncodeText(prompt=prompt, max_tokens=self.card.max_tokens)
        return self._model_task(request, "encode", inputs=(), label=label, shot=shot, cost=1000)

    def _image(self, shot: FilmShot) -> tuple[str, ...]:
        """The latents of the picture that the shot begins with; nothing where there is none."""
        if shot.image is None:
            return ()
        source = image_task(shot.image)
        self.sources[source.key] = source
        request = EncodeImage(self.film.width_px, self.film.height_px, shot.image.fit)
        return (self._encode_vae(request, (source.key,), shot),)

    def _encode_vae(self, request: EncodeImage | EncodeFrames, inputs: tuple[str, ...], shot: FilmShot) -> str:
        return self._model_task(
            request, "encode", inputs=inputs, label=shot.id, shot=shot, cost=2000, components=self.card.stages["decode"]
        )

    def _model_task(
        self, request: Any, stage: Any, *, inputs: tuple[str, ...], label: str, shot: FilmShot, cost: float,
        components: tuple[str, ...] | None = None, near: str = "",
    ) -> str:  # fmt: skip
        used = tuple((c, self.checkpoint.fingerprints[c]) for c in components or self.card.stages[stage])
        task = make_task(
            stage, request, inputs=inputs, components=used,
            numerics=self.numerics[stage], extension="mkv" if stage == "decode" else "safetensors",
            model=self.checkpoint.folder, label=label, cost=cost, near=near,
        )  # fmt: skip
        self.shot_tasks[shot.id].append(task.key)
        return self.add(task)


def image_task(image: FilmImage) -> Task:
    """The place of an author's picture in the graph and in the store."""
    return make_task("encode", SourceImage(image.sha256), extension=image.extension)


def _label_of(shot: FilmShot, k: int) -> str:
    return shot.id if len(shot.chunks) < 2 else f"{shot.id} {k + 1}/{len(shot.chunks)}"
