"""Which tensors of a recorded step are spikes, which module fires them, and at what rate.

A tensor is binary where `snnfx.passes.analysis.value_range` proves that it holds zeros and ones.
Its rate is that of the tensors that it shows: views, slices, copies, conversions and repetitions of
spikes have the rate of the spikes (slices by assumption: spikes are taken to be spread evenly),
stacks and concatenations the mean, ``1 - s`` one minus the rate. What is left are the sources, each
named by the module that fires it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch.fx import Node

from snnfx.op_counter.record import StepRecord
from snnfx.op_counter.spikes import Count
from snnfx.passes.analysis.grid import Grid
from snnfx.passes.analysis.value_range import ValueRanges, analyse_value_ranges
from snnfx.passes.fxgraph import is_getitem, numel, producer, tensor_value
from snnfx.passes.optable import OpTable

aten = torch.ops.aten

BINARY = Grid.of(1, 0, 1)

RateOf = Callable[[Node], Count]

RateRule = Callable[[Node, RateOf], Count]
"""``rule(node, rate)``: the rate of a binary result from `rate` of binary operands."""

RATES: OpTable[RateRule] = OpTable("rates of spikes")


@dataclass(frozen=True)
class SpikeSource:
    """Tensors of spikes that have one rate.

    Attributes:
        name: of the module that fires them, without the outermost one; with the operator where the
            module has other binary tensors as well.
        nodes: what computes them.
        numel: elements of all of them.
    """

    name: str
    nodes: tuple[Node, ...]
    numel: int


class SpikeSources:
    """What is proven about spikes in a recorded step.

    Args:
        record: of the step.
        seeds: of placeholders, from values that are known.
    """

    def __init__(self, record: StepRecord, seeds: Mapping[Node, Grid]) -> None:
        self.ranges: ValueRanges = analyse_value_ranges(
            record.graph, seeds, read_before_written=record.read_before_written
        )
        self._names = _Names(record)

    def is_binary(self, node: object) -> bool:
        """Whether a tensor is proven to hold zeros and ones."""
        if not isinstance(node, Node):
            return False
        value = tensor_value(node)
        if value is not None and value.dtype is torch.bool:
            return True
        grid = self.ranges.grid(node)
        if grid is None or self.ranges.assumes_finite(node):
            return False
        if grid.is_constant:
            return grid.minimum in (0, 1)
        return grid.scale == 1 and grid.lo >= 0 and grid.hi <= 1

    def constant(self, node: Node) -> int | None:
        """What all elements of a binary tensor are, if that is known."""
        grid = self.ranges.grid(node)
        return int(grid.minimum) if grid is not None and grid.is_constant else None

    def name(self, source: Node) -> str:
        """The name of what fires a binary tensor that is none of others' rates."""
        return self._names.of(source)


class RateMap:
    """The rates of binary tensors, from those of the sources.

    Args:
        sources: of the step.
        rate_of_source: by the name of a source.
    """

    def __init__(self, sources: SpikeSources, rate_of_source: Callable[[str], Count]) -> None:
        self._sources = sources
        self._rate_of_source = rate_of_source
        self._rates: dict[Node, Count] = {}
        self._leaves: dict[str, list[Node]] = {}

    def rate(self, node: Node) -> Count:
        """The share of ones in a binary tensor."""
        if node not in self._rates:
            self._rates[node] = self._rate(node)
        return self._rates[node]

    def found(self) -> tuple[SpikeSource, ...]:
        """The sources whose rates were asked for, in that order."""
        return tuple(
            SpikeSource(name, tuple(nodes), sum(_numel(node) for node in nodes))
            for name, nodes in self._leaves.items()
        )

    def _rate(self, node: Node) -> Count:
        constant = self._sources.constant(node)
        if constant is not None:
            return Fraction(constant)
        rule = RATES.find(producer(node).target)
        operands = producer(node).all_input_nodes
        if rule is not None and all(self._sources.is_binary(operand) for operand in operands):
            return rule(producer(node), self.rate)
        name = self._sources.name(node)
        self._leaves.setdefault(name, []).append(node)
        return self._rate_of_source(name)


def _numel(node: Node) -> int:
    value = tensor_value(node)
    return 0 if value is None else numel(value)


@RATES.rule(
    *(aten.view, aten._unsafe_view, aten.reshape, aten.alias, aten.detach, aten.clone),
    *(aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze, aten.expand),
    *(aten.repeat, aten.contiguous, aten.flatten, aten.unflatten, aten.movedim, aten.flip),
    *(aten.select, aten.slice, aten.narrow, aten.split, aten.split_with_sizes, aten.unbind),
    *(aten.chunk, aten.index_select, aten._to_copy, aten.to, aten.roll, aten._reshape_alias),
)
def same_rate(node: Node, rate: RateOf) -> Count:
    """The elements of one tensor, or an even choice of them."""
    return rate(node.all_input_nodes[0])


@RATES.rule(aten.stack, aten.cat)
def mean_rate(node: Node, rate: RateOf) -> Count:
    """The mean over the parts, weighted by their sizes."""
    parts = node.args[0]
    assert isinstance(parts, (list, tuple))
    ones: dict[Count, int] = {}
    for part in parts:
        assert isinstance(part, Node)
        ones[rate(part)] = ones.get(rate(part), 0) + _numel(part)
    total = sum(ones.values())
    if len(ones) == 1 or total == 0:
        return next(iter(ones), Fraction(0))
    return sum(Fraction(count, total) * of_part for of_part, count in ones.items())


@RATES.rule(aten.rsub.Scalar, aten.logical_not)
def complement_rate(node: Node, rate: RateOf) -> Count:
    """``1 - s``, which is binary for that minuend alone."""
    return 1 - rate(node.all_input_nodes[0])


class _Names:
    """Names of sources: by the module that fires, and the operator where that is not enough."""

    def __init__(self, record: StepRecord) -> None:
        self._neurons = record.neurons
        self._calls = {call.node: call for call in record.calls}
        self._given = record.names
        self._first: dict[str, tuple[object, str]] = {}

    def of(self, source: Node) -> str:
        call = self._calls.get(producer(source) if is_getitem(source) else source)
        if call is None:
            return self._given.get(source, "state")
        base = self._module(call.path) or "outside of modules"
        kind = (call.node.target, call.stage)
        if self._first.setdefault(base, kind) == kind:
            return base
        operator = str(call.node.target).removeprefix("aten.").partition(".")[0]
        return f"{base} ({operator}{', backward' if call.stage == 'backward' else ''})"

    def _module(self, path: tuple[str, ...]) -> str:
        """The outermost neuron that is running, or else the innermost module."""
        if not path:
            return ""
        name = next((name for name in path if name in self._neurons), path[-1])
        return name.partition(".")[2] or name
