"""Value-range rules of ops that make tensors, convert them, or leave values unset."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from snnfx._torch_compat import without_dispatch
from snnfx.passes.analysis.grid import FLOAT_FORMATS, Grid, round_to
from snnfx.passes.analysis.value_range_rules import (
    BINARY_FACT,
    TOP,
    UNINITIALISED,
    VALUE_RANGES,
    ZERO_FACT,
    Call,
    Fact,
    constant_fact,
    static_int,
)
from snnfx.passes.analysis.value_range_rules_pointwise import (
    compute_dtype,
    product,
    scalar_factors,
    scaled_by,
)

aten = torch.ops.aten
prims = torch.ops.prims


@VALUE_RANGES.rule(
    *(aten.full.default, aten.full_like.default, aten.new_full.default),
    *(aten.scalar_tensor.default, aten.fill.Scalar, aten.fill.Tensor),
)
def full_range(call: Call) -> Fact:
    """One scalar, as the dtype holds it."""
    for name in ("fill_value", "value", "s"):
        if call.arg(name) is not None:
            return call.stored(name)
    return TOP


@VALUE_RANGES.rule(aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
def zeros_range(call: Call) -> Fact:
    """Zero."""
    del call
    return ZERO_FACT


@VALUE_RANGES.rule(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
def ones_range(call: Call) -> Fact:
    """One."""
    del call
    return Fact.on(Grid.constant(1))


@VALUE_RANGES.rule(aten.arange.default, aten.arange.start, aten.arange.start_step)
def arange_range(call: Call) -> Fact:
    """``start + i * step`` for integers; of floats, the number of steps is rounded."""
    start, end = static_int(call.arg("start", 0)), static_int(call.arg("end"))
    step = static_int(call.arg("step", 1))
    if start is None or end is None or not step:
        return TOP
    return _progression(start, step, max(0, -((start - end) // step)))


@VALUE_RANGES.rule(prims.iota.default)
def iota_range(call: Call) -> Fact:
    """``start + i * step`` for ``0 <= i < length``."""
    start, step, count = (static_int(call.arg(name)) for name in ("start", "step", "length"))
    if start is None or step is None or count is None:
        return TOP
    return _progression(start, step, count)


def _progression(start: int, step: int, count: int) -> Fact:
    last = start + step * max(count - 1, 0)
    scale = math.gcd(start, step) or 1
    return Fact.on(Grid.of(scale, min(start, last) // scale, max(start, last) // scale))


@VALUE_RANGES.rule(aten.bernoulli.default, aten.bernoulli.p, aten.bernoulli.Tensor)
def bernoulli_range(call: Call) -> Fact:
    """Zeros and ones at random."""
    del call
    return BINARY_FACT


@VALUE_RANGES.rule(
    *(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other),
    *(aten.type_as.default, prims.convert_element_type.default, prims.device_put.default),
)
def convert_range(call: Call) -> Fact:
    """Another dtype or device: kept where no number is rounded; truncated to integers."""
    return call.operand(call.first)


@VALUE_RANGES.rule(aten.copy.default)
def copy_range(call: Call) -> Fact:
    """The values of `src` in the dtype and the shape of `self`."""
    return call.operand("src")


@VALUE_RANGES.rule(aten.lift_fresh_copy.default)
def lift_fresh_copy_range(call: Call) -> Fact:
    """A literal ``torch.tensor(c)``: this op alone tells it from other tensors of the module.

    Only literals of one element are read. What any other ``get_attr`` node holds may change
    between calls, and a copy of anything else is unknown with what it copies.
    """
    source = call.arg(call.first)
    if not isinstance(source, Node) or source.op != "get_attr":
        return call.fact(call.first)
    literal = _attribute(source)
    if isinstance(literal, FakeTensor) or not isinstance(literal, torch.Tensor):
        return TOP
    if literal.numel() != 1 or literal.device.type != "cpu" or literal.is_complex():
        return TOP
    with without_dispatch():  # a partitioner runs under a mode that takes no real tensors
        number = literal.item()
    return constant_fact(number, call.dtype)


def _attribute(node: Node) -> object:
    """What a ``get_attr`` node refers to, or None."""
    found: object = node.graph.owning_module
    for name in str(node.target).split("."):
        found = getattr(found, name, None)
    return found


@VALUE_RANGES.rule(aten.native_dropout.default)
def native_dropout_range(call: Call) -> tuple[Fact, Fact]:
    """``x * mask * 1 / (1 - p)`` in training, `x` else; with the mask.

    The CPU multiplies by the quotient taken in float64. Other devices take it in the dtype they
    compute in, of ``1 - p`` rounded to it; where the two disagree, nothing is known there.
    """
    probability, training = call.arg("p"), call.arg("train")
    fact = call.operand("input")
    if training is False:
        return fact, BINARY_FACT
    if not isinstance(probability, (int, float)) or call.dtype not in FLOAT_FORMATS:
        return TOP, BINARY_FACT
    kept = 1.0 - probability
    factors = scalar_factors(Fraction(1.0 / kept if kept else 0.0), call.dtype)
    if call.device_type != "cpu" and kept:
        rounded = round_to(Fraction(kept), compute_dtype(call.dtype))
        factors.add(round_to(1 / rounded, compute_dtype(call.dtype)) if rounded else None)
    masked = product(scaled_by(fact, factors, call.dtype), BINARY_FACT)
    return masked, BINARY_FACT


@VALUE_RANGES.rule(
    *(aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default),
    *(aten.new_empty.default, aten.new_empty_strided.default, aten.empty_permuted.default),
    *(aten.view.dtype, aten.view_copy.dtype, aten.as_strided.default, prims.view_of_dtype.default),
)
def unset_range(call: Call) -> Fact:
    """Memory that nobody wrote, or wrote as another dtype: not even a bool is 0 or 1."""
    del call
    return UNINITIALISED


@VALUE_RANGES.rule("snnfx::unpack_bits")
def unpack_bits_range(call: Call) -> Fact:
    """``(code + lo) * scale`` for codes of some bits, as the arguments say."""
    bits, lo = static_int(call.arg("bits")), static_int(call.arg("lo", 0))
    scale = call.arg("scale", 1.0)
    if bits is None or lo is None or not isinstance(scale, (int, float)) or scale <= 0:
        return TOP
    return Fact.on(Grid.of(Fraction(scale), lo, lo + (1 << bits) - 1))
