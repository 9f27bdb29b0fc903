"""Values that one fused region leaves to a later one, computed again in the later one.

A sum over the base space ends its stage: what reads it, such as the rest of a batch norm's
backward, runs in a later region. What both regions need, such as the gradient behind a neuron, is
stored in between, as large as an activation. Where it is made of smaller things (a pooled gradient,
packed spikes, and what the later region reads anyway), the later region makes it again, in
registers: less memory and less traffic. And what one region would write several times, it writes
once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from snnfx.passes.analysis.liveness import storage_roots
from snnfx.passes.fxgraph import node_bytes, output_args, set_late
from snnfx.passes.rewrite.regions import SUMS, assign_stages, is_expressible

MIN_BYTES = 4096


@dataclass(frozen=True)
class StagesResult:
    """How many values are computed again in a later stage, or how many copies are gone."""

    changed: int


def recompute_between_stages(graph: Graph, driving: Iterable[Node]) -> StagesResult:
    """Clone the work behind values that later stages read, where its inputs are smaller.

    Args:
        graph: a backward, functional, before it is grouped into regions.
        driving: see `snnfx.passes.rewrite.regions.find_regions`.
    """
    stages = assign_stages(graph, driving)
    changed = 0
    for value in list(graph.nodes):
        if value not in stages or not is_expressible(value) or value.target in SUMS:
            continue
        late = [u for u in value.users if is_expressible(u) and stages[u] > stages[value]]
        if late and node_bytes(value) >= MIN_BYTES:
            changed += _try(graph, value, late, stages)
    return StagesResult(changed)


def share_copies(graph: Graph, driving: Iterable[Node]) -> StagesResult:
    """Use one copy of a value where a region would write several, all the same.

    Args:
        graph: with copies in the layouts that convolutions prefer, one for each reader.
        driving: see `snnfx.passes.rewrite.regions.find_regions`.
    """
    stages, roots = assign_stages(graph, driving), storage_roots(graph)
    given = (result for result in output_args(graph) if isinstance(result, Node))
    results = {root for result in given for root in roots[result]}  # the caller may write into them
    first: dict[tuple[Node, object, int], Node] = {}
    changed = 0
    for copy in graph.find_nodes(op="call_function", target=torch.ops.aten.clone.default):
        source = copy.args[0]
        in_one_region = stages.get(source) == stages[copy] and is_expressible(source)
        if copy in results or not in_one_region:
            continue
        shared = first.setdefault((source, copy.kwargs.get("memory_format"), stages[copy]), copy)
        if shared is not copy:
            copy.replace_all_uses_with(shared)
            graph.erase_node(copy)
            changed += 1
    return StagesResult(changed)


def _try(graph: Graph, value: Node, late: list[Node], stages: dict[Node, int]) -> bool:
    inside = _same_stage(value, stages)
    sources = {s for node in inside for s in node.all_input_nodes} - inside
    known = {s for u in late for s in _reads(u, stages)}
    extra = sum(node_bytes(s) for s in sources - known)
    if extra >= node_bytes(value) or len({stages[u] for u in late}) != 1:
        return False
    order = {node: i for i, node in enumerate(graph.nodes)}
    clones: dict[Node, Node] = {}
    with graph.inserting_before(min(late, key=order.__getitem__)):
        for node in sorted(inside, key=order.__getitem__):
            clones[node] = graph.node_copy(node, lambda n: clones.get(n, n))
            set_late(clones[node])
    for user in late:
        user.replace_input_with(value, clones[value])
    return True


def _same_stage(value: Node, stages: dict[Node, int]) -> set[Node]:
    """The value and what it is computed from in its own stage."""
    inside: set[Node] = set()
    stack = [value]
    while stack:
        node = stack.pop()
        own = node in stages and stages[node] == stages[value] and is_expressible(node)
        if own and node not in inside and (node is value or node.target not in SUMS):
            inside.add(node)
            stack.extend(node.all_input_nodes)
    return inside


def _reads(reader: Node, stages: dict[Node, int]) -> set[Node]:
    """What the stage of `reader` reads from outside, as far as it is connected to it."""
    seen: set[Node] = set()
    outside: set[Node] = set()
    stack = [reader]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for source in node.all_input_nodes:
            same = stages.get(source) == stages[reader] and is_expressible(source)
            if same:
                stack.append(source)
            else:
                outside.add(source)
        stack.extend(u for u in node.users if stages.get(u) == stages[reader] and is_expressible(u))
    return outside
