"""Value-range rules of elementwise arithmetic.

Signs of zero follow IEEE 754-2019, section 6.3, in round-to-nearest: a sum or difference is -0.0
only where both terms are -0.0 (``x - x`` is +0.0), a product or quotient is -0.0 where one factor
is zero and their signs differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch

from snnfx.passes.analysis.grid import (
    FLOAT_FORMATS,
    HALF_DTYPES,
    INTEGER_DTYPES,
    Grid,
    add_grids,
    fits,
    is_power_of_two,
    multiply_grids,
    negate_grid,
    round_to,
    stored_value,
)
from snnfx.passes.analysis.value_range_rules import (
    BINARY_FACT,
    TOP,
    VALUE_RANGES,
    Call,
    Fact,
    Lapse,
    constant_fact,
    exact_scalar,
    join_facts,
)

aten = torch.ops.aten


def negated(fact: Fact) -> Fact:
    """The fact of ``-x``."""
    lapses = fact.lapses | (Lapse.NEGATIVE_ZERO if fact.may_hold_zero else Lapse.NONE)
    if fact.grid is not None:
        return Fact.on(negate_grid(fact.grid), lapses)
    low = None if fact.high is None else -fact.high
    return Fact.between(low, None if fact.low is None else -fact.low, lapses)


def product(first: Fact, second: Fact) -> Fact:
    """The fact of ``x * y``, computed exactly."""
    if first.grid is None or second.grid is None:
        return TOP
    grid = multiply_grids(first.grid, second.grid)
    lapses = (first.lapses | second.lapses) & Lapse.NAN
    if grid.has_zero and (first.may_be_negative or second.may_be_negative):
        lapses |= Lapse.NEGATIVE_ZERO
    return Fact.on(grid, lapses)


def total(first: Fact, second: Fact) -> Fact:
    """The fact of ``x + y``, computed exactly."""
    if first.grid is None or second.grid is None:
        return TOP
    nan = (first.lapses | second.lapses) & Lapse.NAN
    both = first.lapses & second.lapses & Lapse.NEGATIVE_ZERO
    return Fact.on(add_grids(first.grid, second.grid), nan | both)


def lesser(first: Fact, second: Fact) -> Fact:
    """The fact of ``min(x, y)``, which is NaN where either is."""
    mirrored = negated(greater(negated(first), negated(second)))
    return mirrored.with_lapses(first.lapses | second.lapses)


def greater(first: Fact, second: Fact) -> Fact:
    """The fact of ``max(x, y)``, which is NaN where either is."""
    lapses = first.lapses | second.lapses
    for one, other in ((first, second), (second, first)):
        if one.low is not None and other.high is not None and one.low >= other.high:
            return one.with_lapses(lapses)
    lows = [low for low in (first.low, second.low) if low is not None]
    low = max(lows) if lows else None
    if first.grid is not None and second.grid is not None:
        joined = join_facts([first, second]).grid
        if joined is not None and low is not None:
            return Fact.on(Grid.of(joined.scale, int(low / joined.scale), joined.hi), lapses)
    high = None if first.high is None or second.high is None else max(first.high, second.high)
    return Fact.between(low, high, lapses)


def _scaled_by_alpha(call: Call, fact: Fact) -> Fact:
    """``alpha * y`` of an addition, where no kernel rounds it."""
    alpha = call.arg("alpha", 1)
    if alpha == 1:
        return fact
    exact = exact_scalar(alpha)
    if exact is None or not fits(Grid.constant(exact), call.dtype):
        return TOP
    scaled = product(fact, constant_fact(alpha, call.dtype))
    return scaled if scaled.grid is not None and fits(scaled.grid, call.dtype) else TOP


@VALUE_RANGES.rule(aten.add.Tensor, aten.add.Scalar)
def add_range(call: Call) -> Fact:
    """``self + alpha * other``."""
    return total(call.operand("self"), _scaled_by_alpha(call, call.operand("other")))


@VALUE_RANGES.rule(aten.sub.Tensor, aten.sub.Scalar)
def sub_range(call: Call) -> Fact:
    """``self - alpha * other``; the difference of two spikes is ternary."""
    return total(call.operand("self"), negated(_scaled_by_alpha(call, call.operand("other"))))


@VALUE_RANGES.rule(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub_range(call: Call) -> Fact:
    """``other - alpha * self``."""
    return total(call.operand("other"), negated(_scaled_by_alpha(call, call.operand("self"))))


@VALUE_RANGES.rule(aten.neg.default)
def neg_range(call: Call) -> Fact:
    """``-self``: zeros become -0.0."""
    return negated(call.operand("self"))


@VALUE_RANGES.rule(aten.abs.default)
def abs_range(call: Call) -> Fact:
    """``|self|``: never -0.0."""
    fact = call.operand("self")
    grid = fact.grid
    if grid is None:
        return TOP
    smallest = 0 if grid.has_zero else min(abs(grid.lo), abs(grid.hi))
    largest = max(abs(grid.lo), abs(grid.hi))
    return Fact.on(Grid.of(grid.scale, smallest, largest), fact.lapses & Lapse.NAN)


def scaled_by(fact: Fact, factors: set[Fraction | None], dtype: torch.dtype) -> Fact:
    """``x`` times a number that depends on the kernel: one of `factors`, before any rounding.

    With one factor that `dtype` holds, this is an ordinary product. Else the result is rounded,
    and known only where that commutes with ``x``: for ``x`` in 0 and powers of two, and where all
    factors round to one number.
    """
    if len(factors) != 1 or not _all_fit(factors, dtype):
        if not _commutes_with_rounding(fact):
            return TOP
        factors = {None if f is None else stored_value(f, dtype) for f in factors}
    factor = factors.pop()
    if factor is None or factors:
        return TOP
    return product(fact, Fact.on(Grid.constant(factor)))


def _commutes_with_rounding(fact: Fact) -> bool:
    """Whether elements are zero or powers of two, of either sign."""
    grid = fact.grid
    return grid is not None and is_power_of_two(grid.scale) and max(-grid.lo, grid.hi) <= 2


def _all_fit(factors: set[Fraction | None], dtype: torch.dtype) -> bool:
    return all(f is not None and fits(Grid.constant(f), dtype) for f in factors)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels compute results of `dtype`."""
    return torch.float32 if dtype in HALF_DTYPES else dtype


def scalar_factors(value: Fraction, dtype: torch.dtype) -> set[Fraction | None]:
    """What a kernel that multiplies by a Python scalar uses: half dtypes compute in float32."""
    wide = compute_dtype(dtype)
    factors: set[Fraction | None] = {round_to(value, wide)}
    if dtype in HALF_DTYPES and factors != {value}:
        factors.add(round_to(value, dtype))
    return factors


@VALUE_RANGES.rule(aten.mul.Tensor, aten.mul.Scalar)
def mul_range(call: Call) -> Fact:
    """``self * other``; the product of two spikes is a spike."""
    value = exact_scalar(call.arg("other"))
    if value is None or call.dtype not in FLOAT_FORMATS or value == 0:
        return product(call.operand("self"), call.operand("other"))
    return scaled_by(call.operand("self"), scalar_factors(value, call.dtype), call.dtype)


def _division_factors(divisor: Fraction, call: Call) -> set[Fraction | None]:
    """What ``1 / divisor`` comes to, over the kernels that the result's device may use.

    The CPU divides. Other devices may multiply by a reciprocal, of the number as the dtype holds
    it or as Python did; of a power of two it is the same number.
    """
    dtype = call.dtype
    wide = compute_dtype(dtype)
    divisors = {round_to(divisor, wide)}
    if dtype in HALF_DTYPES:
        divisors.add(round_to(divisor, dtype))
    if call.device_type != "cpu":
        divisors.add(divisor)
    return {round_to(1 / d, wide) if d else None for d in divisors}


@VALUE_RANGES.rule(aten.div.Tensor, aten.div.Scalar)
def div_range(call: Call) -> Fact:
    """``self / other``: exact for a power of two, else known for spikes only."""
    divisor = _divisor(call)
    if not divisor or call.dtype not in FLOAT_FORMATS:
        return TOP
    fact = call.operand("self")
    if is_power_of_two(abs(divisor)):
        return scaled_by(fact, {1 / divisor}, call.dtype)
    if not _commutes_with_rounding(fact):
        return TOP
    return scaled_by(fact, _division_factors(divisor, call), call.dtype)


def _divisor(call: Call) -> Fraction | None:
    """The one number that `other` holds, if that is known."""
    value = exact_scalar(call.arg("other"))
    if value is not None:
        return value
    other = call.operand("other")
    known = other.grid is not None and other.grid.is_constant and not other.lapses
    return other.low if known else None


@VALUE_RANGES.rule(aten.maximum.default, aten.max.other)
def maximum_range(call: Call) -> Fact:
    """``max(self, other)``."""
    return greater(call.operand("self"), call.operand("other"))


@VALUE_RANGES.rule(aten.minimum.default, aten.min.other)
def minimum_range(call: Call) -> Fact:
    """``min(self, other)``."""
    return lesser(call.operand("self"), call.operand("other"))


def _clamped(call: Call, low: str | None, high: str | None) -> Fact:
    """``min(max(self, low), high)``, with bounds that may be absent; NaN stays NaN."""
    fact = call.operand("self")
    if low is not None and call.arg(low) is not None:
        fact = greater(fact, call.operand(low))
    if high is not None and call.arg(high) is not None:
        fact = lesser(fact, call.operand(high))
    return fact


@VALUE_RANGES.rule(aten.clamp.default, aten.clamp.Tensor)
def clamp_range(call: Call) -> Fact:
    """Bounds between two scalars or tensors."""
    return _clamped(call, "min", "max")


@VALUE_RANGES.rule(aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp_min_range(call: Call) -> Fact:
    """A bound from below."""
    return _clamped(call, "min", None)


@VALUE_RANGES.rule(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max_range(call: Call) -> Fact:
    """A bound from above."""
    return _clamped(call, None, "max")


@VALUE_RANGES.rule(aten.hardtanh.default)
def hardtanh_range(call: Call) -> Fact:
    """Clamping under another name."""
    return _clamped(call, "min_val", "max_val")


@VALUE_RANGES.rule(aten.relu.default)
def relu_range(call: Call) -> Fact:
    """``max(self, 0)``."""
    return greater(call.operand("self"), constant_fact(0, call.dtype))


def _rounded(call: Call, to_integer: Callable[[Fraction], int]) -> Fact:
    """An op that maps each number to an integer, monotonically."""
    fact = call.operand("self")
    if fact.low is None or fact.high is None:
        return TOP
    if fact.grid is not None and fact.grid.scale.denominator == 1:
        return fact
    negative = Lapse.NEGATIVE_ZERO if fact.may_be_negative else Lapse.NONE
    grid = Grid.of(1, to_integer(fact.low), to_integer(fact.high))
    return Fact.on(grid, (fact.lapses & Lapse.NAN) | negative)


@VALUE_RANGES.rule(aten.round.default)
def round_range(call: Call) -> Fact:
    """To the nearest integer, ties to even: ``round(clamp(x, 0, D))`` is an integer spike."""
    return _rounded(call, round)


@VALUE_RANGES.rule(aten.floor.default)
def floor_range(call: Call) -> Fact:
    """To the integer below."""
    return _rounded(call, math.floor)


@VALUE_RANGES.rule(aten.ceil.default)
def ceil_range(call: Call) -> Fact:
    """To the integer above."""
    return _rounded(call, math.ceil)


@VALUE_RANGES.rule(aten.trunc.default)
def trunc_range(call: Call) -> Fact:
    """To the integer towards zero."""
    return _rounded(call, math.trunc)


@VALUE_RANGES.rule(aten.sign.default, aten.sgn.default)
def sign_range(call: Call) -> Fact:
    """-1, 0 or 1; kernels compute ``(x > 0) - (x < 0)``, which is 0 for NaN and for -0.0."""
    fact = call.operand("self")
    low = -1 if fact.low is None or fact.low < 0 else int(fact.low > 0)
    high = 1 if fact.high is None or fact.high > 0 else -int(fact.high < 0)
    if Lapse.NAN in fact.lapses:
        low, high = min(low, 0), max(high, 0)
    return Fact.on(Grid.of(1, low, high)) if call.dtype in _REAL_DTYPES else TOP


_REAL_DTYPES = frozenset(FLOAT_FORMATS) | INTEGER_DTYPES


@VALUE_RANGES.rule(aten.heaviside.default)
def heaviside_range(call: Call) -> Fact:
    """0 below zero and for NaN, 1 above, `values` at zero."""
    return join_facts([BINARY_FACT, call.operand("values")])


@VALUE_RANGES.rule(
    aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar
)
def where_range(call: Call) -> Fact:
    """One of two values."""
    return join_facts([call.stored("self"), call.stored("other")])


@VALUE_RANGES.rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill_range(call: Call) -> Fact:
    """One of two values."""
    return join_facts([call.operand("self"), call.stored("value")])


def _nan_lapse(facts: list[Fact]) -> Lapse:
    """An integer made from a NaN may be any, a known operand bounds the result all the same."""
    grounded = [fact for fact in facts if fact.grid is not None]
    return join_facts(grounded).lapses & Lapse.NAN


def _is_non_negative(fact: Fact) -> bool:
    return fact.low is not None and fact.low >= 0


@VALUE_RANGES.rule(aten.bitwise_and.Tensor, aten.bitwise_and.Scalar)
def bitwise_and_range(call: Call) -> Fact:
    """Of integers, at most the smaller operand that is not negative: ``byte & 1`` is a bit."""
    facts = [call.operand("self"), call.operand("other")]
    highs = [int(f.high) for f in facts if _is_non_negative(f) and f.high is not None]
    return Fact.on(Grid.of(1, 0, min(highs)), _nan_lapse(facts)) if highs else TOP


@VALUE_RANGES.rule(
    *(aten.bitwise_or.Tensor, aten.bitwise_or.Scalar),
    *(aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar),
)
def bitwise_or_range(call: Call) -> Fact:
    """Of integers that are not negative, no more bits than the longer one has."""
    facts = [call.operand("self"), call.operand("other")]
    highs = [int(f.high) for f in facts if _is_non_negative(f) and f.high is not None]
    if len(highs) != len(facts):
        return TOP
    return Fact.on(Grid.of(1, 0, (1 << max(highs).bit_length()) - 1), _nan_lapse(facts))


@VALUE_RANGES.rule(aten.bitwise_not.default)
def bitwise_not_range(call: Call) -> Fact:
    """Of integers, ``-1 - self``."""
    if call.dtype is torch.bool:
        return BINARY_FACT
    return total(constant_fact(-1, call.dtype), negated(call.operand("self")))
