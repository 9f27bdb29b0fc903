"""Batch norms taken apart, against torch's own, forward and backward."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from snnfx.passes.rewrite.norms import BACKWARD, FORWARD, expand_batch_norms

from tests.passes.region_graphs import HandMade, evaluated_by_torch, lowered

aten = torch.ops.aten
SHAPES = [(40, 6), (5, 6, 9), (4, 6, 5, 7), (3, 6, 2, 4, 5), (2, 1, 3, 3)]


def step(
    x: Tensor,
    has_affine: tuple[bool, bool] = (True, True),
    momentum: float = 0.1,
    training: bool = True,
    parameters: torch.dtype | None = None,
) -> tuple[GraphModule, list[Tensor]]:
    """A joint graph of one batch norm: results, new running statistics, and gradients."""
    net, channels = HandMade(), x.shape[1]
    dtype = parameters or x.dtype

    def vector(is_there: bool, positive: bool = False) -> Node | None:
        values = torch.rand(channels, dtype=torch.float64) + 0.5
        values = values if positive else values - 1
        return net.input(values.to(dtype)) if is_there else None

    source, grad = net.input(x), net.input(torch.randn_like(x))
    weight, bias = (vector(there) for there in has_affine)
    mean, var = vector(True), vector(True, positive=True)

    def items(call: Node, count: int) -> list[Node]:
        return [net.call(operator.getitem, call, i) for i in range(count)]

    forward = items(net.call(FORWARD, source, weight, bias, mean, var, training, momentum, 1e-5), 5)
    backward = items(
        net.call(BACKWARD, grad, source, weight, mean, var, forward[1], forward[2], training,
                 1e-5, [True, *has_affine]), 3,
    )  # fmt: skip
    wanted = [backward[i] for i, there in enumerate((True, *has_affine)) if there]
    return net.finish(*forward, *wanted), net.inputs


def assert_equal(found: Any, expected: Any, rtol: float = 1e-12) -> None:
    """Within `rtol` of each tensor's norm: single elements may cancel."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert (one - other).norm() <= rtol * other.norm()


def targets(module: GraphModule) -> set[object]:
    return {node.target for node in module.graph.nodes}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("has_affine", [(True, True), (False, False), (True, False)])
def test_values_statistics_and_gradients_are_those_of_batch_norm(
    shape: tuple[int, ...], has_affine: tuple[bool, bool]
) -> None:
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    module, inputs = step(x, has_affine)
    expected = module(*inputs)
    assert expand_batch_norms(module.graph).changed == 2
    module.graph.lint()
    module.recompile()
    assert targets(module).isdisjoint({FORWARD, BACKWARD})
    assert_equal(module(*inputs), expected)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 1.0])
def test_running_statistics_follow_the_momentum(momentum: float) -> None:
    module, inputs = step(torch.randn(8, 6, 4, 4, dtype=torch.float64), momentum=momentum)
    expected = module(*inputs)
    expand_batch_norms(module.graph)
    module.recompile()
    assert_equal(module(*inputs)[3:5], expected[3:5])


def test_single_precision_stays_close() -> None:
    module, inputs = step(torch.randn(8, 6, 10, 10) + 10)
    expected = module(*inputs)
    expand_batch_norms(module.graph)
    module.recompile()
    assert_equal(module(*inputs), expected, rtol=1e-5)


def test_what_is_taken_apart_runs_in_regions() -> None:
    module, inputs = step(torch.randn(8, 6, 10, 10, dtype=torch.float64))
    expected = module(*inputs)
    expand_batch_norms(module.graph)
    with evaluated_by_torch() as programs:
        graph = lowered(module)
    assert len(programs) >= 2
    assert_equal(graph(*inputs), expected)


def test_new_nodes_know_what_they_compute() -> None:
    module, inputs = step(torch.randn(8, 6, 4, 4, dtype=torch.float64))
    shapes = [v.shape for v in module(*inputs)]
    expand_batch_norms(module.graph)
    results = module.graph.output_node().args[0]
    assert [n.meta["val"].shape for n in results] == shapes
    assert all("val" in n.meta for n in module.graph.nodes if n.op == "call_function")


@pytest.mark.parametrize(
    ("dtype", "parameters", "training"),
    [
        (torch.float16, torch.float16, True),
        (torch.bfloat16, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float32, torch.float32, False),
    ],
)
def test_half_precision_and_inference_are_left_alone(
    dtype: torch.dtype, parameters: torch.dtype, training: bool
) -> None:
    x = torch.randn(8, 6, 4, 4).to(dtype)
    module, _ = step(x, parameters=parameters, training=training)
    before = str(module.graph)
    assert expand_batch_norms(module.graph).changed == 0
    assert str(module.graph) == before


def test_taking_apart_again_changes_nothing() -> None:
    module, _ = step(torch.randn(8, 6, 4, 4))
    expand_batch_norms(module.graph)
    before = str(module.graph)
    assert expand_batch_norms(module.graph).changed == 0
    assert str(module.graph) == before


def test_a_graph_of_a_norm_without_running_statistics_keeps_its_forward() -> None:
    net = HandMade()
    x = net.input(torch.randn(8, 6, 4, 4))
    call = net.call(aten._native_batch_norm_legit.no_stats, x, None, None, True, 0.1, 1e-5)
    module = net.finish(net.call(operator.getitem, call, 0))
    assert expand_batch_norms(module.graph).changed == 0
    assert aten._native_batch_norm_legit.no_stats in targets(module)
