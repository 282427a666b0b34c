"""Ray clusters on this machine, with no effect on any other: of emulated nodes with logical GPUs and labels, or as an
operator starts one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
from farm_process import wait_until
from serving import free_port

from cluster.ray import own_folder


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


@contextmanager
def head_node(*, num_cpus: int, **environment: str) -> Iterator[tuple[str, str]]:
    """`ray start --head`, which takes in jobs and Serve's applications: its address, and that of its dashboard."""
    folder, port, dashboard = own_folder(), free_port(), free_port()
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}",
        f"--dashboard-port={dashboard}", f"--num-cpus={num_cpus}", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    url, log = f"http://127.0.0.1:{dashboard}", folder / "log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=os.environ | environment, stdout=out, stderr=out) as process,
    ):
        try:
            wait_until("Ray to take jobs in", lambda: takes_jobs(url) or process.poll() is not None, timeout_s=120)
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            yield f"127.0.0.1:{port}", url
        finally:
            tree = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            for child in tree:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            shutil.rmtree(folder, ignore_errors=True)


def takes_jobs(dashboard: str) -> bool:
    token = os.environ.get("RAY_AUTH_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        return httpx2.get(f"{dashboard}/api/jobs/", headers=headers, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False
