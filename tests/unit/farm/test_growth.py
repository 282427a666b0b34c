"""Clusters that grow are refused nothing that some kind of node could hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from actors.autoscaler import types_in
from farm.pools.growth import Growth, can_never_fit, ignored_labels
from farm.pools.pools import NodeFacts, Pool

HEAD = NodeFacts("head", 0, 0, 2**33, None, {})
KINDS = {
    "small": {"resources": {"CPU": 4, "GPU": 1, "accelerator_type:L4": 1}, "labels": {"pool": "media"}},
    "large": {"resources": {"CPU": 16, "GPU": 8, "accelerator_type:H100": 1, "memory": 2**40}, "max_workers": 2},
    "head": {"resources": {"CPU": 2}, "max_workers": 0},
}


def pool(**more: object) -> Pool:
    return Pool(stages=["denoise"], **more)  # type: ignore[arg-type]


@pytest.fixture
def grows(tmp_path: Path) -> Growth:
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"available_node_types": KINDS, "auth": {"ssh_private_key": "secret"}}))
    found = types_in(str(file))
    assert [t["node"] for t in found] == ["type large", "type small"]
    assert "secret" not in str(found)
    return Growth("grows", "v1", tuple(NodeFacts(**t) for t in found))


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({"gpus": 1, "accelerator": "H100"}, True),
        (
            {"gpus": 8, "accelerator": "H100", "replicas": {"min": 5, "max": 9}},
            True,
        ),  # how many there may be can change
        ({"gpus": 1, "ranks": 16, "accelerator": "H100"}, True),  # over several nodes
        ({"gpus": 9}, False),
        ({"gpus": 1, "accelerator": "A100"}, False),
        ({"gpus": 1, "labels": {"pool": "media"}}, True),
        ({"gpus": 1, "labels": {"pool": "other"}}, False),
        ({"cpus": 17}, False),
        ({"cpus": 16, "memory_gib": 512}, True),
    ],
)
def test_a_pool_is_refused_only_where_no_kind_of_node_holds_it(asked: dict, fits: bool, grows: Growth) -> None:
    pools = {"a": pool(**asked)}
    told = can_never_fit(pools, [HEAD], grows)
    assert bool(told) != fits
    assert can_never_fit(pools, [HEAD], Growth("fixed"))  # a fixed cluster of a head alone holds none of them
    assert not can_never_fit(pools, [HEAD], Growth("unknown"))
    assert not can_never_fit(pools, [HEAD], Growth("grows"))  # of kinds that nobody knows
    if told:
        assert "type large: 16 CPU, 8 GPU H100" in told[0].message


def test_the_first_autoscaler_looks_at_no_labels(grows: Growth) -> None:
    pools = {"a": pool(gpus=1, labels={"pool": "x"}), "b": pool(gpus=1, labels={"pool": "y"}), "c": pool(gpus=2)}
    (warning,) = ignored_labels(pools, grows)
    assert warning.startswith("pools a and b differ by labels alone")
    assert not ignored_labels(pools, Growth("grows", "v2"))


@pytest.mark.parametrize(
    "text", ["", "[]", "available_node_types: {a: {resources: {}}}", "available_node_types: 1", "{"]
)
def test_kinds_that_are_not_written_down_are_not_known(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert types_in(str(tmp_path / "c.yaml")) == []
    assert types_in(str(tmp_path / "none.yaml")) == []
