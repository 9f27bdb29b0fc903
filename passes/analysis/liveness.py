"""Which storages are alive when, and the peak of their bytes, for a graph run in its own order.

A storage is allocated by the node whose operator creates it and released after the last use of the
tensor and of all its views (as boxed generated code does). Views are told by operator schemas, so
each storage counts once. What operators allocate and release inside themselves is told by a
function that the caller gives (see `snnfx.passes.cost.workspace`). What is not seen: the
allocator's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node

from snnfx.passes.fxgraph import (
    donor_of,
    is_getitem,
    is_view,
    node_bytes,
    node_value,
    output_args,
    tensor_bytes,
    viewed_inputs,
)


@dataclass(frozen=True)
class Phase:
    """A moment inside an operator at which its memory may be at its largest.

    Attributes:
        temporary_bytes: what the operator holds for itself then.
        results: the positions of the results that exist then; 0 for an operator with one result.
    """

    temporary_bytes: int
    results: tuple[int, ...] = ()


_IN_STORAGE_OF_OPERAND = (torch.ops.aten.im2col.default, torch.ops.aten.col2im.default)

Workspace = Callable[[Node], tuple[Phase, ...]]
"""The phases of a node's operator; none where it allocates nothing but its results."""


@dataclass(frozen=True)
class Liveness:
    """Bytes alive over one graph.

    Attributes:
        names: the nodes in the order in which they run.
        timeline_bytes: bytes alive while each node runs, at most; what it allocates included.
        end_bytes: bytes alive after the last node: results, and inputs that nobody releases.
    """

    names: tuple[str, ...]
    timeline_bytes: tuple[int, ...]
    end_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The largest number of bytes alive at once."""
        return max((*self.timeline_bytes, self.end_bytes))

    @property
    def peak_node(self) -> str | None:
        """The node during which the peak is reached."""
        if not self.timeline_bytes:
            return None
        return self.names[self.timeline_bytes.index(max(self.timeline_bytes))]


def storage_roots(
    graph: Graph, aliases: Mapping[Node, Node] | None = None
) -> dict[Node, tuple[Node, ...]]:
    """For each node, the nodes that allocated the storages that its value may lie in.

    Args:
        graph: nodes with fake tensors.
        aliases: placeholders that come in the storage of an earlier placeholder.
    """
    aliases = aliases or {}
    roots: dict[Node, tuple[Node, ...]] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        donor = donor_of(node)
        if donor is not None:
            roots[node] = roots[donor]
        elif node in aliases:
            roots[node] = roots[aliases[node]]
        elif is_getitem(node) and not is_view(node):
            roots[node] = (node,)
        elif is_view(node):
            found = (root for source in viewed_inputs(node) for root in roots.get(source, ()))
            roots[node] = tuple(dict.fromkeys(found))
        else:
            roots[node] = (node,)
    return roots


def analyse_liveness(
    graph: Graph,
    owned: Mapping[Node, int] | None = None,
    aliases: Mapping[Node, Node] | None = None,
    late: Collection[Node] = (),
    count_results: bool = True,
    workspace: Workspace | None = None,
) -> Liveness:
    """Walk the graph in its order and count what is alive.

    Args:
        graph: nodes with fake tensors.
        owned: placeholders that are released after their last use, with their bytes; every other
            placeholder belongs to the caller and counts nothing.
        aliases: placeholders that come in the storage of an earlier placeholder.
        late: placeholders whose storage is allocated when they are first read, and is released
            after their last use.
        count_results: False leaves the graph's results out, as when they are gradients of
            parameters, which are there with any plan.
        workspace: what operators allocate inside themselves; None leaves it out.
    """
    owned = dict(owned or {})
    roots = storage_roots(graph, aliases)
    sizes = {n: owned.get(n, 0) if n.op == "placeholder" else storage_bytes(n) for n in roots}
    last = last_readers(graph, roots)
    sizes |= {node: node_bytes(node) for node in late}
    if not count_results:
        sizes |= dict.fromkeys(_result_roots(graph, roots), 0)
    alive = sum(owned.values())
    waiting = {node for node in late if node.users}
    unpicked = _unpicked_bytes(graph, sizes)
    names: list[str] = []
    timeline: list[int] = []
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        own = sizes[node] if node in roots[node] else 0
        arriving = waiting.intersection(node.all_input_nodes) if waiting else ()
        waiting.difference_update(arriving)
        alive += own + sum(sizes[source] for source in arriving)
        names.append(node.name)
        results = own + _result_bytes(node, sizes)
        others = alive + unpicked[node] - results
        inside = (
            [_phase_bytes(phase, node, sizes) for phase in workspace(node)] if workspace else []
        )
        timeline.append(others + max([results, *inside]))
        alive -= sum(sizes[root] for root in last.get(node, ()))
    return Liveness(tuple(names), tuple(timeline), alive)


def storage_bytes(node: Node) -> int:
    """Bytes of the storage of a node's one result; several results are kept by their getitems.

    It can be larger than the result: `aten.im2col` and `aten.col2im` write into memory as large as
    their operand if that is enough (`native/Im2Col.cpp`, `native/Col2Im.cpp`: `empty_like`, then
    `resize_`).
    """
    value = node_value(node)
    if not isinstance(value, Tensor):
        return 0
    operand = node.all_input_nodes[0] if node.target in _IN_STORAGE_OF_OPERAND else None
    return max(tensor_bytes(value), 0 if operand is None else node_bytes(operand))


def _phase_bytes(phase: Phase, node: Node, sizes: Mapping[Node, int]) -> int:
    """Bytes of the temporaries and of those results of the phase that count."""
    value = node_value(node)
    if isinstance(value, Tensor):
        return phase.temporary_bytes + (sizes[node] if phase.results else 0)
    left_out = [user.args[1] for user in _uncounted_picks(node, sizes)]
    counted = (value[i] for i in phase.results if i not in left_out)
    return phase.temporary_bytes + sum(tensor_bytes(v) for v in counted if isinstance(v, Tensor))


def _unpicked_bytes(graph: Graph, sizes: Mapping[Node, int]) -> dict[Node, int]:
    """For each node, what several results of an operator add to the nodes' own bytes.

    All exist from the operator to the last node that picks one of them; the picked ones count for
    the nodes that picked them.
    """
    last_pick = {n.all_input_nodes[0]: n for n in graph.nodes if is_getitem(n)}
    waiting: dict[Node, int] = {}
    unpicked: dict[Node, int] = {}
    for node in graph.nodes:
        source = node.all_input_nodes[0] if is_getitem(node) else node
        if source is node and _result_bytes(node, sizes):
            waiting[node] = _result_bytes(node, sizes)
        elif source in waiting and donor_of(node) is None:
            waiting[source] -= sizes[node]
        unpicked[node] = sum(waiting.values())
        if last_pick.get(source, source) is node:
            waiting.pop(source, None)
    return unpicked


def _result_bytes(node: Node, sizes: Mapping[Node, int]) -> int:
    """Bytes of several results that count, all of which exist when their operator has run."""
    if isinstance(node_value(node), Tensor) or is_view(node) or is_getitem(node):
        return 0
    return node_bytes(node) - sum(node_bytes(user) for user in _uncounted_picks(node, sizes))


def _uncounted_picks(node: Node, sizes: Mapping[Node, int]) -> list[Node]:
    """The picked results that do not count, or that are written into an argument."""
    picked = [user for user in node.users if is_getitem(user)]
    return [user for user in picked if donor_of(user) is not None or sizes[user] == 0]


def _result_roots(graph: Graph, roots: Mapping[Node, tuple[Node, ...]]) -> set[Node]:
    final = {arg for arg in output_args(graph) if isinstance(arg, Node)}
    return {root for node in final for root in roots.get(node, ())}


def last_readers(graph: Graph, roots: Mapping[Node, tuple[Node, ...]]) -> dict[Node, list[Node]]:
    """For each node, the storages (by their roots) that are released after it runs."""
    kept = _result_roots(graph, roots)
    last: dict[Node, Node] = {}
    picks: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        read = [node, *node.all_input_nodes]
        if is_getitem(node):
            # The tuple keeps all of its results until the last of them is picked.
            read += picks.setdefault(node.all_input_nodes[0], [])
            picks[node.all_input_nodes[0]].append(node)
        for value in read:
            for root in roots[value]:
                last[root] = node
    uses: dict[Node, list[Node]] = {}
    for root, node in last.items():
        if root not in kept:
            uses.setdefault(node, []).append(root)
    return uses
