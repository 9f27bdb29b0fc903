"""Grouping a graph into fused regions and the operators between them.

Every node that `REGION_RULES` can express is put in a *stage*: even stages hold regions, odd ones
the operators between them, and a value never flows to an earlier stage. The connected nodes of an
even stage are a region: convex by construction, since a way out and back in would have to come back
in a later stage. A sum over the base space ends its stage: what reads it needs all of it.

What follows from the graph's *driving* inputs (the forward's inputs; the backward's tangents) is
put as early as possible; all else, such as unpacking and recomputation, as late as possible, next
to its first reader. Nodes that turn out to be untranslatable where they stand leave their region,
and the grouping is made again without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from snnfx.passes.analysis.opkinds import is_random
from snnfx.passes.fxgraph import dependents, is_getitem, numel, tensor_value
from snnfx.passes.rewrite import region_rules  # noqa: F401  # pyright: ignore
from snnfx.passes.rewrite.region_program import (
    REGION_RULES,
    RegionProgram,
    Size,
    Translator,
    Untranslatable,
)

aten = torch.ops.aten
SUMS = frozenset({aten.sum.dim_IntList})
MIN_ELEMENTS = 512
MIN_OPERATORS = 2


@dataclass(frozen=True)
class Region:
    """Connected pointwise work that runs as one kernel.

    Attributes:
        nodes: in graph order.
        program: what they compute.
    """

    nodes: tuple[Node, ...]
    program: RegionProgram


@dataclass(frozen=True)
class RegionsResult:
    """The regions of a graph, and why nodes that could have been in one are not."""

    regions: tuple[Region, ...]
    declined: tuple[tuple[str, str], ...]


def find_regions(graph: Graph, driving: Iterable[Node]) -> RegionsResult:
    """Group the pointwise work of a graph.

    Args:
        graph: a forward or a backward; it is not changed.
        driving: the placeholders whose dependents run as early as they can.
    """
    leads, before = ordering(graph, driving)
    driven = frozenset(leads)
    declined: dict[Node, str] = {}
    while True:
        stages = _assign_stages(graph, driven, before, frozenset(declined))
        groups = _connected(graph, stages, frozenset(declined))
        regions: list[Region] = []
        expelled: dict[Node, str] = {}
        for nodes in groups:
            region = _translate(nodes, expelled)
            if region is not None:
                regions.append(region)
        if not expelled:
            reasons = tuple((node.name, why) for node, why in declined.items())
            return RegionsResult(tuple(regions), reasons)
        declined |= expelled


def _is_expressible(node: Node, declined: frozenset[Node]) -> bool:
    return node.op == "call_function" and node.target in REGION_RULES and node not in declined


def _distance(source: Node, reader: Node, declined: frozenset[Node]) -> int:
    """How many stages `reader` must come after `source` at least."""
    if not _is_expressible(source, declined):
        return 1 if _is_expressible(reader, declined) else 0
    if not _is_expressible(reader, declined):
        return 1
    return 2 if source.target in SUMS else 0


def ordering(
    graph: Graph, driving: Iterable[Node]
) -> tuple[tuple[Node, ...], dict[Node, tuple[Node, ...]]]:
    """What runs in graph order, and what must run before a node besides its inputs.

    Random numbers are drawn in the order of the plain model, whatever else moves.
    """
    driven = dependents(graph, driving)
    leads: list[Node] = []
    before: dict[Node, tuple[Node, ...]] = {}
    last: Node | None = None
    for node in graph.nodes:
        random = node.op == "call_function" and is_random(node)
        if node.op == "call_function" and (node in driven or random):
            leads.append(node)
        if random:
            if last is not None:
                before[node] = (last,)
            last = node
    return tuple(leads), before


def _assign_stages(
    graph: Graph,
    driven: frozenset[Node],
    ordered: dict[Node, tuple[Node, ...]],
    declined: frozenset[Node],
) -> dict[Node, int]:
    stages: dict[Node, int] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node in driven:
            first = 0 if _is_expressible(node, declined) else 1
            before = [
                stages[s] + _distance(s, node, declined)
                for s in (*node.all_input_nodes, *ordered.get(node, ()))
                if s in stages
            ]
            stages[node] = max([first, *before])
    end = max(stages.values(), default=0) + 2
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node not in driven:
            own = end if _is_expressible(node, declined) == (end % 2 == 0) else end + 1
            after = [stages[u] - _distance(node, u, declined) for u in node.users if u in stages]
            stages[node] = min(after, default=own)
    return stages


def _connected(
    graph: Graph, stages: dict[Node, int], declined: frozenset[Node]
) -> list[list[Node]]:
    """The nodes of each connected piece of an even stage, in graph order."""
    parents: dict[Node, Node] = {}

    def find(node: Node) -> Node:
        while parents[node] is not node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for node in graph.nodes:
        if node.op != "call_function" or not _is_expressible(node, declined):
            continue
        parents[node] = node
        for source in node.all_input_nodes:
            joins = source in parents and source.target not in SUMS
            if joins and stages[source] == stages[node]:
                parents[find(source)] = find(node)
    groups: dict[Node, list[Node]] = {}
    for node in parents:
        groups.setdefault(find(node), []).append(node)
    return list(groups.values())


def _translate(nodes: list[Node], expelled: dict[Node, str]) -> Region | None:
    """The region of connected nodes; None if it is not worth it or some of them must leave."""
    base = _base_of(nodes)
    if base is None:
        return None
    translator = Translator(base, frozenset(nodes))
    missing: set[Node] = set()
    for node in nodes:
        if not missing.isdisjoint(node.all_input_nodes):
            missing.add(node)
            continue
        try:
            translator.translate(node)
        except Untranslatable as reason:
            expelled[node] = str(reason)
            missing.add(node)
    if missing:
        return None
    inside = frozenset(nodes)
    results = [n for n in nodes if any(u not in inside for u in n.users) and not _is_tuple(n)]
    try:
        program = translator.finish(results)
    except Untranslatable as reason:
        expelled[results[0]] = str(reason)
        return None
    return Region(tuple(nodes), program) if results else None


def _base_of(nodes: list[Node]) -> tuple[Size, ...] | None:
    """The base space: the shape of a time slice, if slices occur, else the commonest big shape."""
    shapes: Counter[tuple[Size, ...]] = Counter()
    sliced: Counter[tuple[Size, ...]] = Counter()
    largest = 0
    operators = 0
    for node in nodes:
        value = tensor_value(node)
        if value is None:
            continue
        largest = max(largest, numel(value))
        operators += node.target not in VIEWS
        shape = tuple(value.shape)
        shapes[shape] += numel(value)
        if node.target in (aten.select.int,) or is_getitem(node):
            sliced[shape] += 1
        elif node.target is aten.stack.default or "pack_bits" in str(node.target):
            sliced[shape[1:]] += 1
    if largest < MIN_ELEMENTS or operators < MIN_OPERATORS:
        return None
    return (sliced or shapes).most_common(1)[0][0]


VIEWS = frozenset(
    {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
     aten.select.int, aten.expand.default, aten.alias.default, aten.detach.default}
)  # fmt: skip


def _is_tuple(node: Node) -> bool:
    return tensor_value(node) is None

