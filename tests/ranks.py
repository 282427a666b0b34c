"""Several processes as the ranks of a gang on gloo, kept for many calls: real process groups without Ray."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import socket
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from farm.pools.parallel import Degrees, Hardware, Sharing

TIMEOUT_S = 60.0


def sharing(degrees: Degrees | None, ranks: int, *, shard_weights: bool = False) -> Sharing:
    return Sharing(ranks, degrees, shard_weights, Hardware(ranks))


class Ranks:
    """`ranks(f, ...)` calls f(gang, ...) in all processes at once. Returns what each has returned."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self.pipes = pipes

    def __call__(self, work: Callable[..., Any], *values: Any, **named: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((work, values, named))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(TIMEOUT_S):
                raise TimeoutError(f"rank {rank} did not answer within {TIMEOUT_S:g} s")
            answers.append(pipe.recv())
        for rank, (is_good, told) in enumerate(answers):
            assert is_good, f"rank {rank}: {told}"
        return [told for _, told in answers]


@contextmanager
def ranks_of(size: int, *, device: str = "cpu") -> Iterator[Ranks]:
    """Args:
    device: "cuda" for NCCL, one GPU a rank.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pairs = [context.Pipe() for _ in range(size)]
    processes = [
        context.Process(target=_be_rank, args=(rank, size, port, device, there), daemon=True)
        for rank, (_, there) in enumerate(pairs)
    ]
    for process, (_, there) in zip(processes, pairs, strict=True):
        process.start()
        there.close()  # so that one that dies is noticed
    try:
        yield Ranks([here for here, _ in pairs])
    finally:
        for process in processes:
            process.kill()
            process.join(20)


def _be_rank(rank: int, size: int, port: int, device: str, pipe: Connection) -> None:
    from datetime import timedelta

    import torch.distributed as dist

    from pipelines.parallel import bind_device, join

    torch.set_num_threads(1)
    device = bind_device([str(rank)] if device == "cuda" else [], all_visible=True)
    store = dist.TCPStore("127.0.0.1", port, None, is_master=rank == 0, wait_for_workers=False,
                          timeout=timedelta(seconds=60))  # fmt: skip
    gang = join(
        sharing(None, size), rank=rank, size=size, host="127.0.0.1", port=port, device=device, timeout_s=30, store=store
    )
    while True:
        work, values, named = pipe.recv()
        try:
            pipe.send((True, work(gang, *values, **named)))
        except Exception:  # noqa: BLE001  # told to whoever asked
            pipe.send((False, traceback.format_exc()))


# -- what ranks are asked to do


def denoise_on(
    gang: Any, folder: str, components: Sequence[str], request: Any, inputs: Sequence[bytes | Path],
    degrees: Degrees | None, *, shard_weights: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The latents of a denoise task."""
    from pipelines import denoise
    from pipelines.stage import Progress

    gang.sharing = sharing(degrees, gang.size, shard_weights=shard_weights)
    stage = denoise.Stage(folder, components, gang=gang)
    made = stage.run(request, inputs, Progress(agree=gang.agree))
    return load(made.artifact)["latents"]


def bytes_of_a_pass(gang: Any, folder: str, degrees: Degrees, shape: tuple[int, ...]) -> int:
    """What this rank sends in one forward pass of a Wan transformer, counted at torch's collectives."""
    import tiny_families as tiny
    from torch.utils._python_dispatch import TorchDispatchMode

    from pipelines.load import load_component
    from pipelines.sequence import SequenceSplit

    sent: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(func)
            if "all_to_all" in name:
                n = degrees.ulysses
                sent["all to all"] += args[0].numel() * args[0].element_size() * (n - 1) // n
            elif "all_gather" in name and "_c10d_functional" in name:
                sent["gather"] += args[0].numel() * args[0].element_size() * (args[1] - 1)
            return func(*args, **(kwargs or {}))

    model = load_component(folder, "transformer", dtype="float32", device="cpu")
    SequenceSplit(model, gang.split(degrees))
    with torch.no_grad(), Count():
        model(
            hidden_states=torch.zeros(shape), timestep=torch.tensor([5.0]),
            encoder_hidden_states=torch.zeros(1, 8, tiny.DIM), return_dict=False,
        )  # fmt: skip
    return sum(sent.values())


def encode_on(gang: Any, folder: str, components: Sequence[str], request: Any) -> dict[str, torch.Tensor]:
    """What text encoders make of a prompt, their weights spread over the ranks."""
    from pipelines import encode
    from pipelines.stage import Progress

    gang.sharing = sharing(None, gang.size, shard_weights=True)
    stage = encode.Stage(folder, components, gang=gang)
    return dict(load(stage.run(request, [], Progress(agree=gang.agree)).artifact))


def decode_on(gang: Any, folder: str, request: Any, inputs: Sequence[bytes], tile_px: int) -> bytes:
    """The frames of a tiled decode, on rank 0."""
    from pipelines import decode
    from pipelines.stage import Progress

    stage = decode.Stage(folder, tiling=True, gang=gang)
    small_tiles(stage.vae, tile_px)
    made = stage.run(request, inputs, Progress(agree=gang.agree)).artifact
    assert isinstance(made, bytes)
    return made


def small_tiles(vae: Any, tile_px: int) -> None:
    """Tiles of a size that a tiny film has several of, overlapping by half."""
    for name in ("tile_sample_min_height", "tile_sample_min_width"):
        setattr(vae, name, tile_px)
    for name in ("tile_sample_stride_height", "tile_sample_stride_width"):
        setattr(vae, name, tile_px // 2)
    for name in ("tile_latent_min_height", "tile_latent_min_width"):  # CogVideoX, HunyuanVideo-1.5
        if hasattr(vae, name):
            setattr(vae, name, max(1, tile_px // 8))


def peaks_of_loading(gang: Any, folder: str) -> tuple[int, int, int]:
    """Bytes by which this process grows at most while it loads a sharded transformer and runs it once, those of its
    shards, and those of the largest block."""
    import threading
    import time

    import psutil

    from pipelines.load import load_component

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    process, seen, ends = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not ends.is_set():
            seen[0] = max(seen[0], process.memory_info().rss - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=look)
    watcher.start()
    model = load_component(folder, "transformer", dtype="float32", device="cpu", is_sharded=True)
    with torch.no_grad():
        model(
            hidden_states=torch.zeros(1, 16, 1, 4, 4), timestep=torch.tensor([5.0]),
            encoder_hidden_states=torch.zeros(1, 8, 16), return_dict=False,
        )  # fmt: skip
    ends.set()
    watcher.join()
    block = max(sum(p.ds_numel for p in b.parameters()) for b in model.blocks) * 4
    return seen[0], sum(p.ds_tensor.numel() * 4 for p in model.parameters()), block
