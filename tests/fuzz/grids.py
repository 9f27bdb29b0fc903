"""The claims of the value-range analysis, held against the values of a run."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from snnfx.kernels.ops import pack_bits, unpack_bits
from snnfx.passes.analysis.value_range import ValueRanges, analyse_value_ranges
from snnfx.passes.cost.graph import backward_nodes
from snnfx.passes.fxgraph import JointRoles

from tests.fuzz.comparison import same_bits


@dataclass
class Tally:
    """How many claims were held against values."""

    grids: int = 0
    packed: int = 0


class ClaimChecker(Interpreter):
    """Runs a graph, and notes the values that break a claim about them.

    Args:
        module: raw ATen or decomposed, with metadata.
        tally: counts the claims.
        roles: of a joint graph, of which just the forward is run.
    """

    def __init__(self, module: GraphModule, tally: Tally, roles: JointRoles | None = None) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.ranges = analyse_value_ranges(module.graph)
        self.skipped = backward_nodes(module.graph, roles) if roles else frozenset[Node]()
        self.tally = tally
        self.broken: list[str] = []

    def check(self, args: list[Any]) -> list[str]:
        """The claims that a run from these arguments breaks; those of a backward may be missing."""
        self.broken = []
        placeholders = len(self.module.graph.find_nodes(op="placeholder"))
        with torch.no_grad():
            self.run(*args, *[None] * (placeholders - len(args)))
        for node, value in self.env.items():  # what is written to later has no claim
            self._hold(value, node, "at the end of the run, ")
        return self.broken

    def run_node(self, n: Node) -> Any:
        if n.op == "output" or n in self.skipped:
            return None
        value = super().run_node(n)
        if self._hold(value, n) and self.ranges.encoding(n) is not None:
            self.tally.packed += 1
            self._pack(value, n)
        return value

    def _hold(self, value: Any, node: Node, when: str = "") -> bool:
        """Whether there is a claim about a value, and it holds."""
        if not isinstance(value, Tensor) or self.ranges.grid(node) is None:
            return False
        self.tally.grids += not when
        reason = broken_claim(value, node, self.ranges)
        if reason:
            self.broken.append(f"'{node.name}' ({node.target}): {when}{reason}")
        return not reason

    def _pack(self, value: Tensor, node: Node) -> None:
        """Hold that packing loses nothing, in both layouts."""
        encoding = self.ranges.encoding(node)
        assert encoding is not None
        if self.ranges.assumes_finite(node) and bool(value.isnan().any()):
            return
        for layout in ("flat", "time") if value.dim() else ("flat",):
            codes = (encoding.bits, layout, encoding.scale, encoding.lo)
            packed = pack_bits(value, *codes)
            back = unpack_bits(packed, list(value.shape), value.dtype, *codes)
            loose = self.ranges.loses_zero_sign(node)
            if not (torch.equal(back, value) if loose else same_bits(back, value)):
                self.broken.append(f"'{node.name}' comes back otherwise from {encoding}, {layout}")


def broken_claim(value: Tensor, node: Node, ranges: ValueRanges) -> str:
    """What a value does that its claim rules out; "" if nothing."""
    grid = ranges.grid(node)
    assert grid is not None
    if not value.is_floating_point():
        numbers = [Fraction(int(v)) for v in value.unique()]
    else:
        if ranges.assumes_finite(node):
            value = value[~value.isnan()]
        if not bool(value.isfinite().all()):
            return "not finite"
        if not ranges.loses_zero_sign(node) and bool((value.signbit() & (value == 0)).any()):
            return "a negative zero"
        numbers = [Fraction(v) for v in value.double().unique().tolist()]
    for number in numbers:
        step = number / grid.scale
        if step.denominator != 1 or not grid.lo <= step <= grid.hi:
            return f"{float(number)} is not on {grid}"
    return ""
