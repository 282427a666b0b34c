"""Plans what generates: prompts and pictures are encoded, chunks denoised in order, latents decoded as one stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoint
from .chunks import Chunk
from .film import Film, FilmImage, FilmShot
from .keys import make_task
from .task import Decode, Denoise, EncodeFrames, EncodeImage, EncodeText, Slice, SourceImage, Task

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
        """Plan a shot, after those that it goes on from."""
        chain = [shot]
        while (source := chain[-1].continue_from) is not None and source not in self.shot_tasks:
            chain.append(by_id[source])
        for one in reversed(chain):
            if one.id not in self.shot_tasks:
                self._take(one)

    def _take(self, shot: FilmShot) -> None:
        source = shot.continue_from
        self.streams[shot.id] = list(self.streams[source]) if source else []
        self.past[shot.id] = [*self.past[source], *self.frames[source]] if source else []
        self.frames[shot.id] = []
        self.shot_tasks[shot.id] = []
        if shot.is_one_stream:
            self._one_stream(shot)
        else:
            self._own_streams(shot)

    def _one_stream(self, shot: FilmShot) -> None:
        """All chunks in one long latent: each begins with clean latent frames of the one before, or all go together."""
        stream = self.streams[shot.id]
        for k, chunks in enumerate([shot.chunks] if shot.mode == "blend" else [(c,) for c in shot.chunks]):
            if not chunks:
                continue
            first, known = chunks[0].first_latent, chunks[0].context_latents
            inputs = (stream[-1].key,) if known else self._image(shot)
            key = self._denoise(shot, k, chunks, context=inputs, context_latents=known or len(inputs))
            stream.append(_Span(first + known, chunks[-1].first_latent + chunks[-1].num_latents, key, known))
        self._decode_stream(shot)

    def _decode_stream(self, shot: FilmShot) -> None:
        """One decode task for each chunk, of the latent frames that it added."""
        rule, stream = self.card.rule, self.streams[shot.id]
        at, total = shot.before_frames, shot.before_frames + shot.num_frames
        near = self.past[shot.id][-1] if self.past[shot.id] else ""
        ends = sorted({s.end for s in stream} | {c.first_latent + c.num_latents for c in shot.chunks})
        for end in ends:
            until = min(rule.num_frames(end), total)
            if until <= at:
                continue
            first = rule.latent_at(at)
            halo = min(self.card.halo_latents, first)
            begins = first - halo
            parts = [s for s in stream if s.end > begins and s.first < end]
            spans = tuple((s.offset + max(begins - s.first, 0), min(s.end, end) - max(s.first, begins)) for s in parts)
            request = Decode(spans, halo, begins == 0, at - rule.num_frames(first), until - at)
            near = self._decode(shot, request, tuple(s.key for s in parts), num_latents=end - first, near=near)
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
            denoise = self._denoise(shot, k, (chunk,), context=inputs, context_latents=known)
            request = Decode(((0, chunk.num_latents),), 0, True, overlap, chunk.kept)
            decode = self._decode(shot, request, (denoise,), num_latents=chunk.num_latents, near="")
            frames.append((decode, chunk.kept))

    def lengths(self, keys: Iterable[str]) -> list[int]:
        return [self.tasks[k].request.num_frames for k in keys]  # type: ignore[union-attr]  # all of them are Decode

    def _denoise(
        self, shot: FilmShot, k: int, chunks: Sequence[Chunk], *, context: tuple[str, ...], context_latents: int
    ) -> str:
        """One task for chunk k of a shot, or for all of its chunks together."""
        film, card, begins = self.film, self.card, chunks[0].first_latent
        guided = shot.guidance > 1  # as in stock diffusers, the high-noise expert's guidance decides
        texts: dict[str, None] = {}  # keys, in order

        def index_of(prompt: str, label: str) -> int:
            key = self._encode_text(prompt, label, shot)
            texts.setdefault(key)
            return list(texts).index(key)

        slices = []
        for chunk in chunks:
            mark = f" {card.middle_mark}" if chunk.first_latent and card.middle_mark else ""
            prompt = index_of(f"{shot.prompt_at(chunk.first_frame)}{mark}", shot.id)
            negative = index_of(f"{shot.negative_prompt}{mark}".strip(), "negative prompt") if guided else None
            slices.append(Slice(chunk.first_latent - begins, chunk.num_latents, prompt, negative))
        rows, columns = film.height_px // card.spatial_factor, film.width_px // card.spatial_factor
        length = slices[-1].first_latent + slices[-1].num_latents
        request = Denoise(
            latent_shape=(1, card.latent_channels, length, rows, columns), steps=shot.steps, guidance=shot.guidance,
            guidance_low=shot.guidance_low, boundary_ratio=card.boundary_ratio,
            per_token_timesteps=card.per_token_timesteps, seed=shot.seed + k, slices=tuple(slices),
            context_latents=context_latents,
        )  # fmt: skip
        volume = sum(s.num_latents for s in slices) * rows * columns
        return self._model_task(
            request, "denoise", inputs=(*texts, *context), shot=shot, near=context[0] if context else "",
            label=_label_of(shot, k) if len(chunks) == 1 else shot.id, cost=volume * shot.steps * (1 + guided),
        )  # fmt: skip

    def _decode(self, shot: FilmShot, request: Decode, inputs: tuple[str, ...], *, num_latents: int, near: str) -> str:
        card, film = self.card, self.film
        volume = num_latents * film.height_px * film.width_px // card.spatial_factor**2
        label = shot.id if len(shot.chunks) < 2 else f"{shot.id} {len(self.frames[shot.id]) + 1}"
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
