"""Whether a cluster can grow, and by which kinds of nodes. Nothing in Ray's API says so.

What was seen in Ray 2.60: open-source Ray reports no limits of the cluster (`get_cluster_config` is None on every one),
and a monitor runs on every head, with a configuration only where there is an autoscaler. On KubeRay the autoscaler is a
container of its own beside the head. So somebody has to look, on the head: a task there reads the monitor's command
line and, of its configuration, the kinds of nodes alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import ray

from farm.pools.growth import Growth, accelerator_in
from farm.pools.pools import NodeFacts

log = logging.getLogger(__name__)
ON_HEAD = {"node:__internal_head__": 0.001}  # a resource that every head has; others have none of it
LOOK_TIMEOUT_S = 30.0
MONITORS = {"autoscaler/_private/monitor.py": "v1", "autoscaler/v2/monitor.py": "v2"}


def growth() -> Growth:
    """Of the connected cluster. Where nobody can look it may grow: a refusal would be wrong, waiting only vain."""
    from ray._private.state import state  # Ray has no public way to ask; Ray Data and Train ask in this way too

    if state.get_max_resources_from_cluster_config() is not None:  # a platform that reports it
        return Growth("grows")
    look = ray.remote(num_cpus=0, resources=ON_HEAD, max_retries=0)(look_for_monitor)
    try:
        told = ray.get(look.remote(ray.get_runtime_context().gcs_address), timeout=LOOK_TIMEOUT_S)
    except ray.exceptions.RayError as e:
        log.warning("nobody could look for an autoscaler on the head: %s", e)
        return Growth("unknown")
    return Growth(told["kind"], told["version"], tuple(NodeFacts(**facts) for facts in told["types"]))


def look_for_monitor(gcs_address: str) -> dict[str, Any]:
    """What runs on this node for that cluster; others may run here, too. Plain values, for they cross processes."""
    import psutil

    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        version = next((v for script, v in MONITORS.items() if any(w.endswith(script) for w in words)), "")
        options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if version and options.get("gcs-address") == gcs_address:
            file = options.get("autoscaling-config", "")
            return {"kind": "grows" if file else "fixed", "version": version, "types": types_in(file) if file else []}
    on_kuberay = "--no-monitor" in os.environ.get("KUBERAY_GEN_RAY_START_CMD", "")
    return {"kind": "grows" if on_kuberay else "unknown", "version": "v2" if on_kuberay else "", "types": []}


def types_in(file: str) -> list[dict[str, Any]]:
    """The kinds of nodes in a configuration of `ray up`; none where one of them says nothing of what it has."""
    import yaml

    try:
        with open(file, encoding="utf-8") as opened:
            kinds = (yaml.safe_load(opened) or {})["available_node_types"]
        return [facts_of(name, told) for name, told in kinds.items() if told.get("max_workers", 1)]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError):
        return []


def facts_of(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """One kind of node.

    Raises:
        KeyError: it leaves its resources to be found once it is there.
    """
    has = told["resources"]
    return {
        "node": f"type {name}", "cpus": float(has["CPU"]), "gpus": float(has.get("GPU", 0)),
        "memory_bytes": float(has.get("memory", "inf")), "accelerator": accelerator_in(has),
        "labels": dict(told.get("labels", {})),
    }  # fmt: skip
