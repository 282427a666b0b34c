"""The ranks of one replica as a process group, and what they tell one another besides tensors of the model.

Each rank is a process of its own and belongs to one gang for its whole life, so the gang is torch's default group. All
ranks run the same task with the same inputs; what each knows alone (an order to stop, which slice comes next) is agreed
through `control`, which is on gloo also where tensors go over NCCL: two integers cost some 100 us and no GPU waits.
Nothing here is pickled: torch's `*_object` collectives are not used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from farm.pools.parallel import Degrees, Sharing

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8)
MAX_DIMS = 8
DONE = -1


@dataclass(frozen=True)
class Split:
    """The groups that one way to share a task needs. A group of one rank is None."""

    degrees: Degrees
    sequence: Any  # the ranks that hold the parts of one sequence: ring outermost
    ulysses: Any
    ring: Any
    ring_index: int
    halves: Any  # the ranks at the same place in each half
    half: int  # 0: conditional


class Gang:
    """This process as one rank of several. Made by `join`; methods are collective unless they say otherwise."""

    def __init__(self, sharing: Sharing, *, rank: int, size: int, device: str, timeout_s: float) -> None:
        self.sharing, self.rank, self.size, self.device = sharing, rank, size, device
        timeout = timedelta(seconds=timeout_s)
        self.control = dist.new_group(backend="gloo", timeout=timeout) if device == "cuda" else dist.group.WORLD
        self.timeout = timeout
        self.splits: dict[Degrees, Split] = {}

    def split(self, degrees: Degrees) -> Split:
        """The groups for these degrees; made once, by all ranks in the same order.

        With degrees of one all ranks compute the same, and share weights alone.

        Raises:
            ValueError: their product is neither the number of ranks nor one.
        """
        if degrees.size not in (1, self.size):
            raise ValueError(f"the product of the degrees must be {self.size}, the number of ranks, got {degrees}")
        if degrees not in self.splits:
            s, u = degrees.sequence, degrees.ulysses
            half, place = divmod(self.rank, s)
            starts = range(0, self.size, s)
            self.splits[degrees] = Split(
                degrees=degrees,
                sequence=self._own([list(range(a, a + s)) for a in starts]),
                ulysses=self._own([list(range(a + i, a + i + u)) for a in starts for i in range(0, s, u)]),
                ring=self._own([list(range(a + i, a + s, u)) for a in starts for i in range(u)]),
                ring_index=place // u,
                halves=self._own([list(range(i, self.size, s)) for i in range(s)]) if degrees.guidance > 1 else None,
                half=half,
            )
        return self.splits[degrees]

    def _own(self, groups: Sequence[Sequence[int]]) -> Any:
        """Make all these groups of ranks, and return the one that this rank is in."""
        own = None
        for ranks in groups:
            if len(ranks) == self.size:
                return dist.group.WORLD
            if len(ranks) > 1:
                made = dist.new_group(list(ranks), timeout=self.timeout)
                own = made if self.rank in ranks else own
        return own

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any rank has raised each flag."""
        told = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.control)
        return tuple(bool(x) for x in told)

    def tell(self, number: int = 0) -> int:
        """Rank 0's number."""
        told = torch.tensor([number], dtype=torch.int64)
        dist.broadcast(told, src=0, group=self.control)
        return int(told)

    def hand_out(self, tensor: torch.Tensor | None, *, source: int = 0) -> torch.Tensor:
        """One rank's tensor, on all ranks; the others give None."""
        head = _head_of(tensor) if tensor is not None else torch.zeros(MAX_DIMS + 2, dtype=torch.int64)
        dist.broadcast(head, src=source, group=self.control)
        kind, dims, *shape = head.tolist()
        if tensor is None:
            tensor = torch.empty(shape[:dims], dtype=DTYPES[kind], device=self.device)
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=source)
        return tensor

    def hand_over(self, tensor: torch.Tensor | None, *, source: int) -> torch.Tensor | None:
        """One rank's tensor, on rank 0; called by all, None elsewhere and on ranks that have no part in it."""
        if source == 0 or self.rank not in (0, source):
            return tensor
        if tensor is not None:
            tensor = tensor.contiguous()
            dist.send(_head_of(tensor), 0, group=self.control)
            dist.send(tensor, 0)
            return None
        head = torch.zeros(MAX_DIMS + 2, dtype=torch.int64)
        dist.recv(head, source, group=self.control)
        kind, dims, *shape = head.tolist()
        tensor = torch.empty(shape[:dims], dtype=DTYPES[kind], device=self.device)
        dist.recv(tensor, source)
        return tensor

    def share(self, leader_share: Any) -> GangShare:
        """How slices of a blended take are predicted by all ranks together, and by rank 0's helpers."""
        return GangShare(self, leader_share)


class GangShare:
    """`continuity.Share` for a gang: rank 0 says which slice comes next, and hands out what its helpers predict.

    Every rank holds the whole latent and steps it, so every rank needs all predictions of a step.
    """

    def __init__(self, gang: Gang, leader_share: Any) -> None:
        self.gang, self.leader_share = gang, leader_share

    def predict(
        self, parts: Mapping[int, torch.Tensor], t: torch.Tensor, own: Callable[[int], torch.Tensor]
    ) -> Mapping[int, torch.Tensor]:
        made: dict[int, torch.Tensor] = {}

        def together(i: int) -> torch.Tensor:
            self.gang.tell(i)
            made[i] = own(i)
            return made[i]

        if self.gang.rank == 0:
            share = self.leader_share
            all_of_them = dict(share.predict(parts, t, together) if share else {i: together(i) for i in parts})
            self.gang.tell(DONE)
        else:
            all_of_them = {}
            while (i := self.gang.tell()) != DONE:
                made[i] = own(i)
        for i in parts:  # in the same order on all ranks, which know which ones they have not
            all_of_them[i] = made[i] if i in made else self.gang.hand_out(all_of_them.get(i))
        return all_of_them


def _head_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's kind and shape, in a shape of their own."""
    sizes = [DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
    return torch.tensor(sizes + [0] * (MAX_DIMS + 2 - len(sizes)), dtype=torch.int64)


def exchange(own: torch.Tensor, split: Split) -> list[torch.Tensor]:
    """This rank's tensor and that of the same place in the other half, in the order of the halves."""
    own = own.contiguous()
    both = [torch.empty_like(own) for _ in range(split.degrees.guidance)]
    dist.all_gather(both, own, group=split.halves)
    return both


def join(
    sharing: Sharing, *, rank: int, size: int, host: str, port: int, device: str, timeout_s: float, store: Any = None
) -> Gang:  # fmt: skip
    """Make this process a rank. All ranks must call it; it waits for the others.

    Args:
        host, port: of rank 0's store.
        device: "cuda" for NCCL on the current device, "cpu" for gloo.
        timeout_s: of this and of every collective after it. A rank that does not come makes the others raise.
        store: rank 0's, from `open_store`.
    """
    timeout = timedelta(seconds=timeout_s)
    if store is None:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # torch names it in no __all__
            host, port, None, is_master=False, timeout=timeout
        )
    os.environ["LOCAL_RANK"] = str(torch.cuda.current_device() if device == "cuda" else 0)  # DeepSpeed's device
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return Gang(sharing, rank=rank, size=size, device=device, timeout_s=timeout_s)


def open_store(host: str, *, timeout_s: float) -> Any:
    """Rank 0's meeting place, on a free port (`.port`); it must live as long as the gang."""
    return dist.TCPStore(  # type: ignore[attr-defined]  # as above
        host, 0, None, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )


def bind_device(gpu_ids: Sequence[str], *, all_visible: bool, visible: str = "") -> str:
    """Choose this rank's GPU, explicitly. Returns "cuda" or "cpu".

    Args:
        gpu_ids: that Ray has given to this process, as it names them.
        all_visible: the process sees all GPUs of the node (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES). Ranks that see
            only their own lose peer access, and NCCL goes through host memory: on NVSwitch machines thousands of times
            slower (ray#61073).
        visible: CUDA_VISIBLE_DEVICES of the node, where it is set: torch counts from its first.
    """
    if not gpu_ids or not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(device_index(gpu_ids[0], visible) if all_visible else 0)
    return "cuda"


def device_index(gpu_id: str, visible: str) -> int:
    """torch's number of a GPU that Ray names by its id, among those that are visible."""
    return visible.split(",").index(gpu_id) if visible else int(gpu_id)
