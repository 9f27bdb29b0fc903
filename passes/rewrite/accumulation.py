"""Sums in forms that cost less: of gradients of time steps, over a stack, over a whole tensor.

*Sums of `select_backward` over different time steps* become one `stack`.

The gradient of ``x[t]`` for each step t is a full tensor of zeros with one slice set, and autograd
adds up T of them: T times the memory traffic, and T full tensors. The sum over distinct steps is a
stack of the slices. Every other term adds +0.0 to a slice, so adding 0.0 once keeps the very bits
(it turns -0.0 into +0.0, as the sum does; a NaN stays).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Graph, Node

from snnfx.passes.fxgraph import set_value, tensor_value
from snnfx.passes.rewrite.builder import GraphBuilder

aten = torch.ops.aten
FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class AccumulationResult:
    """How many sums became stacks, and of how many slices in all."""

    changed: int
    slices: int


def stack_accumulations(graph: Graph) -> AccumulationResult:
    """Replace each sum of `select_backward` that covers all steps of its dimension by a stack."""
    changed = slices = 0
    for root in list(graph.nodes):
        leaves = _leaves(root)
        if leaves is not None and _replace(graph, root, leaves):
            changed += 1
            slices += len(leaves)
    if changed:
        graph.eliminate_dead_code()
    return AccumulationResult(changed, slices)


def add_up_stacks(graph: Graph) -> AccumulationResult:
    """Replace sums over all steps of a stack by additions of the steps, which fuse.

    The backward of an image that is the input of every step ends in such a sum. For the compiled
    lowering only: the order of additions is another one.
    """
    changed = slices = 0
    for node in graph.find_nodes(op="call_function", target=aten.sum.dim_IntList):
        parts = _summed_parts(node)
        if parts is None:
            continue
        build = GraphBuilder(graph, node)
        with graph.inserting_before(node):
            total = parts[0]
            for part in parts[1:]:
                total = build.call(aten.add.Tensor, total, part)
            value = tensor_value(node)
            assert value is not None
            shaped = build.call(aten.view.default, total, list(value.shape))
        node.replace_all_uses_with(shaped)
        graph.erase_node(node)
        changed, slices = changed + 1, slices + len(parts)
    if changed:
        graph.eliminate_dead_code()
    return AccumulationResult(changed, slices)


def sum_by_channel(graph: Graph) -> int:
    """Sum a whole tensor by channels first, which a fused region can do; how many were changed.

    The gradient of one number that a whole layer shares, such as a learnt time constant, is such a
    sum. For the compiled lowering only: the order of additions is another one.
    """
    changed = 0
    for node in graph.find_nodes(op="call_function", target=aten.sum.default):
        (source,) = node.all_input_nodes
        value = tensor_value(source)
        if node.kwargs or value is None or value.dim() < 2 or value.dtype not in FLOATS:
            continue
        build = GraphBuilder(graph, node)
        with graph.inserting_before(node):
            others = [d for d in range(value.dim()) if d != 1]
            channels = build.call(aten.sum.dim_IntList, source, others)
            total = build.call(aten.sum.default, channels)
        node.replace_all_uses_with(total)
        graph.erase_node(node)
        changed += 1
    return changed


def _summed_parts(node: Node) -> list[Node] | None:
    """The parts of the stack along dim 0 that the node adds up, if that is all it does."""
    source = node.args[0]
    if len(node.args) != 2 or node.kwargs or node.args[1] != [0]:
        return None
    while isinstance(source, Node) and source.target is aten.view.default:
        source = source.args[0]
    if not isinstance(source, Node) or source.target is not aten.stack.default:
        return None
    given, stacked, summed = tensor_value(node), tensor_value(source), node.all_input_nodes[0]
    seen = tensor_value(summed)
    parts = source.args[0]
    assert isinstance(parts, (list, tuple))
    if given is None or stacked is None or seen is None or source.args[1:] not in ((), (0,)):
        return None
    steps = len(parts)
    if seen.shape[0] != steps or seen.dtype != given.dtype or not _is_static(given, stacked):
        return None
    return [part for part in parts if isinstance(part, Node)]


def _is_static(*values: Tensor) -> bool:
    return all(isinstance(size, int) for value in values for size in value.shape)


def _is_sum(node: Node) -> bool:
    return node.target is aten.add.Tensor and not node.kwargs


def _leaves(root: Node) -> list[Node] | None:
    """The `select_backward` nodes that `root` adds up, or None if it adds up anything else.

    Only for the root of a sum: a node that is not itself a single term of the same kind of sum.
    """
    if not _is_sum(root):
        return None
    leaves: list[Node] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node.target is aten.select_backward.default:
            leaves.append(node)
        elif _is_sum(node) and (node is root or len(node.users) == 1):
            stack.extend(arg for arg in node.args if isinstance(arg, Node))
            if not all(isinstance(arg, Node) for arg in node.args):
                return None
        else:
            return None
    return leaves


def _replace(graph: Graph, root: Node, leaves: list[Node]) -> bool:
    _, sizes, dim, _ = leaves[0].args
    if any(leaf.args[1] != sizes or leaf.args[2] != dim for leaf in leaves):
        return False
    assert isinstance(sizes, (list, tuple))
    assert isinstance(dim, int)
    steps = sizes[dim]
    if not isinstance(steps, int):
        return False
    by_step = {int(leaf.args[3]) % steps: leaf.args[0] for leaf in leaves}  # type: ignore
    if len(leaves) != steps or len(by_step) != steps:
        return False
    slices = [by_step[t] for t in range(steps)]
    values = [tensor_value(s) for s in slices if isinstance(s, Node)]
    expected = tensor_value(root)
    if expected is None or any(v is None for v in values):
        return False
    with expected.fake_mode:  # type: ignore[attr-defined]
        stacked = torch.stack(values, dim)  # type: ignore[arg-type]
    if stacked.stride() != expected.stride() or stacked.dtype != expected.dtype:
        return False
    with graph.inserting_before(root):
        terms: list[Node] = []
        for s in slices:
            assert isinstance(s, Node)
            term = graph.call_function(aten.add.Tensor, (s, 0.0))
            set_value(term, tensor_value(s))
            terms.append(term)
        stack = graph.call_function(aten.stack.default, (terms, dim))
    stack.meta = dict(root.meta)
    root.replace_all_uses_with(stack)
    graph.erase_node(root)
    return True
