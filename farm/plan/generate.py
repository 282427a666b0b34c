"""Plans what generates: prompts and pictures are encoded, chunks denoised in order, latents decoded as one stream."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from farm.film.chunks import Chunk
from farm.film.film import FilmShot, latent_starts
from farm.models.checkpoint import Checkpoint
from farm.plan.given import Given, given_at_the_start, given_of
from farm.plan.graph import Graph, Try
from farm.task import ChooseRoll, Decode, Denoise, EncodeText, Known, Lora, MeasureSeams, Slice, Strip, TakeRoll

ROLL_SEED = 1_000_003  # from one try at a chunk to the next


@dataclass(frozen=True)
class _Span:
    """Where a stretch of a stream of latents lies: in which task's output, and from which latent frame of it."""

    first: int  # latent frame of the stream
    end: int
    key: str
    offset: int  # of `first` in the output


class ShotPlanner:
    """The tasks that lead to the frames of shots."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.film = graph, graph.film
        self.streams: dict[str, list[_Span]] = {}  # of each shot, what it goes on from included
        self.frames: dict[str, list[str]] = {}  # decode tasks of each shot
        self.past: dict[str, list[str]] = {}  # and those of the shots that it goes on from
        self.num_frames: dict[str, int] = {}  # by decode task
        self.maker: dict[str, str] = {}  # of what was taken from several tries: the first of those
        self.inner: dict[str, tuple[int, ...]] = {}  # model frames of a shot at which latent frames begin inside chunks

    def take(self, shot: FilmShot, by_id: Mapping[str, FilmShot]) -> None:
        """Plan a shot, after those that it goes on from."""
        chain = [shot]
        while (source := chain[-1].continue_from) is not None and source not in self.graph.shot_tasks:
            chain.append(by_id[source])
        for one in reversed(chain):
            if one.id not in self.graph.shot_tasks:
                self._take(one)

    def _take(self, shot: FilmShot) -> None:
        source = shot.continue_from
        self.streams[shot.id] = list(self.streams[source]) if source else []
        self.past[shot.id] = [*self.past[source], *self.frames[source]] if source else []
        self.frames[shot.id] = []
        self.graph.shot_tasks[shot.id] = []
        card = self.graph.card_of(shot)
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
            given = (
                Given("latents", (stream[-1].key,), known)
                if known
                else given_at_the_start(self.graph, shot, k, chunks[0])
            )
            span = _Span(first + known, chunks[-1].first_latent + chunks[-1].num_latents, "", known)
            denoise = partial(self._denoise, shot, k, chunks, given)
            if len(chunks) == 1:

                def decode(key: str, attempt: Try, *, span: _Span = span, at: int = at) -> str | None:
                    return self._decode_to(shot, [*stream, replace(span, key=key)], at, span.end, attempt)

                latents, frames = self._best_of(shot, chunks[0], denoise, decode)
                stream.append(replace(span, key=latents))
                at = self._keep(shot, frames, at)
            else:
                stream.append(replace(span, key=denoise(Try())))
                for chunk in chunks if self._streams(shot) else chunks[-1:]:
                    at = self._keep(shot, self._decode_to(shot, stream, at, chunk.first_latent + chunk.num_latents), at)

    def _decode_to(
        self, shot: FilmShot, stream: Sequence[_Span], at: int, end: int, attempt: Try | None = None
    ) -> str | None:
        """Decode a stream from its frame `at` to its latent frame `end`; nothing where there is nothing to show."""
        card = self.graph.card_of(shot)
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
        model = self.graph.models[shot.model]
        return self._decode(shot, model, request, inputs, num_latents=end - first, near=near, attempt=attempt)

    def _streams(self, shot: FilmShot) -> bool:
        """Whether a stream can be decoded piece by piece; tiles go through all of it."""
        return self.graph.card_of(shot).halo_latents is not None and not dict(self.graph.numerics["decode"]).get(
            "tiling"
        )

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
        rule = self.graph.card_of(shot).rule
        for k, chunk in enumerate(shot.chunks):
            model = self.graph.model_for(shot, chunk)
            card = model.card
            overlap = rule.num_frames(chunk.context_latents)
            if not overlap:
                given = given_at_the_start(self.graph, shot, k, chunk)
            else:
                needed: list[str] = []
                for key in reversed([*self.past[shot.id], *self.frames[shot.id]]):
                    if sum(self.lengths(needed)) < overlap:
                        needed = [key, *needed]
                known = Known(self.film.width_px, self.film.height_px, overlap, len(needed))
                given = given_of(self.graph, shot, k, chunk, known, tuple(needed))
            denoise = partial(self._denoise, shot, k, (chunk,), given)
            lead = given.lead_latents
            span = (0, lead + chunk.num_latents) if card.is_lead_decoded else (lead, chunk.num_latents)
            skip = overlap + (rule.factor * lead if card.is_lead_decoded else 0)
            request = Decode(card.family, (span,), 0, True, skip, chunk.kept, card.settings_of("vae"))

            def decode(
                key: str, attempt: Try, *, request: Decode = request, chunk: Chunk = chunk, model: Checkpoint = model
            ) -> str:
                return self._decode(shot, model, request, (key,), num_latents=chunk.num_latents, attempt=attempt)

            _, frames = self._best_of(shot, chunk, denoise, decode)
            self._keep(shot, frames, 0)

    def _best_of(
        self, shot: FilmShot, chunk: Chunk, denoise: Callable[[Try], str],
        decode: Callable[[str, Try], str | None],
    ) -> tuple[str, str | None]:  # fmt: skip
        """The latents and frames of a chunk; with a quality gate, those of the first of several tries that joins well.

        All tries are planned; each is not needed where the measure of the one before is good, which it is told.
        """
        before = [*self.past[shot.id], *self.frames[shot.id]][-1:]
        latents = [denoise(Try())]
        frames = [decode(latents[0], Try())]
        if not (shot.max_seam and chunk.context_latents and before and frames[0]):
            return latents[0], frames[0]
        if shot.id not in self.inner:
            _, self.inner[shot.id] = latent_starts(shot, self.graph.card_of(shot).rule)
        measures = [self._measure(shot, chunk, before[0], frames[0], Try())]
        for roll in range(1, shot.rerolls + 1):
            attempt = Try(roll, measures[-1])
            latents.append(denoise(attempt))
            made = decode(latents[-1], attempt)
            assert made is not None  # as the first try's, it has frames to show
            frames.append(made)
            measures.append(self._measure(shot, chunk, before[0], made, attempt))
        choice = self.graph.plain_task(ChooseRoll(shot.max_seam), "jsonl", tuple(measures), shot)
        taken = [self.graph.plain_task(TakeRoll(), e, (choice, *keys), shot)
                 for e, keys in (("safetensors", latents), ("mkv", frames))]  # fmt: skip
        self.num_frames[taken[1]] = self.num_frames[frames[0]]
        self.maker |= {taken[0]: latents[0], taken[1]: frames[0]}
        return taken[0], taken[1]

    def _measure(self, shot: FilmShot, chunk: Chunk, before: str, frames: str, attempt: Try) -> str:
        """Measure the join that a try at a chunk makes."""
        lengths = self.lengths([before, frames])
        first = chunk.first_frame - lengths[0]
        strip = Strip(first, sum(lengths), first, 2, "1/1")
        inner = self.inner[shot.id]
        near = inner[bisect_left(inner, first + 1) : bisect_left(inner, first + sum(lengths))]
        request = MeasureSeams((chunk.first_frame,), (), near, None, strip)
        return self.graph.plain_task(request, "jsonl", (before, frames), shot, attempt)

    def lengths(self, keys: Iterable[str]) -> list[int]:
        """How many frames decode tasks put out."""
        return [self.num_frames[k] for k in keys]

    def _denoise(self, shot: FilmShot, k: int, chunks: Sequence[Chunk], given: Given, attempt: Try) -> str:
        """One task for chunk k of a shot, or for all of its chunks together."""
        film, model, begins = self.film, self.graph.model_for(shot, chunks[0]), chunks[0].first_latent
        card = model.card
        together = len(chunks) > 1
        goes_on = model is not self.graph.models[shot.model]
        high, low = shot.next_guidance if goes_on else (shot.guidance, shot.guidance_low)
        guided = card.is_guided and high > 1  # as in diffusers, the high-noise expert's guidance decides
        texts: dict[str, None] = {}  # keys, in order

        style = len(film.style) + 1 if film.style else 0

        def index_of(prompt: str, label: str, keep_chars: int) -> int:
            key = self._encode_text(prompt, label, shot, model, given, keep_chars=min(keep_chars, len(prompt)))
            texts.setdefault(key)
            return list(texts).index(key)

        slices = []
        for chunk in chunks:
            mark = f" {card.middle_mark}" if chunk.first_latent and card.middle_mark else ""
            reads = bool(card.components.get("text"))
            prompt = negative = None
            if reads:
                prompt = index_of(f"{shot.prompt_at(chunk.first_frame)}{mark}", shot.id, style + len(mark))
            if guided and reads:
                text = f"{shot.negative_prompt}{mark}".strip()
                negative = index_of(text, "negative prompt", len(mark))
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
        inputs = (*texts, *given.inputs, *map(self.graph.source, shot.loras))
        return self.graph.model_task(
            request, "denoise", "denoise", inputs=inputs, shot=shot, model=model,
            label=_label_of(shot, k) if len(chunks) == 1 else shot.id, cost=volume * shot.steps * (1 + guided),
            near=self._holder(given.inputs), attempt=attempt,
        )  # fmt: skip

    def _decode(
        self, shot: FilmShot, model: Checkpoint, request: Decode, inputs: tuple[str, ...], *, num_latents: int,
        attempt: Try | None, near: str = "",
    ) -> str:  # fmt: skip
        volume = num_latents * self.film.height_px * self.film.width_px // model.card.spatial_factor**2
        label = shot.id if len(shot.chunks) < 2 else f"{shot.id} {len(self.frames[shot.id]) + 1}"
        key = self.graph.model_task(
            request, "decode", "vae", inputs=inputs, label=label, shot=shot, model=model, cost=18 * volume, near=near,
            attempt=attempt,
        )  # fmt: skip
        self.num_frames[key] = request.num_frames
        return key

    def _encode_text(
        self, prompt: str, label: str, shot: FilmShot, model: Checkpoint, given: Given, *, keep_chars: int
    ) -> str:  # fmt: skip
        """`keep_chars`: of its end, which are kept where the prompt is longer than the encoder reads."""
        card = model.card
        request = EncodeText(card.family, prompt, card.max_tokens, given.known, card.settings_of("text"))
        if request.may_be_cut:
            request = replace(request, keep_chars=keep_chars)
        return self.graph.model_task(
            request, "encode", "text", inputs=given.sources, label=label, shot=shot, model=model, cost=1000
        )


def _label_of(shot: FilmShot, k: int) -> str:
    return shot.id if len(shot.chunks) < 2 else f"{shot.id} {k + 1}/{len(shot.chunks)}"
