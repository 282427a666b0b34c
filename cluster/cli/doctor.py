"""`farm doctor`: one line for everything a render needs: ok, warning or failure, and what to do."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import psutil

from cluster.cli.answer import Answer
from cluster.cli.options import add_autoscaling, add_pools
from cluster.ray import Connection, growth_of, num_cpus, num_gpus, this_machine
from farm.film.film import ENCODERS
from farm.film.interpolation import rife_weights
from farm.models.checkpoint import BUILTIN_FOLDER
from farm.pools.growth import Growth, can_never_fit, ignored_labels
from farm.pools.pools import Pool, asked, cannot_fit, cpus_asked, default_pools, load_pools, without_kinds

Line = tuple[str, str, str]  # ok | warning | failure, what, words
GIB = 2**30


def add(parser: argparse.ArgumentParser) -> None:
    add_pools(parser)
    add_autoscaling(parser)


def run(args: argparse.Namespace, answer: Answer) -> int:
    return examine(load_pools(args.pools) if args.pools else None, args.autoscaling)


def examine(pools: Mapping[str, Pool] | None, autoscaling: str = "auto") -> int:
    """Print all lines; 0 unless one of them is a failure, then 3: a render would fail."""
    lines = [*_software(), *_ffmpeg(), *_room(), *_pools(pools, autoscaling)]
    for state, what, words in lines:
        print(f"{state:<8} {what:<13} {words}")
    return 3 if any(state == "failure" for state, _, _ in lines) else 0


def _software() -> Iterator[Line]:
    version = ".".join(str(n) for n in sys.version_info[:3])
    yield ("ok" if sys.version_info >= (3, 11) else "failure", "python", f"{version}; 3.11 or newer is needed")
    for package in ("torch", "diffusers", "transformers", "ray"):
        try:
            yield "ok", package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield "failure", package, "is not installed; run make install"
    if (BUILTIN_FOLDER / "model_index.json").is_file():
        yield "ok", "builtin", "the built-in model is here"
    else:
        yield "warning", "builtin", "the built-in model is not part of this installation; storyboards must name a model"
    if rife_weights().is_file():
        yield "ok", "rife", "frames between frames are made by RIFE 4.6"
    else:
        words = f"no weights at {rife_weights()}: frames are interpolated by optical flow, and differ from RIFE's"
        yield "warning", "rife", f"{words}; farm fetch rife gets them"
    gpus = num_gpus()
    if not gpus:
        yield "warning", "cuda", "no GPU found; everything runs on CPUs, which suits the built-in model only"
        return
    try:
        import torch

        able = torch.cuda.is_available()
    except ImportError:
        able = False
    words = f"{gpus} GPUs, torch {'can' if able else 'cannot'} use them"
    yield ("ok" if able else "failure", "cuda", words if able else f"{words}; install a CUDA build of torch")


def _ffmpeg() -> Iterator[Line]:
    try:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
        told = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=30)
    except (ImportError, RuntimeError, OSError, subprocess.TimeoutExpired) as e:
        yield "failure", "ffmpeg", f"cannot be run: {e}; pip install imageio-ffmpeg"
        return
    have = {line.split()[1] for line in told.stdout.splitlines() if len(line.split()) > 1}
    lacking = [codec for codec, encoder in ENCODERS.items() if encoder not in have]
    yield ("warning" if lacking else "ok", "ffmpeg", f"lacks {', '.join(lacking)}" if lacking else "all encoders")


def _room() -> Iterator[Line]:
    memory = psutil.virtual_memory().available / GIB
    yield ("ok" if memory >= 4 else "warning", "memory", f"{memory:.1f} GiB free; 4 are enough for the built-in model")
    for what, folder in (("disk", Path.cwd()), ("temporary", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / GIB
        yield ("ok" if free >= 5 else "warning", what, f"{free:.1f} GiB free in {folder}; 5 or more are advised")


def _pools(pools: Mapping[str, Pool] | None, autoscaling: str) -> Iterator[Line]:
    """Against the cluster of RAY_ADDRESS where that is set, else against this machine."""
    cpus, gpus = num_cpus(), num_gpus()
    pools = pools or default_pools(num_cpus=cpus, num_gpus=gpus)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        with closing(Connection(address, {})):
            from actors.pool import cluster_nodes

            nodes = cluster_nodes()
            lacking = cannot_fit(pools, nodes)
            growth = growth_of(autoscaling) if lacking else Growth("fixed")
        waiting = {p.key for p in lacking}
        lacking = can_never_fit(pools, nodes, growth) if lacking else []
        for key in sorted(waiting - {p.key for p in lacking}):
            yield "warning", key.replace("pools.", "pool "), "no node has room for it now; it waits until one is added"
        for warning in ignored_labels(pools, growth):
            yield "warning", "autoscaler", warning
    else:
        pools, nodes = without_kinds(pools), [this_machine(pools)]
    if any(pool.parallel != "auto" and pool.parallel.shard_weights for pool in pools.values()):
        if shutil.which("c++") or shutil.which("g++"):
            yield "ok", "compiler", "DeepSpeed, which shard_weights asks for, can compile its extension"
        else:
            words = "no C++ compiler: DeepSpeed, which shard_weights asks for, compiles an extension at its first start"
            yield "warning", "compiler", f"{words}; install g++ where its replicas run"
    lacking = lacking if address else cannot_fit(pools, nodes)
    for name, pool in pools.items():
        most = pool.replicas.max
        words = f"{', '.join(pool.stages)} on {asked(pool)}; at most {most} replica{'s' if most > 1 else ''}"
        mine = [p.message for p in lacking if p.key == f"pools.{name}"]
        yield ("failure", f"pool {name}", mine[0]) if mine else ("ok", f"pool {name}", words)
    yield from (("failure", "pools", p.message) for p in lacking if p.key == "pools")
    if not address and cpus_asked(pools) > cpus:
        yield (
            "warning", "pools",
            f"the pools ask for {cpus_asked(pools)} CPUs, this machine has {cpus}: a local Ray declares as many, and "
            "they will share",
        )  # fmt: skip
