"""Grouping a graph into fused regions and the operators between them.

Every node that `REGION_RULES` can express is put in a *stage*: even stages hold regions, odd ones
the operators between them, and a value never flows to an earlier stage. The connected nodes of an
even stage are a region: convex by construction, since a way out and back in would have to come back
in a later stage. A sum over the base space ends its stage: what reads it needs all of it. So does
what a pooling reads, since it reads it at other places than its own.

What follows from the graph's *driving* inputs (the forward's inputs; the backward's tangents) is
put as early as possible; all else, such as unpacking and recomputation, as late as possible, next
to its first reader. Nodes that turn out to be untranslatable where they stand leave their region,
and the grouping is made again without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import Graph, Node

from snnfx.passes.analysis.opkinds import is_random
from snnfx.passes.fxgraph import dependents, is_getitem, is_late, numel, tensor_value
from snnfx.passes.rewrite import region_rules  # noqa: F401  # pyright: ignore[reportUnusedImport]
from snnfx.passes.rewrite.region_program import (
    REGION_RULES,
    InputSpec,
    RegionProgram,
    Size,
    Translator,
    Untranslatable,
    base_reference,
    form_of,
    known_number,
    size_key,
)
from snnfx.passes.rewrite.region_rules_pooling import POOL_PACKED, WINDOWED

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


def find_regions(
    graph: Graph, driving: Iterable[Node], like: RegionsResult | None = None
) -> RegionsResult:
    """Group the pointwise work of a graph.

    Args:
        graph: a forward or a backward; it is not changed.
        driving: the placeholders whose dependents run as early as they can.
        like: of a graph that this one was copied from and then changed a little; what is the same
            is not worked out again, and what stayed out stays out.
    """
    driving, known = tuple(driving), dict(like.declined) if like is not None else {}
    reasons = {node: known[node.name] for node in graph.nodes if node.name in known}
    earlier = {_names(r.nodes): r for r in like.regions} if like is not None else {}
    translated: dict[tuple[Node, ...], Region | None] = {}
    while True:
        inside = frozenset(n for n in graph.nodes if n not in reasons and is_expressible(n))
        inside -= {n for n in inside if is_getitem(n) and n.all_input_nodes[0] not in inside}
        stages = _stages(graph, driving, inside)
        expelled: dict[Node, str] = {}
        regions: list[Region] = []
        for nodes in map(tuple, _connected(graph, stages, inside)):
            before = len(expelled)
            if nodes in translated:
                region = translated[nodes]
            else:
                region = _adopted(nodes, earlier.get(_names(nodes)))
                region = region or _translate(nodes, expelled)
            if len(expelled) == before:
                translated[nodes] = region
            if region is not None:
                regions.append(region)
        if not expelled:
            found = tuple((node.name, why) for node, why in reasons.items())
            return RegionsResult(tuple(regions), found)
        reasons |= expelled


def _names(nodes: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def _adopted(nodes: tuple[Node, ...], earlier: Region | None) -> Region | None:
    """The region of nodes that were copied from those of an earlier one, if nothing else is new."""
    if earlier is None:
        return None
    new: dict[Node, Node] = dict(zip(earlier.nodes, nodes, strict=True))
    for old, node in zip(earlier.nodes, nodes, strict=True):
        sources = list(zip(old.all_input_nodes, node.all_input_nodes, strict=False))
        if old.target is not node.target or len(old.all_input_nodes) != len(node.all_input_nodes):
            return None
        if any(new.setdefault(a, b) is not b or not _is_alike(a, b) for a, b in sources):
            return None
    outputs = tuple(replace(spec, node=new[spec.node]) for spec in earlier.program.outputs)
    if [spec.node for spec in outputs] != _results(nodes):
        return None
    inputs = tuple(replace(spec, node=new[spec.node]) for spec in earlier.program.inputs)
    return Region(nodes, replace(earlier.program, inputs=inputs, outputs=outputs))


def _is_alike(old: Node, node: Node) -> bool:
    """Whether a region reads both in the same way; strides play no part in programs."""
    first, second = tensor_value(old), tensor_value(node)
    if first is None or second is None:
        return first is second and old.target is node.target
    same = first.shape == second.shape and first.dtype == second.dtype
    return same and known_number(old) == known_number(node)


def _results(nodes: Sequence[Node]) -> list[Node]:
    """The nodes whose values are read elsewhere."""
    inside = frozenset(nodes)
    return [n for n in nodes if not inside.issuperset(n.users) and not _is_tuple(n)]


def is_expressible(node: Node) -> bool:
    """Whether regions have a rule for the operator."""
    if node.op != "call_function":
        return False
    if is_getitem(node):
        return _is_unbind(node.all_input_nodes[0])
    return node.target in REGION_RULES


def _is_unbind(node: Node) -> bool:
    return node.target is aten.unbind.int


def _distance(source: Node, reader: Node, inside: frozenset[Node]) -> int:
    """How many stages `reader` must come after `source` at least."""
    if source not in inside:
        return 1 if reader in inside else 0
    if reader not in inside:
        return 1
    return 2 if source.target in SUMS or reader.target in WINDOWED else 0


def ordering(
    graph: Graph, driving: Iterable[Node]
) -> tuple[tuple[Node, ...], dict[Node, tuple[Node, ...]]]:
    """What runs in graph order, and what must run before a node besides its inputs.

    Random numbers are drawn in the order of the plain model, whatever else moves. What follows
    from them keeps its order too: were it moved, it could be needed before they may be drawn.
    """
    drawn = [n for n in graph.nodes if n.op == "call_function" and is_random(n)]
    driven = {n for n in dependents(graph, (*driving, *drawn)) if not is_late(n)}
    leads: list[Node] = []
    before: dict[Node, tuple[Node, ...]] = {}
    last: Node | None = None
    for node in graph.nodes:
        if node.op != "call_function" or node not in driven:
            continue
        leads.append(node)
        if is_random(node):
            if last is not None:
                before[node] = (last,)
            last = node
    return tuple(leads), before


def assign_stages(graph: Graph, driving: Iterable[Node]) -> dict[Node, int]:
    """The stage of each node that computes: even where it may be part of a region.

    Args:
        graph: see `find_regions`.
        driving: see `find_regions`.
    """
    return _stages(graph, driving, frozenset(n for n in graph.nodes if is_expressible(n)))


def _stages(graph: Graph, driving: Iterable[Node], inside: frozenset[Node]) -> dict[Node, int]:
    """Stages, where the nodes `inside` may be in regions."""
    leads, ordered = ordering(graph, driving)
    driven = frozenset(leads)
    stages: dict[Node, int] = {}
    for node in leads:
        before = [
            stages[s] + _distance(s, node, inside)
            for s in (*node.all_input_nodes, *ordered.get(node, ()))
            if s in stages
        ]
        stages[node] = max([0 if node in inside else 1, *before])
    end = max(stages.values(), default=0) + 2
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node not in driven:
            own = end if (node in inside) == (end % 2 == 0) else end + 1
            after = [stages[u] - _distance(node, u, inside) for u in node.users if u in stages]
            stages[node] = min(after, default=own)
    return stages


def _connected(graph: Graph, stages: dict[Node, int], inside: frozenset[Node]) -> list[list[Node]]:
    """The nodes of each connected piece of an even stage, in graph order."""
    parents: dict[Node, Node] = {}

    def find(node: Node) -> Node:
        while parents[node] is not node:
            parents[node] = parents[parents[node]]
            node = parents[node]
        return node

    for node in graph.nodes:
        if node not in inside:
            continue
        parents[node] = node
        if node.target in WINDOWED:
            continue
        for source in node.all_input_nodes:
            joins = source in parents and source.target not in SUMS
            if joins and stages[source] == stages[node]:
                parents[find(source)] = find(node)
    groups: dict[Node, list[Node]] = {}
    for node in parents:
        groups.setdefault(find(node), []).append(node)
    return list(groups.values())


def _translate(nodes: tuple[Node, ...], expelled: dict[Node, str]) -> Region | None:
    """The region of connected nodes; None if it is not worth it or some of them must leave."""
    base = _base_of(nodes)
    if base is None:
        return None
    inside = frozenset(nodes)
    translator = Translator(base, inside)
    missing: set[Node] = set()
    for node in nodes:
        if not missing.isdisjoint(node.all_input_nodes):
            missing.add(node)
            continue
        try:
            if _is_tuple(node) and not inside.issuperset(node.users):
                raise Untranslatable(f"'{node.name}' is used in several places")
            translator.translate(node)
        except Untranslatable as reason:
            expelled[node] = str(reason)
            missing.add(node)
    results = _results(nodes)
    if missing or not results:
        return None
    program = translator.finish(results)
    if not _shows_sizes(program.inputs, base):
        expelled.update(dict.fromkeys(nodes, "no input shows the sizes of the region"))
        return None
    return Region(nodes, program)


def _shows_sizes(inputs: tuple[InputSpec, ...], base: tuple[Size, ...]) -> bool:
    """Whether the base space is known when the region runs."""
    is_static = all(isinstance(size, int) for size in base)
    return is_static or base_reference(inputs, base) is not None


def _base_of(nodes: Sequence[Node]) -> tuple[Size, ...] | None:
    """The base space: the shape of a time slice, if slices occur, else the commonest big shape."""
    shapes: Counter[tuple[object, ...]] = Counter()
    sliced: Counter[tuple[object, ...]] = Counter()
    sizes: dict[tuple[object, ...], tuple[Size, ...]] = {}
    largest = 0
    operators = 0
    for node in nodes:
        value = tensor_value(node)
        if value is None:
            continue
        largest = max(largest, numel(value))
        # These count double: they are worth a kernel alone, in the layout that is read next.
        operators += 2 if node.target in PACKINGS | WINDOWED else node.target not in VIEWS
        for counter, shape, weight in (
            (shapes, tuple(value.shape), numel(value)),
            (sliced, _slice_shape(node, value), 1),
        ):
            if shape is not None:
                key = tuple(size_key(size) for size in shape)
                sizes[key] = shape
                counter[key] += weight
    if largest < MIN_ELEMENTS or operators < MIN_OPERATORS:
        return None
    return _fitting(
        nodes, [sizes[key] for key, _ in (*sliced.most_common(), *shapes.most_common())]
    )


def _fitting(nodes: Sequence[Node], spaces: list[tuple[Size, ...]]) -> tuple[Size, ...]:
    """The first of these spaces that all pooling of the nodes has a form over, else the first.

    What only views images in another way, as tokens, can leave the region at no cost.
    """
    pooled = [
        value for n in nodes if n.target in WINDOWED and (value := tensor_value(n)) is not None
    ]
    fitting = (s for s in spaces if all(form_of(v.shape, s) is not None for v in pooled))
    return next(fitting, spaces[0])


def _slice_shape(node: Node, value: torch.Tensor) -> tuple[Size, ...] | None:
    """The shape of a time slice, if the node takes slices or puts them together."""
    if is_getitem(node) or (node.target is aten.select.int and node.args[1] == 0):
        return tuple(value.shape)
    if node.target is POOL_PACKED:
        return (node.args[1][1], *value.shape[1:])  # type: ignore[index]
    along_time = node.target in PACKINGS and "time" in node.args
    if along_time or (node.target is aten.stack.default and node.args[1:] in ((), (0,))):
        return tuple(value.shape[1:])
    return None


PACKINGS = frozenset({torch.ops.snnfx.pack_bits.default, torch.ops.snnfx.unpack_bits.default})
VIEWS = frozenset(
    {aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
     aten.select.int, aten.expand.default, aten.alias.default, aten.detach.default,
     aten.unbind.int, aten.reshape.default}
)  # fmt: skip


def _is_tuple(node: Node) -> bool:
    return tensor_value(node) is None
