"""What the value-range rules are made of: facts, calls, and the table of rules.

A rule answers, for one operator, on which grid its results lie, given the facts of its inputs. It
computes with exact numbers; that the results fit their dtype is checked once, by the analysis,
after every rule. A rule itself checks what the analysis cannot see: operands that a promotion of
types would round (`Call.operand`), and intermediate results of ops that take several steps.

Rules trust kernels this far: an op that is computed by one addition, subtraction, multiplication,
comparison or selection, in its dtype or a wider one, is exact where its exact result fits the
dtype. Nothing is assumed of divisions by anything but powers of two outside the CPU, of sums whose
partial sums do not fit, or of any transcendental function.

A claim is about what ops return, rounded to their dtype. Lowerings that keep a half-precision
intermediate in float32 may compute with ``0.1`` where the claim, and a packed copy, has the nearest
bfloat16; grids whose arithmetic never rounds are the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Flag
from fractions import Fraction
from typing import Any

import torch
from torch.fx import Node

from snnfx.passes.analysis.grid import (
    BINARY,
    FLOAT_FORMATS,
    INTEGER_DTYPES,
    Grid,
    Rounding,
    fits,
    join_grids,
    round_to,
    stored_value,
)
from snnfx.passes.optable import OpTable


class Lapse(Flag):
    """What elements of a tensor may be although its fact does not say so.

    Attributes:
        NONE: nothing.
        NAN: NaN; where it comes from a NaN in an input of the graph.
        NEGATIVE_ZERO: -0.0, which equals the zero of the fact in value, not in its bits.
    """

    NONE = 0
    NAN = 1
    NEGATIVE_ZERO = 2


ANY_LAPSE = Lapse.NAN | Lapse.NEGATIVE_ZERO


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of every element of a tensor: the product of grids and real intervals.

    Order: a fact is below another if it allows fewer elements. Top (`TOP`) allows all. There is no
    bottom, since every node of a graph is computed. Joins are hulls: of the grids, of the
    intervals, and the union of the lapses.

    Attributes:
        grid: elements are numbers of this grid, exactly; None: not known to be on one.
        low: elements are at least this; None: no bound. With a grid, its minimum.
        high: elements are at most this; None: no bound. With a grid, its maximum.
        lapses: exceptions from all of the above.
    """

    grid: Grid | None
    low: Fraction | None
    high: Fraction | None
    lapses: Lapse

    @classmethod
    def on(cls, grid: Grid, lapses: Lapse = Lapse.NONE) -> Fact:
        """The fact that elements are on `grid`."""
        return cls(grid, grid.minimum, grid.maximum, lapses)

    @classmethod
    def between(cls, low: Fraction | None, high: Fraction | None, lapses: Lapse) -> Fact:
        """The fact that elements are real numbers of an interval, or infinite where it is open."""
        return cls(None, low, high, lapses)

    @property
    def may_hold_zero(self) -> bool:
        """Whether zero is within the bounds."""
        return (self.low is None or self.low <= 0) and (self.high is None or self.high >= 0)

    @property
    def may_be_negative(self) -> bool:
        """Whether the sign bit of an element may be set."""
        return self.low is None or self.low < 0 or Lapse.NEGATIVE_ZERO in self.lapses

    def with_lapses(self, lapses: Lapse) -> Fact:
        """The same elements, with other exceptions."""
        return replace(self, lapses=lapses)


TOP = Fact(None, None, None, ANY_LAPSE)
BINARY_FACT = Fact.on(BINARY)
ZERO_FACT = Fact.on(Grid.constant(0))
UNINITIALISED = Fact(None, None, None, ANY_LAPSE)
"""Top, for memory that was never written: even a bool tensor need not hold zeros and ones."""

Outcome = Fact | tuple[Fact, ...]


def join_facts(facts: Sequence[Fact]) -> Fact:
    """The smallest fact that allows what any of `facts` allows; top for none."""
    if not facts:
        return TOP
    joined = facts[0]
    for fact in facts[1:]:
        joined = _join_two(joined, fact)
    return joined


def _join_two(first: Fact, second: Fact) -> Fact:
    if first is second:
        return first
    lapses = first.lapses | second.lapses
    if first.grid is not None and second.grid is not None:
        return Fact.on(join_grids(first.grid, second.grid), lapses)
    low = None if first.low is None or second.low is None else min(first.low, second.low)
    high = None if first.high is None or second.high is None else max(first.high, second.high)
    return Fact.between(low, high, lapses)


def constant_fact(value: object, dtype: torch.dtype) -> Fact:
    """The fact of a tensor of `dtype` that was filled with a Python scalar, rounding included."""
    exact = exact_scalar(value)
    stored = None if exact is None else stored_value(exact, dtype)
    if stored is None:
        return TOP
    negative_zero = stored == 0 and isinstance(value, float) and math.copysign(1.0, value) < 0
    lapses = Lapse.NEGATIVE_ZERO if negative_zero else Lapse.NONE
    return Fact.on(Grid.constant(stored), lapses)


def exact_scalar(value: object) -> Fraction | None:
    """A finite Python number as a rational, or None for anything else."""
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return Fraction(value)
    return None


def static_int(value: object) -> int | None:
    """`value` if it is an integer that is known at compile time."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def convert_fact(fact: Fact, source: torch.dtype, target: torch.dtype) -> Fact:
    """The fact of a tensor converted from dtype `source` to `target`."""
    if source == target:
        return fact
    if target is torch.bool:
        return BINARY_FACT
    if target in INTEGER_DTYPES:
        return _to_integer(fact, target)
    if target not in FLOAT_FORMATS:
        return TOP
    if fact.grid is not None and fits(fact.grid, target):
        return fact
    low = None if fact.low is None else round_to(fact.low, target, Rounding.DOWN)
    high = None if fact.high is None else round_to(fact.high, target, Rounding.UP)
    # A negative number that underflows becomes -0.0.
    return Fact.between(low, high, fact.lapses | Lapse.NEGATIVE_ZERO)


def _to_integer(fact: Fact, target: torch.dtype) -> Fact:
    """Conversion to an integer dtype truncates; out of its range it is undefined."""
    if fact.low is None or fact.high is None:
        return TOP
    grid = fact.grid
    if grid is None or grid.scale.denominator != 1:
        grid = Grid.of(1, math.trunc(fact.low), math.trunc(fact.high))
    return Fact.on(grid, fact.lapses & Lapse.NAN) if fits(grid, target) else TOP


class Call:
    """One call in a graph, as a rule sees it.

    Args:
        node: a ``call_function`` node of an ATen-like op.
        facts: facts of all nodes before it.
        dtype: dtype of its (first) result.
    """

    __slots__ = ("_arguments", "_facts", "dtype", "names", "node")

    def __init__(self, node: Node, facts: Mapping[Node, Outcome], dtype: torch.dtype) -> None:
        self.node = node
        self.dtype = dtype
        self._facts = facts
        schema = node.target._schema  # type: ignore[union-attr]
        self.names = [argument.name for argument in schema.arguments]
        self._arguments: dict[str, Any] = dict(zip(self.names, node.args, strict=False))
        self._arguments.update(node.kwargs)
        for argument in schema.arguments:
            if argument.name not in self._arguments and argument.has_default_value():
                self._arguments[argument.name] = argument.default_value

    def arg(self, name: str, default: object = None) -> Any:
        """An argument by its schema name, with the schema's default."""
        return self._arguments.get(name, default)

    @property
    def first(self) -> str:
        """The schema name of the first argument, which overloads call differently."""
        return self.names[0]

    @property
    def device_type(self) -> str:
        """Where the result lives: ``"cpu"``, ``"cuda"``, ..."""
        return tensors_of(self.node)[0].device.type

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Sizes of a tensor argument; None in the place of a symbolic one."""
        value = self.arg(name)
        tensors = tensors_of(value) if isinstance(value, Node) else []
        return tuple(static_int(size) for size in tensors[0].shape) if tensors else None

    def fact(self, name: str) -> Fact:
        """The fact of a tensor argument in its own dtype; top for anything else."""
        value = self.arg(name)
        outcome = self._facts.get(value, TOP) if isinstance(value, Node) else TOP
        return outcome if isinstance(outcome, Fact) else TOP

    def operand(self, name: str) -> Fact:
        """The fact of an argument as an arithmetic op uses it: converted to the result's dtype.

        A Python scalar that a half dtype lacks is only bounded: kernels compute with its value in
        float32 or with the rounded one.
        """
        return self._operand(self.arg(name))

    def operands(self, name: str) -> list[Fact]:
        """`operand` for an argument that is a list of tensors."""
        return [self._operand(value) for value in self.arg(name) or ()]

    def stored(self, name: str) -> Fact:
        """The fact of an argument whose value ends up in the result as it is, once rounded."""
        value = self.arg(name)
        return self._operand(value) if isinstance(value, Node) else constant_fact(value, self.dtype)

    def _operand(self, value: object) -> Fact:
        if isinstance(value, Node):
            outcome = self._facts.get(value, TOP)
            tensors = tensors_of(value)
            if not isinstance(outcome, Fact) or len(tensors) != 1:
                return TOP
            return convert_fact(outcome, tensors[0].dtype, self.dtype)
        exact = exact_scalar(value)
        if exact is None:
            return TOP
        if self.dtype in FLOAT_FORMATS and not _is_certain_scalar(exact, self.dtype):
            return Fact.between(
                round_to(exact, self.dtype, Rounding.DOWN),
                round_to(exact, self.dtype, Rounding.UP),
                Lapse.NEGATIVE_ZERO,
            )
        return constant_fact(value, self.dtype)


def _is_certain_scalar(value: Fraction, dtype: torch.dtype) -> bool:
    """Whether every kernel that computes in `dtype` uses the same number for `value`."""
    if dtype in (torch.float32, torch.float64):
        return stored_value(value, dtype) is not None
    return fits(Grid.constant(value), dtype)


def tensors_of(node: Node) -> list[torch.Tensor]:
    """The tensors that `node` stands for in its metadata: none for a symbolic number."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [item for item in value if isinstance(item, torch.Tensor)]
    return []


ValueRangeRule = Callable[[Call], Outcome]

VALUE_RANGES: OpTable[ValueRangeRule] = OpTable("value ranges")
"""Rules by op; the ops that packages outside ATen define are keyed by qualified name."""
