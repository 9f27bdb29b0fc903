"""The operator ``snnfx::write_tile``: a tile of a tensor into its place in the whole."""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("snnfx", "FRAGMENT")
_LIBRARY.define(
    "write_tile(Tensor(a!) whole, Tensor tile, int dim, int outer, int count, int start) "
    "-> Tensor(a!)"
)


def write_tile(whole: Tensor, tile: Tensor, dim: int, outer: int, count: int, start: int) -> Tensor:
    """Write slices of an axis into a tensor that holds all of them.

    Args:
        whole: dimension `dim` has size ``outer * axis * inner``; it is written in place.
        tile: the same with `count` slices of the axis.
        dim: the dimension that holds the axis.
        outer: how many times the axis occurs in it.
        count: slices in the tile.
        start: the first of them.

    Returns:
        `whole`.
    """
    inner = tile.shape[dim] // (outer * count)
    before, after = whole.shape[:dim], whole.shape[dim + 1 :]
    place = whole.view(*before, outer, whole.shape[dim] // (outer * inner), inner, *after)
    place.narrow(dim + 1, start, count).copy_(tile.view(*before, outer, count, inner, *after))
    return whole


_LIBRARY.impl("write_tile", write_tile, "CompositeExplicitAutograd")
