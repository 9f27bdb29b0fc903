"""Adding nodes to a graph, each with the fake value that it computes."""

from __future__ import annotations

import operator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from snnfx.passes.fxgraph import is_symbol, node_value, set_value, tensor_value

Known = dict[object, Any]
"""Fake results of calls, by all that decides about their sizes and strides."""


def call_key(node: Node) -> object:
    """The same for calls whose fake results are alike; sizes must be numbers."""
    return (node.target, _key(node.args), _key(tuple(node.kwargs.items())))


def _key(arg: Any) -> object:
    value = node_value(arg) if isinstance(arg, Node) else arg
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype, value.device, value.storage_offset())
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    return (type(value), value)


def has_symbols(node: Node) -> bool:
    """Whether a size among the arguments of the call is symbolic."""
    return not all(
        isinstance(size, int)
        for source in node.all_input_nodes
        for size in getattr(tensor_value(source), "shape", ())
    ) or any(is_symbol(source) for source in node.all_input_nodes)


class GraphBuilder:
    """Inserts operator calls at the graph's insertion point.

    Args:
        graph: the graph to add to.
        like: a node of it with a fake tensor, whose fake mode computes the new values.
        known: results of calls, to be shared by builders of one graph: of calls that are alike, one
            is computed.
    """

    def __init__(self, graph: Graph, like: Node, known: Known | None = None) -> None:
        self.graph = graph
        value = tensor_value(like)
        self._mode = getattr(value, "fake_mode", None)
        self._known = known

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add a call of `target`; nodes among the arguments stand for their values."""
        node = self.graph.call_function(target, args, kwargs)
        set_value(node, self.value_of(node))
        return node

    def value_of(self, node: Node) -> Any:
        """What the node computes, from the fake values of its arguments."""
        if self._known is None or has_symbols(node):
            return self._compute(node)
        key = call_key(node)
        if key not in self._known:
            self._known[key] = self._compute(node)
        return self._known[key]

    def _compute(self, node: Node) -> Any:
        target: Any = node.target
        values = map_arg(node.args, node_value)
        named = map_arg(node.kwargs, node_value)
        with self._mode if self._mode is not None else nullcontext():
            return target(*values, **named)

    def items(self, node: Node, count: int) -> tuple[Node, ...]:
        """The first `count` results of a node that has several."""
        return tuple(self.call(operator.getitem, node, i) for i in range(count))

    def as_channels(self, node: Node, rank: int) -> Node:
        """A vector over channels, viewed so that it broadcasts over `[N, C, *]` of this rank."""
        value = tensor_value(node)
        assert value is not None
        shape = [1, value.shape[0], *[1] * (rank - 2)]
        return self.call(torch.ops.aten.view.default, node, shape)
