"""Typed access to FX nodes: the values of fake tensors, bytes, roles, and the ends of a graph.

The only module that knows the keys of ``node.meta``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from snnfx._torch_compat import lazy_module

aten = torch.ops.aten
T = TypeVar("T")

VALUE_KEY = "val"
DONATED_KEY = "snnfx_donated"
LATE_KEY = "snnfx_late"
STACK_KEY = "stack_trace"
MODULES_KEYS = ("nn_module_stack", "fwd_nn_module_stack")
TILE_KEY = "snnfx_tile"


@dataclass(frozen=True)
class JointRoles:
    """What the ends of a joint graph stand for, decided once at capture.

    Attributes:
        primals: placeholders of the forward: parameters, buffers, inputs.
        tangents: placeholders of the backward: gradients of the outputs.
        forward_outputs: values that the forward returns, mutated inputs first.
        backward_outputs: gradients; None where an input has none.
        mutated: primals that hold another value after the forward.
    """

    primals: tuple[Node, ...]
    tangents: tuple[Node, ...]
    forward_outputs: tuple[Node | None, ...]
    backward_outputs: tuple[Node | None, ...]
    mutated: frozenset[Node]

    def refreshed(self, module: GraphModule) -> JointRoles:
        """The roles after a rewrite that replaced results but kept placeholders."""
        outputs = output_args(module.graph)
        count = len(self.forward_outputs)
        return replace(self, forward_outputs=outputs[:count], backward_outputs=outputs[count:])


def output_args(graph: Graph) -> tuple[Any, ...]:
    """The flat results of a graph."""
    result = graph.output_node().args[0]
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)


def node_value(node: Node) -> Any:
    """What the node computes, with fake tensors in the place of real ones; None if unknown."""
    return node.meta.get(VALUE_KEY)


def tensor_value(node: Node) -> Tensor | None:
    """The fake tensor that the node computes; None if it computes something else."""
    value = node_value(node)
    return value if isinstance(value, Tensor) else None


def is_symbol(node: object) -> bool:
    """Whether the node computes a symbolic number, such as a size."""
    return isinstance(node, Node) and isinstance(node_value(node), torch.SymInt | torch.SymFloat)


def has_static_shape(node: Node) -> bool:
    """Whether the node computes one tensor whose sizes are all known numbers."""
    value = tensor_value(node)
    return value is not None and all(isinstance(size, int) for size in value.shape)


def size_hint(size: Any) -> int:
    """A number for a size: itself, or what a symbolic size was when the graph was traced."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return int(hint) if hint is not None else 1


def numel(value: Tensor) -> int:
    """The number of elements; symbolic sizes count as they were when the graph was traced."""
    count = 1
    for size in value.shape:
        count *= size_hint(size)
    return count


def stride_order(value: Tensor) -> tuple[int, ...]:
    """The dimensions from the largest stride to the smallest; sizes must be numbers."""
    dims = range(value.dim())
    return tuple(sorted(dims, key=lambda d: (-value.stride(d), -value.shape[d], d)))


def is_dense(value: Tensor, order: Sequence[int]) -> bool:
    """Whether the tensor fills its memory with its dimensions in this order; sizes are numbers.

    As `value.permute(order).is_contiguous()`, without a trip through the fake tensor's dispatch.
    """
    if 0 in value.shape:
        return True
    step = 1
    for dim in reversed(order):
        if value.shape[dim] != 1 and value.stride(dim) != step:
            return False
        step *= int(value.shape[dim])
    return True


def tensor_bytes(value: Tensor) -> int:
    """Bytes of a dense tensor of this shape and dtype."""
    return numel(value) * value.element_size()


def node_bytes(node: Node) -> int:
    """Bytes of the tensors that the node computes; 0 for numbers and shapes."""
    value = node_value(node)
    values = value if isinstance(value, (tuple, list)) else (value,)
    return sum(tensor_bytes(item) for item in values if isinstance(item, Tensor))


def set_value(node: Node, value: Any) -> None:
    """Record what a new node computes."""
    node.meta[VALUE_KEY] = value


def set_late(node: Node) -> None:
    """Record that the node runs as late as it can, as recomputation does."""
    node.meta[LATE_KEY] = True


def is_late(node: Node) -> bool:
    """Whether the node runs as late as it can whatever it depends on."""
    return bool(node.meta.get(LATE_KEY, False))


def set_tile(node: Node, whole: str, start: int) -> None:
    """Record that the node computes the tile of the node `whole` from slice `start` on.

    A tile of a tile is told as the first that it was.
    """
    node.meta.setdefault(TILE_KEY, (whole, start))


def tile_of(node: Node) -> tuple[str, int] | None:
    """The name of what the node computes a tile of, and the first slice; None for other nodes."""
    return node.meta.get(TILE_KEY)


def set_donations(node: Node, donated: Mapping[int, int]) -> None:
    """Record which results of a call are written into the memory of which of its arguments."""
    node.meta[DONATED_KEY] = dict(donated)


def donations_of(node: Node) -> dict[int, int]:
    """Which results of a call are written into the memory of which of its arguments."""
    return dict(node.meta.get(DONATED_KEY, {}))


def donor_of(node: Node) -> Node | None:
    """The argument in whose memory a result (a getitem) was written, if there is one."""
    if not is_getitem(node):
        return None
    call = node.all_input_nodes[0]
    index = donations_of(call).get(node.args[1])  # type: ignore[arg-type]
    donor = None if index is None else call.args[index]
    return donor if isinstance(donor, Node) else None


def stack_trace(node: Node) -> str:
    """The user's code that called for this node, as Python prints a stack; empty if unknown."""
    return node.meta.get(STACK_KEY) or ""


def module_stack(node: Node) -> tuple[tuple[str, Any], ...]:
    """The modules that the node was called in, outermost first: the tracer's name, and the class.

    For a node of the backward, those of the operator that it belongs to; empty if unknown.
    """
    found = next((node.meta[key] for key in MODULES_KEYS if node.meta.get(key)), {})
    return tuple((str(name), kind) for name, kind in found.values())


def dependents(graph: Graph, roots: Iterable[Node]) -> frozenset[Node]:
    """The nodes that depend on one of `roots`, the roots included."""
    reached = set(roots)
    for node in graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    return frozenset(reached)


def ancestors(roots: Iterable[Node], stop: frozenset[Node] = frozenset()) -> frozenset[Node]:
    """The nodes that `roots` depend on, the roots included, not looking beyond `stop`."""
    reached: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            if node not in stop:
                stack.extend(node.all_input_nodes)
    return frozenset(reached)


def is_getitem(node: Node) -> bool:
    """Whether the node picks one of several results of another node."""
    return node.op == "call_function" and node.target is operator.getitem


def producer(node: Node) -> Node:
    """The node whose operator computed this value: past getitems."""
    while is_getitem(node):
        node = node.all_input_nodes[0]
    return node


def schema_of(node: Node) -> Any:
    """The schema of the operator that the node calls, or None."""
    target = node.target
    return target._schema if isinstance(target, torch._ops.OpOverload) else None


def is_view(node: Node) -> bool:
    """Whether the result shares the storage of an input, written or not (by the schema)."""
    if is_getitem(node):
        return is_view(node.all_input_nodes[0])
    if node.target is aten._unsafe_view.default:
        return True  # its schema does not say so, but it does
    schema = schema_of(node)
    if schema is None:
        return False
    returns = [r.alias_info for r in schema.returns]
    return any(info is not None for info in returns)


def viewed_inputs(node: Node) -> list[Node]:
    """The inputs whose storage the result of a view, or of an operator in place, may share."""
    if is_getitem(node):
        return viewed_inputs(producer(node))
    schema = schema_of(node)
    if schema is None or node.target is aten._unsafe_view.default:
        return list(node.all_input_nodes)
    shared = {a.name for a in schema.arguments if a.alias_info is not None}
    named = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | node.kwargs
    found = (named[name] for name in shared if name in named)
    return [source for source in found if isinstance(source, Node)]


def call_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes that compute something."""
    return (node for node in graph.nodes if node.op == "call_function")


def last_placeholders(graph: Graph, count: int) -> list[Node]:
    """The last placeholders of a graph, such as the gradients that come into a backward."""
    placeholders = graph.find_nodes(op="placeholder")
    return placeholders[len(placeholders) - count :]


def in_order_of_need(roots: Iterable[T], needs: Callable[[T], Iterable[T]]) -> list[T]:
    """The roots in their order, and what each needs in front of it, depth first.

    Args:
        roots: told apart by identity, as is all else.
        needs: of one of them; nothing may need itself, or what needs it.
    """
    done: set[int] = set()
    order: list[T] = []
    for root in roots:
        stack = [(root, False)]
        while stack:
            unit, ready = stack.pop()
            if id(unit) in done:
                continue
            if ready:
                done.add(id(unit))
                order.append(unit)
                continue
            stack.append((unit, True))
            # The stack is last in, first out: the first need is pushed last.
            waiting = [(other, False) for other in needs(unit) if id(other) not in done]
            stack.extend(reversed(waiting))
    return order


def copied_module(module: GraphModule) -> GraphModule:
    """A module with a graph of its own, to change; its code is generated when it is called."""
    graph = Graph()
    results = graph.graph_copy(module.graph, {})
    graph.output(results).meta = dict(module.graph.output_node().meta)
    return lazy_module(module, graph)


def find_roles(
    module: GraphModule, num_primals: int, num_forward_outputs: int, mutated: Iterable[int]
) -> JointRoles:
    """The roles of a joint graph, from counts that the tracer gives.

    Args:
        module: placeholders are primals, then tangents; outputs are forward, then backward ones.
        num_primals: how many placeholders belong to the forward.
        num_forward_outputs: how many results belong to the forward.
        mutated: the positions of primals that the forward changes.
    """
    placeholders = module.graph.find_nodes(op="placeholder")
    outputs = output_args(module.graph)
    primals = tuple(placeholders[:num_primals])
    return JointRoles(
        primals,
        tuple(placeholders[num_primals:]),
        outputs[:num_forward_outputs],
        outputs[num_forward_outputs:],
        frozenset(primals[i] for i in mutated),
    )


def is_on_cpu(graph: Graph) -> bool:
    """Whether every tensor of the graph lies in the memory of the CPU."""
    values = (tensor_value(node) for node in graph.nodes)
    return all(value.device.type == "cpu" for value in values if value is not None)
