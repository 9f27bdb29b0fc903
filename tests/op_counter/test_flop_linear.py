"""FLOPs of convolutions, matrix products and attention, against loops over single products."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snnfx.op_counter import DispatchCounterMode, FlopCounter

from tests.op_counter import convolution_loops as loops

aten = torch.ops.aten
EXAMPLES = settings(max_examples=25, deadline=None)


def flops_of(func: Any, *args: Any, **kwargs: Any) -> tuple[Any, int]:
    """What one operator returns and counts."""
    counter = FlopCounter()
    with DispatchCounterMode([counter], strict=True):
        out = func(*args, **kwargs)
    return out, counter.get_total()


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None, loops.Geometry]:
    """Input, weight, bias and geometry of a small convolution of 1 to 3 dimensions."""
    dims = draw(st.integers(1, 3))
    most = 3 if dims < 3 else 2

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    stride, dilation, kernel = each(1, 2), each(1, 2), each(1, most)
    transposed = draw(st.booleans())
    geometry = loops.Geometry(
        stride,
        tuple(min(p, k - 1) for p, k in zip(each(0, 1), kernel, strict=True)),
        dilation,
        tuple(draw(st.integers(0, s - 1)) if transposed else 0 for s in stride),
        groups=draw(st.integers(1, 3)),
        transposed=transposed,
    )
    per_group, multiplier = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    batch = draw(st.integers(1, 2))
    channels_in, channels_out = geometry.groups * per_group, geometry.groups * multiplier
    first, second = (channels_in, multiplier) if geometry.transposed else (channels_out, per_group)
    sizes = [d * (k - 1) + 1 + e for d, k, e in zip(dilation, kernel, each(0, 2), strict=True)]
    x = torch.randn(batch, channels_in, *sizes, dtype=torch.double)
    weight = torch.randn(first, second, *kernel, dtype=torch.double)
    bias = torch.randn(channels_out, dtype=torch.double) if draw(st.booleans()) else None
    return x, weight, bias, geometry


@EXAMPLES
@given(convolutions())
def test_a_convolution_counts_its_products(case: Any) -> None:
    x, weight, bias, geometry = case
    out, counted = flops_of(aten.convolution, x, weight, bias, *geometry.arguments())
    expected, flops = loops.convolution(x, weight, bias, geometry, out)
    torch.testing.assert_close(out, expected)
    assert counted == flops


@EXAMPLES
@given(convolutions())
def test_the_gradients_of_a_convolution_count_their_products(case: Any) -> None:
    x, weight, _, geometry = case
    channels = weight.shape[1] * geometry.groups if geometry.transposed else weight.shape[0]
    out = aten.convolution(x, weight, None, *geometry.arguments())
    gradient = torch.randn_like(out)
    expected, flops = loops.gradients(gradient, x, weight, geometry)
    for asked in range(3):
        mask = [asked == i for i in range(3)]
        found, counted = flops_of(
            aten.convolution_backward, gradient, x, weight, [channels], *geometry.arguments(), mask
        )
        torch.testing.assert_close(found[asked], expected[asked])
        assert counted == flops[asked]


def test_a_depthwise_convolution_has_one_filter_a_channel() -> None:
    x, weight = torch.randn(2, 6, 5, 5), torch.randn(6, 1, 3, 3)
    _, counted = flops_of(F.conv2d, x, weight, None, 1, 1, 1, 6)
    assert counted == 2 * 9 * (2 * 6 * 5 * 5)


def product(a: list[list[Any]], b: list[list[Any]]) -> tuple[Tensor, int]:
    """``a @ b`` of nested lists, and its FLOPs."""
    flops = 0
    rows, columns = len(a), len(b[0])
    out = [[0.0] * columns for _ in range(rows)]
    for i, j, k in itertools.product(range(rows), range(columns), range(len(b))):
        out[i][j] += a[i][k] * b[k][j]
        flops += 2
    return torch.tensor(out, dtype=torch.double), flops


SIZES = st.integers(1, 4)


@EXAMPLES
@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([0, 1, 2]), st.sampled_from([1, 3]))
def test_matrix_products_count_their_terms(
    batch: int, m: int, k: int, n: int, beta: int, alpha: int
) -> None:
    x, y = torch.randn(batch, m, k).double(), torch.randn(batch, k, n).double()
    added = torch.randn(batch, m, n).double()
    parts = [product(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    expected, flops = torch.stack([part for part, _ in parts]), sum(f for _, f in parts)
    # scaling the product, scaling what is added to it, and the addition
    combined = (alpha != 1) + (beta == 2) + (beta != 0)

    out, counted = flops_of(torch.bmm, x, y)
    torch.testing.assert_close(out, expected)
    assert counted == flops
    assert flops_of(torch.mm, x[0], y[0])[1] == parts[0][1]
    assert flops_of(torch.mv, x[0], y[0, :, 0])[1] == parts[0][1] // n
    assert flops_of(torch.dot, x[0, 0], y[0, :, 0])[1] == 2 * k
    out, counted = flops_of(torch.baddbmm, added, x, y, beta=beta, alpha=alpha)
    torch.testing.assert_close(out, beta * added + alpha * expected)
    assert counted == flops + combined * added.numel()
    counted = flops_of(torch.addmm, added[0], x[0], y[0], beta=beta, alpha=alpha)[1]
    assert counted == parts[0][1] + combined * m * n
    counted = flops_of(torch.addbmm, added[0], x, y, beta=beta, alpha=alpha)[1]
    assert counted == flops + combined * m * n


def test_a_bias_that_is_broadcast_is_scaled_before() -> None:
    bias, x, y = torch.randn(3), torch.randn(4, 5), torch.randn(5, 3)
    assert flops_of(torch.addmm, bias, x, y, beta=2)[1] == 2 * 4 * 5 * 3 + 3 + 4 * 3


def test_attention_counts_two_products_and_its_gradient_five() -> None:
    heads, long, short, width = 3, 7, 5, 4
    query = torch.randn(2, heads, long, width)
    key, value = torch.randn(2, 2, heads, short, width)
    (out, sums), counted = flops_of(
        aten._scaled_dot_product_flash_attention_for_cpu, query, key, value
    )
    products = 2 * heads * long * short * width * 2
    assert counted == 2 * products
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward
    inputs = (torch.randn_like(out), query, key, value, out, sums)
    assert flops_of(backward, *inputs, 0.0, False)[1] == 5 * products


def test_values_of_attention_may_be_longer_than_its_keys() -> None:
    shapes = (2, 3, 7, 4), (2, 3, 5, 4), (2, 3, 5, 6)
    query, key, value = (torch.empty(shape, device="meta") for shape in shapes)
    scores = 2 * 3 * 7 * 5
    rules = FlopCounter().rules
    forward = aten._scaled_dot_product_efficient_attention.default
    backward = aten._scaled_dot_product_efficient_attention_backward.default
    assert rules[forward]((query, key, value), {}, None) == 2 * scores * (4 + 6)
    assert rules[backward]((None, query, key, value), {}, None) == 2 * scores * (3 * 4 + 2 * 6)


def test_a_bilinear_form_counts_three_for_each_term() -> None:
    x, y, layer = torch.randn(5, 3), torch.randn(5, 4), torch.nn.Bilinear(3, 4, 2)
    _, counted = flops_of(layer, x, y)
    assert counted == 3 * 5 * 3 * 4 * 2 + 5 * 2
