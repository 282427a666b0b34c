"""A tiled decode spread over the ranks of a gang, by the autoencoder's own `tiled_decode`.

That runs twice, with the decoder replaced. The first time a rank decodes its own tiles and gives the autoencoder a
crumb for every one, so that it goes through all of them and blends nothing of size; the second time rank 0 has all
tiles and gives the real ones, which stock code then blends and joins. So the frames are those of one rank, bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from pipelines.parallel import Gang


def decode_together(decode: Callable[[], torch.Tensor], vae: Any, gang: Gang) -> torch.Tensor | None:
    """Frames of a tiled decode, on rank 0; None on others.

    Args:
        decode: decodes the same latents on every rank, in tiles, through `vae`.
    """
    stock = vae.decoder
    patch = getattr(vae.config, "patch_size", None) or 1  # the output is cut into pixels by it, in Wan2.2 TI2V's
    tiles = _Tiles(stock, gang, num_channels=patch * patch)
    vae._modules["decoder"] = tiles
    try:
        decode()
        tiles.collect()
        return decode() if gang.rank == 0 else None
    finally:
        vae._modules["decoder"] = stock


class _Tiles(torch.nn.Module):
    """In the decoder's place. A tile is one call, or several in a row where a cache goes from one to the next."""

    def __init__(self, stock: Any, gang: Gang, *, num_channels: int) -> None:
        super().__init__()
        self.__dict__["stock"] = stock  # not a submodule: hooks and devices are the autoencoder's business
        self.gang, self.calls, self.tile = gang, list[tuple[int, torch.Tensor | None]](), -1
        self.num_channels = num_channels  # of a crumb
        self.is_pair = "conv_cache" in inspect.signature(stock.forward).parameters  # it answers (output, cache)
        self.taken: int | None = None  # how many calls the second run has been answered

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["stock"], name) if name != "stock" else self.__dict__["stock"]

    def forward(self, z: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.taken is not None:
            made = self.calls[self.taken][1]
            self.taken += 1
            return (made, z) if self.is_pair else made
        is_later = "feat_cache" in kwargs and not kwargs.get(
            "first_chunk"
        )  # of a causal decoder; it is not always told
        goes_on = is_later or kwargs.get("conv_cache") is not None
        self.tile += not goes_on
        out: torch.Tensor | None = None
        cache: Any = z
        if self.tile % self.gang.size == self.gang.rank:
            answer = self.stock(z, *args, **kwargs)
            out, cache = answer if self.is_pair else (answer, cache)
        self.calls.append((self.tile, out))
        crumb = z.new_zeros(1, self.num_channels, 1, 1, 1)
        return (crumb, cache) if self.is_pair else crumb

    def collect(self) -> None:
        """Bring all tiles to rank 0, one after another."""
        for i, (tile, out) in enumerate(self.calls):
            source = tile % self.gang.size
            made = self.gang.hand_over(out if self.gang.rank == source else None, source=source)
            self.calls[i] = (tile, made)
        self.taken = 0
