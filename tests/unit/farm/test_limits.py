"""What is taken on: limits, quotas, and whose film comes next."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.control.queue import Waiting, in_turn
from farm.errors import InputError
from farm.film.film import Film
from farm.film.resolve import resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import find_checkpoint
from farm.service.limits import Bucket, Limits, Usage, load_limits, over_limits, over_quota
from farm.store.journal import Wish, drop_wish, write_wish
from farm.store.store import Store

BUILTIN = find_checkpoint("builtin", beside=Path())
BOARD = """\
title: Limits
size: 96x64
steps: 20
output: {scale: 2}
style: at night
shots:
  - {id: one, prompt: a red ball rolls over grass, frames: 17}
  - {id: two, prompt: a blue cube spins over sand, frames: 29}
"""


def film_of(board: str) -> Film:
    return resolve(parse_storyboard(board.encode(), file="board.yaml"), BUILTIN).film


def wish(job: str, *, by: str = "", at: float = 0.0, priority: int = 50) -> Wish:
    return Wish(job, "mp4", False, "farm", priority, by, at)


def test_a_film_at_every_limit_is_taken_and_one_above_is_not() -> None:
    film = film_of(BOARD)
    prompt = len("a red ball rolls over grass at night")
    at = {"max_shots": 2, "max_frames": 46, "max_side_px": 96, "max_delivered_px": 192, "max_steps": 20,
          "max_prompt_bytes": prompt}  # fmt: skip
    assert over_limits(film, Limits(**at)) == []
    for name, value in at.items():
        (problem,) = over_limits(film, Limits(**at | {name: value - 1}))
        assert f"must be at most {value - 1} on this server, got {value}" in problem.message


def test_quotas_hold_at_their_edge() -> None:
    limits = Limits(max_films=2, max_queued_s=10, gpu_hours_per_day=1)
    assert over_quota(Usage(6, 1), 4, limits) == ""
    assert "may have 2 films" in over_quota(Usage(6, 2), 1, limits)
    assert "has 6 s and asks for 4.5 s more" in over_quota(Usage(6, 1), 4.5, limits)
    assert "1 GPU hours a day" in over_quota(Usage(0, 0, 1.0), 1, limits)


def test_a_bucket_lets_through_its_rate_and_says_how_long_to_wait() -> None:
    bucket = Bucket(10.0, now=0.0)
    assert [bucket.take(0.0) for _ in range(20)] == [0.0] * 20
    wait = bucket.take(0.0)
    assert wait == pytest.approx(0.1)
    assert bucket.take(wait) == 0.0
    passed = sum(bucket.take(1 + i / 1000) == 0.0 for i in range(10_000))  # ten seconds
    assert passed == pytest.approx(100 + 10 - 1, abs=2)
    slow = Bucket(0.1, now=0.0)
    assert [slow.take(0.0), slow.take(0.0), slow.take(10.0)] == [0.0, pytest.approx(10.0), 0.0]


def test_priority_comes_first_then_whoever_has_least_then_the_oldest() -> None:
    many = [wish(f"a{i}", by="a", at=float(i)) for i in range(5)]
    late = [wish("b0", by="b", at=9.0), wish("c0", by="c", at=8.0), wish("urgent", by="a", at=10.0, priority=80)]
    told = [w.job for w in in_turn([*many, *late], {})]
    assert told == ["urgent", "c0", "b0", "a0", "a1", "a2", "a3", "a4"]
    assert [w.job for w in in_turn([*many, *late[:1]], {"b": 3})][:4] == ["a0", "a1", "a2", "a3"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), min_size=1, max_size=40), st.integers(1, 12))
def test_equal_keys_get_equal_shares(rows: list[tuple[str, int]], room: int) -> None:
    waiting = [wish(f"{i}", by=by, at=float(at)) for i, (by, at) in enumerate(rows)]
    everyone = list(in_turn(waiting, {}))
    assert sorted(w.job for w in everyone) == sorted(w.job for w in waiting)  # nobody is lost
    taken = Counter(w.by for w in islice(everyone, room))
    left = Counter(w.by for w in everyone[room:])
    for by in left:  # who still waits has no less than anybody else, but for one
        assert taken[by] >= max(taken.values()) - 1


def test_what_waits_is_read_once_and_again_after_a_while(tmp_path: Path) -> None:
    store, now = Store(str(tmp_path / "store")), [0.0]
    store.create()
    waiting = Waiting(store, lambda: now[0])
    write_wish(store, wish("one"))
    assert [w.priority for w in waiting.look()] == [50]
    write_wish(store, wish("one", priority=90))
    assert [w.priority for w in waiting.look()] == [50]
    now[0] = 61.0
    assert [w.priority for w in waiting.look()] == [90]
    assert waiting.look(["one.mp4"]) == []
    drop_wish(store, wish("one"))
    assert waiting.look() == []


def test_a_file_of_limits(tmp_path: Path) -> None:
    path = tmp_path / "limits.yaml"
    path.write_text("max_shots: 3\nimage_urls: true\n")
    assert load_limits(path) == Limits(max_shots=3, image_urls=True)
    path.write_text("max_shot: 3\n")
    with pytest.raises(InputError, match=r"limits.yaml:1: .*max_shots"):
        load_limits(path)
