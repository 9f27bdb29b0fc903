"""The time loop of a network, unrolled: what is taken apart step by step and put together again.

Taken apart: one `unbind`, or one `select` for each index of a dimension. Put together: a `stack`.
The two are a time loop if piece t reaches member t for every t, and if some step reaches another
one: neurons carry their state. (A picture that is split into its colours and stacked again is no
loop; neither are queries, keys and values.) Where layers alternate with weights that see all steps
at once, pieces are followed through elementwise work alone, one layer of neurons at a time; a loop
around whole layers shows only if they are followed through everything, and then no step may reach
an earlier one, or else no later one.

One bit set a node for each T: linear in nodes times T/64 words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from snnfx.passes.analysis.axes_rules import arguments_of, shape_of
from snnfx.passes.analysis.opkinds import is_elementwise
from snnfx.passes.analysis.placement import Placement
from snnfx.passes.fxgraph import has_static_shape, is_getitem

aten = torch.ops.aten

Pieces = tuple[Node, ...]


@dataclass(frozen=True)
class TimeSteps:
    """The time axis where it is taken apart and put together.

    Attributes:
        size: T.
        anchors: the tensors that have it as a dimension of their own.
    """

    size: int
    anchors: Mapping[Node, Placement]


@dataclass(frozen=True)
class _Ends:
    """Tensors and their slices along one dimension, whole tensor and dimension by slices."""

    whole: Node
    dim: int
    slices: Pieces


def find_time_steps(graph: Graph) -> TimeSteps | None:
    """The time axis, or None if there is none, or more than one candidate."""
    apart = _taken_apart(graph)
    together = _put_together(graph)
    for through_everything in (False, True):
        loops: dict[int, list[_Ends]] = {}
        for size in sorted({len(end.slices) for end in apart}):
            own = [end for end in apart if len(end.slices) == size]
            reached = _reached(graph, own, through_everything)
            stacks = [end for end in together if len(end.slices) == size]
            looped = [s for s in stacks if _is_loop(s.slices, reached, through_everything)]
            if looped:
                loops[size] = own + looped
        if len(loops) == 1:
            ((size, ends),) = loops.items()
            return TimeSteps(size, {end.whole: Placement(end.dim, 1, 1) for end in ends})
        if loops:
            return None
    return None


def _taken_apart(graph: Graph) -> list[_Ends]:
    """Tensors of which every slice along a dimension is computed."""
    selected: dict[tuple[Node, int], dict[int, Node]] = defaultdict(dict)
    for node in graph.nodes:
        if is_getitem(node) and node.all_input_nodes[0].target is aten.unbind.int:
            source, index = node.all_input_nodes[0], node.args[1]
        elif node.target is aten.select.int:
            source, index = node, arguments_of(node)["index"]
        else:
            continue
        whole = source.args[0]
        if isinstance(whole, Node) and has_static_shape(whole) and isinstance(index, int):
            dim = arguments_of(source)["dim"] % len(shape_of(whole))
            selected[whole, dim].setdefault(index % shape_of(whole)[dim], node)
    return [
        _Ends(whole, dim, tuple(slices[t] for t in range(len(slices))))
        for (whole, dim), slices in selected.items()
        if len(slices) == shape_of(whole)[dim] > 1
    ]


def _put_together(graph: Graph) -> list[_Ends]:
    """Stacks, and what they stack."""
    found: list[_Ends] = []
    for node in graph.find_nodes(op="call_function", target=aten.stack.default):
        members = node.args[0]
        if has_static_shape(node) and isinstance(members, (list, tuple)) and len(members) > 1:
            slices = tuple(member for member in members if isinstance(member, Node))
            dim = arguments_of(node)["dim"] % len(shape_of(node))
            found.append(_Ends(node, dim, slices))
    return found


def _reached(graph: Graph, ends: Sequence[_Ends], through_everything: bool) -> dict[Node, int]:
    """For each node the set of steps, as bits, of which a piece reaches it."""
    steps = {piece: 1 << t for end in ends for t, piece in enumerate(end.slices)}
    reached: dict[Node, int] = {}
    for node in graph.nodes:
        if node in steps:
            reached[node] = steps[node]
            continue
        bits = 0
        if through_everything or is_elementwise(node):
            for source in node.all_input_nodes:
                bits |= reached[source]
        reached[node] = bits
    return reached


def _is_loop(members: Pieces, reached: Mapping[Node, int], ordered: bool) -> bool:
    """Whether step t reaches member t for every t, and some step reaches another one."""
    sets = [reached[member] for member in members]
    if not all(bits >> t & 1 for t, bits in enumerate(sets)):
        return False
    if all(bits == 1 << t for t, bits in enumerate(sets)):
        return False
    forwards = all(bits >> (t + 1) == 0 for t, bits in enumerate(sets))
    backwards = all(bits & ((1 << t) - 1) == 0 for t, bits in enumerate(sets))
    return forwards or backwards or not ordered
