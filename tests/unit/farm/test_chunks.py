"""Chunks: every frame of every shot is covered once, overlaps are exact or longer, the end is exact."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from farm.film.chunks import cut_into_chunks
from farm.models.frame_rule import FrameRule

RULES = [FrameRule(4, 1), FrameRule(8, 1), FrameRule(6, 1), FrameRule(1, 0), FrameRule(1, 1), FrameRule(4, 0)]
rules = st.sampled_from(RULES)


@given(rule=rules, latents=st.integers(1, 30))
def test_latent_frames_and_frames_are_inverse(rule: FrameRule, latents: int) -> None:
    assert rule.num_latents(rule.num_frames(latents)) == latents
    assert rule.allows(rule.num_frames(latents))


@given(
    rule=rules, longest=st.integers(2, 12), overlap=st.integers(1, 11), num_frames=st.integers(1, 700),
    context=st.sampled_from(["latents", "frames"]), before=st.integers(0, 100),
)  # fmt: skip
def test_chunks_with_context_cover_the_shot(
    rule: FrameRule, longest: int, overlap: int, num_frames: int, context: str, before: int
) -> None:
    assume(overlap < longest)
    chunk_frames, overlap_frames = rule.num_frames(longest), rule.num_frames(overlap)
    chunks = cut_into_chunks(
        num_frames=num_frames, chunk_frames=chunk_frames, overlap_frames=overlap_frames, rule=rule, context=context,
        before=before,
    )  # fmt: skip
    for one, other in pairwise(chunks):
        assert other.first_frame == one.first_frame + one.generated  # none twice, none left out
        assert one.kept == one.generated  # the tail of the last one alone is cut
    if chunks:
        assert chunks[-1].first_frame + chunks[-1].kept == num_frames
        assert 0 < chunks[-1].kept <= chunks[-1].generated
    first = chunks[0].first_frame if chunks else num_frames
    assert first >= 0 and (first == 0 or (before and context == "latents"))  # the source may hold the first frames
    for k, chunk in enumerate(chunks):
        assert 0 <= chunk.context_latents < chunk.num_latents <= longest
        if k or before >= chunk_frames:
            assert chunk.context_latents >= overlap
            assert chunk.num_latents == longest  # pulled back, not shortened
        if not k and not before:
            assert chunk.context_latents == 0
        if 0 < k < len(chunks) - 1:
            assert chunk.context_latents == overlap


@given(rule=rules, longest=st.integers(2, 12), overlap=st.integers(1, 11), num_frames=st.integers(1, 700))
def test_latents_lie_in_one_stream_without_gaps(rule: FrameRule, longest: int, overlap: int, num_frames: int) -> None:
    assume(overlap < longest)
    chunks = cut_into_chunks(
        num_frames=num_frames, chunk_frames=rule.num_frames(longest), overlap_frames=rule.num_frames(overlap),
        rule=rule, context="latents",
    )  # fmt: skip
    at = 0
    for chunk in chunks:
        assert chunk.first_latent + chunk.context_latents == at
        assert rule.num_frames(at) == chunk.first_frame
        at = chunk.first_latent + chunk.num_latents
    assert at == rule.num_latents(rule.at_least(num_frames))


@pytest.mark.parametrize(("context", "overlap", "new"), [("last_frame", 1, 16), ("none", 0, 17)])
@given(num_frames=st.integers(1, 200))
def test_chunks_that_cannot_have_more_context_are_cut_at_the_end(
    context: str, overlap: int, new: int, num_frames: int
) -> None:
    rule = FrameRule(4, 1)
    chunks = cut_into_chunks(
        num_frames=num_frames, chunk_frames=17, overlap_frames=overlap, rule=rule, context=context
    )  # fmt: skip
    assert sum(c.kept for c in chunks) == num_frames
    assert all(c.generated == new and c.num_latents == 5 and c.context_latents == overlap for c in chunks[1:])


@given(
    longest=st.integers(2, 9), overlap=st.integers(1, 8), reach=st.integers(1, 12), before=st.integers(1, 80),
    num_frames=st.integers(1, 120),
)  # fmt: skip
def test_context_is_no_longer_than_what_the_task_before_holds(
    longest: int, overlap: int, reach: int, before: int, num_frames: int
) -> None:
    assume(overlap < longest)
    rule = FrameRule(4, 1)
    chunks = cut_into_chunks(
        num_frames=num_frames, chunk_frames=rule.num_frames(longest), overlap_frames=rule.num_frames(overlap),
        rule=rule, context="latents", before=before, reach=reach,
    )  # fmt: skip
    for chunk in chunks:
        assert chunk.context_latents <= reach
        reach = chunk.num_latents
    assert not chunks or chunks[-1].first_frame + chunks[-1].kept == num_frames


def test_chunks_and_overlaps_that_do_not_fit_are_refused() -> None:
    for chunk_frames, overlap_frames in ((8, 5), (5, 9), (5, 5)):
        with pytest.raises(ValueError, match="do not fit 4n"):
            cut_into_chunks(
                num_frames=40, chunk_frames=chunk_frames, overlap_frames=overlap_frames, rule=FrameRule(4, 1),
                context="latents",
            )  # fmt: skip


@given(rule=rules, frame=st.integers(0, 500))
def test_every_frame_has_its_latent_frame(rule: FrameRule, frame: int) -> None:
    latent = rule.latent_at(frame)
    assert rule.num_frames(latent) <= frame < rule.num_frames(latent + 1)


def test_joins_lie_where_the_design_says() -> None:
    chunks = cut_into_chunks(num_frames=41, chunk_frames=17, overlap_frames=5, rule=FrameRule(4, 1), context="latents")
    assert [c.first_frame for c in chunks] == [0, 17, 29]
    assert [(c.first_latent, c.num_latents, c.context_latents) for c in chunks] == [(0, 5, 0), (3, 5, 2), (6, 5, 2)]


def test_a_shot_that_goes_on_begins_after_the_last_kept_frame() -> None:
    chunks = cut_into_chunks(
        num_frames=20, chunk_frames=17, overlap_frames=5, rule=FrameRule(4, 1), context="latents", before=16
    )
    assert chunks[0].first_frame == 1  # frame 16 of the stream was generated and not kept
    assert chunks[-1].first_frame + chunks[-1].kept == 20
