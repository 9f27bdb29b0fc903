"""Sums of products of two operands, and what spikes make of them.

A product of an operand that is made of spikes with anything takes no multiplication: where the
spike is 1 the other factor is accumulated, where it is 0 nothing happens. So, of the
products ``a_i b_j`` that an operator sums up:

- none of the operands is binary: each is a MAC;
- one is: one AC for each product with a spike in it, that is the sum over the spikes of how often
  an element is *used* (in how many products it is);
- both are: one AC for each product of two spikes (a coincidence); what else there is adds 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from snnfx.op_counter.spikes import Count, SpikeFacts

Coverage = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Operand:
    """One of the two operands.

    Attributes:
        position: among the arguments; None for what the operator makes itself, which is not
            binary.
        uses: how often each element is used.
        coverage: of an operand ``[N, C, *]``, one vector for each dimension after the second: an
            element is used `uses` times the product of their values at its place. Empty: of ones.
    """

    position: int | None
    uses: int
    coverage: Coverage = ()

    def is_binary(self, facts: SpikeFacts) -> bool:
        """Whether it is made of spikes."""
        return self.position is not None and facts.is_binary(self.position)

    def spike_uses(self, facts: SpikeFacts) -> Count:
        """How often its spikes are used."""
        if self.position is None:
            return 0
        if self.coverage:
            return self.uses * facts.weighted_spikes(self.position, self.coverage)
        return self.uses * facts.spikes(self.position)


@dataclass(frozen=True)
class Product:
    """Sums of products.

    Attributes:
        left: one operand.
        right: the other.
        dense: how many products there are, those with a padding of zeros included.
        contract: the number of coincidences as the total of a tensor, from both operands; see
            `SpikeFacts.coincidences`.
        inside: how many products of two elements there are; None: all.
    """

    left: Operand
    right: Operand
    dense: int
    contract: Callable[[Tensor, Tensor], Tensor]
    inside: int | None = None

    def macs(self, facts: SpikeFacts) -> Count:
        """Multiply-accumulates."""
        if self.left.is_binary(facts) or self.right.is_binary(facts):
            return 0
        return self.dense

    def acs(self, facts: SpikeFacts) -> Count:
        """Accumulations that spikes cause."""
        left, right = self.left.is_binary(facts), self.right.is_binary(facts)
        if left and right:
            positions = (self.left.position or 0, self.right.position or 0)
            pairs = self.dense if self.inside is None else self.inside
            return facts.coincidences(self.contract, *positions, dense=pairs)
        if left:
            return self.left.spike_uses(facts)
        return self.right.spike_uses(facts) if right else 0
