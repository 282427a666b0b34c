"""This machine and Ray: what hardware there is, starting a local Ray, joining a cluster, leaving either."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from actors.identity import is_dead, this_process
from cluster.prepare import in_pools_file
from farm.errors import InputError, RenderError
from farm.pools.growth import Growth, can_never_fit, ignored_labels
from farm.pools.pools import (
    THREAD_ENVIRONMENT,
    NodeFacts,
    Pool,
    cannot_fit,
    cpus_asked,
    default_pools,
    lacking_packages,
    without_kinds,
)
from farm.store.journal import Owner

HAPROXY_ENVIRONMENT = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
REACH_S = 5.0  # for a cluster to answer a connection
MAX_TEMP_PATH = 20  # our folder, Ray's session and a Unix socket add 79 characters, and 107 are allowed


def num_gpus() -> int:
    """GPUs that this process may use, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([v for v in visible.split(",") if v.strip() not in ("", "-1")])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        told = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return 0
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())


def num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine(pools: Mapping[str, Pool]) -> NodeFacts:
    """What the local Ray that is started for these pools will have: logical CPUs as asked for, GPUs as found."""
    cpus = max(num_cpus(), cpus_asked(pools))
    return NodeFacts("this machine", cpus, num_gpus(), psutil.virtual_memory().total, None, {})


def prepare_environment() -> None:
    """What must stand before ray is imported and is inherited by every process it starts."""
    for name, value in THREAD_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


class Connection:
    """A connection to a cluster, or a local Ray of our own; leave it with `close`."""

    def __init__(self, address: str | None, pools: Mapping[str, Pool], *, haproxy: bool = False) -> None:
        """Connect.

        Args:
            haproxy: a local Ray serves through HAProxy, not through Serve's own proxy.
        Raises:
            InputError: there is no cluster at that address; or this process has a Ray already and a local one is meant.
            RenderError: no local Ray could be started.
        """
        prepare_environment()
        self.folder: Path | None = None
        self.haproxy, self.is_ours = haproxy, True
        if address is None:
            _keep_others_out()
        import ray

        if ray.is_initialized():  # by the program or notebook that calls us: it is not ours to end
            if address is None:
                must = "this process must not be connected to Ray when a local one is to be started"
                raise InputError(f"{must}; pass address='auto' to render there, or call ray.shutdown() first")
            self.is_ours = False
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": "longtake"}
        try:
            if address is None:
                self._start_patiently(pools, quiet)
            else:
                check_reachable(address)
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as e:
            self.close()
            reason = str(e).strip().splitlines()[0]
            raise InputError(f"--address must name a running Ray cluster, got {address!r}: {reason}") from None
        except SystemExit:  # Ray's own handler of SIGTERM
            self.close()
            raise KeyboardInterrupt from None
        except BaseException:
            self.close()
            raise

    def _start_patiently(self, pools: Mapping[str, Pool], quiet: dict[str, Any]) -> None:
        """Start a local Ray; once more where it has not come up in time, as on a busy machine.

        Raises:
            RenderError: it has not come up the second time either.
        """
        for is_last in (False, True):
            try:
                return self._start(pools, quiet)
            except Exception as e:  # Ray raises plain ones, too ("The current node timed out during startup")
                self.close()
                if is_last:
                    reason = str(e).strip().splitlines() or [type(e).__name__]
                    raise RenderError(f"a local Ray could not be started, tried twice: {reason[0]}") from e

    def _start(self, pools: Mapping[str, Pool], quiet: dict[str, Any]) -> None:
        import ray

        self.folder, before = own_folder(), os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = str(self.folder)  # for the workers, so that what a killed one leaves goes with it
        if self.haproxy:
            os.environ.update(haproxy_environment(self.folder))
        try:
            ray.init(
                address="local", num_cpus=max(num_cpus(), cpus_asked(pools)), num_gpus=num_gpus(),
                include_dashboard=False, _temp_dir=str(self.folder), **quiet,
            )  # fmt: skip
        finally:
            os.environ.pop("TMPDIR")
            if before is not None:
                os.environ["TMPDIR"] = before

    @property
    def is_local(self) -> bool:
        return self.folder is not None

    def close(self) -> None:
        import ray

        if self.is_ours:
            ray.shutdown()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def check_reachable(address: str) -> None:
    """Refuse an address at which nobody listens: Ray itself waits for minutes, and says nothing.

    Raises:
        InputError: there is nobody, with the address that was meant.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", and whatever else Ray may know
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as e:
        told = f"--address (or RAY_ADDRESS) must name a running Ray cluster, got {address!r}: {e}"
        raise InputError(f"{told}; leave it out, or unset RAY_ADDRESS, for a Ray of this machine's own") from None


def haproxy_environment(folder: Path) -> dict[str, str]:
    """What Serve must find in its processes' environment, so that HAProxy stands before it with its files in a folder
    of ours (docs.ray.io, "Enable High Throughput on Ray Serve")."""
    files = {"CONFIG_FILE_LOC": "h/cfg", "SOCKET_PATH": "h/a", "METRICS_SOCKET_PATH": "h/m", "SERVER_STATE_FILE": "h/s"}
    told = {f"RAY_SERVE_HAPROXY_{name}": str(folder / file) for name, file in files.items()}
    told["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"] = str(folder / "h")
    told["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "1"  # 30 by default, for balancers that look now and then
    return {**HAPROXY_ENVIRONMENT, **told}


def _keep_others_out() -> None:
    """A local Ray answers only to those who know its secret: this process and its children, unless it was given.

    Ray reads the mode once, when it is imported; where that has happened already the mode stays as it was.
    """
    if "ray" in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _end_processes_of(folder: Path) -> None:
    """Ray's agents outlive a killed Ray by up to a minute (measured); their logs lie in its folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name().startswith(("ray", "gcs_server", "python")) and any(
                str(folder) in file.path for file in process.open_files()
            ):
                process.kill()


def own_folder() -> Path:
    """A new temporary folder with a path short enough for Ray's sockets. Those of processes that were killed go."""
    where = Path(tempfile.gettempdir())
    where = where if len(str(where)) <= MAX_TEMP_PATH else Path("/tmp")
    for old in where.glob("longtake-*/owner.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # another user's, or being written
            if is_dead(Owner(**json.loads(old.read_text()))):
                _end_processes_of(old.parent)
                shutil.rmtree(old.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="longtake-", dir=where))
    (folder / "owner.json").write_text(json.dumps(asdict(this_process())))
    return folder


def check_this_machine(pools: Mapping[str, Pool], pools_file: Path | None) -> None:
    """Raises:
    InputError: the local Ray that would be started can never hold these pools, or lacks what they need.
    """
    told = lacking_packages(pools) or cannot_fit(without_kinds(pools), [this_machine(pools)])
    if told:
        raise InputError(*in_pools_file(told, pools_file))


def check_cluster(pools: Mapping[str, Pool], pools_file: Path | None, *, autoscaling: str = "auto") -> None:
    """Refuse pools that the connected cluster can never hold; one that grows may be small now.

    Args:
        autoscaling: yes | no | auto: whether the cluster grows, where the caller knows better than can be found.
    Raises:
        InputError: it is fixed, or no kind of node that it may add could hold a replica.
    """
    from actors.pool import cluster_nodes

    nodes = cluster_nodes()
    if not cannot_fit(pools, nodes):  # nothing has to be added
        return
    growth = growth_of(autoscaling)
    for warning in ignored_labels(pools, growth):
        print(f"farm: warning: {warning}", file=sys.stderr)
    if told := can_never_fit(pools, nodes, growth):
        hint = (
            "; --autoscaling yes if it grows all the same" if growth.kind == "fixed" and autoscaling == "auto" else ""
        )
        raise InputError(*in_pools_file([replace(p, message=p.message + hint) for p in told], pools_file))


def growth_of(autoscaling: str) -> Growth:
    """Whether the connected cluster grows: as it is known, else as it is found."""
    if autoscaling == "no":
        return Growth("fixed")
    from actors.autoscaler import growth

    found = growth()
    return Growth("grows", found.version, found.types) if autoscaling == "yes" else found


def made_pools(*, on_cluster: bool) -> dict[str, Pool]:
    """Pools for the hardware of the connected cluster or of this machine."""
    if not on_cluster:
        return default_pools(num_cpus=num_cpus(), num_gpus=num_gpus())
    from actors.pool import cluster_nodes

    nodes = cluster_nodes()
    return default_pools(num_cpus=int(max(n.cpus for n in nodes)), num_gpus=int(sum(n.gpus for n in nodes)))
