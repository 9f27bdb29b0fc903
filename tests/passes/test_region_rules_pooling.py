"""Pooling in regions: every window has ATen's bits, whatever the layout and what is around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node

import snnfx.kernels.pool  # noqa: F401  # registers the operators
from snnfx.kernels.region_ir import Load
from snnfx.passes.rewrite.region_rules_pooling import WINDOWED

from tests.kernels.test_pool import FORMATS, Window, images, windows
from tests.passes.region_graphs import (
    HandMade,
    evaluated_by_torch,
    lowered,
    regions_of,
    run_both,
    spikes,
    targets_inside,
)

aten, snn = torch.ops.aten, torch.ops.snnfx
T, N, C = 5, 2, 16
PAIRS: list[Window] = [([2, 2], [2, 2], [0, 0]), ([3, 3], [2, 2], [1, 1])]


def pooled_shape(window: Window, height: int, width: int) -> tuple[int, int]:
    sizes = zip((height, width), *window, strict=True)
    first, second = ((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
    return first, second


def assert_bits(module: GraphModule, inputs: Sequence[Tensor]) -> None:
    """The outer graph gives the bits of the graph, and all of its pooling is in regions."""
    inside = {n.target for n in module.graph.nodes} & WINDOWED
    assert inside
    assert inside <= targets_inside(module)
    for expected, found in zip(*run_both(module, inputs), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def forward(window: Window, x: Tensor) -> tuple[GraphModule, list[Tensor]]:
    """Maxima of one tensor and where they are, and something pointwise after each."""
    net = HandMade()
    source = net.input(x)
    maxima, offsets = (
        net.call(target, source, *window)
        for target in (snn.max_pool2d.default, snn.max_pool2d_offsets.default)
    )
    return net.finish(net.call(aten.neg.default, maxima), offsets), net.inputs


def backward(
    window: Window, height: int, width: int, dtype: torch.dtype, memory_format: Any
) -> tuple[GraphModule, list[Tensor]]:
    """Gradients of both poolings at T time steps, which a neuron-like chain reads step by step."""
    net, (rows, columns) = HandMade(), pooled_shape(window, height, width)
    shape = [T * N, C, height, width]
    grad = torch.randn(T * N, C, rows, columns, dtype=dtype)
    x = images(height, width, dtype, memory_format)[:, :1].expand(-1, T * N // 2 * C, -1, -1)
    where = snn.max_pool2d_offsets(
        x.reshape(shape).contiguous(memory_format=memory_format), *window
    )
    current = net.input(torch.randn(N, C, height, width, dtype=dtype))
    source, offsets = net.input(grad.contiguous(memory_format=memory_format)), net.input(where)
    averaged = net.call(snn.avg_pool2d_backward.default, source, shape, *window)
    routed = net.call(snn.max_pool2d_backward.default, source, offsets, shape, *window)
    results, total = list[Node](), current
    for whole in (averaged, routed):
        steps = net.call(aten.view.default, whole, [T, N, C, height, width])
        for t in range(T):
            total = net.call(aten.add.Tensor, total, net.call(aten.select.int, steps, 0, t))
        results.append(total)
    return net.finish(*results), net.inputs


def packed(
    window: Window, kind: str, grid: tuple[int, float, int], dtype: torch.dtype, last: bool
) -> tuple[GraphModule, list[Tensor]]:
    """Pooling of packed bytes, and something pointwise after it."""
    bits, scale, lo = grid
    shape = [T, N, C, 7, 9]
    values = (torch.randint(lo, lo + (1 << bits), shape) * scale).to(dtype)
    held = snn.pack_bits(values, bits, "time", scale, lo)
    if last:
        held = held.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    net = HandMade()
    source = net.input(held)
    pooled = net.call(snn.pool_packed.default, source, shape, dtype, bits, scale, lo, kind, *window)
    return net.finish(net.call(aten.clone.default, pooled)), net.inputs


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    windows(), st.integers(4, 9), st.integers(4, 9), st.sampled_from(FORMATS), st.integers(0, 99)
)
def test_any_window_pools_forward(
    window: Window, height: int, width: int, memory_format: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    x = images(height, width, torch.float64, memory_format).repeat(8, 16, 1, 1)
    with evaluated_by_torch():
        assert_bits(*forward(window, x.contiguous(memory_format=memory_format)))


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    windows(), st.integers(4, 9), st.integers(4, 9), st.sampled_from(FORMATS), st.integers(0, 99)
)
def test_any_window_pools_backward(
    window: Window, height: int, width: int, memory_format: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    with evaluated_by_torch():
        assert_bits(*backward(window, height, width, torch.float64, memory_format))


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    windows(),
    st.sampled_from(["average", "maximum", "offsets"]),
    st.sampled_from([(1, 1.0, 0), (1, 0.1, 0), (2, 0.25, -1), (8, 1.0, -9)]),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_window_pools_packed_bytes(
    window: Window, kind: str, grid: tuple[int, float, int], last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    if kind == "average" and grid[2]:
        window = (*window[:2], [0, 0])
    dtype = torch.float64 if seed % 2 else torch.float32
    if grid[1] == 0.1:
        dtype = torch.float64
    with evaluated_by_torch():
        assert_bits(*packed(window, kind, grid, dtype, last))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("window", PAIRS, ids=str)
def test_compiled_regions_have_the_bits_too(window: Window, memory_format: Any) -> None:
    dtype = torch.float32
    x = images(9, 8, dtype, memory_format).repeat(8, 16, 1, 1)
    assert_bits(*forward(window, x.contiguous(memory_format=memory_format)))
    assert_bits(*backward(window, 9, 8, dtype, memory_format))
    for kind in ("average", "maximum", "offsets"):
        assert_bits(*packed(window, kind, (1, 1.0, 0), dtype, memory_format != FORMATS[0]))


def test_one_region_computes_all_that_follows_from_a_pooled_gradient() -> None:
    module, _ = backward(PAIRS[0], 8, 8, torch.float32, torch.channels_last)
    (region,) = regions_of(module)
    assert {tuple(region.program.base)} == {(N, C, 8, 8)}
    assert sorted(spec.windowed for spec in region.program.inputs) == [(), (2, 3), (2, 3)]


def test_windows_that_do_not_overlap_are_loaded_once() -> None:
    module, _ = backward(PAIRS[0], 8, 8, torch.float32, torch.channels_last)
    (region,) = regions_of(module)
    loads = [i for i in region.program.program.instructions if isinstance(i, Load) and i.windows]
    assert len(loads) == 2 * T


def test_what_is_pooled_is_not_in_the_region_that_pools_it() -> None:
    net = HandMade()
    x = net.input(torch.randn(8, C, 8, 8))
    smooth = net.call(aten.relu.default, net.call(aten.mul.Tensor, x, 2.0))
    pooled = net.call(snn.max_pool2d.default, smooth, *PAIRS[1])
    module = net.finish(net.call(aten.neg.default, pooled), smooth)
    assert len(regions_of(module)) == 2
    assert_bits(module, net.inputs)


def test_a_gradient_that_is_read_through_windows_is_not_written_over() -> None:
    """Stride 1: the pooled gradient has the size of the result, but is read beside it."""
    net, window = HandMade(), ([3, 3], [1, 1], [1, 1])
    x, weight = net.input(torch.randn(8, C, 6, 6)), net.input(torch.randn(6, 6))
    grad = net.call(aten.matmul.default, x, weight)
    spread = net.call(snn.avg_pool2d_backward.default, grad, [8, C, 6, 6], *window)
    module = net.finish(net.call(aten.neg.default, spread))
    assert_bits(module, net.inputs)
    outer = lowered(module)
    calls = [outer.get_submodule(str(n.target)) for n in outer.graph.find_nodes(op="call_module")]
    assert [call.donated for call in calls] == [{}]


def test_padding_without_a_code_is_not_averaged() -> None:
    module, inputs = packed(PAIRS[1], "average", (2, 1.0, -1), torch.float32, False)
    assert snn.pool_packed.default not in targets_inside(module)
    with evaluated_by_torch():
        expected, found = run_both(module, inputs)
    assert torch.equal(found[0], expected[0])


def test_an_image_of_one_row_pools() -> None:
    net = HandMade()
    x = net.input(spikes(64, C, 1, 3))
    pooled = net.call(snn.max_pool2d.default, x, [1, 3], [1, 3], [0, 1])
    module = net.finish(net.call(aten.neg.default, pooled))
    assert_bits(module, net.inputs)
    assert math.prod(pooled.meta["val"].shape) == 64 * C


def test_pooling_whose_result_is_viewed_as_tokens_is_in_a_region() -> None:
    """What works on tokens needs another index space than what pools."""
    net, shape = HandMade(), [T, N, C, 8, 8]
    source = net.input(snn.pack_bits(spikes(*shape), 1, "time"))
    pooled = net.call(snn.pool_packed.default, source, shape, torch.float32, 1, 1.0, 0, "maximum",
                      *PAIRS[0])  # fmt: skip
    tokens = net.call(aten.view.default, pooled, [T, N, C, 16])
    total = net.input(torch.randn(N, C, 16))
    for t in range(T):
        total = net.call(aten.add.Tensor, total, net.call(aten.select.int, tokens, 0, t))
    module = net.finish(total)
    with evaluated_by_torch():
        assert_bits(module, net.inputs)
    assert {tuple(region.program.base) for region in regions_of(module)} == {
        (N, C, 4, 4), (N, C, 16)
    }  # fmt: skip
