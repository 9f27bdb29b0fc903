"""Value-range rules of pooling, reductions and matrix products.

A sum is exact in any order of accumulation where every sum of some of its terms fits the dtype.
Its terms are multiples of one scale, so it is enough that the largest and the smallest sum fit.
Averages are exact where they divide by a power of two: kernels divide, or multiply by the
reciprocal.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import torch

import snnfx.kernels.pool  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers
from snnfx.passes.analysis.grid import (
    Grid,
    fits,
    is_power_of_two,
    multiply_grids,
    partial_sum_grid,
    sum_grid,
)
from snnfx.passes.analysis.value_range_rules import (
    TOP,
    VALUE_RANGES,
    Call,
    Fact,
    static_int,
)
from snnfx.passes.analysis.value_range_rules_pointwise import product

aten = torch.ops.aten


def _per_dimension(value: object, dimensions: int, default: int) -> list[int | None]:
    """A size argument of a pooling op as one number per dimension."""
    values = list(value) if isinstance(value, Sequence) else [value]
    if not values or values == [None]:
        values = [default]
    if len(values) == 1:
        values = values * dimensions
    return [static_int(item) for item in values]


def _all_equal(values: Sequence[int | None], number: int) -> bool:
    return all(value == number for value in values)


def _index_fact(count: int | None) -> Fact:
    """Positions in ``count`` elements."""
    return TOP if not count else Fact.on(Grid.of(1, 0, count - 1))


def _count(sizes: Sequence[int | None]) -> int | None:
    """The product of sizes, if all are known."""
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _max_pool(call: Call, dimensions: int, *, indices_in_window: bool) -> tuple[Fact, Fact]:
    """Maxima over windows, and where they are.

    Padding counts as minus infinity and never wins, for each window holds an element: padding is
    at most half a window. With dilation a window can step over a small input, so that is unknown.
    """
    kernel = _per_dimension(call.arg("kernel_size"), dimensions, 1)
    padding = _per_dimension(call.arg("padding"), dimensions, 0)
    dilation = _per_dimension(call.arg("dilation"), dimensions, 1)
    shape = call.shape(call.first)
    if shape is None or (not _all_equal(padding, 0) and not _all_equal(dilation, 1)):
        return TOP, TOP
    places = kernel if indices_in_window else shape[-dimensions:]
    return call.operand(call.first), _index_fact(_count(places))


@VALUE_RANGES.rule(aten.max_pool2d_with_indices.default)
def max_pool2d_range(call: Call) -> tuple[Fact, Fact]:
    """Two-dimensional windows."""
    return _max_pool(call, 2, indices_in_window=False)


@VALUE_RANGES.rule(aten.max_pool3d_with_indices.default)
def max_pool3d_range(call: Call) -> tuple[Fact, Fact]:
    """Three-dimensional windows."""
    return _max_pool(call, 3, indices_in_window=False)


@VALUE_RANGES.rule(torch.ops.snnfx.max_pool2d.default)
def own_max_pool2d_range(call: Call) -> Fact:
    """Elements of the argument: as `_max_pool` says, padding never wins."""
    return call.operand(call.first)


@VALUE_RANGES.rule(torch.ops.snnfx.max_pool2d_offsets.default)
def max_pool2d_offsets_range(call: Call) -> Fact:
    """Positions in a window."""
    return _index_fact(_count(_per_dimension(call.arg("kernel"), 2, 1)))


@VALUE_RANGES.rule(
    aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default, aten.max.dim, aten.min.dim
)
def selected_with_position_range(call: Call) -> tuple[Fact, Fact]:
    """Elements, and where they are in their plane or dimension."""
    shape = call.shape(call.first)
    return call.operand(call.first), _index_fact(None if shape is None else _count(shape))


@VALUE_RANGES.rule("prims::_low_memory_max_pool_with_offsets")
def low_memory_max_pool_range(call: Call) -> tuple[Fact, Fact]:
    """Max pooling as Inductor decomposes it: positions are relative to the window."""
    return _max_pool(call, len(call.arg("kernel_size")), indices_in_window=True)


@VALUE_RANGES.rule(
    aten.amax.default, aten.amin.default, aten.max.default, aten.min.default,
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default,
)  # fmt: skip
def selected_range(call: Call) -> Fact:
    """Some elements of the argument; `_max_pool` says why padding does not show."""
    dilation, padding = call.arg("dilation"), call.arg("padding")
    if dilation is not None and not (
        _all_equal(_per_dimension(dilation, 1, 1), 1)
        or _all_equal(_per_dimension(padding, 1, 0), 0)
    ):
        return TOP
    return call.operand(call.first)


def _averaged(call: Call, most: int, divisors: set[int], *, may_be_fewer: bool) -> Fact:
    """Sums of up to `most` elements, each over one of `divisors`.

    Args:
        call: the pooling or mean.
        most: number of elements in a full window.
        divisors: what the sums may be divided by.
        may_be_fewer: whether padding can replace some elements by zeros.
    """
    fact = call.operand(call.first)
    if fact.grid is None or not _sums_fit(fact.grid, most, call.dtype):
        return TOP
    if not divisors or not all(d > 0 and is_power_of_two(Fraction(d)) for d in divisors):
        return TOP
    sums = partial_sum_grid(fact.grid, most) if may_be_fewer else sum_grid(fact.grid, most)
    largest = max(divisors)
    # A sum over a smaller divisor is a multiple of the same scale; its window is as much smaller.
    return Fact.on(Grid.of(sums.scale / largest, sums.lo, sums.hi), fact.lapses)


def _sums_fit(grid: Grid, count: int, dtype: torch.dtype) -> bool:
    return fits(partial_sum_grid(grid, count), dtype)


def _avg_pool(call: Call, dimensions: int) -> Fact:
    """Means over windows; with padding or a ragged edge the divisor may differ by window."""
    kernel = _per_dimension(call.arg("kernel_size"), dimensions, 1)
    padding = _per_dimension(call.arg("padding"), dimensions, 0)
    window = _count(kernel)
    if window is None:
        return TOP
    ceil_mode, override = call.arg("ceil_mode"), call.arg("divisor_override")
    padded = not _all_equal(padding, 0)
    if override is not None:
        divisor = static_int(override)
        if divisor is None:
            return TOP
        return _averaged(call, window, {divisor}, may_be_fewer=padded or bool(ceil_mode))
    if not ceil_mode and (not padded or call.arg("count_include_pad", True)):
        return _averaged(call, window, {window}, may_be_fewer=padded)
    sides = [range(1, size + 1) for size in kernel if size is not None]
    divisors = {math.prod(shape) for shape in itertools.product(*sides)}
    return _averaged(call, window, divisors, may_be_fewer=True)


@VALUE_RANGES.rule(aten.avg_pool1d.default)
def avg_pool1d_range(call: Call) -> Fact:
    """One-dimensional windows."""
    return _avg_pool(call, 1)


@VALUE_RANGES.rule(aten.avg_pool2d.default)
def avg_pool2d_range(call: Call) -> Fact:
    """Two-dimensional windows: 2x2 pooling of spikes is on quarters, 0 to 4 of them."""
    return _avg_pool(call, 2)


@VALUE_RANGES.rule(aten.avg_pool3d.default)
def avg_pool3d_range(call: Call) -> Fact:
    """Three-dimensional windows."""
    return _avg_pool(call, 3)


@VALUE_RANGES.rule(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
def adaptive_avg_pool_range(call: Call) -> Fact:
    """Means over equal windows, where the output size divides the input's."""
    output = [static_int(size) for size in call.arg("output_size")]
    shape = call.shape("self")
    if shape is None or not output:
        return TOP
    window = 1
    for size, parts in zip(shape[-len(output) :], output, strict=True):
        if size is None or not parts or size % parts:
            return TOP
        window *= size // parts
    return _averaged(call, window, {window}, may_be_fewer=False)


def _reduced_count(call: Call) -> int | None:
    """How many elements each result of a reduction is made of."""
    shape, dims = call.shape("self"), call.arg("dim")
    if shape is None:
        return None
    if isinstance(dims, int):
        dims = [dims]
    if not dims:
        return _count(shape)
    return _count([shape[dim] for dim in dims]) if shape else 1


@VALUE_RANGES.rule(aten.sum.default, aten.sum.dim_IntList)
def sum_range(call: Call) -> Fact:
    """Sums over dimensions."""
    fact, count = call.operand("self"), _reduced_count(call)
    if fact.grid is None or count is None or not _sums_fit(fact.grid, count, call.dtype):
        return TOP
    return Fact.on(sum_grid(fact.grid, count), fact.lapses)


@VALUE_RANGES.rule(aten.mean.default, aten.mean.dim)
def mean_range(call: Call) -> Fact:
    """Means over dimensions."""
    count = _reduced_count(call)
    return TOP if not count else _averaged(call, count, {count}, may_be_fewer=False)


@VALUE_RANGES.rule(aten.cumsum.default)
def cumsum_range(call: Call) -> Fact:
    """Sums of the first elements along a dimension."""
    fact, count = call.operand("self"), _reduced_count(call)
    if fact.grid is None or not count or not _sums_fit(fact.grid, count, call.dtype):
        return TOP
    grid = fact.grid
    lo, hi = min(grid.lo, grid.lo * count), max(grid.hi, grid.hi * count)
    return Fact.on(Grid.of(grid.scale, lo, hi), fact.lapses)


@VALUE_RANGES.rule(aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def matmul_range(call: Call) -> Fact:
    """Sums of products, as in attention between spikes.

    Matrix units may round float32 operands to bfloat16 or TF32 first (8 and 11 significant bits),
    so operands must survive that.
    """
    left, right = call.names[:2]
    first_fact, second_fact = call.operand(left), call.operand(right)
    shape = call.shape(left)
    count = None if shape is None else shape[-1]
    if first_fact.grid is None or second_fact.grid is None or count is None:
        return TOP
    if call.dtype is torch.float32 and not (
        fits(first_fact.grid, torch.bfloat16) and fits(second_fact.grid, torch.bfloat16)
    ):
        return TOP
    products = multiply_grids(first_fact.grid, second_fact.grid)
    if not _sums_fit(products, count, call.dtype):
        return TOP
    return Fact.on(sum_grid(products, count), product(first_fact, second_fact).lapses)
