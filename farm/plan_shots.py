"""Plans what generates: prompts and pictures are encoded, chunks denoised in order, latents decoded as one stream."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .cards import ModelCard
from .checkpoint import Checkpoint
from .chunks import Chunk
from .film import Film, FilmImage, FilmLora, FilmShot, latent_starts
from .keys import make_task
from .task import (
    ChooseRoll,
    Decode,
    Denoise,
    EmbedFrames,
    EncodeFrames,
    EncodeText,
    Known,
    Lora,
    MeasureSeams,
    Roll,
    Slice,
    SourceFile,
    Strip,
    TakeRoll,
    Task,
)  # fmt: skip

ROLL_SEED = 1_000_003  # from one try at a chunk to the next
Numerics = Mapping[str, tuple[tuple[str, Any], ...]]  # stage to what its pools fix: dtype and the like
PRECISE: tuple[tuple[str, Any], ...] = (("dtype", "float32"),)  # of what encodes pictures


@dataclass(frozen=True)
class _Span:
    """Where a stretch of a stream of latents lies: in which task's output, and from which latent frame of it."""

    first: int  # latent frame of the stream
    end: int
    key: str
    offset: int  # of `first` in the output


@dataclass(frozen=True)
class _Given:
    """What a denoise task is given besides its prompts."""

    mode: str = "text"
    inputs: tuple[str, ...] = ()
    context_latents: int = 0
    lead_latents: int = 0
    known: Known | None = None  # where the text encoder looks at the first frame, which it finds in `sources`
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Try:
    """Which try at a chunk, and the task that measures the join of the one before."""

    roll: int = 0
    measure: str | None = None

    def wrap(self, request: Any, inputs: tuple[str, ...], shot: FilmShot) -> tuple[Any, tuple[str, ...]]:
        """The request and inputs of a task of this try."""
        if self.measure is None:
            return request, inputs
        return Roll(request, shot.max_seam), (*inputs, self.measure)


class ShotPlanner:
    """The tasks that lead to the frames of shots."""

    def __init__(self, film: Film, models: Sequence[Checkpoint], numerics: Numerics) -> None:
        self.film, self.models, self.numerics = film, models, numerics
        self.tasks: dict[str, Task] = {}
        self.sources: dict[str, Task] = {}
        self.shot_tasks: dict[str, list[str]] = {}
        self.streams: dict[str, list[_Span]] = {}  # of each shot, what it goes on from included
        self.frames: dict[str, list[str]] = {}  # decode tasks of each shot
        self.past: dict[str, list[str]] = {}  # and those of the shots that it goes on from
        self.num_frames: dict[str, int] = {}  # by decode task
        self.maker: dict[str, str] = {}  # of what was taken from several tries: the first of those
        self.inner: dict[str, tuple[int, ...]] = {}  # model frames of a shot at which latent frames begin inside chunks

    def card_of(self, shot: FilmShot) -> ModelCard:
        return self.models[shot.model].card

    def model_for(self, shot: FilmShot, chunk: Chunk) -> Checkpoint:
        """The model of a chunk: another one may make those that go on from others."""
        return self.models[shot.next_model if chunk.context_latents else shot.model]

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
        card = self.card_of(shot)
        leads = any(card.num_lead(c.num_latents, len(shot.references)) for c in shot.chunks)
        if shot.is_one_stream and not leads:
            self._one_stream(shot)
        else:
            self._own_streams(shot)

    def _one_stream(self, shot: FilmShot) -> None:
        """All chunks in one long latent: each begins with clean latent frames of the one before, or all go together.

        What a chunk adds is decoded by a task of its own.
        """
        stream = self.streams[shot.id]
        at = shot.before_frames
        for end in [span.end for span in stream]:  # what another shot generated and did not show
            at = self._keep(shot, self._decode_to(shot, stream, at, end), at)
        for k, chunks in enumerate([shot.chunks] if shot.mode == "blend" else [(c,) for c in shot.chunks]):
            if not chunks:
                continue
            first, known = chunks[0].first_latent, chunks[0].context_latents
            given = _Given("latents", (stream[-1].key,), known) if known else self._start(shot, k, chunks[0])
            span = _Span(first + known, chunks[-1].first_latent + chunks[-1].num_latents, "", known)
            denoise = partial(self._denoise, shot, k, chunks, given)
            if len(chunks) == 1:

                def decode(key: str, attempt: _Try, *, span: _Span = span, at: int = at) -> str | None:
                    return self._decode_to(shot, [*stream, replace(span, key=key)], at, span.end, attempt)

                latents, frames = self._best_of(shot, chunks[0], denoise, decode)
                stream.append(replace(span, key=latents))
                at = self._keep(shot, frames, at)
            else:
                stream.append(replace(span, key=denoise(_Try())))
                for chunk in chunks if self._streams(shot) else chunks[-1:]:
                    at = self._keep(shot, self._decode_to(shot, stream, at, chunk.first_latent + chunk.num_latents), at)

    def _decode_to(
        self, shot: FilmShot, stream: Sequence[_Span], at: int, end: int, attempt: _Try | None = None
    ) -> str | None:
        """Decode a stream from its frame `at` to its latent frame `end`; nothing where there is nothing to show."""
        card = self.card_of(shot)
        rule = card.rule
        until = min(rule.num_frames(end), shot.before_frames + shot.num_frames)
        if until <= at:
            return None
        first = rule.latent_at(at)
        halo = min(card.halo_latents or 0, first) if self._streams(shot) else first
        begins = first - halo
        parts = [s for s in stream if s.end > begins and s.first < end]
        spans = tuple((s.offset + max(begins - s.first, 0), min(s.end, end) - max(s.first, begins)) for s in parts)
        skip = at - rule.num_frames(first)
        request = Decode(card.family, spans, halo, begins == 0, skip, until - at, card.settings_of("vae"))
        near = self._holder([*self.past[shot.id], *self.frames[shot.id]])
        inputs = tuple(s.key for s in parts)
        model = self.models[shot.model]
        return self._decode(shot, model, request, inputs, num_latents=end - first, near=near, attempt=attempt)

    def _streams(self, shot: FilmShot) -> bool:
        """Whether a stream can be decoded piece by piece; tiles go through all of it."""
        return self.card_of(shot).halo_latents is not None and not dict(self.numerics["decode"]).get("tiling")

    def _holder(self, keys: Sequence[str]) -> str:
        """The task whose replica has what the last of these left there."""
        return self.maker.get(keys[-1], keys[-1]) if keys else ""

    def _keep(self, shot: FilmShot, frames: str | None, at: int) -> int:
        """Note decoded frames as the shot's next; the frame of its stream that comes after them."""
        if frames is None:
            return at
        self.frames[shot.id].append(frames)
        return at + self.num_frames[frames]

    def _own_streams(self, shot: FilmShot) -> None:
        """Every chunk is a stream that begins with the end of the one before, encoded anew (or with nothing)."""
        rule = self.card_of(shot).rule
        for k, chunk in enumerate(shot.chunks):
            model = self.model_for(shot, chunk)
            card = model.card
            overlap = rule.num_frames(chunk.context_latents)
            if not overlap:
                given = self._start(shot, k, chunk)
            else:
                needed: list[str] = []
                for key in reversed([*self.past[shot.id], *self.frames[shot.id]]):
                    if sum(self.lengths(needed)) < overlap:
                        needed = [key, *needed]
                known = Known(self.film.width_px, self.film.height_px, overlap, len(needed))
                given = self._given(shot, k, chunk, known, tuple(needed))
            denoise = partial(self._denoise, shot, k, (chunk,), given)
            lead = given.lead_latents
            span = (0, lead + chunk.num_latents) if card.is_lead_decoded else (lead, chunk.num_latents)
            skip = overlap + (rule.factor * lead if card.is_lead_decoded else 0)
            request = Decode(card.family, (span,), 0, True, skip, chunk.kept, card.settings_of("vae"))

            def decode(
                key: str, attempt: _Try, *, request: Decode = request, chunk: Chunk = chunk, model: Checkpoint = model
            ) -> str:
                return self._decode(shot, model, request, (key,), num_latents=chunk.num_latents, attempt=attempt)

            _, frames = self._best_of(shot, chunk, denoise, decode)
            self._keep(shot, frames, 0)

    def _best_of(
        self, shot: FilmShot, chunk: Chunk, denoise: Callable[[_Try], str],
        decode: Callable[[str, _Try], str | None],
    ) -> tuple[str, str | None]:  # fmt: skip
        """The latents and frames of a chunk; with a quality gate, those of the first of several tries that joins well.

        All tries are planned; each is not needed where the measure of the one before is good, which it is told.
        """
        before = [*self.past[shot.id], *self.frames[shot.id]][-1:]
        latents = [denoise(_Try())]
        frames = [decode(latents[0], _Try())]
        if not (shot.max_seam and chunk.context_latents and before and frames[0]):
            return latents[0], frames[0]
        if shot.id not in self.inner:
            _, self.inner[shot.id] = latent_starts(shot, self.card_of(shot).rule)
        measures = [self._measure(shot, chunk, before[0], frames[0], _Try())]
        for roll in range(1, shot.rerolls + 1):
            attempt = _Try(roll, measures[-1])
            latents.append(denoise(attempt))
            made = decode(latents[-1], attempt)
            assert made is not None  # as the first try's, it has frames to show
            frames.append(made)
            measures.append(self._measure(shot, chunk, before[0], made, attempt))
        choice = self._plain_task(ChooseRoll(shot.max_seam), "jsonl", tuple(measures), shot)
        taken = [self._plain_task(TakeRoll(), e, (choice, *keys), shot)
                 for e, keys in (("safetensors", latents), ("mkv", frames))]  # fmt: skip
        self.num_frames[taken[1]] = self.num_frames[frames[0]]
        self.maker |= {taken[0]: latents[0], taken[1]: frames[0]}
        return taken[0], taken[1]

    def _measure(self, shot: FilmShot, chunk: Chunk, before: str, frames: str, attempt: _Try) -> str:
        """Measure the join that a try at a chunk makes."""
        lengths = self.lengths([before, frames])
        first = chunk.first_frame - lengths[0]
        strip = Strip(first, sum(lengths), first, 2, "1/1")
        inner = self.inner[shot.id]
        near = inner[bisect_left(inner, first + 1) : bisect_left(inner, first + sum(lengths))]
        request = MeasureSeams((chunk.first_frame,), (), near, None, strip)
        return self._plain_task(request, "jsonl", (before, frames), shot, attempt)

    def _plain_task(
        self, request: Any, extension: str, inputs: tuple[str, ...], shot: FilmShot, attempt: _Try | None = None
    ) -> str:
        """A small task that needs no model."""
        request, inputs = (attempt or _Try()).wrap(request, inputs, shot)
        task = make_task(
            "assemble", request, inputs=inputs, extension=extension, label=shot.id,
            cost=0 if attempt and attempt.measure else self.picture_cost(4),
        )  # fmt: skip
        self.shot_tasks[shot.id].append(task.key)
        return self.add(task)

    def picture_cost(self, num_frames: int) -> float:
        """Of work on that many frames, in the units of denoising and decoding."""
        return 4.5 * num_frames * self.film.width_px * self.film.height_px / self.models[0].card.spatial_factor ** 2

    def lengths(self, keys: Iterable[str]) -> list[int]:
        """How many frames decode tasks put out."""
        return [self.num_frames[k] for k in keys]

    def _start(self, shot: FilmShot, k: int, chunk: Chunk) -> _Given:
        """What a chunk is given that nothing of the shot comes before: the author's pictures."""
        first = shot.image
        sources = [self._source(first)] if first else []
        known = Known(self.film.width_px, self.film.height_px, len(sources), len(sources), first.fit if first else "")
        return self._given(shot, k, chunk, known, tuple(sources))

    def _given(self, shot: FilmShot, k: int, chunk: Chunk, known: Known, sources: tuple[str, ...]) -> _Given:
        """What known frames become for the model. The author's other pictures are added to them.

        Args:
            known: what comes before the chunk, which lies in `sources`.
        """
        model, is_last = self.model_for(shot, chunk), k + 1 == len(shot.chunks)
        card = model.card
        last = shot.last_image if is_last else None
        ahead = 0 if known.first_fit else known.num_first  # frames that the chunk shows before those that it adds
        keys = {
            f - chunk.first_frame + ahead: image for f, image in shot.keyframes
            if chunk.first_frame <= f < chunk.first_frame + chunk.generated
        }  # fmt: skip
        known = replace(
            known, keyframes=tuple((at, image.fit) for at, image in keys.items()), last_fit=last.fit if last else "",
            reference_fits=tuple(r.fit for r in shot.references),
        )  # fmt: skip
        sources = (*sources, *(self._source(image) for image in (*keys.values(), last, *shot.references) if image))
        begins = "image" if known.first_fit or shot.context == "last_frame" else "frames"
        mode = ("keyframes" if keys else "reference" if shot.references else "first_last" if last
                else begins if known.num_first else "text")  # fmt: skip
        inputs = []
        if card.conditioning == "whole" or (card.conditioning and sources):
            is_sized = card.conditioning == "whole" or card.draws_condition
            encode = EncodeFrames(
                card.family, known, card.rule.num_frames(chunk.num_latents) if is_sized else 0,
                shot.seed + k if card.draws_condition else None, card.settings_of("vae"),
            )  # fmt: skip
            inputs.append(self._encode(encode, sources, shot, model, "vae"))
        if "embed" in card.components and sources:
            inputs.append(self._encode(EmbedFrames(card.family, known), sources, shot, model, "embed"))
        context = card.rule.num_latents(known.num_first) if known.num_first and card.conditioning == "context" else 0
        lead = card.num_lead(chunk.num_latents, len(shot.references))
        seen = (known, sources) if card.text_sees_image else (None, ())
        return _Given(mode, tuple(inputs), context, lead, *seen)

    def _denoise(self, shot: FilmShot, k: int, chunks: Sequence[Chunk], given: _Given, attempt: _Try) -> str:
        """One task for chunk k of a shot, or for all of its chunks together."""
        film, model, begins = self.film, self.model_for(shot, chunks[0]), chunks[0].first_latent
        card = model.card
        together = len(chunks) > 1
        goes_on = model is not self.models[shot.model]
        high, low = shot.next_guidance if goes_on else (shot.guidance, shot.guidance_low)
        guided = card.is_guided and high > 1  # as in diffusers, the high-noise expert's guidance decides
        texts: dict[str, None] = {}  # keys, in order

        def index_of(prompt: str, label: str) -> int:
            key = self._encode_text(prompt, label, shot, model, given)
            texts.setdefault(key)
            return list(texts).index(key)

        slices = []
        for chunk in chunks:
            mark = f" {card.middle_mark}" if chunk.first_latent and card.middle_mark else ""
            reads = bool(card.components.get("text"))
            prompt = index_of(f"{shot.prompt_at(chunk.first_frame)}{mark}", shot.id) if reads else None
            negative = None
            if guided and reads:
                negative = index_of(f"{shot.negative_prompt}{mark}".strip(), "negative prompt")
            slices.append(Slice(chunk.first_latent - begins, chunk.num_latents, prompt, negative))
        rows, columns = film.height_px // card.spatial_factor, film.width_px // card.spatial_factor
        length = given.lead_latents + slices[-1].first_latent + slices[-1].num_latents
        request = Denoise(
            card.family, given.mode, (1, card.latent_channels, length, rows, columns), shot.steps, high,
            low, shot.seed + k + ROLL_SEED * attempt.roll, tuple(slices),
            fps=film.fps if card.fps_conditioned else 0.0, context_latents=given.context_latents,
            noise=shot.noise if together else "independent",
            anchor=shot.anchor and together, shift=shot.shift and together,
            loras=tuple(Lora(one.sha256, one.weight, one.targets) for one in shot.loras),
            settings=card.settings_of("denoise"),
        )  # fmt: skip
        volume = sum(s.num_latents for s in slices) * rows * columns
        inputs = (*texts, *given.inputs, *map(self._source, shot.loras))
        return self._model_task(
            request, "denoise", "denoise", inputs=inputs, shot=shot, model=model,
            label=_label_of(shot, k) if len(chunks) == 1 else shot.id, cost=volume * shot.steps * (1 + guided),
            near=self._holder(given.inputs), attempt=attempt,
        )  # fmt: skip

    def _decode(
        self, shot: FilmShot, model: Checkpoint, request: Decode, inputs: tuple[str, ...], *, num_latents: int,
        attempt: _Try | None, near: str = "",
    ) -> str:  # fmt: skip
        volume = num_latents * self.film.height_px * self.film.width_px // model.card.spatial_factor**2
        label = shot.id if len(shot.chunks) < 2 else f"{shot.id} {len(self.frames[shot.id]) + 1}"
        key = self._model_task(
            request, "decode", "vae", inputs=inputs, label=label, shot=shot, model=model, cost=18 * volume, near=near,
            attempt=attempt,
        )  # fmt: skip
        self.num_frames[key] = request.num_frames
        return key

    def _encode_text(self, prompt: str, label: str, shot: FilmShot, model: Checkpoint, given: _Given) -> str:
        card = model.card
        request = EncodeText(card.family, prompt, card.max_tokens, given.known, card.settings_of("text"))
        return self._model_task(
            request, "encode", "text", inputs=given.sources, label=label, shot=shot, model=model, cost=1000
        )

    def _encode(self, request: Any, inputs: tuple[str, ...], shot: FilmShot, model: Checkpoint, work: str) -> str:
        return self._model_task(
            request, "encode", work, inputs=inputs, label=shot.id, shot=shot, model=model, cost=2000
        )

    def _source(self, file: FilmImage | FilmLora) -> str:
        """The author's file in the graph."""
        task = source_task(file)
        self.sources[task.key] = task
        return task.key

    def _model_task(
        self, request: Any, stage: Any, work: str, *, inputs: tuple[str, ...], label: str, shot: FilmShot,
        model: Checkpoint, cost: float, near: str = "", attempt: _Try | None = None,
    ) -> str:  # fmt: skip
        """A task of a stage with the components for one kind of its work."""
        used = tuple((c, model.fingerprints[c]) for c in model.card.components[work])
        numerics = PRECISE if stage == "encode" and work != "text" else self.numerics[stage]
        request, inputs = (attempt or _Try()).wrap(request, inputs, shot)
        task = make_task(
            stage, request, inputs=inputs, components=used,
            numerics=numerics, extension="mkv" if stage == "decode" else "safetensors",
            model=model.place, label=label,
            cost=0 if attempt and attempt.measure else cost, near=near,
        )  # fmt: skip
        self.shot_tasks[shot.id].append(task.key)
        return self.add(task)


def source_task(file: FilmImage | FilmLora) -> Task:
    """The place of an author's file in the graph and in the store."""
    return make_task("encode", SourceFile(file.sha256), extension=file.extension)


def _label_of(shot: FilmShot, k: int) -> str:
    return shot.id if len(shot.chunks) < 2 else f"{shot.id} {k + 1}/{len(shot.chunks)}"
