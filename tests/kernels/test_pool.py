"""The pooling operators against ATen's, by value and by gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import snnfx.kernels.ops  # registers the operators
import snnfx.kernels.pool  # noqa: F401  # likewise
from snnfx.errors import KernelError

aten, snn = torch.ops.aten, torch.ops.snnfx
Window = tuple[list[int], list[int], list[int]]
FORMATS = (torch.contiguous_format, torch.channels_last)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Kernel, stride and padding that ATen accepts, each (height, width)."""
    kernel = [draw(st.integers(1, 4)) for _ in range(2)]
    return kernel, [draw(st.integers(1, 3)) for _ in range(2)], [
        draw(st.integers(0, k // 2)) for k in kernel
    ]  # fmt: skip


def images(
    height: int, width: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    """`[2, 3, height, width]` of few values, so that many are equal, some NaN or infinite."""
    values = torch.randint(-2, 4, (2, 3, height, width)).to(dtype)
    for special, rate in ((math.nan, 0.05), (-math.inf, 0.3)):
        values[torch.rand(values.shape) < rate] = special
    return values.contiguous(memory_format=memory_format)


cases = given(
    windows(),
    st.integers(4, 9),
    st.integers(4, 9),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(FORMATS),
    st.integers(0, 1 << 30),
)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@cases
def test_max_pooling_and_its_gradient_have_the_bits_of_aten(
    window: Window, height: int, width: int, dtype: torch.dtype, memory_format: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    x = images(height, width, dtype, memory_format)
    values, indices = aten.max_pool2d_with_indices(x, *window)
    found = snn.max_pool2d(x, *window)
    assert torch.equal(found.nan_to_num(7), values.nan_to_num(7))
    assert found.stride() == values.stride()
    offsets = snn.max_pool2d_offsets(x, *window)
    assert offsets.dtype == torch.uint8
    assert offsets.stride() == values.stride()
    grad = torch.randn_like(values)
    expected = aten.max_pool2d_with_indices_backward(
        grad, x, *window, [1, 1], False, indices
    )  # fmt: skip
    gradient = snn.max_pool2d_backward(grad, offsets, list(x.shape), *window)
    assert torch.equal(gradient, expected)
    assert gradient.stride() == expected.stride()


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@cases
def test_the_gradient_of_average_pooling_has_the_bits_of_aten(
    window: Window, height: int, width: int, dtype: torch.dtype, memory_format: Any, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, 3, height, width, dtype=dtype).contiguous(memory_format=memory_format)
    grad = torch.randn_like(aten.avg_pool2d(x, *window))
    expected = aten.avg_pool2d_backward(grad, x, *window, False, True, None)
    found = snn.avg_pool2d_backward(grad, list(x.shape), *window)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(
    windows(),
    st.sampled_from([(1, 1.0, 0), (2, 0.25, -1), (4, 1.0, -3)]),
    st.sampled_from(["average", "maximum", "offsets"]),
    st.booleans(),
    st.integers(0, 1 << 30),
)
def test_packed_images_are_pooled_as_the_unpacked_ones(
    window: Window, grid: tuple[int, float, int], kind: str, last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    bits, scale, lo = grid
    steps, shape = 5, (5, 2, 3, 6, 7)
    spikes = torch.randint(lo, lo + (1 << bits), shape) * scale
    packed = snn.pack_bits(spikes, bits, "time", scale, lo)
    if last:
        packed = packed.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    merged = spikes.flatten(0, 1)
    expected = {
        "average": lambda: aten.avg_pool2d(merged, *window),
        "maximum": lambda: snn.max_pool2d(merged, *window),
        "offsets": lambda: snn.max_pool2d_offsets(merged, *window),
    }[kind]()
    found = snn.pool_packed(packed, shape, spikes.dtype, bits, scale, lo, kind, *window)
    assert found.shape[0] == steps * 2
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=FORMATS[last])


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_operators_are_well_registered(memory_format: Any) -> None:
    window = [3, 2], [2, 1], [1, 0]
    x = torch.randn(2, 3, 5, 6).contiguous(memory_format=memory_format)
    pooled = snn.max_pool2d(x, *window)
    offsets = snn.max_pool2d_offsets(x, *window)
    packed = snn.pack_bits((torch.rand(4, 2, 3, 5, 6) < 0.5).float(), 1, "time")
    calls = {
        snn.max_pool2d: (x, *window),
        snn.max_pool2d_offsets: (x, *window),
        snn.max_pool2d_backward: (pooled, offsets, list(x.shape), *window),
        snn.avg_pool2d_backward: (pooled, list(x.shape), *window),
        snn.pool_packed: (
            packed, [4, *x.shape], torch.float32, 1, 1.0, 0, "average", *window
        ),
    }  # fmt: skip
    for operator, args in calls.items():
        torch.library.opcheck(operator.default, args, test_utils=("test_schema", "test_faketensor"))


def test_an_unknown_kind_of_pooling_is_refused() -> None:
    packed = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8, device="meta")
    window = [2, 2], [2, 2], [0, 0]
    with pytest.raises(KernelError, match="no pooling 'median'; known: average, maximum"):
        snn.pool_packed(packed, [4, 2, 3, 4, 4], torch.float32, 1, 1.0, 0, "median", *window)
