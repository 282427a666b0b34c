"""A Ray cluster of several emulated nodes on this machine, with logical GPUs and labels, and no effect on any other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.hardware import own_folder


@contextmanager
def emulated_cluster(nodes: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Start one head without resources and the given nodes; yields the address. All processes end with the block."""
    folder = own_folder()
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(folder)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for node in nodes:
            cluster.add_node(**node)
        cluster.wait_for_nodes(timeout=60)
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.pop("RAY_TMPDIR")
        if before is not None:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
