"""Grids: the numbers a dtype holds, rounding, and exact arithmetic on sets of numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnfx.passes.analysis.grid import (
    BINARY,
    FLOAT_FORMATS,
    Grid,
    Rounding,
    add_grids,
    common_scale,
    fits,
    is_power_of_two,
    join_grids,
    multiply_grids,
    negate_grid,
    partial_sum_grid,
    round_to,
    stored_value,
    sum_grid,
)

SMALL = st.integers(-6, 6)
SCALES = st.builds(
    lambda odd, exponent: odd * Fraction(2) ** exponent,
    st.sampled_from([1, 3, 5, 129, 257, 2049, 16777215]),
    st.integers(-6, 6),
)
GRIDS = st.builds(
    lambda scale, a, b: Grid.of(scale, min(a, b), max(a, b)),
    SCALES | st.just(Fraction(1, 3)),
    SMALL,
    SMALL,
)
DTYPES = st.sampled_from(list(FLOAT_FORMATS))


def points(grid: Grid) -> set[Fraction]:
    return {grid.scale * k for k in range(grid.lo, grid.hi + 1)}


def is_exact(value: Fraction, dtype: torch.dtype) -> bool:
    """Whether a tensor of `dtype` gives back `value`, by way of torch's own conversion."""
    as_float = value.numerator / value.denominator
    return Fraction(as_float) == value and torch.tensor([as_float], dtype=dtype).item() == as_float


@given(GRIDS, DTYPES)
def test_a_grid_fits_exactly_the_dtypes_that_hold_each_of_its_points(
    grid: Grid, dtype: torch.dtype
) -> None:
    assert fits(grid, dtype) == all(is_exact(value, dtype) for value in points(grid))


@pytest.mark.parametrize(
    ("grid", "dtype", "expected"),
    [
        (BINARY, torch.bool, True),
        (Grid.of(1, 0, 2), torch.bool, False),
        (Grid.of(Fraction(1, 2), 0, 2), torch.bool, False),
        (Grid.of(1, 0, 255), torch.uint8, True),
        (Grid.of(1, 0, 256), torch.uint8, False),
        (Grid.of(1, -129, 0), torch.int8, False),
        (Grid.of(Fraction(1, 2), 0, 2), torch.int32, False),
        (Grid.of(1, 0, 256), torch.bfloat16, True),
        (Grid.of(1, 0, 257), torch.bfloat16, False),
        (Grid.of(1, 0, 2048), torch.float16, True),
        (Grid.of(1, 0, 2049), torch.float16, False),
        (Grid.of(32, 0, 2047), torch.float16, True),
        (Grid.of(64, 0, 2047), torch.float16, False),
        (Grid.of(1, 0, 2**24), torch.float32, True),
        (Grid.of(1, 0, 2**24 + 1), torch.float32, False),
        (Grid.of(Fraction(1, 2**149), 0, 1), torch.float32, False),
        (Grid.of(Fraction(1, 9), 0, 1), torch.float64, False),
        (BINARY, torch.complex64, False),
    ],
)
def test_fits_at_the_edges_of_each_dtype(grid: Grid, dtype: torch.dtype, expected: bool) -> None:
    assert fits(grid, dtype) is expected


@given(GRIDS, GRIDS)
def test_sums_products_and_joins_hold_every_combination(first: Grid, second: Grid) -> None:
    added, multiplied = add_grids(first, second), multiply_grids(first, second)
    joined = join_grids(first, second)
    for a in points(first):
        assert a in joined
        assert -a in negate_grid(first)
        for b in points(second):
            assert b in joined
            assert a + b in added
            assert a * b in multiplied


@given(GRIDS, GRIDS)
def test_bounds_of_sums_products_and_joins_are_reached(first: Grid, second: Grid) -> None:
    sums = {a + b for a in points(first) for b in points(second)}
    products = {a * b for a in points(first) for b in points(second)}
    for grid, values in (
        (add_grids(first, second), sums),
        (multiply_grids(first, second), products),
        (join_grids(first, second), points(first) | points(second)),
    ):
        assert (grid.minimum, grid.maximum) == (min(values), max(values))


@given(GRIDS, GRIDS)
def test_the_common_scale_is_the_largest_that_divides_both(first: Grid, second: Grid) -> None:
    scale = common_scale(first, second)
    factors = [value / scale for value in points(first) | points(second)]
    assert all(factor.denominator == 1 for factor in factors)
    if first.levels > 1 and second.levels > 1:
        assert math.gcd(int(first.scale / scale), int(second.scale / scale)) == 1


@given(GRIDS, st.integers(0, 4))
def test_sums_of_some_elements_are_between_the_partial_sums(grid: Grid, count: int) -> None:
    partial, full = partial_sum_grid(grid, count), sum_grid(grid, count)
    assert full.minimum == grid.minimum * count
    assert full.maximum == grid.maximum * count
    for used in range(count + 1):
        assert grid.minimum * used in partial
        assert grid.maximum * used in partial


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([np.float64, np.float32, np.float16]),
)
def test_rounding_to_nearest_agrees_with_numpy(value: float, kind: type[np.floating]) -> None:
    dtype = {np.float64: torch.float64, np.float32: torch.float32, np.float16: torch.float16}[kind]
    with np.errstate(over="ignore"):
        expected = float(kind(value))
    rounded = round_to(Fraction(value), dtype)
    assert rounded == (Fraction(expected) if math.isfinite(expected) else None)


@given(st.floats(-1e30, 1e30), DTYPES)
def test_directed_rounding_brackets_the_value(value: float, dtype: torch.dtype) -> None:
    exact = Fraction(value)
    down, up = round_to(exact, dtype, Rounding.DOWN), round_to(exact, dtype, Rounding.UP)
    assert down is None or down <= exact
    assert up is None or up >= exact
    nearest = round_to(exact, dtype)
    assert nearest is None or nearest in (down, up)


@given(st.floats(-1e4, 1e4), DTYPES)
def test_a_stored_scalar_is_what_a_filled_tensor_holds(value: float, dtype: torch.dtype) -> None:
    stored = stored_value(Fraction(value), dtype)
    if stored is not None:
        assert stored == Fraction(torch.full((1,), value, dtype=dtype).item())


def test_a_scalar_is_unknown_where_kernels_may_round_it_in_two_ways() -> None:
    twice_rounded = 1 + 2**-11 + 2**-30
    assert round_to(Fraction(twice_rounded), torch.float16) == 1 + Fraction(1, 2**10)
    assert stored_value(Fraction(twice_rounded), torch.float16) is None
    assert stored_value(Fraction(1e-40), torch.float32) is None
    assert stored_value(Fraction(5, 2), torch.int64) is None
    assert stored_value(Fraction(3), torch.bool) == 1


def test_bits_tell_the_points_apart() -> None:
    assert [Grid.of(1, 0, hi).bits for hi in (0, 1, 2, 3, 4, 255, 256)] == [0, 1, 2, 2, 3, 8, 9]


def test_a_grid_of_one_point_has_one_form() -> None:
    assert Grid.of(Fraction(1, 4), 8, 8) == Grid.constant(2) == Grid(Fraction(2), 1, 1)
    assert Grid.of(3, 0, 0) == Grid.constant(0) == Grid(Fraction(1), 0, 0)
    assert Grid.of(3, -1, -1) == Grid.constant(-3)


def test_a_scale_or_range_that_is_no_grid_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected scale > 0 and lo <= hi"):
        Grid(Fraction(0), 0, 1)
    with pytest.raises(ValueError, match="expected scale > 0 and lo <= hi"):
        Grid(Fraction(1), 1, 0)


def test_powers_of_two_of_either_sign_of_exponent() -> None:
    assert all(is_power_of_two(Fraction(2) ** e) for e in range(-5, 6))
    assert not any(is_power_of_two(Fraction(v)) for v in (0, 3, -2, Fraction(1, 3), Fraction(3, 2)))
