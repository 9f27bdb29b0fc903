"""Which tensors of a graph hold few distinct numbers, provably: the value-range analysis.

**Claim.** ``grid(node) == Grid(s, lo, hi)`` says: each element of the tensor that `node` computes
at run time equals ``s * k``, exactly as a real number, for an integer ``lo <= k <= hi``; every
number of the grid is exact in the tensor's dtype; and no element is NaN, infinite or -0.0. Two
exceptions are told apart instead of hidden:

- `assumes_finite`: an element may be NaN. ``round(clamp(x, 0, D))`` hands a NaN of ``x`` on;
  packing it would turn it into a number. Comparisons give bool even for NaN, so ordinary spikes
  never carry this.
- `loses_zero_sign`: a zero may be -0.0, and decoding gives +0.0: equal, but of other bits.
  ``clamp(-0.0, 0, D)`` and ``-1.0 * spike`` do that.

A node without a claim is unknown. The analysis may say unknown; it may never be wrong. It trusts
the schema and metadata of the graph's ops, the kernels as `value_range_rules` says, bool tensors to
hold zeros and ones, and the seeds that the caller vouches for.

**Method.** An abstract interpretation (Cousot and Cousot, POPL 1977) in the lattice
`value_range_rules.Fact`, solved by one pass in topological order: O(nodes) rule calls. Each op has
a rule, in `value_range_rules_*`; an op without one is unknown, unless its result is bool. Values
whose storage the graph writes in place are unknown.

**Known gaps.** No relation between tensors is kept (``x - x`` of spikes is ternary), sums over
symbolic sizes are unknown, and control flow operators are not entered.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch.fx import Graph, Node

from snnfx.errors import PackError
from snnfx.kernels.bitpack_reference import BIT_WIDTHS, check_grid

# Imported for the rules that they register.
from snnfx.passes.analysis import (
    value_range_rules_layout,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    value_range_rules_reduce,  # noqa: F401  # pyright: ignore[reportUnusedImport]
    value_range_rules_source,  # noqa: F401  # pyright: ignore[reportUnusedImport]
)
from snnfx.passes.analysis.dataflow import solve_forward, written_nodes
from snnfx.passes.analysis.grid import FLOAT_FORMATS, INTEGER_DTYPES, Grid, fits
from snnfx.passes.analysis.value_range_rules import (
    BINARY_FACT,
    TOP,
    UNINITIALISED,
    VALUE_RANGES,
    Call,
    Fact,
    Lapse,
    Outcome,
    ValueRangeRule,
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a tensor is packed: element = ``(code + lo) * scale`` for an unsigned code of few bits.

    The product is exact in the tensor's dtype (for an integer dtype, in integers).

    Attributes:
        bits: bits an element, 1, 2, 4 or 8.
        scale: positive, exact in the tensor's dtype.
        lo: what code 0 stands for, in multiples of `scale`.
    """

    bits: int
    scale: float
    lo: int

    @classmethod
    def of(cls, grid: Grid, dtype: torch.dtype) -> Encoding | None:
        """The encoding of the numbers of `grid` in `dtype`, or None if there is none."""
        widths = [bits for bits in BIT_WIDTHS if bits >= grid.bits]
        # Decoding multiplies the integer code + lo by the scale, both as numbers of the dtype.
        factors = (grid, Grid.constant(grid.scale), Grid.of(1, grid.lo, grid.hi))
        if not widths or not all(fits(factor, dtype) for factor in factors):
            return None
        try:
            scale = float(grid.scale)
            check_grid(dtype, widths[0], scale, grid.lo)
        except (OverflowError, PackError):
            return None
        return cls(widths[0], scale, grid.lo) if scale == grid.scale else None


@dataclass(frozen=True)
class ValueRanges:
    """The results of `analyse_value_ranges`: what is proven about each node's tensor.

    Nodes that were not in the analysed graph, and nodes with several results, are unknown.
    """

    _facts: Mapping[Node, Fact]
    _encodings: Mapping[Node, Encoding] = field(repr=False)

    def grid(self, node: Node) -> Grid | None:
        """The grid that holds every element, or None if unknown."""
        fact = self._facts.get(node)
        return None if fact is None else fact.grid

    def encoding(self, node: Node, *, strict: bool = False) -> Encoding | None:
        """How to pack the tensor in at most 8 bits an element, or None.

        Args:
            node: a node of the analysed graph.
            strict: also None where decoding might differ in the bits: where `assumes_finite` or
                `loses_zero_sign`.
        """
        if strict and (self.assumes_finite(node) or self.loses_zero_sign(node)):
            return None
        return self._encodings.get(node)

    def assumes_finite(self, node: Node) -> bool:
        """Whether the claim fails where a NaN reached the graph's inputs; False if unknown."""
        return self._lapses(node, Lapse.NAN)

    def loses_zero_sign(self, node: Node) -> bool:
        """Whether zeros of the tensor may be -0.0, which decodes to +0.0; False if unknown."""
        return self._lapses(node, Lapse.NEGATIVE_ZERO)

    def _lapses(self, node: Node, lapse: Lapse) -> bool:
        fact = self._facts.get(node)
        return fact is not None and fact.grid is not None and lapse in fact.lapses


def analyse_value_ranges(
    graph: Graph, seeds: Mapping[Node, Grid] | None = None, *, read_before_written: bool = False
) -> ValueRanges:
    """Find the tensors of a graph of ATen ops whose elements are on a small grid.

    Args:
        graph: raw or Inductor-decomposed; nodes with their fake tensors in ``meta["val"]``. Only
            dtypes, shapes and devices are read, and nothing is written.
        seeds: claims that the caller vouches for, usually of placeholders. One that does not fit
            the node's dtype is left out.
        read_before_written: whether no node is read once its storage has been written in place, as
            in the graphs of `snnfx.eager.graph_recorder`. What is claimed of a node then holds
            wherever it is read.
    """
    seeds = seeds or {}
    written = frozenset[Node]() if read_before_written else written_nodes(graph)

    def transfer(node: Node, facts: Mapping[Node, Outcome]) -> Outcome:
        if node in written:
            return _checked(node, TOP)
        return _checked(node, Fact.on(seeds[node]) if node in seeds else _apply_rule(node, facts))

    solved = solve_forward(graph, transfer)
    facts = {node: fact for node, fact in solved.items() if isinstance(fact, Fact)}
    encodings = {
        node: encoding
        for node, fact in facts.items()
        if fact.grid is not None
        and (encoding := Encoding.of(fact.grid, node.meta["val"].dtype)) is not None
    }
    return ValueRanges(MappingProxyType(facts), MappingProxyType(encodings))


def _apply_rule(node: Node, facts: Mapping[Node, Outcome]) -> Outcome:
    """What the rule of a node's op says, before its results are checked."""
    if node.op != "call_function":
        return TOP
    if node.target is operator.getitem:
        return _item(node, facts)
    rule = _find_rule(node.target)
    dtypes = _result_dtypes(node)
    if rule is None or not dtypes or dtypes[0] is None:
        return TOP
    return rule(Call(node, facts, dtypes[0]))


def _find_rule(target: object) -> ValueRangeRule | None:
    if not isinstance(target, torch._ops.OpOverload):
        return None
    return VALUE_RANGES.find(target) or VALUE_RANGES.find(target._schema.name)


def _item(node: Node, facts: Mapping[Node, Outcome]) -> Fact:
    """One of several results."""
    source, index = node.args
    outcome = facts.get(source, TOP) if isinstance(source, Node) else TOP
    if isinstance(outcome, Fact) or not isinstance(index, int) or index >= len(outcome):
        return TOP
    return outcome[index]


def _result_dtypes(node: Node) -> list[torch.dtype | None]:
    """The dtype of each result, None for one that is no tensor."""
    value = node.meta.get("val")
    results = value if isinstance(value, (list, tuple)) else [value]
    return [result.dtype if isinstance(result, torch.Tensor) else None for result in results]


def _checked(node: Node, outcome: Outcome) -> Outcome:
    """An outcome in the form of the node's metadata, without claims that its dtypes cannot hold."""
    dtypes = _result_dtypes(node)
    if isinstance(node.meta.get("val"), (list, tuple)):
        several = (outcome,) * len(dtypes) if isinstance(outcome, Fact) else outcome
        return tuple(
            _checked_fact(fact, dtype) for fact, dtype in zip(several, dtypes, strict=False)
        )
    return _checked_fact(outcome, dtypes[0]) if isinstance(outcome, Fact) else TOP


def _checked_fact(fact: Fact, dtype: torch.dtype | None) -> Fact:
    if dtype is None:
        return TOP
    if dtype is torch.bool:
        return _checked_bool(fact)
    if fact.grid is not None and not fits(fact.grid, dtype):
        return TOP
    if dtype in INTEGER_DTYPES or not fact.may_hold_zero:
        return fact.with_lapses(fact.lapses & Lapse.NAN)
    return fact if dtype in FLOAT_FORMATS else TOP


def _checked_bool(fact: Fact) -> Fact:
    """A bool is zero or one, whatever computed it; NaN converts to one."""
    if fact is UNINITIALISED:
        return fact
    certain = fact.grid is not None and fits(fact.grid, torch.bool) and not fact.lapses
    return fact if certain else BINARY_FACT
