"""A Ray cluster of several emulated nodes on this machine, with logical GPUs and labels, and no effect on any other."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.hardware import own_folder


class EmulatedCluster:
    """One head without resources and some nodes, each with processes of its own."""

    def __init__(self, nodes: Sequence[dict[str, Any]]) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = [self.cluster.add_node(**node) for node in nodes]
        self.cluster.wait_for_nodes(timeout=60)
        self.address = str(self.cluster.address)

    def kill_node(self, index: int) -> None:
        """End a node's processes at once, as a machine that vanishes."""
        self.cluster.remove_node(self.nodes.pop(index), allow_graceful=False)

    def kill_all(self) -> None:
        """The same for all nodes, the head included."""
        for node in [*self.nodes, self.cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.nodes.clear()


@contextmanager
def emulated_cluster(nodes: Sequence[dict[str, Any]]) -> Iterator[EmulatedCluster]:
    """All processes end with the block."""
    folder = own_folder()
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(folder)
    made: EmulatedCluster | None = None
    try:
        made = EmulatedCluster(nodes)
        yield made
    finally:
        if made is not None:
            with contextlib.suppress(AssertionError):  # nodes that have been killed
                made.cluster.shutdown()
        os.environ.pop("RAY_TMPDIR")
        if before is not None:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
