"""How ranks share a task: what is possible, what the formulas say, what is chosen."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import InputError
from farm.models.cards import stock_cards
from farm.pools.gangs import is_within_a_node, sharing_of
from farm.pools.parallel import (
    Degrees,
    Hardware,
    Sharing,
    bytes_sent,
    candidates,
    choose,
    estimate,
    faults,
    fits,
    work_of,
)
from farm.pools.pools import NodeFacts, Parallel, Pool, numerics_of

WAN, HUNYUAN, COG, MOCHI, SVD = (
    stock_cards()[name]
    for name in (
        "WanPipeline",
        "HunyuanVideoPipeline",
        "CogVideoXPipeline",
        "MochiPipeline",
        "StableVideoDiffusionPipeline",
    )
)
WORK = work_of(WAN, (1, 16, 21, 90, 160), num_latents=21, is_guided=True)  # 720p, 81 frames
EIGHT = Hardware(8, "H100", 80.0)


def test_tokens_of_a_pass() -> None:
    assert (WORK.video_tokens, WORK.text_tokens, WORK.tokens) == (21 * 45 * 80, 0, 75600)
    assert work_of(COG, (1, 16, 13, 60, 90), num_latents=13, is_guided=True).text_tokens == 226


@pytest.mark.parametrize(
    ("degrees", "card", "told"),
    [
        (Degrees(ulysses=3), WAN, r"ulysses must divide the 40 heads of wan, got 3; nearest: 2 and 4"),
        (Degrees(ulysses=2), SVD, "no plan for splitting its tokens"),
        (Degrees(ring=2), MOCHI, "ring must be 1 for mochi, whose attention only ulysses can share, got 2"),
        (Degrees(ulysses=8), MOCHI, "ulysses must divide the 17550 tokens of mochi, got 8; nearest: 6 and 9"),
        (Degrees(guidance=2), HUNYUAN, "guidance must be 1 for hunyuan"),
        (Degrees(ulysses=2, ring=2), HUNYUAN, "one of ulysses and ring must be 1"),
        (Degrees(ulysses=2, ring=2), COG, r"must divide 17550 and 226 tokens .* got 2 x 2; nearest: 2"),
        (Degrees(guidance=2), SVD, "guidance must be 1 for svd"),
    ],
)
def test_what_cannot_be_split_is_refused_with_what_can(degrees: Degrees, card: object, told: str) -> None:
    shape = (1, 16, 13, 60, 90)
    found = faults(degrees, work_of(card, shape, num_latents=13, is_guided=True))  # type: ignore[arg-type]  # a card
    assert any(re.search(told, fault) for fault in found), found


def test_unequal_lengths_are_possible_one_way_at_a_time() -> None:
    odd = work_of(WAN, (1, 16, 3, 6, 6), num_latents=3, is_guided=True)
    assert odd.tokens == 27
    assert not faults(Degrees(ulysses=2), odd)
    assert not faults(Degrees(ring=2), odd)
    assert faults(Degrees(ulysses=2, ring=2), odd)
    assert faults(Degrees(ring=32), odd)


@given(st.integers(1, 32))
def test_candidates_use_all_ranks_and_are_possible(ranks: int) -> None:
    for degrees in candidates(ranks, WORK):
        assert degrees.size == ranks
        assert not faults(degrees, WORK)


def test_bytes_by_hand() -> None:
    """Ulysses over 4: 4 x 18,900 tokens x 5,120 values x 2 bytes a block, three quarters of which leave the rank."""
    inside = 40 * 4 * 18900 * 5120 * 2 * 3 / 4
    assert bytes_sent(Degrees(ulysses=4), WORK) == pytest.approx(inside + 18900 * 64 * 3 * 2)
    ring = 40 * 2 * 18900 * 5120 * 2 * 3
    assert bytes_sent(Degrees(ring=4), WORK) == pytest.approx(ring + 18900 * 64 * 3 * 2)
    assert bytes_sent(Degrees(guidance=2), WORK) == 0


def test_guidance_comes_first_where_there_is_any() -> None:
    assert choose(2, WORK, EIGHT).degrees == Degrees(guidance=2)
    assert choose(8, WORK, EIGHT).degrees == Degrees(ulysses=4, guidance=2)
    assert choose(4, replace(WORK, is_guided=False), EIGHT).degrees == Degrees(ulysses=4)


def test_more_ranks_are_faster_and_less_efficient() -> None:
    steps = [choose(n, WORK, EIGHT).step_s for n in (1, 2, 4, 8)]
    assert steps == sorted(steps, reverse=True)
    shares = [steps[0] / n / s for n, s in zip((1, 2, 4, 8), steps, strict=True)]
    assert shares[0] == 1
    assert shares[-1] < 1


def test_what_crosses_nodes_is_slow() -> None:
    near, far = estimate(Degrees(ulysses=8), WORK, EIGHT), estimate(Degrees(ulysses=8), WORK, Hardware(4, "H100", 80.0))
    assert far.exchange_s > 5 * near.exchange_s
    assert far.compute_s == near.compute_s


def test_padding_costs() -> None:
    odd = work_of(WAN, (1, 16, 3, 6, 6), num_latents=3, is_guided=False)
    whole, split = estimate(Degrees(), odd, EIGHT), estimate(Degrees(ulysses=4), odd, EIGHT)
    assert split.compute_s > whole.compute_s / 4


def test_degrees_that_do_not_fit_are_left_out() -> None:
    small = Hardware(8, "H100", 32.0)
    assert not fits(Degrees(guidance=2), WORK, small, shard_weights=False)
    assert fits(Degrees(ulysses=8), WORK, Hardware(8, "H100", 40.0), shard_weights=False)
    assert fits(Degrees(ulysses=2), WORK, replace(small, memory_gib=40.0), shard_weights=True)
    assert choose(4, WORK, replace(EIGHT, memory_gib=38.0)).degrees == Degrees(ulysses=4)


def test_ranks_that_cannot_share_are_refused() -> None:
    few = work_of(HUNYUAN, (1, 16, 1, 4, 4), num_latents=1, is_guided=False)  # four tokens of the video
    with pytest.raises(InputError, match="must be able to share 260 tokens of hunyuan, got 7; nearest: 4"):
        choose(7, few, EIGHT)
    with pytest.raises(InputError, match=r"parallel\.ulysses must divide the 40 heads"):
        Sharing(3, Degrees(ulysses=3), False, EIGHT).degrees_for(WORK)


def test_a_gang_stays_on_one_node_where_it_can() -> None:
    pool = Pool(stages=["denoise"], gpus=1, ranks=4, parallel=Parallel(ulysses=4))

    def node(gpus: int) -> NodeFacts:
        return NodeFacts("a", 8, gpus, 2**40, None, {})

    assert is_within_a_node(pool, [node(2), node(4)])
    assert not is_within_a_node(pool, [node(2), node(2)])


def test_pools_say_how_they_share() -> None:
    assert sharing_of(Pool(stages=["denoise"])) is None
    told = sharing_of(
        Pool(stages=["denoise"], gpus=1, ranks=4, accelerator="H100", parallel=Parallel(ulysses=2, guidance=2))
    )
    assert told == Sharing(4, Degrees(2, 1, 2), False, Hardware(4, "H100", 80.0))
    auto = sharing_of(Pool(stages=["denoise"], ranks=2, parallel="auto"))
    assert auto is not None and auto.degrees is None
    assert math.isclose(choose(1, WORK, EIGHT).exchange_s, 0)


def test_weights_that_all_lose_their_precision_have_keys_of_their_own() -> None:
    shards = Parallel(shard_weights=True)
    exact, coarse = (Pool(stages=["denoise"], ranks=2, parallel=shards, dtype=d) for d in ("float32", "bfloat16"))
    assert numerics_of(exact, "denoise") == (("dtype", "float32"),)
    assert dict(numerics_of(coarse, "denoise")) == {"dtype": "bfloat16", "shard_weights": True}


def test_gpus_are_counted_among_those_that_are_visible() -> None:
    from pipelines.parallel import device_index

    assert device_index("5", "") == 5
    assert device_index("5", "4,5,6,7") == 1
    assert device_index("GPU-b", "GPU-a,GPU-b") == 1


def test_tensors_of_older_checkpoints_find_their_parameters() -> None:
    from pipelines.sharding import _our_name

    ours = {"encoder.layers.0.weight": 0, "encoder.layers.1.weight": 0, "model.norm.weight": 0}
    assert _our_name("text_model.encoder.layers.1.weight", ours) == "encoder.layers.1.weight"
    assert _our_name("norm.weight", ours) == "model.norm.weight"
    assert _our_name("weight", ours) is None
