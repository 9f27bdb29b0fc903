"""Level 3: the part of a backward that holds the peak, run in tiles along the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from snnfx.capture.halves import Halves, Schedule
from snnfx.passes.analysis.axes import analyse_axis
from snnfx.passes.analysis.axis_inference import infer_axes
from snnfx.passes.analysis.opkinds import is_heavy
from snnfx.passes.analysis.placement import Placement
from snnfx.passes.cost.roofline import device_of, node_seconds
from snnfx.passes.fxgraph import dependents, is_getitem, producer
from snnfx.passes.rewrite.tiles import TilesResult, run_in_tiles

aten = torch.ops.aten
MEETINGS = frozenset({aten.sum.dim_IntList, aten.native_batch_norm_backward.default})
"""Operators in which slices meet inside a layer's backward, so that it takes a second round."""


@dataclass(frozen=True)
class Axis:
    """An axis of the backward: where it lies in each tensor, by name.

    Attributes:
        size: number of slices.
        placements: of the tensors in which it was found.
    """

    size: int
    placements: Mapping[str, Placement]


@dataclass(frozen=True)
class Part:
    """A part of the backward that could run in tiles.

    Attributes:
        name: of the matrix work that it is computed again from.
        nodes: names of its nodes, in graph order.
        extra_seconds: that running it in tiles adds at least, because it takes a second round.
    """

    name: str
    nodes: tuple[str, ...]
    extra_seconds: float


def find_batch(halves: Halves) -> Axis | None:
    """The batch axis of the backward; None where it is not found beyond doubt."""
    found = infer_axes(halves.backward.graph).batch
    if found is None:
        return None
    return Axis(found.size, {node.name: p for node, p in found.placements.items()})


def tile_counts(size: int) -> Iterator[int]:
    """Numbers of tiles to try: divisors of the axis, each at least double the one before."""
    last = 1
    for count in range(2, size + 1):
        if size % count == 0 and count >= 2 * last:
            last = count
            yield count


def parts_at_peak(halves: Halves, schedule: Schedule) -> list[Part]:
    """The parts of the backward that could be tiled to lower the peak, the smallest first."""
    running = _nodes_at_peak(halves, schedule)
    graph = halves.backward.graph
    driven = dependents(graph, halves.driving(halves.backward))
    device = device_of(graph)
    found: dict[frozenset[Node], Part] = {}
    for node in graph.nodes:
        if node.name not in halves.origins or not is_heavy(producer(node)) or is_getitem(node):
            continue
        part = frozenset(_segment(graph, node, driven))
        # A loop over time calls a layer for each step, and all of its weights start one segment.
        if not running.isdisjoint(part) and part not in found:
            again = (n for n in part if is_heavy(n) and n not in driven)
            rounds = any(n.target in MEETINGS for n in part)
            extra = sum(node_seconds(n, device) for n in again) if rounds else 0.0
            names = tuple(n.name for n in graph.nodes if n in part)
            found[part] = Part(node.name, names, extra)
    return sorted(found.values(), key=lambda part: len(part.nodes))


def _nodes_at_peak(halves: Halves, schedule: Schedule) -> set[Node]:
    """The nodes of the backward that run when its memory is at its largest."""
    timeline = schedule.timeline
    if not timeline.backward or max(timeline.backward) < timeline.peak_bytes:
        return set()
    name = timeline.backward_names[timeline.backward.index(max(timeline.backward))]
    if schedule.outlines is not None:
        calls = schedule.outlines[1].calls
        step = next(node for node in schedule.backward.nodes if node.name == name)
        source = producer(step)
        if source.op == "call_module":
            return set(calls[str(source.target)][1].nodes)
    return {node for node in halves.backward.graph.nodes if node.name == name}


def _segment(graph: Graph, start: Node, driven: frozenset[Node]) -> set[Node]:
    """The backward of one layer: from its recomputed weight to the gradients that it gives."""
    part: set[Node] = set()
    stack = [start]
    while stack:
        node = stack.pop()
        if node in part or node.op != "call_function":
            continue
        part.add(node)
        ends = node is not start and is_heavy(producer(node)) and node in driven
        stack.extend(u for u in node.users if not ends or is_getitem(u))
    for node in reversed(graph.nodes):
        pulled = node.op == "call_function" and node.users and part.issuperset(node.users)
        if pulled and not (node in driven and is_heavy(producer(node))):
            part.add(node)
    for node in list(part):
        part.update(u for u in node.users if is_getitem(u))
    return part


def tile_part(halves: Halves, part: Part, axis: Axis, tiles: int) -> TilesResult:
    """Run a part of the backward in tiles; changes the halves unless it is declined."""
    names = frozenset(part.nodes)
    graph = halves.backward.graph
    nodes = [node for node in graph.nodes if node.name in names]
    inside = set(nodes)
    seeds = {
        source: axis.placements[source.name]
        for node in nodes
        for source in node.all_input_nodes
        if source not in inside and source.name in axis.placements
    }
    facts = analyse_axis(nodes, axis.size, seeds, complete_sums=True)
    result = run_in_tiles(graph, nodes, facts, tiles)
    if result.tiles > 1:
        graph.lint()
    return result
