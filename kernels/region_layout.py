"""From the sizes and strides of a call to the loops of a region's kernel.

Dims are ordered by the strides of the outputs, dims of size 1 are dropped, and neighbours that are
one dim to every buffer are merged, so that most calls are left with two or three dims. The last
two are cut into tiles of at most `block_elements`. Dims with windows stay as they are: a kernel has
to know the index in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from snnfx.kernels.region_prelude import LANES

Layout = tuple[int, tuple[int, ...]]
"""Of one buffer, in elements: the step stride, then the stride of each base dim."""

MAX_CHUNKS = 64
"""Pieces that the tiles are dealt out to threads in; each has partial sums of its own."""

MIN_ELEMENTS_PER_THREAD = 4096


@dataclass(frozen=True)
class Geometry:
    """What a kernel is told of a call's sizes; see `region_prelude.DRIVER`.

    Attributes:
        header: the kernel's argument ``geometry``.
        strides: the kernel's argument ``strides``.
        offsets: where in its output each partial sum goes, in elements.
        tiles: number of tiles; 0 where the index space is empty.
        max_threads: more threads than these would not pay.
    """

    header: tuple[int, ...]
    strides: tuple[int, ...]
    offsets: tuple[int, ...]
    tiles: int
    max_threads: int


@dataclass(frozen=True)
class Windows:
    """The windowed inputs of a call.

    Attributes:
        dims: the base dims whose index a kernel has to know, ascending.
        extents: for each input, its own size in each dim in which it is windowed, by dim.
    """

    dims: tuple[int, ...] = ()
    extents: tuple[dict[int, int], ...] = ()

    def without(self, inputs: Sequence[Layout]) -> list[Layout]:
        """The layouts of the inputs but for what windows add to them."""
        if not self.extents:
            return list(inputs)
        return [
            (step, tuple(0 if dim in own else stride for dim, stride in enumerate(strides)))
            for (step, strides), own in zip(inputs, self.extents, strict=True)
        ]

    def table(self, inputs: Sequence[Layout]) -> list[int]:
        """For each windowed input, in turn for each of `dims`: its own size and its stride."""
        pairs = list[int]()
        for index, own in enumerate(self.extents):
            for dim in self.dims if own else ():
                pairs += (own[dim], inputs[index][1][dim]) if dim in own else (1, 0)
        return pairs


def geometry(
    sizes: Sequence[int],
    inputs: Sequence[Layout],
    outputs: Sequence[Layout],
    sums: Sequence[int],
    block: int,
    windows: Windows = Windows(),
) -> Geometry:
    """The loops over the index space `sizes`.

    Args:
        sizes: of the base dims.
        inputs: layouts of the inputs.
        outputs: layouts of the outputs.
        sums: outputs that are sums, ascending; they are summed over the dims where their stride
            is 0.
        block: largest number of elements in a tile.
        windows: which inputs are windowed.
    """
    layouts = [*windows.without(inputs), *outputs]
    stored = [outputs[index][1] for index in range(len(outputs)) if index not in sums]
    order = _order(sizes, stored or [layout[1] for layout in layouts], windows.dims)
    strides = [[layout[1][dim] for dim in order] for layout in layouts]
    apart = frozenset(order.index(dim) for dim in windows.dims)
    merged, strides, last = _merge([sizes[dim] for dim in order], strides, apart)
    missing = max(0, 2 - len(merged))
    merged = [1] * missing + merged
    strides = [[0] * missing + row for row in strides]

    steps, offsets = [layout[0] for layout in layouts], list[int]()
    for index in sums:
        position = len(inputs) + index
        steps[position] = len(offsets)
        positions, compact = _kept(merged, strides[position])
        offsets += positions
        strides[position] = compact
    rows, cols = _tile(merged[-2], merged[-1], block)
    tiles = math.prod(merged[:-2]) * -(-merged[-2] // rows) * -(-merged[-1] // cols)
    axes = [missing + last.index(order.index(dim)) for dim in windows.dims]
    header = (len(merged), rows, cols, max(1, min(tiles, MAX_CHUNKS)), len(offsets), *merged,
              *axes, *windows.table(inputs))  # fmt: skip
    table = [value for step, row in zip(steps, strides, strict=True) for value in (step, *row)]
    threads = max(1, math.prod(merged) // MIN_ELEMENTS_PER_THREAD)
    return Geometry(header, tuple(table), tuple(offsets), tiles, threads)


def _order(
    sizes: Sequence[int], strides: Sequence[Sequence[int]], windowed: Sequence[int]
) -> list[int]:
    """Dims of more than one element or with windows, those of the largest strides first."""

    def key(dim: int) -> tuple[int, ...]:
        return tuple(-abs(row[dim]) for row in strides)

    kept = (dim for dim, size in enumerate(sizes) if size != 1 or dim in windowed)
    return sorted(kept, key=key)


def _merge(
    sizes: list[int], strides: list[list[int]], apart: frozenset[int]
) -> tuple[list[int], list[list[int]], list[int]]:
    """Merge dims with the one inside them where every buffer steps over both evenly.

    Returns:
        The sizes, the strides of each buffer, and the last of the dims that each one is made of.
    """
    merged, last = list[int](), list[int]()
    rows = [list[int]() for _ in strides]
    for dim, size in enumerate(sizes):
        may_merge = bool(last) and apart.isdisjoint((last[-1], dim))
        if may_merge and all(
            row[-1] == s[dim] * size for row, s in zip(rows, strides, strict=True)
        ):
            merged[-1] *= size
            last[-1] = dim
            for row, s in zip(rows, strides, strict=True):
                row[-1] = s[dim]
        else:
            merged.append(size)
            last.append(dim)
            for row, s in zip(rows, strides, strict=True):
                row.append(s[dim])
    return merged, rows, last


def _kept(sizes: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of a sum: the offset of each element in its output, and strides of them side by side."""
    offsets, compact = [0], [0] * len(sizes)
    for dim in range(len(sizes)):
        if strides[dim] != 0:
            offsets = [start + i * strides[dim] for start in offsets for i in range(sizes[dim])]
    count = 1
    for dim in reversed(range(len(sizes))):
        if strides[dim] != 0:
            compact[dim] = count
            count *= sizes[dim]
    return offsets, compact


def _tile(rows: int, cols: int, block: int) -> tuple[int, int]:
    """Rows and columns of a tile: part of a row, in pieces of one size, or several whole rows."""
    if cols > block:
        pieces = -(-cols // block)
        return 1, min(block, -(-cols // (pieces * LANES)) * LANES)
    return max(1, min(rows, block // max(1, cols))), max(1, cols)
