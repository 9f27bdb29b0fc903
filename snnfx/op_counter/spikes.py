"""What counting rules ask about spikes, and the answers for tensors that hold values.

A rule of AC, MAC or SynOps counts by which operands are spikes and how many there are. The same
rules count a run, where operands are looked at (`MeasuredFacts`), and a graph, where spikes are
proven and their number is a rate (`snnfx.op_counter.static`): they ask `SpikeFacts`, never a
tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from snnfx._torch_compat import without_dispatch
from snnfx.op_counter.counter import Rule, TableCounter, rules_of
from snnfx.passes.optable import OpTable

Count = Any
"""A number of operations: an int when measured; a `fractions.Fraction` or a sympy expression when
it comes from a rate. Rules only add and multiply it."""

SAMPLE = 16
"""Elements that are looked at first: a tensor of floats shows with the first few that it is none
of spikes."""

PART = 2**18
"""Elements that a CPU looks at together: 1 MiB of floats, which its cache keeps between passes."""

SMALL = 2**15
"""Elements below which calling an operator takes longer than what it does."""

EXACT = 2**24
"""A float32 counts in ones up to here."""


class SpikeFacts(Protocol):
    """What is known of the operands of one call, by their positions among its arguments."""

    def is_binary(self, position: int) -> bool:
        """Whether all elements of the operand are 0 or 1; False for what is no tensor."""
        ...

    def spikes(self, position: int) -> Count:
        """The number of ones in a binary operand."""
        ...

    def weighted_spikes(self, position: int, weights: Sequence[Sequence[int]]) -> Count:
        """The sum of a binary operand's elements, each times how often it is used.

        Args:
            position: of an operand ``[N, C, *]``.
            weights: one vector for each dimension after the second; an element counts the product
                of the vectors' values at its place.
        """
        ...

    def coincidences(self, contract: Callable[..., Tensor], *positions: int, dense: int) -> Count:
        """How many products of elements of two binary operands are 1.

        Args:
            contract: computes sums of products, whose total is the number, from the two operands;
                without an error, whatever their dtypes are (see `exact_sum`).
            positions: of the operands.
            dense: how many products there are.
        """
        ...


@dataclass(frozen=True)
class SpikeCall:
    """One call of an operator, as rules about spikes see it.

    Attributes:
        args: as it was called; tensors for their shapes and dtypes only.
        kwargs: as it was called.
        out: what it returned; as `args`.
        facts: about the values of the operands.
    """

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Any
    facts: SpikeFacts


SpikeRule = Callable[[SpikeCall], Count]


def is_binary_tensor(x: Tensor) -> bool:
    """Whether all elements of a tensor are 0 or 1; so it is for each bool tensor."""
    return number_of_spikes(x) is not None


def number_of_spikes(x: Tensor) -> int | None:
    """The number of ones in a tensor of zeros and ones; None for any other tensor.

    Exact for each number of elements, dtype and layout. A tensor is read in parts that fit a cache,
    up to the first part that is none of spikes; nothing of its size is allocated, unless it is
    neither dense nor expanded.
    """
    with without_dispatch(), torch.no_grad():
        if x.layout is not torch.strided:
            x = x.to_dense()
        if x.is_complex():
            real = torch.view_as_real(x.resolve_conj().resolve_neg())
            return None if bool(real[..., 1].ne(0).any()) else number_of_spikes(real[..., 0])
        flat, copies = _distinct_elements(x)
        if not _looks_binary(flat):
            return None
        if flat.numel() <= SMALL and flat.dtype is torch.float32:
            number = _number_in_few(flat)
            return None if number is None else copies * number
        total = 0
        for part in flat.split(PART if flat.device.type == "cpu" else EXACT):
            number = _number_in_part(part)
            if number is None:
                return None
            total += number
        return copies * total


def _distinct_elements(x: Tensor) -> tuple[Tensor, int]:
    """All elements in memory as one dimension, and how often `x` has each of them.

    The order is that of memory if `x` fills its part of it, as a transposed tensor or one in
    channels-last does, so nothing is copied.
    """
    if x.is_contiguous():
        return x.view(-1), 1
    copies = 1
    for dim, stride in enumerate(x.stride()):
        if stride == 0 and x.shape[dim] > 1:
            copies *= x.shape[dim]
            x = x.narrow(dim, 0, 1)
    x = x.permute(sorted(range(x.ndim), key=lambda dim: -x.stride(dim)))
    return x.reshape(-1), copies


def _looks_binary(flat: Tensor) -> bool:
    """Whether the first few elements are 0 or 1."""
    return flat.dtype is torch.bool or all(v in (0, 1) for v in flat[:SAMPLE].tolist())


def _number_in_part(part: Tensor) -> int | None:
    """See `number_of_spikes`, of not more than `EXACT` elements in one dimension.

    ``x - x * x`` is 0 for 0 and 1 alone, in floating point, too: the square of any other number
    rounds to another number, their difference is not 0 since differences underflow gradually, and
    what comes of NaN and infinities is NaN. A minimum keeps NaN.
    """
    if part.numel() == 0 or part.dtype is torch.bool:
        return int(torch.count_nonzero(part))
    if not part.is_floating_point():
        low, high = torch.aminmax(part)
        binary = int(low) >= 0 and int(high) <= 1
        return int(part.sum(dtype=torch.int64)) if binary else None
    if part.element_size() < 4:
        part = part.float()
    low, high = torch.aminmax(torch.addcmul(part, part, part, value=-1))
    return int(part.sum()) if float(low) == 0 == float(high) else None


def _number_in_few(part: Tensor) -> int | None:
    """See `_number_in_part`, of few float32: in fewer calls, each of which takes longer than it.

    A number whose square rounds to itself is 0, 1 or infinite; a sum with infinities is not finite.
    """
    if not torch.equal(part * part, part):
        return None
    total = float(part.sum())
    return int(total) if isfinite(total) else None


def exact_sum(x: Tensor, dims: Sequence[int]) -> Tensor:
    """The sums of a binary tensor over some dimensions, as float64 without an error.

    Sums in float32, which are several times faster, hold integers up to 2 ** 24.
    """
    terms = prod(x.shape[dim] for dim in dims)
    fits = terms <= EXACT and x.dtype is not torch.float64
    return x.sum(tuple(dims), dtype=torch.float32 if fits else torch.float64).double()


class MeasuredValues:
    """What has been found in the operands of the call that is being counted.

    All counters of a mode share it, so each tensor is looked at once a call.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[Tensor, int | None]] = {}
        self._weighted: dict[tuple[int, Any], int] = {}

    def number(self, x: Tensor) -> int | None:
        """See `number_of_spikes`."""
        found = self._numbers.get(id(x))
        if found is None:
            found = self._numbers[id(x)] = (x, number_of_spikes(x))
        return found[1]

    def weighted(self, x: Tensor, weights: Sequence[Sequence[int]]) -> int:
        """See `SpikeFacts.weighted_spikes`."""
        self.number(x)
        key = (id(x), tuple(map(tuple, weights)))
        if key not in self._weighted:
            with without_dispatch(), torch.no_grad():
                total = exact_sum(x, (0, 1))
                for vector in reversed(weights):
                    total = total @ torch.tensor(vector, dtype=total.dtype, device=total.device)
                self._weighted[key] = int(total)
        return self._weighted[key]

    def look(self, values: Iterable[Any]) -> None:
        """Look at tensors that are about to be written to."""
        for value in values:
            if isinstance(value, Tensor):
                self.number(value)

    def forget(self) -> None:
        """The call has been counted."""
        self._numbers.clear()
        self._weighted.clear()


@dataclass(frozen=True)
class MeasuredFacts:
    """`SpikeFacts` of a call with real tensors."""

    args: Sequence[Any]
    values: MeasuredValues

    def is_binary(self, position: int) -> bool:
        x = self.args[position] if position < len(self.args) else None
        return isinstance(x, Tensor) and self.values.number(x) is not None

    def spikes(self, position: int) -> int:
        return self.values.number(self.args[position]) or 0

    def weighted_spikes(self, position: int, weights: Sequence[Sequence[int]]) -> int:
        factor = 1
        for vector in weights:
            if len(set(vector)) != 1:
                return self.values.weighted(self.args[position], weights)
            factor *= vector[0]
        return factor * self.spikes(position)

    def coincidences(self, contract: Callable[..., Tensor], *positions: int, dense: int) -> int:
        del dense
        with without_dispatch(), torch.no_grad():
            return int(contract(*(self.args[position] for position in positions)).sum())


@dataclass(frozen=True)
class ShapeRule:
    """A `SpikeRule` that asks nothing about spikes.

    Attributes:
        rule: counts a call by the shapes and numbers that it was given.
    """

    rule: Rule

    def __call__(self, call: SpikeCall) -> Count:
        return self.rule(tuple(call.args), dict(call.kwargs), call.out)


@dataclass(frozen=True)
class MeasuringRule:
    """A `SpikeRule` as a rule of a counter: it looks at the tensors of the call.

    Attributes:
        rule: as the table has it.
    """

    rule: SpikeRule

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
        return self.measured(args, kwargs, out, MeasuredValues())

    def measured(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, values: MeasuredValues
    ) -> int:
        """What a call counts, with what is known of its tensors already."""
        return int(self.rule(SpikeCall(args, kwargs, out, MeasuredFacts(args, values))))


@lru_cache(maxsize=32)
def _measuring(table: OpTable[SpikeRule], size: int) -> dict[Any, Rule]:
    """The rules of a table of that many rules, by what runs."""
    del size
    return {
        target: rule.rule if isinstance(rule, ShapeRule) else MeasuringRule(rule)
        for target, rule in rules_of(table).items()
    }


class SpikeCounter(TableCounter):
    """A counter whose rules ask which operands are spikes.

    Attributes:
        values: what is known of the call that is being counted: set by a mode, whose counters share
            it; None outside of one.
    """

    values: MeasuredValues | None = None

    def _table_rules(self) -> Mapping[Any, Rule]:
        return _measuring(self.table, sum(1 for _ in self.table))

    def asks(self, func: Any) -> bool:
        """Whether the rule of an operator asks about spikes."""
        return isinstance(self.rules.get(func), MeasuringRule)

    def count(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        active_modules: set[nn.Module] | None = None,
        parent_names: set[str] | None = None,
    ) -> int:
        """See `BaseCounter.count`; what another counter of a mode has found is not sought again."""
        del active_modules, parent_names
        rule = self.rules[func]
        if isinstance(rule, MeasuringRule) and self.values is not None:
            return rule.measured(args, kwargs, out, self.values)
        return int(rule(args, kwargs, out))
