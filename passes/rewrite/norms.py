"""Batch norms taken apart: one full pass for the statistics, the rest pointwise.

With ``a = weight / sqrt(var + eps)``, forward is ``x * a + (bias - mean * a)``. Backward, with
``xc = x - mean`` and averages over all but the channels (Ioffe and Szegedy, ICML 2015):

    grad_bias = sum(g)      grad_weight = sum(g * xc) / sqrt(var + eps)
    grad_x    = (g - mean(g) - xc * mean(g * xc) / (var + eps)) * a

For the compiled lowering only: results equal those of the batch norm operators up to rounding.
Norms in other dtypes than float32 and float64, with symbolic sizes, or without statistics of their
own are left as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Graph, Node

import snnfx.kernels.norm  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers
from snnfx.passes.fxgraph import has_static_shape, is_getitem, tensor_value
from snnfx.passes.rewrite.builder import GraphBuilder, Known

aten = torch.ops.aten
FORWARD = aten._native_batch_norm_legit_functional.default
BACKWARD = aten.native_batch_norm_backward.default


@dataclass(frozen=True)
class NormsResult:
    """How many batch norms were taken apart, forward and backward ones."""

    changed: int


def expand_batch_norms(graph: Graph) -> NormsResult:
    """Replace the batch norms of a joint graph by statistics and pointwise operators."""
    changed = 0
    known: Known = {}
    for node in list(graph.nodes):
        if node.target is FORWARD and node.args[5] and _is_supported(node):
            _expand_forward(graph, node, known)
        elif node.target is BACKWARD and node.args[7] and _is_supported(node):
            _expand_backward(graph, node, known)
        else:
            continue
        changed += 1
    return NormsResult(changed)


def _is_supported(node: Node) -> bool:
    tensors = [source for source in node.all_input_nodes if tensor_value(source) is not None]
    dtypes = {value.dtype for n in tensors if (value := tensor_value(n)) is not None}
    users = all(is_getitem(user) for user in node.users)
    return (
        users
        and len(dtypes) == 1
        and dtypes <= {torch.float32, torch.float64}
        and all(has_static_shape(n) for n in tensors)
    )


def _expand_forward(graph: Graph, node: Node, known: Known) -> None:
    x, weight, bias, running_mean, running_var, _, momentum, eps = node.args
    assert isinstance(x, Node)
    rank = _rank(x)
    build = GraphBuilder(graph, x, known)
    with graph.inserting_before(node):
        statistics = build.call(torch.ops.snnfx.batch_norm_statistics.default,
                                x, running_mean, running_var, momentum, eps)  # fmt: skip
        mean, invstd, new_mean, new_var = build.items(statistics, 4)
        scale = _scaled(build, invstd, weight)
        shift = build.call(aten.mul.Tensor, mean, scale)
        if bias is None:
            shift = build.call(aten.neg.default, shift)
        else:
            shift = build.call(aten.sub.Tensor, bias, shift)
        scaled = build.call(aten.mul.Tensor, x, build.as_channels(scale, rank))
        result = build.call(aten.add.Tensor, scaled, build.as_channels(shift, rank))
    _replace_items(graph, node, (result, mean, invstd, new_mean, new_var))


def _expand_backward(graph: Graph, node: Node, known: Known) -> None:
    grad, x, weight, _, _, mean, invstd, _, _, _ = node.args
    assert isinstance(grad, Node)
    assert isinstance(x, Node)
    assert isinstance(mean, Node)
    assert isinstance(invstd, Node)
    rank = _rank(x)
    value = tensor_value(x)
    assert value is not None
    count = prod(int(s) for s in value.shape) // int(value.shape[1])
    dims = [d for d in range(rank) if d != 1]
    build = GraphBuilder(graph, x, known)
    with graph.inserting_before(node):
        centre = build.as_channels(mean, rank)
        product = build.call(aten.mul.Tensor, grad, build.call(aten.sub.Tensor, x, centre))
        total = build.call(aten.sum.dim_IntList, grad, dims)
        moment = build.call(aten.sum.dim_IntList, product, dims)
        weight_grad = build.call(aten.mul.Tensor, moment, invstd)
        scale = _scaled(build, invstd, weight)
        slope = build.call(aten.div.Tensor, build.call(aten.mul.Tensor, weight_grad, invstd), count)
        level = build.call(aten.div.Tensor, total, count)
        flat = build.call(aten.sub.Tensor, grad, build.as_channels(level, rank))
        # Not the difference from above: the two are in different regions, which would store it.
        centred = build.call(aten.sub.Tensor, x, centre)
        tilt = build.call(aten.mul.Tensor, centred, build.as_channels(slope, rank))
        rest = build.call(aten.sub.Tensor, flat, tilt)
        result = build.call(aten.mul.Tensor, rest, build.as_channels(scale, rank))
    _replace_items(graph, node, (result, weight_grad, total))


def _scaled(build: GraphBuilder, invstd: Node, weight: Any) -> Node:
    return invstd if weight is None else build.call(aten.mul.Tensor, invstd, weight)


def _rank(node: Node) -> int:
    value = tensor_value(node)
    assert value is not None
    return value.dim()


def _replace_items(graph: Graph, node: Node, results: tuple[Node, ...]) -> None:
    for user in list(node.users):
        position = user.args[1]
        assert isinstance(position, int)
        user.replace_all_uses_with(results[position])
        graph.erase_node(user)
    graph.erase_node(node)
