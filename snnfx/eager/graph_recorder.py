"""The graph of the operators that run, built as they run: values are told by their memory.

A value is a storage and a geometry. What the graph says of it holds until its storage is written;
from then on a tensor there is a new placeholder, of which nothing is known. So no fact about an
earlier value is taken for one about a later value, whichever tensor object shows it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from snnfx._torch_compat import FakeTensor, FakeTensorMode
from snnfx.eager.storages import Storages, geometry, tensors_in
from snnfx.passes.fxgraph import set_value

NAME_KEY = "name"
"""Of a placeholder: the parameter, buffer or input that it stands for."""


class Metas:
    """Fake tensors that describe values, one for each description; none of them is a value."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[tuple[object, ...], Tensor] = {}

    def of(self, tensor: Tensor) -> Tensor | None:
        """A tensor of the same sizes, strides, dtype and device; None if it has no strides."""
        if tensor.layout is not torch.strided:
            return None
        # To ask a fake tensor for its `device` is a call of its mode.
        device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
        key = (tuple(tensor.shape), tensor.stride(), tensor.dtype, device)
        if key not in self._known:
            with torch.no_grad(), self._mode:
                self._known[key] = torch.empty_strided(
                    tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device
                )
        return self._known[key]

    def of_all(self, value: Any) -> Any:
        """The same in lists and tuples; other values as they are."""
        if isinstance(value, Tensor):
            return self.of(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self.of_all(item) for item in value)
        return value


class GraphRecorder:
    """Adds a node for each operator that has run.

    Attributes:
        graph: what has been recorded.
    """

    def __init__(self, storages: Storages, metas: Metas) -> None:
        self.graph = Graph()
        self._storages = storages
        self._metas = metas
        self._first: Node | None = None

    def node_of(self, tensor: Tensor, name: str | None = None) -> Node:
        """The node that computed what a tensor holds; a new placeholder if that is unknown."""
        storage = self._storages.find_or_add_outside(tensor)
        found = None if storage is None else storage.nodes.get(geometry(tensor))
        return found if found is not None else self._placeholder(tensor, name)

    def _placeholder(self, tensor: Tensor, name: str | None) -> Node:
        # Placeholders come first in a graph, whenever they turn up.
        with self.graph.inserting_before(self._first):
            node = self.graph.placeholder("value")
        set_value(node, self._metas.of(tensor))
        if name is not None:
            node.meta[NAME_KEY] = name
        self._map(tensor, node)
        return node

    def add(self, target: Any, args: Any, kwargs: Any, result: Any) -> Node:
        """Record a call that has been made.

        Args:
            target: an operator.
            args: as it was called.
            kwargs: as it was called.
            result: what it returned.
        """
        node = self.graph.call_function(target, self._nodes_for(args), self._nodes_for(kwargs))
        self._first = self._first or node
        set_value(node, self._metas.of_all(result))
        for written in written_tensors(target, args, kwargs):
            storage = self._storages.find_or_add_outside(written)
            if storage is not None:
                storage.nodes.clear()
        if isinstance(result, Tensor):
            self._map(result, node)
        elif isinstance(result, (list, tuple)):
            self._pick(node, result)
        return node

    def _nodes_for(self, values: Any) -> Any:
        return map_aggregate(values, lambda v: self.node_of(v) if isinstance(v, Tensor) else v)

    def _pick(self, node: Node, results: Any) -> None:
        for index, item in enumerate(results):
            if isinstance(item, Tensor):
                picked = self.graph.call_function(operator.getitem, (node, index))
                set_value(picked, self._metas.of(item))
                self._map(item, picked)

    def _map(self, tensor: Tensor, node: Node) -> None:
        storage = self._storages.find_or_add_outside(tensor)
        if storage is not None:
            storage.nodes[geometry(tensor)] = node


def written_tensors(target: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The arguments that an operator writes to.

    Its schema says which, but for running statistics: older operators of batch norm update them
    without saying so.
    """
    schema = target._schema
    for index, declared in enumerate(schema.arguments):
        written = declared.alias_info is not None and declared.alias_info.is_write
        if written or declared.name.startswith("running_"):
            given = args[index] if index < len(args) else kwargs.get(declared.name)
            yield from tensors_in(given)
