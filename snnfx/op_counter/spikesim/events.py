"""What one convolution makes a SpikeSim accelerator do, dense or as its input spikes.

A convolution ``[N, C, H, W] -> [N, M, H', W']`` is cut into ``ceil(C / B)`` tiles of input channels
and ``ceil(M / B)`` of output channels, ``B`` being the size of a crossbar. A *site* is a place
``(n, h', w')`` of the output, a *patch* what a site reads of one tile of input channels, a *row*
one element of a patch, which drives one row of a crossbar.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from snnfx._torch_compat import without_dispatch

Pair = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """How the weight of a convolution lies on crossbars.

    Attributes:
        in_channels: `C`.
        out_channels: `M`.
        kernel_size: height and width.
        xbar_size: `B`.
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    xbar_size: int

    @property
    def input_tile_channels(self) -> list[int]:
        """The channels of each input tile: `B`, but for the last what is left."""
        starts = range(0, self.in_channels, self.xbar_size)
        return [min(self.xbar_size, self.in_channels - start) for start in starts]

    @property
    def in_channel_tiles(self) -> int:
        return math.ceil(self.in_channels / self.xbar_size)

    @property
    def out_channel_tiles(self) -> int:
        return math.ceil(self.out_channels / self.xbar_size)


@dataclass(frozen=True)
class Convolution:
    """The sizes of one call of a 2D convolution without groups.

    Attributes:
        tiling: of its weight.
        input_shape: `[N, C, H, W]`.
        output_shape: `[N, M, H', W']`.
        stride: height and width; as the next two.
        padding: on either side.
        dilation: between elements of the kernel.
    """

    tiling: Tiling
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def sites(self) -> int:
        batch, _, height, width = self.output_shape
        return batch * height * width

    @property
    def pe_cycles(self) -> int:
        """Cycles of processing elements: one for each site and pair of tiles."""
        return self.tiling.in_channel_tiles * self.tiling.out_channel_tiles * self.sites

    def window(self, dim: int) -> Window:
        """What sites read along the height (0) or the width (1)."""
        return Window(
            self.input_shape[2 + dim],
            self.output_shape[2 + dim],
            self.tiling.kernel_size[dim],
            self.stride[dim],
            self.padding[dim],
            self.dilation[dim],
        )


@dataclass(frozen=True)
class Window:
    """One spatial dimension of a convolution.

    Output `i` reads the places ``i * stride - padding + j * dilation``, for each `j` of the kernel.
    """

    length: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    def uses(self) -> list[int]:
        """How many outputs read each place of the input."""
        uses = [0] * self.length
        for output in range(self.outputs):
            for offset in range(self.kernel):
                place = output * self.stride - self.padding + offset * self.dilation
                if 0 <= place < self.length:
                    uses[place] += 1
        return uses

    def any_read(self, fired: Tensor) -> Tensor:
        """Whether each output reads a True, along the last dimension: ``[*, L] -> [*, L']``."""
        padded = F.pad(fired, (self.padding, self.padding))
        span = (self.outputs - 1) * self.stride + 1
        starts = (offset * self.dilation for offset in range(self.kernel))
        read = [padded[..., start : start + span : self.stride] for start in starts]
        return reduce(torch.logical_or, read)


@dataclass(frozen=True)
class Events:
    """What has to be done.

    Attributes:
        patch_tiles: patches, of all input tiles, that reach a crossbar.
        rows_by_tile: rows that are driven, for each input tile.
        output_tile_sites: sites with neurons to update, once for each output tile.
    """

    patch_tiles: int
    rows_by_tile: tuple[int, ...]
    output_tile_sites: int

    @property
    def rows(self) -> int:
        return sum(self.rows_by_tile)

    def __add__(self, other: Events) -> Events:
        return Events(
            self.patch_tiles + other.patch_tiles,
            tuple(a + b for a, b in zip(self.rows_by_tile, other.rows_by_tile, strict=True)),
            self.output_tile_sites + other.output_tile_sites,
        )


def dense_events(conv: Convolution) -> Events:
    """Everything: each site's patch of each tile with all its rows, padding included."""
    tiling = conv.tiling
    height, width = tiling.kernel_size
    return Events(
        conv.sites * tiling.in_channel_tiles,
        tuple(conv.sites * c * height * width for c in tiling.input_tile_channels),
        conv.sites * tiling.out_channel_tiles,
    )


def spike_events(x: Tensor, conv: Convolution) -> Events:
    """Only what spikes set off: patches with a spike, rows that are one, sites with such a patch.

    Exact for any number of spikes. A place is a row of as many patches as there are outputs that
    read it, which is a product of one factor for its height and one for its width; a kernel reads a
    rectangle, so a patch fires if any of its lines does. Neither needs a convolution, and nothing
    of the size of the input is kept but one number for each tile of channels.

    Args:
        x: `[N, C, H, W]` of zeros and ones.
        conv: of the call whose input `x` is.
    """
    with without_dispatch(), torch.no_grad():
        spikes = _spikes_by_tile(x, conv.tiling)
        fired = conv.window(1).any_read(spikes.ne(0))
        fired = conv.window(0).any_read(fired.transpose(-1, -2))
        uses_h, uses_w = (torch.tensor(conv.window(d).uses(), device=x.device) for d in (0, 1))
        rows = (spikes.sum(0) * uses_h[:, None] * uses_w).sum((1, 2))
        return Events(
            int(torch.count_nonzero(fired)),
            tuple(int(n) for n in rows.tolist()),
            int(torch.count_nonzero(fired.any(1))) * conv.tiling.out_channel_tiles,
        )


def _spikes_by_tile(x: Tensor, tiling: Tiling) -> Tensor:
    """The spikes of each tile of channels: ``[N, C, H, W] -> int32 [N, tiles, H, W]``.

    Floats of 32 bits add up ones fastest, and exactly: a tile has less than 2 ** 24 channels.
    """
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else None
    tiles = [channels.sum(1, dtype=dtype) for channels in x.split(tiling.xbar_size, 1)]
    return torch.stack(tiles, 1).to(torch.int32)
