"""What each node of one run computes, in terms of what every time step computes.

The value of a node is `Whole`, one term, or `Sliced`: one term for each slice along an axis. That
axis is time in what comes from a sequence, and after a loop over steps has put its results
together; but nothing depends on that, since slices are no more than an exact way to write the whole
down. Which operators keep slices apart is known from the axis rules (`snnfx.passes.analysis.axes`),
which are asked about one node at a time; the term of slice t then is the operator applied to
slice t of what it reads, sizes included, just as a run over that one step applies it. What an
operator mixes is one term over all slices, which no run over fewer of them has.

An axis of one slice is not followed: the slice is the whole, and where it lies means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.fx import Graph, Node

from snnfx.passes.analysis.axes import AxisFacts, Outcome, tile_call, transfer
from snnfx.passes.analysis.axes_rules import (
    Arguments,
    arguments_of,
    result_shapes,
    shape_of,
    tensor_operands,
)
from snnfx.passes.analysis.dataflow import written_nodes
from snnfx.passes.analysis.placement import (
    CONSTANT,
    FILLED,
    Along,
    AxisValue,
    Placement,
    Shape,
    tile_shape,
)
from snnfx.passes.analysis.step_calls import (
    Call,
    filled_results,
    is_traceable,
    joins_one_kind,
    kept_indices,
    results_of,
)
from snnfx.passes.analysis.step_terms import Term, Terms
from snnfx.passes.fxgraph import is_getitem, tensor_value
from snnfx.passes.optable import OpTable

aten = torch.ops.aten


@dataclass(frozen=True)
class Whole:
    """One term for all of the tensor."""

    term: Term


@dataclass(frozen=True)
class Sliced:
    """A term for each slice of the tensor; two at the least.

    Attributes:
        placement: where the slices lie. A slice keeps its dimension, as a tile of one slice.
        terms: of the slices.
    """

    placement: Placement
    terms: tuple[Term, ...]


Value = Whole | Sliced
Values = tuple[Value, ...]
SliceRule = Callable[["Steps", Node, Arguments], Values | None]

SLICE_RULES: OpTable[SliceRule] = OpTable("slices")
"""Operators that take slices out of a tensor or put them together; None: no slices in this call."""


class Steps:
    """The values of the nodes of one graph.

    Args:
        terms: the table for this run and all that it is compared with.
        graph: functional ATen nodes with fake tensors of static sizes.
        given: the values of placeholders; any other one is equal to nothing else.
        size: how many time steps the run has.

    Attributes:
        terms: the table.
        size: number of steps.
        mixing: nodes that read slices, and of which no slices are known.
        written: nodes whose tensors the run changes.
    """

    def __init__(self, terms: Terms, graph: Graph, given: Mapping[Node, Value], size: int) -> None:
        self.terms = terms
        self.size = size
        self.mixing: set[Node] = set()
        self._values: dict[Node, Values] = {}
        self.written = written_nodes(graph)
        for node in graph.nodes:
            if node.op == "output":
                continue
            value = None if node in self.written else given.get(node)
            if value is not None:
                self._values[node] = (value,)
            elif node.op == "call_function" and node not in self.written:
                self._values[node] = self._call(node)
            else:
                self._values[node] = self._unknown(node)

    @property
    def nodes(self) -> Iterable[Node]:
        """The nodes that have values, in the order of the graph."""
        return self._values

    def of(self, node: Node) -> Value:
        """The value of a node that computes one tensor."""
        return self._values[node][0]

    def results_of(self, node: Node) -> Iterator[frozenset[Term]]:
        """The terms of each result of a node."""
        for value in self._values[node]:
            yield frozenset(value.terms if isinstance(value, Sliced) else (value.term,))

    def whole(self, node: Node) -> Term:
        """The one term of all of a tensor."""
        value = self.of(node)
        if isinstance(value, Whole):
            return value.term
        return self.terms.assemble(value.terms, value.placement)

    def along_first(self, node: Node) -> tuple[Term, ...] | None:
        """The steps of a tensor with time in dimension 0; None if they are not known one by one."""
        shape = shape_of(node)
        if tensor_value(node) is None or not shape or shape[0] != self.size:
            return None
        value = self.of(node)
        if isinstance(value, Sliced):
            return value.terms if value.placement == Placement(0, 1, 1) else None
        pieces = self.terms.pieces(value.term, 0)
        if len(pieces) == self.size:
            return pieces
        step = self.terms.narrowed(value.term, 0, 1)
        return None if step is None else (step,) * self.size

    def _unknown(self, node: Node) -> Values:
        return tuple(Whole(self.terms.unknown(shape)) for shape in result_shapes(node))

    def _call(self, node: Node) -> Values:
        if is_getitem(node):
            return self._picked(node)
        filled = filled_results(self.terms, node)
        if filled is not None:
            return (Whole(filled[0]),)
        operands = tensor_operands(node)
        if not is_traceable(node) or set(operands) != set(node.all_input_nodes):
            self._note_mixing(node)
            return self._unknown(node)
        rule = SLICE_RULES.find(node.target)
        found = None if rule is None else rule(self, node, arguments_of(node))
        sliced = [v for n in operands if isinstance(v := self.of(n), Sliced)]
        if found is None and sliced:
            found = self._slice_by_slice(node, len(sliced[0].terms))
        return self._all_at_once(node) if found is None else found

    def _picked(self, node: Node) -> Values:
        source, index = node.args
        values = self._values[source] if isinstance(source, Node) else ()
        inside = isinstance(index, int) and -len(values) <= index < len(values)
        return (values[index],) if inside else self._unknown(node)  # type: ignore[index]

    def _all_at_once(self, node: Node) -> Values:
        operands = {n: self.whole(n) for n in tensor_operands(node)}
        self._note_mixing(node)
        call = Call(node, node.args, node.kwargs, operands, result_shapes(node))
        return tuple(Whole(term) for term in results_of(self.terms, call))

    def _note_mixing(self, node: Node) -> None:
        if any(isinstance(v, Sliced) for n in node.all_input_nodes for v in self._values[n]):
            self.mixing.add(node)

    def _slice_by_slice(self, node: Node, size: int) -> Values | None:
        """The results as far as they are slices too; None if none is."""
        operands = {n: self.of(n) for n in tensor_operands(node)}
        if any(isinstance(v, Sliced) and len(v.terms) != size for v in operands.values()):
            return None
        facts: dict[Node, Outcome] = {n: self._fact(v) for n, v in operands.items()}
        outcome = transfer(node, facts, size)
        outcomes = outcome if isinstance(outcome, tuple) else (outcome,)
        if not any(isinstance(o, Along) for o in outcomes):
            return None
        tile = tile_call(node, AxisFacts(size, {**facts, node: outcome}), 1)
        whole = result_shapes(node)
        shapes = tuple(_slice_shape(s, o) for s, o in zip(whole, outcomes, strict=True))
        results: list[tuple[Term, ...]] = []
        for step in range(size):
            terms = self._operands_of_slice(operands, tile.narrowed, step)
            if terms is None:
                return None
            call = Call(node, tile.args, tile.kwargs, terms, shapes)
            results.append(results_of(self.terms, call))
        return tuple(
            Sliced(o.placement, tuple(found[i] for found in results))
            if isinstance(o, Along)
            else Whole(self.terms.unknown(shapes[i]))
            for i, o in enumerate(outcomes)
        )

    def _fact(self, value: Value) -> AxisValue:
        if isinstance(value, Sliced):
            return Along(value.placement)
        return FILLED if self.terms.repeats(value.term) else CONSTANT

    def _operands_of_slice(
        self, operands: Mapping[Node, Value], cuts: Mapping[Node, tuple[int, int]], step: int
    ) -> dict[Node, Term] | None:
        """What the operator reads for one slice; None if there is a constant that has no slices."""
        found: dict[Node, Term] = {}
        for node, value in operands.items():
            term = value.terms[step] if isinstance(value, Sliced) else value.term
            if node in cuts:
                narrowed = self.terms.narrowed(term, *cuts[node])
                if narrowed is None:
                    return None
                term = narrowed
            found[node] = term
        return found


def sliced(placement: Placement, terms: Sequence[Term]) -> Value:
    """The value of a tensor that has these slices."""
    return Whole(terms[0]) if len(terms) == 1 else Sliced(placement, tuple(terms))


def _slice_shape(shape: Shape, outcome: AxisValue) -> Shape:
    return tuple(tile_shape(shape, outcome.placement, 1)) if isinstance(outcome, Along) else shape


def _dim_of(arguments: Arguments, rank: int) -> int:
    return int(arguments["dim"]) % rank if rank else 0


@SLICE_RULES.rule(aten.select.int, aten.unbind.int)
def step_taken(steps: Steps, node: Node, arguments: Arguments) -> Values | None:
    """One slice, or every one, without its dimension."""
    value = steps.of(arguments["self"])
    dim = _dim_of(arguments, len(shape_of(arguments["self"])))
    if not isinstance(value, Sliced) or value.placement != Placement(dim, 1, 1):
        return None
    only = node.target is aten.select.int
    picked = (value.terms[arguments["index"]],) if only else value.terms
    return tuple(Whole(steps.terms.pick(term, dim, 0)) for term in picked)


@SLICE_RULES.rule(
    *(aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default),
)
def steps_taken(steps: Steps, node: Node, arguments: Arguments) -> Values | None:
    """Ranges of whole slices, in order."""
    source = arguments["self"]
    value, shape = steps.of(source), shape_of(source)
    dim = _dim_of(arguments, len(shape))
    place = value.placement if isinstance(value, Sliced) else None
    if not isinstance(value, Sliced) or place is None or (place.dim, place.outer) != (dim, 1):
        return None
    found: list[Value] = []
    lengths = [s[dim] for s in result_shapes(node)]
    for kept in kept_indices(node, arguments, shape[dim], lengths):
        chosen = _whole_slices(kept, place.inner)
        if chosen is None:
            return None
        found.append(sliced(place, value.terms[chosen.start : chosen.stop : chosen.step]))
    return tuple(found)


def _whole_slices(kept: range, inner: int) -> range | None:
    """The slices of `inner` indices each that make up a range of indices; None if none do."""
    if inner == 1 and kept:
        return kept
    if kept.step != 1 or not kept or kept.start % inner or kept.stop % inner:
        return None
    return range(kept.start // inner, kept.stop // inner)


@SLICE_RULES.rule(aten.stack.default)
def steps_stacked(steps: Steps, node: Node, arguments: Arguments) -> Values | None:
    """Steps of a loop, side by side along a new dimension."""
    shape = shape_of(node)
    dim = _dim_of(arguments, len(shape))
    operands: list[Node] = list(arguments["tensors"])
    if not joins_one_kind(node) or any(_is_sequence(steps, operand) for operand in operands):
        return None
    single = (*shape[:dim], 1, *shape[dim + 1 :])
    pieces = [steps.terms.view(steps.whole(operand), single) for operand in operands]
    return _joined(steps, Placement(dim, 1, 1), pieces)


def _is_sequence(steps: Steps, node: Node) -> bool:
    """Whether a tensor seems to hold all the steps, and is none of them itself."""
    value = steps.of(node)
    return isinstance(value, Sliced) and len(value.terms) == steps.size


@SLICE_RULES.rule(aten.cat.default)
def steps_concatenated(steps: Steps, node: Node, arguments: Arguments) -> Values | None:
    """Steps of a loop, or sequences of steps, one after another along a dimension."""
    dim = _dim_of(arguments, len(shape_of(node)))
    pieces: list[Term] = []
    for operand in arguments["tensors"]:
        value = steps.of(operand)
        if isinstance(value, Sliced):
            if value.placement.dim != dim or value.placement.outer != 1:
                return None
            pieces.extend(value.terms)
        elif 0 not in shape_of(operand):
            pieces.append(value.term)
    shapes = {steps.terms.shape(piece) for piece in pieces}
    if len(shapes) != 1 or not joins_one_kind(node):
        return None
    return _joined(steps, Placement(dim, 1, shapes.pop()[dim]), pieces)


def _joined(steps: Steps, place: Placement, pieces: Sequence[Term]) -> Values | None:
    """Pieces as slices, if each depends on a later step than the one before it.

    Features that are put side by side depend on the same step; to take them for steps would be
    right too, but then the terms of one step in a longer run were not those of a run over it.
    """
    latest = [steps.terms.latest(piece) for piece in pieces]
    if any(after <= before for before, after in pairwise(latest)):
        return None
    return (sliced(place, pieces),)
