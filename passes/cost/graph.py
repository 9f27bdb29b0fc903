"""The cost graph: what each value of a joint graph's forward costs to keep or to compute again.

A NetworkX digraph, for planners that know nothing of FX. A node is a value (named as in FX), an
edge goes from a value to one computed from it. Node attributes are those of `ValueCost`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import networkx as nx
from torch.fx import Graph, Node

from snnfx.passes.analysis.opkinds import BATCH_NORMS, OpKind, kind_of, packet
from snnfx.passes.analysis.value_range import ValueRanges
from snnfx.passes.cost.flops import node_flops
from snnfx.passes.fxgraph import (
    JointRoles,
    ancestors,
    dependents,
    is_getitem,
    is_view,
    node_bytes,
    tensor_value,
)

CostGraph: TypeAlias = "nx.DiGraph[str, dict[str, Any], dict[str, Any]]"
"""Nodes are names of values, with the attributes of `ValueCost`; edges have none."""


@dataclass(frozen=True)
class ValueCost:
    """The attributes of a node of the cost graph.

    Attributes:
        op: name of the operator.
        kind: how the value can be had again in the backward; an `OpKind`.
        bytes: of the value as it is.
        packed_bytes: of the value packed; `bytes` where nothing is proven about it.
        bits: bits an element when packed, None where nothing is proven.
        flops: of computing it once (a multiply-add counts 2).
        demanded: whether the backward reads it.
        feeds_forward: whether a result of the forward depends on it.
        is_view: whether it shares the storage of its input.
        is_tensor: False for shapes, numbers, and operators with several results.
    """

    op: str
    kind: OpKind
    bytes: int
    packed_bytes: int
    bits: int | None
    flops: int
    demanded: bool
    feeds_forward: bool
    is_view: bool
    is_tensor: bool


def build_cost_graph(
    graph: Graph, roles: JointRoles, ranges: ValueRanges, compress: bool = True
) -> CostGraph:
    """The cost graph of all that the forward computes and the backward may need.

    Args:
        graph: a joint graph.
        roles: its ends.
        ranges: what is proven about its values.
        compress: False leaves all values as they are.
    """
    backward = backward_nodes(graph, roles)
    forward = [n for n in graph.nodes if n.op != "output" and n not in backward]
    feeding = ancestors(n for n in roles.forward_outputs if n is not None)
    cost: CostGraph = nx.DiGraph()
    for node in forward:
        value = _value_cost(node, roles, ranges if compress else None, backward, node in feeding)
        cost.add_node(node.name, **asdict(value))
        cost.add_edges_from((source.name, node.name) for source in _sources(node, roles))
    return cost


def backward_nodes(graph: Graph, roles: JointRoles) -> frozenset[Node]:
    """The nodes that depend on a tangent, and what else only they can give: their outputs."""
    return dependents(graph, roles.tangents) - {graph.output_node()}


def _sources(node: Node, roles: JointRoles) -> list[Node]:
    """What the node's value depends on: a batch norm only updates its running statistics."""
    sources = node.all_input_nodes
    if packet(node) in BATCH_NORMS:
        return [source for source in sources if source not in roles.mutated]
    return sources


def _value_cost(
    node: Node,
    roles: JointRoles,
    ranges: ValueRanges | None,
    backward: frozenset[Node],
    feeds_forward: bool,
) -> ValueCost:
    size = node_bytes(node)
    encoding = ranges.encoding(node) if ranges is not None else None
    tensor = tensor_value(node)
    packed = size
    if encoding is not None and tensor is not None:
        packed = -(-size * encoding.bits // (8 * tensor.element_size()))
    returned = node in roles.backward_outputs
    kind = OpKind.OPAQUE if returned or node in roles.mutated else kind_of(node)
    return ValueCost(
        op=str(node.target),
        kind=kind,
        bytes=size,
        packed_bytes=packed,
        bits=None if encoding is None else encoding.bits,
        flops=node_flops(node),
        demanded=returned or _has_user_in(node, backward),
        feeds_forward=feeds_forward,
        is_view=is_view(node) or is_getitem(node),
        is_tensor=tensor is not None,
    )


def _has_user_in(node: Node, nodes: Iterable[Node]) -> bool:
    return any(user in nodes for user in node.users)
