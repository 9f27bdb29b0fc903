"""From the sizes and strides of a call to the loops of a region's kernel.

Dims are ordered by the strides of the outputs, dims of size 1 are dropped, and neighbours that are
one dim to every buffer are merged, so that most calls are left with two or three dims. The last
two are cut into tiles of at most `block_elements`.
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


def geometry(
    sizes: Sequence[int],
    inputs: Sequence[Layout],
    outputs: Sequence[Layout],
    sums: Sequence[int],
    block: int,
) -> Geometry:
    """The loops over the index space `sizes`.

    Args:
        sizes: of the base dims.
        inputs: layouts of the inputs.
        outputs: layouts of the outputs.
        sums: outputs that are sums, ascending; they are summed over the dims where their stride
            is 0.
        block: largest number of elements in a tile.
    """
    layouts = [*inputs, *outputs]
    stored = [outputs[index][1] for index in range(len(outputs)) if index not in sums]
    order = _order(sizes, stored or [layout[1] for layout in layouts])
    strides = [[layout[1][dim] for dim in order] for layout in layouts]
    merged, strides = _merge([sizes[dim] for dim in order], strides)
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
    header = (len(merged), rows, cols, max(1, min(tiles, MAX_CHUNKS)), len(offsets), *merged)
    table = [value for step, row in zip(steps, strides, strict=True) for value in (step, *row)]
    threads = max(1, math.prod(merged) // MIN_ELEMENTS_PER_THREAD)
    return Geometry(header, tuple(table), tuple(offsets), tiles, threads)


def _order(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> list[int]:
    """Dims of more than one element, those of the largest strides first."""

    def key(dim: int) -> tuple[int, ...]:
        return tuple(-abs(row[dim]) for row in strides)

    return sorted((dim for dim, size in enumerate(sizes) if size != 1), key=key)


def _merge(sizes: list[int], strides: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """Merge dims with the one inside them where every buffer steps over both evenly."""
    merged = list[int]()
    rows = [list[int]() for _ in strides]
    for dim, size in enumerate(sizes):
        if merged and all(row[-1] == s[dim] * size for row, s in zip(rows, strides, strict=True)):
            merged[-1] *= size
            for row, s in zip(rows, strides, strict=True):
                row[-1] = s[dim]
        else:
            merged.append(size)
            for row, s in zip(rows, strides, strict=True):
                row.append(s[dim])
    return merged, rows


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
