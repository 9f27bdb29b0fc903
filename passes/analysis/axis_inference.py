"""Which axis of a graph is time and which is batch, from the graph alone.

Time is what a graph takes apart step by step and puts together again, with steps that feed one
another (`time_steps`). Batch is what is left of the first dimension of what weights read, once
time is taken out of it: convolutions and linear maps see ``[T*N, ...]``. From there, the relations
of the operators carry a placement to everything that it reaches, forwards and backwards: to inputs,
tangents and saved tensors alike, but not to parameters, which no relation ties to samples.

What does not add up gives None. A name given to the wrong axis could cost a tiling its use, never
its result: whatever `analyse_axis` says holds for any axis that is seeded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch.fx import Graph, Node

from snnfx.passes.analysis.axes import Outcome, transfer
from snnfx.passes.analysis.axes_rules import relation_of, shape_of
from snnfx.passes.analysis.dataflow import solve_forward
from snnfx.passes.analysis.placement import (
    CONSTANT,
    Along,
    Constant,
    Filled,
    Mixed,
    Placement,
    Port,
    Relation,
)
from snnfx.passes.analysis.time_steps import TimeSteps, find_time_steps
from snnfx.passes.fxgraph import JointRoles, is_getitem, tensor_value

aten = torch.ops.aten

CONVOLUTIONS = frozenset({aten.convolution.default, aten.convolution_backward.default})
LINEAR_OPERANDS: dict[object, int] = {aten.mm.default: 0, aten.addmm.default: 1}
"""Which argument of a linear map holds the samples."""


@dataclass(frozen=True)
class InferredAxis:
    """One axis of a graph.

    Attributes:
        size: number of slices.
        seeds: what to give to `analyse_axis` for the whole graph: placeholders with data, and the
            values in which slices meet, such as the results of a batch norm for the batch, or the
            stacks of a neuron's steps for time. Each is there as a whole and is then cut.
        placements: of every tensor in which the axis was found, seeds included.
    """

    size: int
    seeds: Mapping[Node, Placement]
    placements: Mapping[Node, Placement]

    def seeds_for(self, part: Iterable[Node]) -> dict[Node, Placement]:
        """The placements of what a part of the graph reads from outside."""
        nodes = list(part)
        inside = set(nodes)
        read = (source for node in nodes for source in node.all_input_nodes)
        return {n: self.placements[n] for n in read if n not in inside and n in self.placements}


@dataclass(frozen=True)
class InferredAxes:
    """The axes of a graph; None for one that was not found beyond doubt."""

    time: InferredAxis | None
    batch: InferredAxis | None


def infer_axes(graph: Graph, roles: JointRoles | None = None) -> InferredAxes:
    """Find time and batch in a forward graph, a backward graph or a joint graph.

    Args:
        graph: functional ATen operators with fake tensors in their metadata; sizes are numbers.
        roles: of a joint graph: a gradient then lies as the input that it belongs to.
    """
    steps = find_time_steps(graph)
    links = _Links(graph, roles)
    time: InferredAxis | None = None
    # Without time in any tensor, as where a loop in the model calls each layer with one step, all
    # of the first dimension is batch.
    steps = steps or TimeSteps(1, {})
    placed: Mapping[Node, Placement] = {}
    if steps.anchors:
        placed = _spread(links, steps.size, steps.anchors)
        time = InferredAxis(steps.size, _seeds(graph, steps.size, placed), placed)
    size = _batch_size(graph, steps, placed)
    if size is None:
        return InferredAxes(time, None)
    batches = _spread(links, size, _batch_anchors(graph, steps, placed, size))
    return InferredAxes(time, InferredAxis(size, _seeds(graph, size, batches), batches))


class _Links:
    """The relations of a graph, with the nodes at their ends.

    Args:
        graph: with fake tensors in its metadata.
        roles: ties gradients to primals.
    """

    def __init__(self, graph: Graph, roles: JointRoles | None) -> None:
        self._relations: dict[Node, Relation | None] = {n: relation_of(n) for n in graph.nodes}
        self._twins: dict[Node, list[Node]] = {}
        pairs = zip(roles.primals, roles.backward_outputs, strict=False) if roles else ()
        for primal, gradient in pairs:
            if gradient is not None and shape_of(primal) == shape_of(gradient):
                self._twins.setdefault(primal, []).append(gradient)
                self._twins.setdefault(gradient, []).append(primal)

    def beside(
        self, node: Node, placement: Placement, size: int
    ) -> Iterator[tuple[Node, Placement]]:
        """The placements that follow from one for the tensors that are one operator away."""
        for twin in self._twins.get(node, ()):
            yield twin, placement
        calls = [node.all_input_nodes[0] if is_getitem(node) else node, *node.users]
        for call in calls:
            relation = self._relations.get(call)
            if relation is None:
                continue
            ends = list(_ends(call, relation))
            spots = {port.lift(placement) for end, port in ends if end is node}
            for spot in spots:
                if spot is not None:
                    for end, port in ends:
                        found = port.lower(spot, size)
                        if found is not None:
                            yield end, found


def _ends(call: Node, relation: Relation) -> Iterator[tuple[Node, Port]]:
    """The operands and results of a call."""
    yield from zip(relation.operands, relation.inputs, strict=True)
    if tensor_value(call) is not None:
        yield call, relation.results[0]
        return
    for user in call.users:
        index = user.args[1] if is_getitem(user) else None
        if isinstance(index, int) and 0 <= index < len(relation.results):
            yield user, relation.results[index]


def _spread(
    links: _Links, size: int, anchors: Mapping[Node, Placement]
) -> Mapping[Node, Placement]:
    """The placements that follow from `anchors`; none for a tensor with two different ones."""
    placed = dict(anchors)
    refuted: set[Node] = set()
    pending = deque(anchors)
    while pending:
        node = pending.popleft()
        for other, placement in links.beside(node, placed[node], size):
            if not placement.fits(shape_of(other), size):
                continue
            if other not in placed:
                placed[other] = placement
                pending.append(other)
            elif placed[other] != placement:
                refuted.add(other)
    return MappingProxyType({n: p for n, p in placed.items() if n not in refuted})


def _seeds(graph: Graph, size: int, placed: Mapping[Node, Placement]) -> Mapping[Node, Placement]:
    """The placed tensors that the rules alone do not find to be sliced."""
    seeds: dict[Node, Placement] = {}

    def solve(node: Node, facts: Mapping[Node, Outcome]) -> Outcome:
        inputs = {n: facts.get(n, CONSTANT) for n in node.all_input_nodes}
        outcome = transfer(node, inputs, size)
        given = isinstance(outcome, (Mixed, Constant)) and not isinstance(outcome, Filled)
        if node in placed and given:
            seeds[node] = placed[node]
            return Along(placed[node])
        return outcome

    solve_forward(graph, solve)
    return MappingProxyType(seeds)


def _samples(graph: Graph, targets: Mapping[object, int]) -> Iterator[Node]:
    """What the operators in `targets` read as samples along the first dimension."""
    for node in graph.nodes:
        position = targets.get(node.target)
        operand = None if position is None else node.args[position]
        shape = shape_of(operand)
        if isinstance(operand, Node) and shape and isinstance(shape[0], int):
            yield operand


def _batch_size(graph: Graph, steps: TimeSteps, placed: Mapping[Node, Placement]) -> int | None:
    """N: what time leaves of the first dimension of what every convolution reads.

    Without convolutions, the dimension beside time in the stacks of steps, if it divides what the
    linear maps read.
    """
    operands = list(_samples(graph, dict.fromkeys(CONVOLUTIONS, 0)))
    if operands:
        sizes = _sizes_without_time(operands, steps.size, placed)
        return _only(sizes)
    size = _only({_beside_time(shape_of(n), p) for n, p in steps.anchors.items()})
    sizes = _sizes_without_time(_samples(graph, LINEAR_OPERANDS), steps.size, placed)
    return size if size is not None and sizes and all(s % size == 0 for s in sizes) else None


def _only(sizes: set[int]) -> int | None:
    """The one size that there is, if it can be an axis."""
    return next(iter(sizes)) if len(sizes) == 1 and min(sizes) > 1 else None


def _sizes_without_time(
    operands: Iterable[Node], steps: int, placed: Mapping[Node, Placement]
) -> set[int]:
    """First dimensions divided by T; those without time count only if none has time."""
    timed: set[int] = set()
    plain: set[int] = set()
    for operand in operands:
        length, placement = shape_of(operand)[0], placed.get(operand)
        if placement is None:
            plain.add(length)
        elif placement.dim == 0:
            # With something on both sides of time, none of it is known to be the batch.
            one_sided = 1 in (placement.outer, placement.inner)
            timed.add(length // steps if one_sided else 0)
    return timed or plain


def _beside_time(shape: tuple[int, ...], placement: Placement) -> int:
    """The first size that is not time; 1 if there is none."""
    others = [*shape[: placement.dim], *shape[placement.dim + 1 :]]
    return others[0] if len(others) > 1 else 1


def _batch_anchors(
    graph: Graph, steps: TimeSteps, placed: Mapping[Node, Placement], size: int
) -> dict[Node, Placement]:
    """Where the batch lies in what convolutions read, or in stacks of steps without any."""
    anchors: dict[Node, Placement] = {}
    for operand in _samples(graph, dict.fromkeys(CONVOLUTIONS, 0)):
        time = placed.get(operand)
        outer, inner = 1, 1
        if time is not None and time.dim == 0:
            outer, inner = (steps.size, 1) if time.outer == 1 else (1, steps.size)
        anchors[operand] = Placement(0, outer, inner)
    if not anchors:
        anchors = {n: Placement(0 if p.dim else 1, 1, 1) for n, p in steps.anchors.items()}
    return {n: p for n, p in anchors.items() if p.fits(shape_of(n), size)}
