"""Region rules of pooling: operators that read at another resolution than the one they write.

Such an operator reads its operands through windows, from outside of the region; its result is one
of the region's values. Pooling of windows of ``k`` elements at stride ``s`` with padding ``p``:

- forward, element j of the window of result i is element ``i * s - p + j``;
- backward, element i belongs to the windows ``(i + p) // s - a`` for all a with
  ``(i + p) % s + a * s < k``, where it is element ``(i + p) % s + a * s``.

Both add up in ATen's order, from zero, so the bits are ATen's. Averages of floats are no operators
of regions: ATen's own is as fast, and nothing is to be had from fusing it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from snnfx.kernels.pool import MAX_OFFSETS
from snnfx.kernels.region_ir import Position, Window
from snnfx.passes.fxgraph import tensor_value
from snnfx.passes.rewrite.region_program import (
    REGION_RULES,
    Ids,
    Translator,
    Untranslatable,
)
from snnfx.passes.rewrite.region_rules import arguments, grid_value

snn = torch.ops.snnfx
POOL_PACKED = snn.pool_packed.default
WINDOWED = frozenset(
    {snn.avg_pool2d_backward.default, snn.max_pool2d.default, snn.max_pool2d_offsets.default,
     snn.max_pool2d_backward.default, POOL_PACKED}
)  # fmt: skip
"""Operators that read elements at other places than those that they write."""

INT = torch.int32
Taps = Callable[[tuple[Window, ...]], Ids]
"""The values of all slices through some windows."""


@dataclass(frozen=True)
class Pool:
    """Windows over the last two of four base dims; sizes as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def area(self) -> int:
        """How many elements a window has."""
        return math.prod(self.kernel)

    def forward(self) -> Iterator[tuple[Window, ...]]:
        """For each element of a window, in row-major order, where it is read."""
        for element in itertools.product(*(range(k) for k in self.kernel)):
            yield tuple(
                Window(dim, s, j - p)
                for dim, j, s, p in zip((2, 3), element, self.stride, self.padding, strict=True)
            )

    def backward(self) -> Iterator[tuple[tuple[int, int], tuple[Window, ...]]]:
        """For each window that may hold an element: a, and where it is read; first ones first."""
        sizes = zip(self.kernel, self.stride, strict=True)
        counts = [range(-(-k // s) - 1, -1, -1) for k, s in sizes]
        for first, second in itertools.product(*counts):
            yield (
                (first, second),
                tuple(
                    Window(dim, 1, p - a * s, s, min(s, k - a * s))
                    for dim, a, k, s, p in zip(
                        (2, 3), (first, second), self.kernel, self.stride, self.padding, strict=True
                    )
                ),
            )


def pool_of(node: Node) -> Pool:
    """The windows that a pooling operator is called with."""
    given = arguments(node)
    sizes = [tuple(given[name]) for name in ("kernel", "stride", "padding")]
    if any(len(pair) != 2 or not all(isinstance(n, int) for n in pair) for pair in sizes):
        raise Untranslatable(f"the windows of '{node.name}' are not known numbers")
    return Pool(*sizes)


def _prepare(translator: Translator, node: Node) -> None:
    """Pooling works on images of floats."""
    value = tensor_value(node)
    if len(translator.base) != 4 or value is None or value.dim() != 4:
        raise Untranslatable(f"'{node.name}' does not pool images")


def _float_dtype(translator: Translator, node: Node) -> torch.dtype:
    value = tensor_value(node)
    if value is None or value.dtype not in (torch.float32, torch.float64):
        raise Untranslatable(f"'{node.name}' pools neither float32 nor float64")
    return translator.dtype(node)


def _average(translator: Translator, pool: Pool, dtype: torch.dtype, taps: Taps) -> Ids:
    totals: Ids = (translator.constant(0, dtype),)
    for windows in pool.forward():
        totals = _each(translator, "add", totals, taps(windows))
    return _each(translator, "div", totals, (translator.constant(pool.area, dtype),))


def _each(
    translator: Translator, op: str, left: Ids, right: Ids, dtype: torch.dtype | None = None
) -> Ids:
    """`op` slice by slice; one of a single slice goes with every slice of the other."""
    steps = max(len(left), len(right))
    left, right = (ids * steps if len(ids) == 1 else ids for ids in (left, right))
    pairs = zip(left, right, strict=True)
    return tuple(translator.compute(op, a, b, dtype=dtype) for a, b in pairs)


@REGION_RULES.rule(snn.avg_pool2d_backward.default)
def avg_pool2d_backward(translator: Translator, node: Node) -> Ids:
    """The sum, over all windows that hold the element, of their gradients divided by their size."""
    _prepare(translator, node)
    dtype, pool = _float_dtype(translator, node), pool_of(node)
    area = (translator.constant(pool.area, dtype),)
    totals: Ids | None = None
    for _, windows in pool.backward():
        parts = _each(translator, "div", translator.windowed(node.args[0], windows), area)
        totals = parts if totals is None else _each(translator, "add", totals, parts)
    assert totals is not None, "a window has an element"
    return totals


@REGION_RULES.rule(snn.max_pool2d.default)
def max_pool2d(translator: Translator, node: Node) -> Ids:
    """Maxima of windows."""
    _prepare(translator, node)
    _float_dtype(translator, node)
    taps = lambda w: translator.windowed(node.args[0], w, -math.inf)  # noqa: E731
    return _maximum(translator, pool_of(node), taps)


def _maximum(translator: Translator, pool: Pool, taps: Taps) -> Ids:
    first, *rest = pool.forward()
    best = taps(first)
    for windows in rest:
        # In this order a NaN, and the first of equal values, win as in ATen.
        best = _each(translator, "maximum", taps(windows), best)
    return best


@REGION_RULES.rule(snn.max_pool2d_offsets.default)
def max_pool2d_offsets(translator: Translator, node: Node) -> Ids:
    """Where the maxima of windows are."""
    _prepare(translator, node)
    taps = lambda w: translator.windowed(node.args[0], w, -math.inf)  # noqa: E731
    return _offsets(translator, pool_of(node), taps)


def _offsets(translator: Translator, pool: Pool, taps: Taps) -> Ids:
    """The offset of the first maximum; values that windows do not find must be no larger."""
    offsets: Ids = (_first_offset(translator, pool),)
    best: Ids | None = None
    for offset, windows in enumerate(pool.forward()):
        values = taps(windows)
        if best is None:
            offsets, best = offsets * len(values), values
            continue
        larger = _each(translator, "gt", values, best, torch.bool)
        if translator.dtypes[values[0]].is_floating_point:
            nans = tuple(translator.compute("isnan", v, dtype=torch.bool) for v in values)
            larger = _each(translator, "logical_or", larger, nans)
        here = translator.constant(offset, INT)
        chosen = zip(larger, offsets, strict=True)
        offsets = tuple(translator.compute("where", c, here, o, dtype=INT) for c, o in chosen)
        best = _each(translator, "maximum", values, best)
    return tuple(translator.cast(offset, torch.uint8) for offset in offsets)


def _first_offset(translator: Translator, pool: Pool) -> int:
    """The offset of the first element of a window that is not padding."""
    total = translator.constant(0, INT)
    factors = (pool.kernel[1], 1)
    for dim, s, p, factor in zip((2, 3), pool.stride, pool.padding, factors, strict=True):
        if p:
            at = translator.emit(Position(dim), INT)
            start = translator.compute("mul", at, translator.constant(s, INT))
            inside = translator.compute("sub", translator.constant(p, INT), start)
            clamped = translator.compute("maximum", inside, translator.constant(0, INT))
            scaled = translator.compute("mul", clamped, translator.constant(factor, INT))
            total = translator.compute("add", total, scaled)
    return total


@REGION_RULES.rule(snn.max_pool2d_backward.default)
def max_pool2d_backward(translator: Translator, node: Node) -> Ids:
    """The sum of the gradients of all windows whose maximum the element is."""
    _prepare(translator, node)
    dtype, pool = _float_dtype(translator, node), pool_of(node)
    grad, offsets = node.args[:2]
    zero = translator.constant(0, dtype)
    totals: Ids | None = None
    for counts, windows in pool.backward():
        own = _own_offset(translator, pool, counts)
        places = translator.windowed(offsets, windows, MAX_OFFSETS)
        wide = tuple(translator.cast(place, INT) for place in places)
        chosen = _each(translator, "eq", wide, (own,), torch.bool)
        pairs = zip(chosen, translator.windowed(grad, windows), strict=True)
        parts = tuple(translator.compute("where", c, g, zero, dtype=dtype) for c, g in pairs)
        totals = parts if totals is None else _each(translator, "add", totals, parts)
    assert totals is not None, "a window has an element"
    return totals


def _own_offset(translator: Translator, pool: Pool, counts: tuple[int, int]) -> int:
    """Where the element is in the window that is `counts` before its last one."""
    total = translator.constant(0, INT)
    factors = (pool.kernel[1], 1)
    sizes = zip((2, 3), counts, pool.stride, pool.padding, factors, strict=True)
    for dim, count, s, p, factor in sizes:
        inner = translator.emit(Position(dim, p, s), INT)
        place = translator.compute("add", inner, translator.constant(count * s, INT))
        scaled = translator.compute("mul", place, translator.constant(factor, INT))
        total = translator.compute("add", total, scaled)
    return total


@REGION_RULES.rule(snn.pool_packed.default)
def pool_packed(translator: Translator, node: Node) -> Ids:
    """Pooling of bytes that hold several time steps."""
    _prepare(translator, node)
    given, pool = arguments(node), pool_of(node)
    codes = _CodeTaps(translator, given["packed"], given["shape"][0], given["bits"])
    scale, lo, dtype = given["scale"], given["lo"], given["dtype"]
    if given["kind"] == "offsets":
        return _offsets(translator, pool, codes)
    if given["kind"] == "maximum":
        best = _maximum(translator, pool, codes)
        return tuple(_decoded(translator, code, scale, lo, dtype) for code in best)
    if lo and pool.padding != (0, 0):
        raise Untranslatable(f"'{node.name}' averages padding that has no code")
    return _average(
        translator,
        pool,
        dtype,
        lambda w: tuple(_decoded(translator, code, scale, lo, dtype) for code in codes(w)),
    )


@dataclass(frozen=True)
class _CodeTaps:
    """The codes of all time steps through some windows; 0, the lowest, where there is none."""

    translator: Translator
    packed: Any
    steps: int
    bits: int

    def __call__(self, windows: tuple[Window, ...]) -> Ids:
        translator = self.translator
        packed = translator.windowed(self.packed, windows)
        wide = [translator.cast(byte, INT) for byte in packed]
        mask = translator.constant((1 << self.bits) - 1, INT)
        codes: list[int] = []
        for step in range(self.steps):
            byte, place = divmod(step, 8 // self.bits)
            shift = translator.constant(place * self.bits, INT)
            code = translator.compute("shift_right", wide[byte], shift) if place else wide[byte]
            codes.append(translator.compute("bitwise_and", code, mask))
        return tuple(codes)


def _decoded(translator: Translator, code: int, scale: float, lo: int, dtype: torch.dtype) -> int:
    if lo:
        code = translator.compute("add", code, translator.constant(lo, INT))
    return grid_value(translator, code, scale, dtype)
