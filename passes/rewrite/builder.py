"""Adding nodes to a graph, each with the fake value that it computes."""

from __future__ import annotations

import operator
from contextlib import nullcontext
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from snnfx.passes.fxgraph import node_value, set_value, tensor_value


class GraphBuilder:
    """Inserts operator calls at the graph's insertion point.

    Args:
        graph: the graph to add to.
        like: a node of it with a fake tensor, whose fake mode computes the new values.
    """

    def __init__(self, graph: Graph, like: Node) -> None:
        self.graph = graph
        value = tensor_value(like)
        self._mode = getattr(value, "fake_mode", None)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """Add a call of `target`; nodes among the arguments stand for their values."""
        node = self.graph.call_function(target, args, kwargs)
        set_value(node, self.value_of(node))
        return node

    def value_of(self, node: Node) -> Any:
        """What the node computes, from the fake values of its arguments."""
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
