"""Tiles written into their places in a whole, against indices by the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import snnfx.kernels.tiles  # noqa: F401  # registers the operator

write_tile = torch.ops.snnfx.write_tile.default
sizes = st.integers(1, 3)


@given(st.lists(sizes, max_size=2), st.lists(sizes, max_size=2), sizes, sizes, sizes, sizes)
def test_a_tile_takes_the_place_of_its_slices_and_nothing_else_changes(
    before: list[int], after: list[int], outer: int, inner: int, tiles: int, count: int
) -> None:
    axis, dim = tiles * count, len(before)
    whole = torch.zeros(*before, outer * axis * inner, *after)
    tile = torch.randn(*before, outer * count * inner, *after)
    start = (tiles - 1) * count
    indices = torch.tensor(
        [
            (o * axis + s) * inner + i
            for o in range(outer)
            for s in range(start, start + count)
            for i in range(inner)
        ]
    )
    expected = whole.index_copy(dim, indices, tile)
    found = write_tile(whole, tile, dim, outer, count, start)
    assert torch.equal(found, expected)
    assert found.data_ptr() == whole.data_ptr()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_whole_and_tile_may_lie_in_memory_in_any_order(memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 3, 5, 5)
    whole = torch.empty(4, 3, 5, 5).to(memory_format=memory_format)
    for start in (2, 0):
        write_tile(whole, x[start : start + 2], 0, 1, 2, start)
    assert torch.equal(whole, x)
