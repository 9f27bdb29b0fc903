"""Sums of `select_backward` over different time steps, as one `stack`.

The gradient of ``x[t]`` for each step t is a full tensor of zeros with one slice set, and autograd
adds up T of them: T times the memory traffic, and T full tensors. The sum over distinct steps is a
stack of the slices. Every other term adds +0.0 to a slice, so adding 0.0 once keeps the very bits
(it turns -0.0 into +0.0, as the sum does; a NaN stays).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from snnfx.passes.fxgraph import set_value, tensor_value

aten = torch.ops.aten


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
