"""Exact grids of numbers, and which of them a dtype holds without rounding.

A `Grid` is the finite set ``{scale * k : lo <= k <= hi}`` of real numbers, with a rational scale.
All arithmetic here is exact (integers and `fractions.Fraction`): what a machine would round is
refused by `fits`, never approximated.

The grids, ordered by inclusion, are the useful elements of the value-range lattice; *unknown* (any
number at all) is its top and is written ``None``. The join of two grids is the smallest grid on
their common scale (the greatest common divisor of the two scales) that holds both.

Number formats follow IEEE 754-2019, section 3.3: a binary format of precision ``p`` and least
normal exponent ``emin`` holds ``m * 2**e`` for ``|m| < 2**p``, ``e >= emin - p + 1``. Subnormal
numbers are left out, because devices may flush them to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import torch

ENUMERATED_LEVELS = 512
"""Grids of at most this many points are checked point by point where a bound does not decide."""


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A binary floating-point format.

    Attributes:
        precision: significant bits, the hidden one included.
        min_exponent: exponent of the smallest normal number, ``2**min_exponent``.
        tiny: that number.
        largest: the largest finite number.
    """

    precision: int
    min_exponent: int
    tiny: Fraction
    largest: Fraction

    @classmethod
    def of(cls, dtype: torch.dtype) -> FloatFormat:
        info = torch.finfo(dtype)
        tiny = Fraction(info.tiny)
        return cls(
            precision=Fraction(info.eps).denominator.bit_length(),
            min_exponent=1 - tiny.denominator.bit_length(),
            tiny=tiny,
            largest=Fraction(info.max),
        )


FLOAT_FORMATS = {
    dtype: FloatFormat.of(dtype)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
INTEGER_DTYPES = frozenset(
    (
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
)
HALF_DTYPES = frozenset((torch.float16, torch.bfloat16))


class Rounding(Enum):
    """Direction of a rounding to a number format."""

    NEAREST_EVEN = "nearest-even"
    DOWN = "down"
    UP = "up"


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers ``scale * k`` for the integers ``lo <= k <= hi``.

    Attributes:
        scale: distance of neighbouring points, positive.
        lo: smallest multiplier.
        hi: largest multiplier.

    Raises:
        ValueError: the scale is not positive, or ``lo > hi``.
    """

    scale: Fraction
    lo: int
    hi: int

    def __post_init__(self) -> None:
        if self.scale <= 0 or self.lo > self.hi:
            raise ValueError(f"expected scale > 0 and lo <= hi, got {self}")

    @classmethod
    def of(cls, scale: Fraction | int, lo: int, hi: int) -> Grid:
        """The grid in canonical form: one point is ``scale=|value|``, ``k`` in -1, 0, 1."""
        if lo == hi:
            return cls.constant(Fraction(scale) * lo)
        return cls(Fraction(scale), lo, hi)

    @classmethod
    def constant(cls, value: Fraction | int) -> Grid:
        """The grid of the one number `value`."""
        sign = (value > 0) - (value < 0)
        return cls(Fraction(abs(value)) if sign else Fraction(1), sign, sign)

    @property
    def levels(self) -> int:
        """Number of points."""
        return self.hi - self.lo + 1

    @property
    def bits(self) -> int:
        """Bits that tell the points apart: ``ceil(log2(levels))``."""
        return (self.levels - 1).bit_length()

    @property
    def minimum(self) -> Fraction:
        """The smallest number of the grid."""
        return self.scale * self.lo

    @property
    def maximum(self) -> Fraction:
        """The largest number of the grid."""
        return self.scale * self.hi

    @property
    def is_constant(self) -> bool:
        """Whether the grid is one number."""
        return self.lo == self.hi

    @property
    def has_zero(self) -> bool:
        """Whether zero is one of the numbers."""
        return self.lo <= 0 <= self.hi

    def __contains__(self, value: Fraction | int) -> bool:
        multiplier = Fraction(value) / self.scale
        return multiplier.denominator == 1 and self.lo <= multiplier <= self.hi


BINARY = Grid(Fraction(1), 0, 1)
"""Zeros and ones: every bool tensor and every spike."""


def fits(grid: Grid, dtype: torch.dtype) -> bool:
    """Whether `dtype` holds every number of `grid` exactly, as a normal number or zero."""
    if dtype is torch.bool:
        return grid.scale.denominator == 1 and grid.minimum >= 0 and grid.maximum <= 1
    if dtype in INTEGER_DTYPES:
        info = torch.iinfo(dtype)
        integral = grid.scale.denominator == 1
        return integral and grid.minimum >= info.min and grid.maximum <= info.max
    number_format = FLOAT_FORMATS.get(dtype)
    return number_format is not None and _fits_float(grid, number_format)


def _fits_float(grid: Grid, number_format: FloatFormat) -> bool:
    """`fits` for floats: significant bits, then the range of exponents."""
    reach = max(abs(grid.lo), abs(grid.hi))
    if reach == 0:
        return True
    if not _is_power_of_two(grid.scale.denominator) or grid.scale < number_format.tiny:
        return False
    if reach * grid.scale > number_format.largest:
        return False
    odd = _odd_part(grid.scale.numerator)
    limit = 1 << number_format.precision
    if reach * odd <= limit:
        return True
    if grid.levels > ENUMERATED_LEVELS:
        return False
    return all(_odd_part(k * odd) < limit for k in range(grid.lo, grid.hi + 1))


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def is_power_of_two(value: Fraction) -> bool:
    """Whether `value` is ``2**e`` for an integer ``e`` of either sign."""
    return _is_power_of_two(value.numerator) and _is_power_of_two(value.denominator)


def _odd_part(value: int) -> int:
    value = abs(value)
    return value >> ((value & -value).bit_length() - 1) if value else 0


def round_to(
    value: Fraction, dtype: torch.dtype, rounding: Rounding = Rounding.NEAREST_EVEN
) -> Fraction | None:
    """`value` rounded to the float `dtype`, subnormals included, or None if it overflows."""
    number_format = FLOAT_FORMATS[dtype]
    if value == 0:
        return value
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, number_format.min_exponent)
    ulp = Fraction(2) ** (exponent - number_format.precision + 1)
    steps = {Rounding.NEAREST_EVEN: round, Rounding.DOWN: math.floor, Rounding.UP: math.ceil}
    rounded = steps[rounding](value / ulp) * ulp
    return rounded if abs(rounded) <= number_format.largest else None


def stored_value(value: Fraction, dtype: torch.dtype) -> Fraction | None:
    """The number that a tensor of `dtype` holds after it was filled with the scalar `value`.

    Half formats are reached directly or by way of float32, depending on the kernel; where the two
    disagree there is no answer, nor is there one for overflow, subnormals and integers that
    `dtype` lacks.
    """
    if dtype is torch.bool:
        return Fraction(int(value != 0))
    if dtype in INTEGER_DTYPES:
        return value if fits(Grid.constant(value), dtype) else None
    if dtype not in FLOAT_FORMATS:
        return None
    rounded = round_to(value, dtype)
    if dtype in HALF_DTYPES:
        single = round_to(value, torch.float32)
        if single is None or round_to(single, dtype) != rounded:
            return None
    if rounded is None or (value != 0 and abs(rounded) < FLOAT_FORMATS[dtype].tiny):
        return None
    return rounded


def common_scale(first: Grid, second: Grid) -> Fraction:
    """The largest scale that both grids are multiples of."""
    if first.lo == first.hi == 0:
        return second.scale
    if second.lo == second.hi == 0:
        return first.scale
    a, b = first.scale, second.scale
    if a == b:
        return a
    return Fraction(
        math.gcd(a.numerator * b.denominator, b.numerator * a.denominator),
        a.denominator * b.denominator,
    )


def _on_scale(grid: Grid, scale: Fraction) -> tuple[int, int]:
    """Multipliers of `grid` on a finer scale that divides its own."""
    if grid.lo == grid.hi == 0 or grid.scale == scale:
        return grid.lo, grid.hi
    factor = grid.scale / scale
    return int(grid.lo * factor), int(grid.hi * factor)


def join_grids(first: Grid, second: Grid) -> Grid:
    """The smallest grid on the common scale that holds both."""
    scale = common_scale(first, second)
    (lo_a, hi_a), (lo_b, hi_b) = _on_scale(first, scale), _on_scale(second, scale)
    return Grid.of(scale, min(lo_a, lo_b), max(hi_a, hi_b))


def add_grids(first: Grid, second: Grid) -> Grid:
    """The sums of a number of `first` and a number of `second`."""
    scale = common_scale(first, second)
    (lo_a, hi_a), (lo_b, hi_b) = _on_scale(first, scale), _on_scale(second, scale)
    return Grid.of(scale, lo_a + lo_b, hi_a + hi_b)


def multiply_grids(first: Grid, second: Grid) -> Grid:
    """The products of a number of `first` and a number of `second`."""
    corners = [a * b for a in (first.lo, first.hi) for b in (second.lo, second.hi)]
    return Grid.of(first.scale * second.scale, min(corners), max(corners))


def negate_grid(grid: Grid) -> Grid:
    """The numbers of `grid` with their signs changed."""
    return Grid(grid.scale, -grid.hi, -grid.lo)


def sum_grid(grid: Grid, count: int) -> Grid:
    """The sums of `count` numbers of `grid`."""
    return Grid.of(grid.scale, grid.lo * count, grid.hi * count)


def partial_sum_grid(grid: Grid, count: int) -> Grid:
    """The sums of at most `count` numbers of `grid`, in any order and grouping, zero included."""
    return Grid.of(grid.scale, min(0, grid.lo * count), max(0, grid.hi * count))
