"""From when to when each storage of a graph is alive, one record each, with its source lines.

The same rules as `snnfx.passes.analysis.liveness`, which has the totals: an operator's result lives
from the operator to the last use of it and of its views; several results all exist from their
operator on. Workspace inside of operators has no record here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Graph, Node

from snnfx.passes.analysis.liveness import last_readers, storage_bytes, storage_roots
from snnfx.passes.fxgraph import (
    is_getitem,
    is_view,
    node_bytes,
    node_value,
    output_args,
    stack_trace,
)

_FRAME = re.compile(r'^\s*File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)$', re.MULTILINE)


@dataclass(frozen=True)
class Lifetime:
    """One storage.

    Attributes:
        node: what allocates it; a placeholder where it is passed in.
        bytes: of the storage.
        first: the step during which it is allocated; 0 for a placeholder. Steps are the nodes but
            placeholders and output, in their order.
        last: the step after which it is released; None where the graph does not release it.
    """

    node: Node
    bytes: int
    first: int
    last: int | None


def storage_lifetimes(
    graph: Graph,
    owned: Mapping[Node, int] | None = None,
    aliases: Mapping[Node, Node] | None = None,
    late: Collection[Node] = (),
    count_results: bool = True,
) -> tuple[Lifetime, ...]:
    """All storages with bytes that belong to the graph, in the order of their nodes.

    Args:
        graph: nodes with fake tensors.
        owned: as in `snnfx.passes.analysis.liveness.analyse_liveness`.
        aliases: as there.
        late: as there.
        count_results: as there.
    """
    roots = storage_roots(graph, aliases)
    steps = _steps(graph)
    late = [node for node in late if any(u in steps for u in node.users)]
    owned = {**(owned or {}), **{node: node_bytes(node) for node in late}}
    readers = {node: min(steps[u] for u in node.users if u in steps) for node in late}
    released = {
        root: steps.get(node)
        for node, dying in last_readers(graph, roots).items()
        for root in dying
    }
    ignored = set[Node]() if count_results else _results(graph, roots)
    found: list[Lifetime] = []
    for node, own in roots.items():
        size = owned.get(node, 0) if node.op == "placeholder" else storage_bytes(node)
        if size and node in own and node not in ignored:
            first = readers.get(node, _first_step(node, steps))
            found.append(Lifetime(node, size, first, released.get(node)))
        found.extend(_unpicked(node, steps))
    return tuple(found)


def source_lines(node: Node) -> tuple[str, ...]:
    """Where the user's code called for this node, innermost first, each as `file:line:function`."""
    frames = [f"{m['file']}:{m['line']}:{m['name']}" for m in _FRAME.finditer(stack_trace(node))]
    return tuple(reversed(frames))


def _steps(graph: Graph) -> dict[Node, int]:
    running = (node for node in graph.nodes if node.op not in ("placeholder", "output"))
    return {node: step for step, node in enumerate(running)}


def _first_step(node: Node, steps: Mapping[Node, int]) -> int:
    """One of several results exists as soon as the operator that computes them all has run."""
    source = node.all_input_nodes[0] if is_getitem(node) else node
    return steps.get(source, 0)


def _results(graph: Graph, roots: Mapping[Node, tuple[Node, ...]]) -> set[Node]:
    final = (arg for arg in output_args(graph) if isinstance(arg, Node))
    return {root for node in final for root in roots.get(node, ())}


def _unpicked(node: Node, steps: Mapping[Node, int]) -> Iterator[Lifetime]:
    """Results of an operator with several of which nobody picks one, as one storage."""
    if isinstance(node_value(node), Tensor) or is_view(node) or is_getitem(node):
        return
    picks = [user for user in node.users if is_getitem(user)]
    rest = node_bytes(node) - sum(node_bytes(pick) for pick in picks)
    if rest > 0 and node in steps:
        yield Lifetime(node, rest, steps[node], max((steps[p] for p in picks), default=steps[node]))
