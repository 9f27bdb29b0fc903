"""The tables of MAC, AC and SynOp rules, and three ways to fill all of them at once.

An operator is *linear* (sums of products of two operands, where spikes save work: `linear`), it
takes a fixed work for its shapes (`fixed`), or none (`nothing`). What none of the three says is
unknown to the counters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from snnfx.op_counter.counter import Rule
from snnfx.op_counter.op_names import packets
from snnfx.op_counter.operands import Args, Kwargs
from snnfx.op_counter.spike_products import Product
from snnfx.op_counter.spikes import Count, ShapeRule, SpikeCall, SpikeRule
from snnfx.passes.optable import OpTable

MACS: OpTable[SpikeRule] = OpTable("multiply-accumulates")
"""Multiply-accumulates of one call: products of two numbers that are added to a sum at once."""

ACS: OpTable[SpikeRule] = OpTable("accumulates")
"""Additions and subtractions of one call that are part of no MAC."""

SYNOPS: OpTable[SpikeRule] = OpTable("synaptic operations")
"""Accumulations of one call that a spike causes in a matrix product or a convolution."""

QUANTITIES = {"mac": MACS, "ac": ACS, "synops": SYNOPS}
"""The tables by their names in `snnfx.op_counter.report`."""


@dataclass(frozen=True)
class Work:
    """What one call takes.

    Attributes:
        mac: multiply-accumulates.
        ac: additions and subtractions besides these.
    """

    mac: int = 0
    ac: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.mac + other.mac, self.ac + other.ac)

    def times(self, elements: int) -> Work:
        """That work for each of some elements."""
        return Work(self.mac * elements, self.ac * elements)


WorkRule = Callable[[Args, Kwargs, Any], Work]
"""``rule(args, kwargs, out)``: by shapes and numbers alone."""

Products = Callable[[SpikeCall], tuple[Product, ...]]


def linear(
    *names: str, besides: Callable[[SpikeCall], Work] | None = None
) -> Callable[[Products], Products]:
    """Register what the products of linear operators are.

    Args:
        names: of ATen operators, see `packets`.
        besides: what else a call takes, none of it synaptic.
    """

    def register(products: Products) -> Products:
        def synops(call: SpikeCall) -> Count:
            return sum(product.acs(call.facts) for product in products(call))

        def acs(call: SpikeCall) -> Count:
            return synops(call) + (besides(call).ac if besides else 0)

        def macs(call: SpikeCall) -> Count:
            dense = sum(product.macs(call.facts) for product in products(call))
            return dense + (besides(call).mac if besides else 0)

        MACS.rule(*packets(names))(macs)
        ACS.rule(*packets(names))(acs)
        SYNOPS.rule(*packets(names))(synops)
        return products

    return register


def fixed(*names: str) -> Callable[[WorkRule], WorkRule]:
    """Register work that does not depend on spikes; none of it is synaptic."""

    def register(rule: WorkRule) -> WorkRule:
        MACS.rule(*packets(names))(ShapeRule(lambda args, kwargs, out: rule(args, kwargs, out).mac))
        ACS.rule(*packets(names))(ShapeRule(lambda args, kwargs, out: rule(args, kwargs, out).ac))
        SYNOPS.rule(*packets(names))(NOTHING)
        return rule

    return register


def nothing(*targets: object) -> None:
    """Register operators, by themselves, as such that take none of the three."""
    for table in QUANTITIES.values():
        table.rule(*targets)(NOTHING)


def _zero(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Nothing is added up."""
    del args, kwargs, out
    return 0


_ZERO: Rule = _zero
NOTHING = ShapeRule(_ZERO)
"""The rule of what takes nothing."""
