"""What counting rules ask about spikes, and the answers for tensors that hold values.

A rule of AC, MAC or SynOps counts by which operands are spikes and how many there are. The same
rules count a run, where operands are looked at (`MeasuredFacts`), and a graph, where spikes are
proven and their number is a rate (`snnfx.op_counter.static`): they ask `SpikeFacts`, never a
tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from snnfx._torch_compat import without_dispatch
from snnfx.op_counter.counter import BaseCounter, Ignored, Rule, rules_of
from snnfx.passes.optable import OpTable

Count = Any
"""A number of operations: an int when measured; a `fractions.Fraction` or a sympy expression when
it comes from a rate. Rules only add and multiply it."""

SAMPLE = 64
"""Elements that are looked at first: a tensor of floats shows with the first few that it is none
of spikes."""


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
            contract: computes the sums of products from the two operands.
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
    """The number of ones in a tensor of zeros and ones; None for any other tensor."""
    with without_dispatch(), torch.no_grad():
        if x.dtype is not torch.bool and not _looks_binary(x):
            return None
        nonzero = int(torch.count_nonzero(x))
        # NaN and all other numbers count as nonzero, but do not equal one.
        if x.dtype is torch.bool or nonzero == 0:
            return nonzero
        return nonzero if nonzero == int(torch.count_nonzero(x.eq(1))) else None


def _looks_binary(x: Tensor) -> bool:
    """Whether a few elements are 0 or 1."""
    few = x
    while few.ndim and few.numel() > SAMPLE:
        dim = max(range(few.ndim), key=lambda d: few.shape[d])
        few = few.narrow(dim, 0, max(1, few.shape[dim] * SAMPLE // few.numel()))
        if few.shape[dim] == 1:
            few = few.select(dim, 0)
    return bool((few.eq(0) | few.eq(1)).all())


class MeasuredValues:
    """What has been found in the operands of the call that is being counted.

    All counters of a mode share it, so each tensor is looked at once a call.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, tuple[Tensor, int | None]] = {}

    def number(self, x: Tensor) -> int | None:
        """See `number_of_spikes`."""
        found = self._numbers.get(id(x))
        if found is None:
            found = self._numbers[id(x)] = (x, number_of_spikes(x))
        return found[1]

    def look(self, values: Iterable[Any]) -> None:
        """Look at tensors that are about to be written to."""
        for value in values:
            if isinstance(value, Tensor):
                self.number(value)

    def forget(self) -> None:
        """The call has been counted."""
        self._numbers.clear()


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
        x: Tensor = self.args[position]
        constant = [set(vector) for vector in weights]
        if all(len(values) == 1 for values in constant):
            factor = 1
            for (value,) in constant:
                factor *= value
            return factor * self.spikes(position)
        with without_dispatch(), torch.no_grad():
            # Integers, since a float32 counts no further than 2 ** 24.
            total = x.ne(0).sum((0, 1))
            for vector in reversed(weights):
                total = total @ torch.tensor(vector, dtype=total.dtype, device=total.device)
            return int(total)

    def coincidences(self, contract: Callable[..., Tensor], *positions: int, dense: int) -> int:
        del dense
        with without_dispatch(), torch.no_grad():
            operands = [self.args[position].double() for position in positions]
            return int(contract(*operands).sum())


class SpikeCounter(BaseCounter):
    """A counter whose rules ask which operands are spikes.

    Args:
        table: of its rules.
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win.
        extra_ignore_modules: see `BaseCounter`.

    Attributes:
        table: as given.
        values: what is known of the call that is being counted: set by a mode, whose counters share
            it; None outside of one.
    """

    def __init__(
        self,
        table: OpTable[SpikeRule],
        extra_rules: Mapping[Any, Rule] | None = None,
        extra_ignore_modules: Iterable[Ignored] | None = None,
    ) -> None:
        rules = {target: self._measuring(rule) for target, rule in rules_of(table).items()}
        super().__init__(rules, extra_rules, extra_ignore_modules)
        self.table = table
        self.values: MeasuredValues | None = None

    def _measuring(self, rule: SpikeRule) -> Rule:
        def count(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
            facts = MeasuredFacts(args, self.values or MeasuredValues())
            return int(rule(SpikeCall(args, kwargs, out, facts)))

        return count
