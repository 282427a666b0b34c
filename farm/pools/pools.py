"""Pools: which stages run on which hardware, read from a pools file or made for the hardware that was found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from farm.document import Document, Strict, check, read_document
from farm.errors import InputError, Problem
from farm.models.card import ModelCard
from farm.pools.options import EXTRAS, Options, missing_packages
from farm.task import STAGES, Numerics, Stage

Dtype = Literal["float32", "bfloat16", "float16"]
Gib = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
# Of every process that imports torch, before it does: waiting threads of libgomp spin otherwise (measured on two busy
# cores: a forward pass of 28 ms on one thread took 1,625 ms on two).
THREAD_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
SPLIT_ATTENTION = (
    "native",
    "flash",
    "_native_flash",
    "_native_cudnn",
    "sage",
)  # can share tokens; native: no ring on GPUs
REQUIRED_STAGES: tuple[Stage, ...] = ("encode", "denoise", "decode")


class Bounds(Strict):
    """Bounds of a pool."""

    min: Annotated[int, Field(ge=0, le=10_000)] = 1
    max: Annotated[int, Field(ge=1, le=10_000)] = 1


class Parallel(Strict):
    """How the ranks of a replica share one task."""

    ulysses: Annotated[int, Field(ge=1)] = 1
    ring: Annotated[int, Field(ge=1)] = 1
    guidance: Annotated[int, Field(ge=1, le=2)] = 1
    shard_weights: bool = False


class Checkpoint(Strict):
    """How often a running denoise task keeps its state, so that another replica can go on from there; 0: never."""

    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 30.0
    steps: Annotated[int, Field(ge=0)] = 0


class Pool(Strict):
    """Identical replicas that serve given stages. Hardware is per rank."""

    stages: Annotated[list[Stage], Field(min_length=1)]
    cpus: Annotated[int, Field(ge=1, le=1024)] = 1
    gpus: Annotated[float, Field(ge=0, le=64, allow_inf_nan=False)] = 0.0
    memory_gib: Gib | None = None
    accelerator: Annotated[str, StringConstraints(min_length=1)] | None = None
    labels: dict[str, str] = {}
    ranks: Annotated[int, Field(ge=1, le=4096)] = 1
    replicas: Bounds = Bounds()
    parallel: Parallel | Literal["auto"] = Parallel()
    gang_timeout_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 300.0
    """How long one rank waits for the others before the gang is given up."""
    dtype: Dtype | None = None
    options: Options = Options()
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    start_timeout_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)] = 900.0
    checkpoint: Checkpoint = Checkpoint()


class _Top(Strict):
    """A pools file with its pools unread, so that each of them is checked by itself."""

    pools: Annotated[dict[str, Any], Field(min_length=1)]


@dataclass(frozen=True)
class NodeFacts:
    """What one node of a cluster has."""

    node: str
    cpus: float
    gpus: float
    memory_bytes: float
    accelerator: str | None
    labels: Mapping[str, str]


UNAVAILABLE = {"upscale"}  # stages that a pool may name, and that nothing runs yet


def load_pools(path: Path) -> dict[str, Pool]:
    """Read a pools file.

    Raises:
        InputError: it cannot be read or used; every fault with its line.
    """
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise InputError(Problem(f"the pools file cannot be read: {e.strerror}", file=str(path))) from None
    document = read_document(raw, file=str(path))
    top, problems = check(_Top, document.data, document, ())
    problems = [*document.problems, *problems]
    pools: dict[str, Pool] = {}
    for name, value in top.pools.items() if top else ():
        place = ("pools", name)
        if not NAME.fullmatch(name):
            message = f"a pool's name must be made of lower-case letters, digits, - and _, got {name!r}"
            problems.append(document.problem(place, message))
        pool, faults = check(Pool, value, document, place)
        problems += faults
        if pool:
            pools[name] = pool
            problems += _faults(document, place, pool)
    problems += [document.problem(("pools",), m) for m in ([] if problems else faults_together(pools))]
    if problems:
        raise InputError(*problems)
    return pools


def _faults(document: Document, place: tuple[str, str], pool: Pool) -> list[Problem]:
    found = []
    name = ".".join(place)
    if set(pool.stages) <= UNAVAILABLE:
        found.append(("stages", f"{name}.stages must have one that is available; upscale is not available yet"))
    if pool.replicas.min > pool.replicas.max:
        found.append(("replicas", f"{name}.replicas.min must be at most max ({pool.replicas.max})"))
    if pool.gpus > 1 and pool.gpus != int(pool.gpus):
        found.append(("gpus", f"{name}.gpus must be a fraction below 1 or a whole number, got {pool.gpus:g}"))
    found += [(key, f"{name}.{message}") for key, message in _gang_faults(pool)]
    for fault in pool.options.faults(pool.stages, has_gpus=pool.gpus > 0):
        found.append(("options", f"{name}.options.{fault}"))
    return [document.problem((*place, key), message) for key, message in found]


def _gang_faults(pool: Pool) -> list[tuple[str, str]]:
    """What cannot be about a pool's ranks: (key, the end of a sentence that begins with the pool)."""
    how = Parallel() if pool.parallel == "auto" else pool.parallel
    degrees, stages = how.ulysses * how.ring * how.guidance, pool.stages
    if pool.ranks == 1:
        is_plain = how == Parallel()
        return [] if is_plain else [("parallel", f"ranks must be {max(2, degrees)} for this parallel, got 1")]
    if len(stages) != 1 or stages[0] not in ("encode", "denoise", "decode"):
        told = ", ".join(stages)
        return [("ranks", f"stages must be encode, denoise or decode alone where there are several ranks, got {told}")]
    found = []
    is_shared = degrees == pool.ranks or (degrees == 1 and how.shard_weights)
    if stages == ["denoise"] and pool.parallel != "auto" and not is_shared:
        found.append(
            ("parallel", f"parallel: ulysses x ring x guidance must be {pool.ranks}, the ranks, got {degrees}")
        )
    if stages != ["denoise"] and (pool.parallel == "auto" or degrees > 1):
        found.append(("parallel", "parallel: ulysses, ring and guidance are for pools that serve denoise"))
    if stages == ["encode"] and not how.shard_weights:
        found.append(
            ("ranks", "parallel.shard_weights must be true where encode has several ranks, which share weights")
        )
    if stages == ["decode"] and not pool.options.vae_tiling:
        found.append(("ranks", "options.vae_tiling must be true where decode has several ranks, which share tiles"))
    if stages == ["decode"] and how.shard_weights:
        found.append(("parallel", "parallel.shard_weights must be false in a pool that serves decode"))
    if pool.gpus not in (0, 1):
        found.append(("gpus", f"gpus must be 0 or 1 where there are several ranks, each on its own, got {pool.gpus:g}"))
    if stages == ["denoise"] and (pool.parallel == "auto" or how.ulysses * how.ring > 1):
        found += _split_faults(pool, has_ring=how.ring > 1)
    if pool.options.cache:
        found.append(
            ("options", "options.cache must be off where there are several ranks, each of which would decide alone")
        )
    for option in ("offload", "compile", "quantize"):
        if how.shard_weights and getattr(pool.options, option) != getattr(Options(), option):
            found.append(("options", f"options.{option} must not stand beside parallel.shard_weights"))
    return found


def _split_faults(pool: Pool, *, has_ring: bool) -> list[tuple[str, str]]:
    """What cannot stand beside ranks that share tokens. Attention that knows nothing of it would be silently wrong."""
    found, attention = [], pool.options.attention
    able = SPLIT_ATTENTION[1:] if has_ring and pool.gpus else SPLIT_ATTENTION
    if attention is not None and attention not in able:
        told = ", ".join(able)
        found.append(("options", f"options.attention must be one of {told} where ranks share tokens, got {attention}"))
    if has_ring and pool.gpus and pool.dtype == "float32":
        found.append(("dtype", "dtype must be bfloat16 or float16 where parallel has a ring on GPUs, got float32"))
    if pool.options.compile:
        found.append(("options", "options.compile must be off where ranks share tokens: that has not been tested"))
    return found


def faults_together(pools: Mapping[str, Pool]) -> list[str]:
    """What must hold between pools: every stage is served, and pools of one stage compute in the same way."""
    found = []
    for stage in REQUIRED_STAGES:
        if not any(stage in pool.stages for pool in pools.values()):
            found.append(f"some pool must serve the stage {stage}; none of {', '.join(pools)} does")
    for stage in (s for s in STAGES if s != "assemble"):
        serving = {name: numerics_of(pool, stage) for name, pool in pools.items() if stage in pool.stages}
        if len(set(serving.values())) > 1:
            told = "; ".join(f"{name}: {dict(n)}" for name, n in serving.items())
            found.append(f"pools that serve {stage} must have the same numerics, got {told}")
    return found


def check_options(pools: Mapping[str, Pool], cards: Iterable[ModelCard]) -> None:
    """Refuse options that a model does not have.

    Raises:
        InputError: naming the option.
    """
    for card in cards:
        for name, pool in pools.items():
            for option in ("vae_tiling", "vae_slicing"):
                if getattr(pool.options, option) and not card.tiles:
                    key = f"pools.{name}.options.{option}"
                    raise InputError(Problem(f"{key} must be off for {card.name}, whose autoencoder has it not", key))


def lacking_packages(pools: Mapping[str, Pool]) -> list[Problem]:
    """What options need and this machine, where replicas are to run, has not."""
    lacking = missing_packages(pool.options for pool in pools.values())
    extras = dict.fromkeys(EXTRAS.get(package, package) for package in lacking)
    told = f"options of the pools need packages that are not installed: {', '.join(lacking)}"
    told += f"; pip install {' '.join(repr(extra) for extra in extras)}"
    return [Problem(told, "pools")] if lacking else []


def check_served(pools: Mapping[str, Pool], stages: Iterable[str]) -> None:
    """Refuse work that no pool takes.

    Raises:
        InputError: naming what is lacking.
    """
    lacking = [stage for stage in dict.fromkeys(stages) if not pools_serving(pools, stage)]
    if lacking:
        instead = ", or output.interpolate be none" if lacking == ["interpolate"] else ""
        message = f"some pool must serve the stage {lacking[0]}{instead}; none of {', '.join(pools)} does"
        raise InputError(Problem(message, "pools"))


def numerics_of(pool: Pool, stage: str) -> tuple[tuple[str, Any], ...]:
    """What a pool fixes about a stage's arithmetic. The autoencoder runs in float32 unless told otherwise: Wan's
    decoder loses visible precision in bfloat16 (diffusers' Wan documentation loads it in float32)."""
    default = "bfloat16" if pool.gpus and stage in ("encode", "denoise") else "float32"
    dtype, how = pool.dtype or default, pool.parallel
    made = (("dtype", dtype), *pool.options.numerics_of(stage))
    if how != "auto" and how.shard_weights and dtype != "float32":  # then no weight stays in float32, as some do else
        made = (*made, ("shard_weights", True))
    return made


def numerics(pools: Mapping[str, Pool]) -> Numerics:
    return {stage: numerics_of(pool, stage) for pool in pools.values() for stage in pool.stages}


def pools_serving(pools: Mapping[str, Pool], stage: str) -> list[str]:
    """Names of the pools that serve a stage; `assemble` falls back to where `decode` runs."""
    found = [name for name, pool in pools.items() if stage in pool.stages]
    if not found and stage == "assemble":
        return pools_serving(pools, "decode")
    return found


# GPU memory in GiB by Ray's names of accelerators (vendors' data sheets).
ACCELERATOR_GIB = {
    "T4": 16, "V100": 32, "L4": 24, "A10G": 24, "L40S": 48, "A100": 40, "A100-40G": 40, "A100-80G": 80, "H100": 80,
    "H200": 141, "H20": 96, "B200": 192, "GB200": 192, "B300": 288,
}  # fmt: skip


def memory_of(pool: Pool) -> tuple[float, float]:
    """GiB of a replica: of its GPUs, as far as their kind tells, and of its host."""
    return pool.gpus * pool.ranks * ACCELERATOR_GIB.get(pool.accelerator or "", 0), (
        pool.memory_gib or 0.0
    ) * pool.ranks


def stages_of(pools: Mapping[str, Pool], name: str) -> list[str]:
    """The stages whose tasks a pool takes."""
    return [stage for stage in STAGES if name in pools_serving(pools, stage)]


def default_pools(*, num_cpus: int, num_gpus: int) -> dict[str, Pool]:
    """Pools for one machine: decoding and writing apart from denoising, so that they overlap.

    Without a GPU the encoders and the transformer share one process. One GPU is shared by all stages in quarters and a
    half; with more, all but the last are for denoising.
    """
    media: list[Stage] = ["decode", "interpolate", "upscale", "assemble"]
    half = max(1, num_cpus // 2)
    if not num_gpus:
        return {
            "denoise": Pool(stages=["encode", "denoise"], cpus=max(1, num_cpus - half)),
            "media": Pool(stages=media, cpus=half),
        }
    shared = num_gpus == 1
    denoise = Pool(stages=["denoise"], gpus=0.5 if shared else 1.0, replicas=Bounds(min=1, max=max(1, num_gpus - 1)))
    return {
        "encode": Pool(stages=["encode"], gpus=0.25 if shared else 0.5),
        "denoise": denoise,
        "media": Pool(stages=media, gpus=0.25 if shared else 0.5, cpus=max(1, min(4, num_cpus // 2))),
    }


def cpus_asked(pools: Mapping[str, Pool]) -> int:
    """Logical CPUs for the least number of replicas of every pool, and at least one of each."""
    return sum(pool.cpus * pool.ranks * max(1, pool.replicas.min) for pool in pools.values())


def cannot_fit(pools: Mapping[str, Pool], nodes: Sequence[NodeFacts]) -> list[Problem]:
    """What a fixed cluster could never place: a pool by itself, or the least replicas of all pools at once."""
    told = []
    have = "; ".join(_has(node) for node in nodes)
    for name, pool in pools.items():
        wanted = max(1, pool.replicas.min) * pool.ranks
        room = _place([(pool, wanted)], nodes)
        if room < wanted:
            one = asked(pool.model_copy(update={"ranks": 1}))
            words = f"pool {name} asks for {wanted} x ({one}), the cluster has room for {room}: {have}"
            told.append(Problem(words, f"pools.{name}"))
    least = [(pool, pool.replicas.min * pool.ranks) for pool in pools.values()]
    if not told and _place(least, nodes) < sum(count for _, count in least):
        wants = "; ".join(f"{name} {pool.replicas.min} x ({asked(pool)})" for name, pool in pools.items())
        words = f"the pools together ask for {wants}; the cluster has room for each, not for all: {have}"
        told.append(Problem(words, "pools"))
    return told


def without_kinds(pools: Mapping[str, Pool]) -> dict[str, Pool]:
    """The same pools asking for numbers only: kinds of accelerators and labels are known once Ray has started."""
    return {name: pool.model_copy(update={"accelerator": None, "labels": {}}) for name, pool in pools.items()}


class Room:
    """What is left of a node while replicas are placed on it."""

    def __init__(self, node: NodeFacts) -> None:
        self.node, self.cpus, self.memory_bytes = node, node.cpus, node.memory_bytes
        self.gpus = [1.0] * int(node.gpus)

    def take(self, pool: Pool) -> bool:
        node = self.node
        if pool.accelerator and pool.accelerator != node.accelerator:
            return False
        if any(node.labels.get(k) != v for k, v in pool.labels.items()):
            return False
        memory = (pool.memory_gib or 0) * 2**30
        share = pool.gpus if 0 < pool.gpus < 1 else 1.0  # a fraction lies within one GPU
        free = [i for i, left in enumerate(self.gpus) if left >= share - 1e-9][: max(1, int(pool.gpus))]
        if self.cpus < pool.cpus or self.memory_bytes < memory or (pool.gpus and len(free) < max(1, int(pool.gpus))):
            return False
        self.cpus, self.memory_bytes = self.cpus - pool.cpus, self.memory_bytes - memory
        for i in free if pool.gpus else ():
            self.gpus[i] -= share
        return True


def _place(wanted: Sequence[tuple[Pool, int]], nodes: Sequence[NodeFacts]) -> int:
    """How many of the wanted replicas find room, the largest first."""
    rooms = [Room(node) for node in nodes]
    order = sorted(wanted, key=lambda w: (-w[0].gpus, -len(w[0].labels), -w[0].cpus))
    return sum(any(room.take(pool) for room in rooms) for pool, count in order for _ in range(count))


def asked(pool: Pool) -> str:
    """A pool's hardware, in words."""
    parts = [f"{pool.ranks} ranks, each {pool.cpus} CPU" if pool.ranks > 1 else f"{pool.cpus} CPU"]
    parts += [f"{pool.gpus:g} GPU"] if pool.gpus else []
    parts += [f"{pool.memory_gib:g} GiB"] if pool.memory_gib else []
    parts += [f"accelerator {pool.accelerator}"] if pool.accelerator else []
    parts += [f"label {k}={v}" for k, v in pool.labels.items()]
    return ", ".join(parts)


def _has(node: NodeFacts) -> str:
    labels = "".join(f", {k}={v}" for k, v in node.labels.items() if not k.startswith("ray.io/"))
    accelerator = f" {node.accelerator}" if node.accelerator else ""
    memory = node.memory_bytes / 2**30
    name = node.node if len(node.node) <= 16 else node.node[:8]
    return f"node {name}: {node.cpus:g} CPU, {node.gpus:g} GPU{accelerator}, {memory:.1f} GiB{labels}"


def pools_as_json(pools: Mapping[str, Pool]) -> dict[str, Any]:
    return {name: pool.model_dump() for name, pool in pools.items()}


def pools_from_json(data: Mapping[str, Any]) -> dict[str, Pool]:
    return {name: Pool(**value) for name, value in data.items()}
