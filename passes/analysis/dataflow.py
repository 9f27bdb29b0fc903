"""A forward dataflow solver over an FX graph, and which nodes a graph writes to in place.

An FX graph is acyclic and listed in topological order, so one pass over its nodes reaches the
fixpoint (Kildall, "A unified approach to global program optimization", POPL 1973, with no back
edges): the transfer function of a node sees the final facts of all its inputs. An analysis brings
its lattice and its transfer function; a node of which the transfer function knows nothing must get
the lattice's top.

Mutation: a fact describes the value that a node had when it was computed. A node whose storage is
written later has no one value, and neither has anything that may alias it; `written_nodes` finds
them, so that an analysis can give them up.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch.fx import Graph, Node

Value = TypeVar("Value")

_IN_PLACE_OPERATORS = frozenset(
    (
        *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv),
        *(operator.imod, operator.ipow, operator.imatmul, operator.iand, operator.ior),
        *(operator.ixor, operator.ilshift, operator.irshift, operator.iconcat),
        *(operator.setitem, operator.delitem),
    )
)


def solve_forward(
    graph: Graph | Iterable[Node], transfer: Callable[[Node, Mapping[Node, Value]], Value]
) -> dict[Node, Value]:
    """The facts of all nodes.

    Args:
        graph: an acyclic graph, or some of its nodes; each node comes after its inputs.
        transfer: the fact of a node, given those of every node before it.
    """
    facts: dict[Node, Value] = {}
    for node in graph.nodes if isinstance(graph, Graph) else graph:
        facts[node] = transfer(node, facts)
    return facts


def written_nodes(graph: Graph) -> frozenset[Node]:
    """Nodes whose storage may be written after they were computed.

    An ATen op says in its schema what it writes and what its results alias. Of any other call that
    is not known to be free of side effects, every input counts as written.
    """
    written = [target for node in graph.nodes for target in _written_inputs(node)]
    if not written:
        return frozenset()
    neighbours: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for node in graph.nodes:
        for source in _aliased_inputs(node):
            neighbours[node].append(source)
            neighbours[source].append(node)
    return frozenset(_reachable(written, neighbours))


def _reachable(starts: Iterable[Node], neighbours: Mapping[Node, list[Node]]) -> set[Node]:
    found: set[Node] = set()
    pending = list(starts)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(neighbours[node])
    return found


def _written_inputs(node: Node) -> list[Node]:
    """Inputs that the call of `node` writes to."""
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        if not target._schema.is_mutable:
            return []
        return [
            source
            for argument, value in _bound(node, target)
            if argument.alias_info is not None and argument.alias_info.is_write
            for source in _nodes_in(value)
        ]
    return [] if _is_pure_call(target) else list(node.all_input_nodes)


def _is_pure_call(target: object) -> bool:
    """Whether a call that is no ATen op writes to none of its inputs."""
    if isinstance(target, torch._ops.HigherOrderOperator):
        return "mutation" not in target.name()
    module = getattr(target, "__module__", None)
    if module in ("_operator", "math", "builtins"):
        return target not in _IN_PLACE_OPERATORS
    return module == "torch" and str(getattr(target, "__name__", "")).startswith("sym_")


def _aliased_inputs(node: Node) -> list[Node]:
    """Inputs whose storage a result of `node` may share."""
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return list(node.all_input_nodes)
    if target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return list(node.all_input_nodes)
    if all(result.alias_info is None for result in target._schema.returns):
        return []
    return [
        source
        for argument, value in _bound(node, target)
        if argument.alias_info is not None
        for source in _nodes_in(value)
    ]


def _bound(node: Node, target: torch._ops.OpOverload) -> list[tuple[torch._C.Argument, object]]:
    """The given arguments of a call, each with its declaration."""
    declared = target._schema.arguments
    by_name = {argument.name: argument for argument in declared}
    bound: list[tuple[torch._C.Argument, object]] = list(zip(declared, node.args, strict=False))
    bound.extend((by_name[name], value) for name, value in node.kwargs.items())
    return bound


def _nodes_in(value: object) -> list[Node]:
    if isinstance(value, Node):
        return [value]
    if isinstance(value, (list, tuple)):
        return [node for item in value for node in _nodes_in(item)]
    return []
