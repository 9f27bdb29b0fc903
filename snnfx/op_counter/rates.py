"""Firing rates that a user gives, and facts about spikes that follow from rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, prod
from numbers import Rational, Real
from typing import Any

import sympy
from torch import Tensor
from torch.fx import Node

from snnfx.errors import OptionError
from snnfx.op_counter.spike_sources import RateMap, SpikeSources
from snnfx.op_counter.spikes import Count
from snnfx.passes.fxgraph import numel, tensor_value

Rates = float | Fraction | Mapping[str, Any] | str | None

MEASURED = "measured"


def rate_symbol(name: str) -> sympy.Symbol:
    """The symbol that stands for the rate of the spikes of that name."""
    return sympy.Symbol(f"r[{name}]", nonnegative=True)


@dataclass(frozen=True)
class GivenRates:
    """The rates of spike tensors by name: numbers where they are given, else symbols.

    Attributes:
        everywhere: of all that are not named; None for symbols.
        named: by the name of the module that fires.
    """

    everywhere: Fraction | None
    named: Mapping[str, Fraction]

    @classmethod
    def of(cls, rates: Rates) -> GivenRates:
        """Read what a user gives.

        Raises:
            OptionError: a rate is no number from 0 to 1, or the argument is of another kind.
        """
        if rates is None:
            return cls(None, {})
        if isinstance(rates, Mapping):
            return cls(None, {str(name): exact_rate(value) for name, value in rates.items()})
        return cls(exact_rate(rates), {})

    def __call__(self, name: str) -> Count:
        """The rate of the spikes of that name."""
        rate = self.named.get(name, self.everywhere)
        return rate_symbol(name) if rate is None else rate

    def check(self, known: Iterable[str]) -> None:
        """Hold that all named rates are of spikes that the counts depend on.

        Raises:
            OptionError: one is not.
        """
        names = list(known)
        unknown = [name for name in self.named if name not in names]
        if unknown:
            raise OptionError(
                f"rates names {', '.join(map(repr, unknown))}, but the counts depend on the spikes "
                f"of {', '.join(map(repr, names)) or 'no module'}: name those"
            )


def exact_rate(value: Any) -> Fraction:
    """A rate as a fraction: ``0.1`` is one tenth.

    Raises:
        OptionError: it is no number from 0 to 1.
    """
    exact = None
    if isinstance(value, Rational):
        exact = Fraction(int(value.numerator), int(value.denominator))
    elif isinstance(value, Real) and isfinite(float(value)):
        exact = Fraction(repr(float(value)))
    if exact is None or isinstance(value, bool) or not 0 <= exact <= 1:
        raise OptionError(
            f"a firing rate is a number from 0 to 1, not {value!r}: give one number for all spike "
            "tensors, a mapping from names of modules to numbers, 'measured', or None for symbols"
        )
    return exact


@dataclass(frozen=True)
class RatedFacts:
    """`SpikeFacts` of a recorded call: spikes are proven, their number is a rate times a size.

    Attributes:
        operands: the arguments of the call's node.
        sources: what is proven.
        rates: of binary tensors.
    """

    operands: Sequence[Any]
    sources: SpikeSources
    rates: RateMap

    def is_binary(self, position: int) -> bool:
        return position < len(self.operands) and self.sources.is_binary(self.operands[position])

    def spikes(self, position: int) -> Count:
        node = self._node(position)
        value = tensor_value(node)
        return self.rates.rate(node) * (0 if value is None else numel(value))

    def weighted_spikes(self, position: int, weights: Sequence[Sequence[int]]) -> Count:
        """The rate times the number of uses of all elements."""
        node = self._node(position)
        value = tensor_value(node)
        assert value is not None
        uses = prod(value.shape[:2]) * prod(sum(vector) for vector in weights)
        return self.rates.rate(node) * uses

    def coincidences(self, contract: Callable[..., Tensor], *positions: int, dense: int) -> Count:
        """The product of the rates times the number of products: spikes taken as independent."""
        del contract
        return prod((self.rates.rate(self._node(p)) for p in positions), start=1) * dense

    def _node(self, position: int) -> Node:
        node = self.operands[position]
        assert isinstance(node, Node)
        return node
