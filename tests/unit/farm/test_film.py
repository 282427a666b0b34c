"""What a storyboard becomes: defaults, lengths, the job id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import resolve_board
from PIL import Image

from farm.errors import InputError
from farm.film.chunks import cut_into_chunks, num_delivered, num_frames_of
from farm.film.film import Film, container_of, job_id_of
from farm.film.resolve import as_draft, only_shots
from farm.models.checkpoint import Checkpoint, find_checkpoint
from farm.models.frame_rule import FrameRule

SHOT = {"id": "a", "prompt": "a ball", "frames": 9}


@pytest.fixture(scope="module")
def wan(tiny_wan: Path) -> Checkpoint:
    return find_checkpoint(str(tiny_wan), beside=Path())


def film_of(wan: Checkpoint, **board: Any) -> Film:
    return resolve_board({"shots": [SHOT]} | board, wan).film


def test_defaults_are_the_cards(wan: Checkpoint) -> None:
    film = film_of(wan)
    assert (film.width_px, film.height_px, film.fps, film.output_fps) == (832, 480, 16, 16)
    assert (film.shots[0].steps, film.shots[0].guidance, film.shots[0].seed) == (50, 5.0, 0)
    assert (film.codec, film.crf, film.scale) == ("h264", 18, 1.0)


def test_a_shot_overrides_the_film_and_the_style_is_joined_by_one_blank(wan: Checkpoint) -> None:
    shots = [SHOT, SHOT | {"id": "b", "seed": 9, "steps": 3, "guidance": 1.5, "negative_prompt": "mine"}]
    film = film_of(wan, seed=7, steps=20, negative_prompt="theirs", style="at sunset", shots=shots)
    one, two = film.shots
    assert (one.seed, one.steps, one.guidance, one.negative_prompt) == (7, 20, 5.0, "theirs")
    assert (two.seed, two.steps, two.guidance, two.negative_prompt) == (9, 3, 1.5, "mine")
    assert one.prompts == ((0, "a ball at sunset"),)


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [(1, 8, 8), (0.0625, 8, 1), (0.3125, 8, 3), (0.1875, 8, 2), (0.01, 8, 1), (1.1, 10, 11), (1, 23.976, 24)],
)
def test_lengths_go_to_the_nearest_frame_halves_up(seconds: float, fps: float, frames: int) -> None:
    assert num_frames_of(seconds=seconds, fps=fps) == frames


@pytest.mark.parametrize(
    ("frames", "fps", "output", "delivered"), [(9, 8, 24, 27), (9, 8, 12, 14), (3, 8, 4, 2), (1, 8, 2, 1)]
)
def test_a_shot_delivers_its_length_at_the_output_rate(frames: int, fps: float, output: float, delivered: int) -> None:
    assert num_delivered(frames, fps=fps, output_fps=output) == delivered


def test_the_tail_of_what_the_rule_generates_is_cut(wan: Checkpoint) -> None:
    (chunk,) = film_of(wan, shots=[SHOT | {"frames": 80}]).shots[0].chunks
    assert (chunk.generated, chunk.kept) == (81, 80)


@given(factor=st.integers(1, 17), remainder=st.integers(0, 5), frames=st.integers(1, 500))
def test_the_next_allowed_length_is_the_smallest_that_holds_the_shot(factor: int, remainder: int, frames: int) -> None:
    rule = FrameRule(factor, min(remainder, factor))
    (chunk,) = cut_into_chunks(
        num_frames=frames, chunk_frames=rule.at_least(1000), overlap_frames=0, rule=rule, context="none"
    )
    assert rule.allows(chunk.generated)
    assert chunk.generated >= frames == chunk.kept
    assert not any(rule.allows(n) for n in range(frames, chunk.generated))
    below_or_above = rule.neighbours(frames)
    assert all(rule.allows(n) for n in below_or_above)


def test_the_job_id_is_of_the_film_not_of_its_file(wan: Checkpoint, tmp_path: Path, tiny_wan: Path) -> None:
    one = job_id_of(film_of(wan, seed=7), wan)
    reordered = "shots: [{frames: 9, prompt: a ball, id: a}]  # a comment\nseed: 7\n"
    assert job_id_of(resolve_board(reordered, wan).film, wan) == one
    assert job_id_of(film_of(wan, seed=7, fps=16), wan) == one  # a default written out
    assert len({one, *(job_id_of(film_of(wan, seed=7, **c), wan) for c in ({"title": "x"}, {"steps": 3}))}) == 3
    moved = tmp_path / "elsewhere"
    moved.symlink_to(tiny_wan)
    again = find_checkpoint(str(moved), beside=Path())
    assert job_id_of(film_of(again, seed=7), again) == one


def test_continuity_and_style_are_part_of_the_job(wan: Checkpoint) -> None:
    ids = [
        job_id_of(film_of(wan, **board), wan)
        for board in ({}, {"continuity": {"mode": "extend"}}, {"continuity": {"chunk_frames": 17}}, {"style": "x"})
    ]
    assert len(set(ids)) == 4
    joined, split = film_of(wan, style="x y"), film_of(wan, style="y", shots=[SHOT | {"prompt": "a ball x"}])
    assert joined.shots[0].prompts == split.shots[0].prompts
    assert job_id_of(joined, wan) != job_id_of(split, wan)


def test_the_default_overlap_fits_into_short_chunks(wan: Checkpoint) -> None:
    shot = film_of(wan, continuity={"chunk_frames": 5}, shots=[SHOT | {"frames": 5}]).shots[0]
    assert (shot.chunk_frames, shot.overlap_frames) == (5, 1)


TAKES = [
    SHOT,
    SHOT | {"id": "b", "frames": 12, "transition": {"kind": "crossfade", "seconds": 0.25}},
    SHOT | {"id": "c", "continue_from": "a", "transition": {"kind": "wipeup", "seconds": 0.25}},
    SHOT | {"id": "d", "continue_from": "c"},
]


def takes() -> Film:
    return resolve_board({"shots": TAKES}, find_checkpoint("builtin", beside=Path())).film


def test_a_film_of_some_shots_keeps_what_they_go_on_from_unseen() -> None:
    film = only_shots(takes(), ("d", "b"))
    assert [s.id for s in film.shots] == ["b", "d"]
    assert [s.id for s in film.unseen] == ["a", "c"]
    assert all(s.transition is None for s in film.shots)  # neither follows the shot that it comes from
    assert film.num_delivered == 12 + 9
    assert Film.from_json(film.as_json()) == film
    both = only_shots(takes(), ("b", "c"))
    assert [s.transition is None for s in both.shots] == [True, False]
    with pytest.raises(InputError, match="--only must name a shot of the storyboard, got 'e'"):
        only_shots(takes(), ("e",))


def test_a_shot_goes_on_from_one_with_shorter_chunks() -> None:
    shots = [
        SHOT | {"frames": 33, "continuity": {"chunk_frames": 9}},
        SHOT | {"id": "b", "frames": 4, "continue_from": "a"},
    ]
    one, two = resolve_board({"shots": shots}, find_checkpoint("builtin", beside=Path())).film.shots
    assert one.chunks[-1].num_latents == 3
    assert two.chunks[0].context_latents <= 3


def test_a_prompt_that_no_chunk_begins_with_is_told_of() -> None:
    schedule = [{"at": 0, "prompt": "x"}, {"at": 1, "prompt": "y"}, {"at": 1.5, "prompt": "z"}]
    shots = [{"id": "a", "prompts": schedule, "frames": 40}]
    told = resolve_board({"shots": shots}, find_checkpoint("builtin", beside=Path())).warnings
    (warning,) = [w for w in told if "shots[0].prompts[1]: no chunk begins while it is in force" in w.message]
    assert "0, 17, 29" in warning.message
    assert warning.key == "shots[0].prompts[1]"


def test_words_that_the_model_does_not_know_are_told_with_the_shots_that_have_them() -> None:
    shots = [
        {"id": name, "prompt": prompt, "frames": 5}
        for name, prompt in [
            ("a", "a red ball"),
            ("b", "a red dog"),
            ("c", "a fast dog"),
            ("d", "a dog"),
            ("e", "dogs dog"),
        ]
    ]
    (warning,) = resolve_board({"shots": shots}, find_checkpoint("builtin", beside=Path())).warnings
    assert "dog (shots b, c, d ...); fast (shot c); dogs (shot e)" in warning.message
    assert (warning.key, warning.file, warning.line) == ("shots[1].prompt", "board.yaml", 7)


def test_a_picture_that_was_turned_counts_as_it_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    Image.new("RGB", (64, 96)).save("turned.jpg", exif=exif)
    shots = [SHOT | {"image": "turned.jpg"}]
    assert resolve_board({"shots": shots}, find_checkpoint("builtin", beside=Path())).film.shots[0].image


def test_a_draft_is_delivered_with_even_sides() -> None:
    board = {"size": "160x80", "output": {"scale": 1.1}, "shots": [SHOT | {"prompt": "a red ball"}]}
    builtin = find_checkpoint("builtin", beside=Path())
    draft = as_draft(resolve_board(board, builtin).film, (builtin,))
    assert (draft.width_px, draft.height_px) == (80, 80)
    assert draft.delivered_px == (88, 88)


def test_a_draft_is_another_film_of_the_same_length() -> None:
    film, models = takes(), (find_checkpoint("builtin", beside=Path()),)
    draft = as_draft(film, models)
    assert (draft.width_px, draft.height_px, draft.shots[0].steps) == (48, 32, 5)
    assert draft.num_delivered == film.num_delivered
    small = as_draft(as_draft(draft, models), models)
    assert (small.width_px, small.height_px, small.shots[0].steps) == (16, 16, 1)


def test_a_film_survives_json(wan: Checkpoint) -> None:
    film = film_of(wan)
    assert Film.from_json(film.as_json()) == film


@pytest.mark.parametrize(
    ("suffix", "codec", "container"),
    [("", "h264", "mp4"), (".mkv", "av1", "mkv"), ("", "vp9", "webm"), (".MOV", "prores", "mov")],
)
def test_containers_follow_the_codec(suffix: str, codec: str, container: str) -> None:
    assert container_of(suffix, codec) == container


def test_a_container_that_does_not_take_the_codec_is_refused() -> None:
    with pytest.raises(InputError, match=r"\.webm or \.mkv for output.codec vp9"):
        container_of(".mp4", "vp9")


def faults_of(wan: Checkpoint, **board: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        film_of(wan, **board)
    return [p.key for p in caught.value.problems]


def test_an_option_of_the_other_mode_is_told_once_where_it_stands() -> None:
    builtin = find_checkpoint("builtin", beside=Path())
    shots = [{"id": i, "prompt": "a red ball", "frames": 9} for i in "abc"]
    for continuity, key in (
        ({"mode": "extend", "shift": True}, "continuity.shift"),
        ({"mode": "blend", "max_seam": 1.5}, "continuity.max_seam"),
        ({"rerolls": 3}, "continuity.rerolls"),
    ):
        assert faults_of(builtin, continuity=continuity, shots=shots) == [key]
    film = film_of(builtin, continuity={"max_seam": 1.5}, shots=[shots[0] | {"continuity": {"mode": "blend"}}])
    assert film.shots[0].max_seam == 0  # the film's gate is of extend
    assert film_of(builtin, shots=[shots[0] | {"continuity": {"noise": "independent"}}])


def test_an_anchor_needs_a_picture_however_short_the_shot() -> None:
    shots = [
        {"id": "a", "prompt": "a red ball", "frames": 17, "continuity": {"mode": "blend"}},
        {"id": "b", "prompt": "a red ball", "frames": 17, "continue_from": "a",
         "continuity": {"mode": "blend", "anchor": True}},
    ]  # fmt: skip
    assert faults_of(find_checkpoint("builtin", beside=Path()), shots=shots) == ["shots[1].continuity.anchor"]


def test_an_animated_picture_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Image.new("RGB", (96, 64), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "moving.webp", save_all=True, append_images=[second])
    first.save(tmp_path / "still.webp")
    monkeypatch.chdir(tmp_path)
    shots = [{"id": n, "prompt": "a red ball", "frames": 5, "image": f"{n}.webp"} for n in ("moving", "still")]
    (warning,) = resolve_board({"shots": shots}, find_checkpoint("builtin", beside=Path())).warnings
    assert (warning.key, warning.message) == (
        "shots[0].image", "shots[0].image: moving.webp is animated; its first picture is used"
    )  # fmt: skip
