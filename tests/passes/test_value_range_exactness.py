"""Where rounding decides whether values stay on a grid."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Graph

from snnfx.passes.analysis.grid import Grid
from snnfx.passes.analysis.value_range import analyse_value_ranges

from tests.passes.test_value_range import QUARTERS, aten, grids, spike


def test_ragged_and_padded_windows_of_pools() -> None:
    def pools(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = spike(x)
        return (
            F.avg_pool2d(torch.ones_like(s), 2, padding=1),
            F.avg_pool2d(s, 2, ceil_mode=True),
            F.avg_pool2d(s, 4, 3, ceil_mode=True),
            F.max_pool2d(s[..., :2, :2], 2, padding=1, dilation=3),
        )

    assert grids(pools, torch.randn(2, 3, 6, 6)) == [QUARTERS, QUARTERS, None, None]
    assert pools(torch.ones(2, 3, 6, 6))[3].isinf().all()


def test_sums_that_round_on_the_way_are_unknown() -> None:
    def sums(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tenths = torch.full_like(x, 0.1)
        return (
            F.avg_pool2d(tenths, 4),
            tenths.sum(1),
            tenths.mean(1),
            torch.full_like(x[0], 0.1, dtype=torch.float64) @ torch.ones_like(x[0]).double(),
            tenths.cumsum(1),
        )

    assert grids(sums, torch.randn(2, 8, 8)) == [None] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_holds_fewer_counts(dtype: torch.dtype) -> None:
    def counts(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = spike(x)
        return s.sum(0), s.sum((0, 1)), s.sum((0, 1, 2))

    limit = 256 if dtype is torch.bfloat16 else 2048
    expected = [Grid(Fraction(1), 0, n) if n <= limit else None for n in (16, 256, 4096)]
    assert grids(counts, torch.randn(16, 16, 16, 4, dtype=dtype)) == expected


@settings(max_examples=1500)
@given(
    ends=st.tuples(st.integers(-3, 4), st.integers(-3, 4)),
    factor=st.floats(-20, 20) | st.integers(1, 10**7).map(lambda n: n / 999983),
    op=st.sampled_from([aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.clamp_min.default]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_arithmetic_with_any_scalar_is_exact_or_unknown(
    ends: tuple[int, int], factor: float, op: Any, dtype: torch.dtype
) -> None:
    lo, hi = sorted(ends)
    levels = torch.arange(lo, hi + 1).repeat(9).to(dtype)
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = levels
    scaled = graph.call_function(op, (x, factor))
    scaled.meta["val"] = op(levels, factor)
    grid = analyse_value_ranges(graph, {x: Grid.of(1, lo, hi)}).grid(scaled)
    if grid is not None:
        assert all(Fraction(value) in grid for value in scaled.meta["val"].tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sum_with_a_scalar_that_a_half_dtype_lacks_is_unknown(dtype: torch.dtype) -> None:
    """Kernels round the scalar first (the CPU) or compute in float32 (CUDA)."""
    results = grids(lambda x: (spike(x) - 1.0001, spike(x) - 1.25), torch.randn(4, dtype=dtype))
    assert results == [None, Grid(Fraction(1, 4), -5, -1)]


def test_integers_that_promotion_rounds_are_unknown() -> None:
    odd = 2**24 + 1

    def difference(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.full((4,), odd) - torch.full_like(x, odd - 1), torch.full((4,), odd) - (
            odd - 1
        )

    assert grids(difference, torch.randn(4)) == [None, Grid.constant(1)]
    assert difference(torch.randn(4))[0].eq(0).all()


def test_conversion_to_integers_truncates_towards_zero() -> None:
    def convert(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        quarters = (spike(x) + 3) * -0.25
        return quarters.to(torch.int64), (quarters + 0.25).to(torch.int64)

    expected = [Grid(Fraction(1), -1, 0), Grid.constant(0)]
    assert grids(convert, torch.randn(4)) == expected
