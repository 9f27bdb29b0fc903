"""Pooling replaced in joint graphs: the values stay, indices and unneeded operands go."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node

from snnfx.passes.analysis.packs import Pack
from snnfx.passes.analysis.value_range import Encoding
from snnfx.passes.rewrite.pooling import (
    AVG_POOL_BACKWARD,
    MAX_POOL,
    MAX_POOL_BACKWARD,
    pool_packed_bits,
    replace_pooling,
)

from tests.kernels.test_pool import FORMATS, Window, images, windows
from tests.passes.region_graphs import HandMade, spikes

aten, snn = torch.ops.aten, torch.ops.snnfx
WINDOW: Window = ([3, 3], [2, 2], [1, 1])
T, N, C, H, W = 3, 2, 4, 6, 8


def max_pooling(x: Tensor, window: Window, *more: Any, grad: Tensor | None = None) -> HandMade:
    """Values and the gradient of max pooling; the last two nodes are them."""
    net = HandMade()
    source = net.input(x)
    pair = net.call(MAX_POOL, source, *window, *more)
    values, indices = (net.call(operator.getitem, pair, i) for i in range(2))
    pooled = aten.max_pool2d_with_indices(x, *window, *more)[0]
    flow = net.input(torch.randn_like(pooled) if grad is None else grad)
    dilation, ceil = more or ([1, 1], False)
    net.call(MAX_POOL_BACKWARD, flow, source, *window, dilation, ceil, indices)
    net.call(aten.neg.default, values)
    return net


def nodes_of(net: HandMade, target: Any) -> list[Node]:
    return [node for node in net.graph.nodes if node.target is target]


def finished(net: HandMade, *results: Node) -> GraphModule:
    module = net.finish(*results)
    module.graph.lint()
    return module


def assert_same(module: GraphModule, inputs: list[Tensor], expected: Any) -> None:
    """The rewritten graph gives the bits that the graph gave."""
    module.graph.lint()
    module.recompile()
    for found, other in zip(module(*inputs), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=0, atol=0, equal_nan=True)
        assert found.stride() == other.stride()


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(windows(), st.sampled_from(FORMATS), st.integers(0, 1 << 30))
def test_max_pooling_keeps_values_and_gradient(
    window: Window, memory_format: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    net = max_pooling(images(7, 6, torch.float64, memory_format), window)
    module = finished(net, nodes_of(net, MAX_POOL_BACKWARD)[0], nodes_of(net, aten.neg.default)[0])
    expected = module(*net.inputs)
    result = replace_pooling(module.graph)
    assert (result.changed, result.declined) == (1, ())
    dtypes = {node.meta["val"].dtype for node in module.graph.nodes if "val" in node.meta}
    assert dtypes == {torch.float64, torch.uint8}
    assert_same(module, net.inputs, expected)
    assert replace_pooling(module.graph).changed == 0


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(windows(), st.sampled_from(FORMATS))
def test_average_pooling_no_longer_reads_what_was_pooled(
    window: Window, memory_format: Any
) -> None:
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64).contiguous(memory_format=memory_format)
    net = HandMade()
    source, grad = net.input(x), net.input(torch.randn_like(aten.avg_pool2d(x, *window)))
    back = net.call(AVG_POOL_BACKWARD, grad, source, *window, False, True, None)
    module = finished(net, back, net.call(aten.neg.default, grad))
    expected = module(*net.inputs)
    assert replace_pooling(module.graph).changed == 1
    assert not source.users
    assert_same(module, net.inputs, expected)


def test_values_without_a_gradient_need_no_offsets() -> None:
    net = HandMade()
    pair = net.call(MAX_POOL, net.input(torch.randn(2, 3, 7, 6)), *WINDOW)
    module = finished(net, net.call(operator.getitem, pair, 0))
    assert replace_pooling(module.graph).changed == 1
    assert nodes_of(net, snn.max_pool2d.default)
    assert not nodes_of(net, snn.max_pool2d_offsets.default)


IMAGE = torch.randn(2, 3, 9, 9)
TRANSPOSED = torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
STAYS = {
    "holes": (lambda: max_pooling(IMAGE, WINDOW, [2, 2], False), "holes"),
    "ragged": (lambda: max_pooling(IMAGE, ([2, 2], [2, 2], [0, 0]), [1, 1], True), "ragged"),
    "large": (lambda: max_pooling(torch.randn(1, 1, 20, 20), ([16, 16], [1, 1], [0, 0])), "255"),
    "half": (lambda: max_pooling(IMAGE.bfloat16(), WINDOW), "float32 or float64"),
    "one image": (lambda: max_pooling(IMAGE[0], WINDOW), "float32 or float64"),
    "layout": (lambda: max_pooling(IMAGE, WINDOW, grad=TRANSPOSED), "another layout"),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_max_pooling_that_stays_says_why(case: str) -> None:
    build, reason = STAYS[case]
    net = build()
    module = finished(net, nodes_of(net, MAX_POOL_BACKWARD)[0], nodes_of(net, aten.neg.default)[0])
    before = str(module.graph)
    result = replace_pooling(module.graph)
    assert result.changed == 0
    assert reason in result.declined[0][1]
    assert str(module.graph) == before


def test_indices_that_the_user_sees_stay() -> None:
    net = max_pooling(IMAGE, WINDOW)
    indices = next(n for n in nodes_of(net, operator.getitem) if n.args[1] == 1)
    module = finished(net, indices, nodes_of(net, MAX_POOL_BACKWARD)[0])
    result = replace_pooling(module.graph)
    assert (result.changed, result.declined[0][1]) == (0, "'output' reads its indices")


@pytest.mark.parametrize(
    ("more", "reason"),
    [((True, True, None), "ragged"), ((False, False, None), "divides"), ((False, True, 3), "divi")],
)
def test_averages_that_stay_say_why(more: tuple[Any, ...], reason: str) -> None:
    net = HandMade()
    source = net.input(IMAGE)
    grad = net.input(torch.randn_like(aten.avg_pool2d(IMAGE, *WINDOW, *more)))
    module = finished(net, net.call(AVG_POOL_BACKWARD, grad, source, *WINDOW, *more))
    result = replace_pooling(module.graph)
    assert result.changed == 0
    assert reason in result.declined[0][1]


POOLS = [aten.avg_pool2d.default, snn.max_pool2d.default, snn.max_pool2d_offsets.default]


def unpacked(net: HandMade, packed: Node, order: tuple[int, ...] = (0, 1, 2, 3, 4)) -> Node:
    """Images of packed time steps, time and batch merged; `order` is that of the packed dims."""
    shape = [(T, N, C, H, W)[d] for d in order]
    dense = net.call(snn.unpack_bits.default, packed, shape, torch.float32, 1, "time", 1.0, 0)
    if order != tuple(range(5)):
        inverse = sorted(range(5), key=order.__getitem__)
        dense = net.call(aten.permute.default, dense, inverse)
    return net.call(aten.view.default, dense, [T * N, C, H, W])


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling_of_unpacked_spikes_reads_the_bytes(pool: Any, copies: bool) -> None:
    net = HandMade()
    packed = net.input(snn.pack_bits(spikes(T, N, C, H, W), 1, "time"))
    x = unpacked(net, packed)
    x = net.call(aten.clone.default, x) if copies else x
    module = finished(net, net.call(pool, x, *WINDOW), packed)
    expected = module(*net.inputs)
    assert pool_packed_bits(module.graph, ()).changed == 1
    assert not nodes_of(net, snn.unpack_bits.default)
    assert_same(module, net.inputs, expected)


def test_spikes_that_were_packed_channels_last_are_pooled_so() -> None:
    net, order = HandMade(), (0, 1, 3, 4, 2)
    packed = net.input(snn.pack_bits(spikes(T, N, H, W, C), 1, "time"))
    x = unpacked(net, packed, order)
    module = finished(net, net.call(snn.max_pool2d.default, x, *WINDOW), packed)
    expected = module(*net.inputs)
    assert pool_packed_bits(module.graph, ()).changed == 1
    assert not nodes_of(net, snn.unpack_bits.default)
    assert_same(module, net.inputs, expected)


def neuron(net: HandMade) -> tuple[Node, Node, Pack]:
    """A stack of spikes, what packs it, and its pack."""
    x = net.input(torch.randn(T, N, C, H, W))
    steps = []
    for t in range(T):
        fires = net.call(aten.ge.Scalar, net.call(aten.select.int, x, 0, t), 0.0)
        steps.append(net.call(aten._to_copy.default, fires, dtype=torch.float32))
    stack = net.call(aten.stack.default, steps)
    packed = net.call(snn.pack_bits.default, stack, 1, "time", 1.0, 0)
    pack = Pack(stack, tuple(steps), Encoding(1, 1.0, 0), "time", (0, 1, 2, 3, 4))
    return stack, packed, pack


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling_of_spikes_that_are_packed_anyway_reads_the_bytes(
    pool: Any, is_packed: bool
) -> None:
    net = HandMade()
    stack, packed, pack = neuron(net)
    images_ = net.call(aten.view.default, stack, [T * N, C, H, W])
    module = finished(net, net.call(pool, images_, *WINDOW), packed)
    expected = module(*net.inputs)
    assert pool_packed_bits(module.graph, [pack] if is_packed else ()).changed == is_packed
    assert len(stack.users) == (1 if is_packed else 2)
    assert_same(module, net.inputs, expected)


def test_what_is_not_exactly_the_packed_images_is_left() -> None:
    net = HandMade()
    bits = snn.pack_bits(spikes(T, N, C, H, W), 1, "time")
    packed, other = net.input(bits), net.input(torch.randn(T * N, C, H, W))
    dense = net.call(snn.unpack_bits.default, packed, [T, N, C, H, W], torch.float32, 1, "time",
                     1.0, 0)  # fmt: skip
    turned = net.call(aten.view.default, dense, [T * N, C, W, H])
    added = net.call(aten.add.Tensor, net.call(aten.view.default, dense, [T * N, C, H, W]), other)
    pooled = [net.call(snn.max_pool2d.default, x, *WINDOW) for x in (turned, added, other)]
    module = finished(net, *pooled)
    assert pool_packed_bits(module.graph, ()).changed == 0


def test_averages_with_padding_that_has_no_code_are_left() -> None:
    net = HandMade()
    packed = net.input(snn.pack_bits(spikes(T, N, C, H, W) - 1, 1, "time", 1.0, -1))
    dense = net.call(snn.unpack_bits.default, packed, [T, N, C, H, W], torch.float32, 1, "time",
                     1.0, -1)  # fmt: skip
    x = net.call(aten.view.default, dense, [T * N, C, H, W])
    whole = net.call(aten.avg_pool2d.default, x, [2, 2], [2, 2], [0, 0])
    module = finished(net, net.call(aten.avg_pool2d.default, x, *WINDOW), whole)
    expected = module(*net.inputs)
    assert pool_packed_bits(module.graph, ()).changed == 1
    assert_same(module, net.inputs, expected)
