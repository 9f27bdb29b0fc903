"""What operators are said to hold inside themselves, against the profiler; other shapes, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

import snnfx.kernels.ops  # noqa: F401  # registers operators
from snnfx.passes.analysis.liveness import analyse_liveness
from snnfx.passes.cost.workspace import WORKSPACE, workspace_phases
from snnfx.passes.cost.workspace_conv import block_channels
from snnfx.passes.fxgraph import call_nodes, is_getitem

from examples.measure import allocation_events, peak_bytes

aten = torch.ops.aten
snn = torch.ops.snnfx
CHANNELS_LAST = torch.channels_last
only_wide = pytest.mark.skipif(
    block_channels() != 16, reason="oneDNN's layouts were measured on AVX-512"
)
# Wrapped scalars, a few channels' sums, and page-aligned descriptors, in bytes.
SLACK = 1024


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def peaks(run: Callable[..., Any], *args: Tensor) -> tuple[int, int]:
    """The predicted and the measured peak of a function of one operator."""
    module = make_fx(run, tracing_mode="fake")(*args)
    predicted = analyse_liveness(module.graph, workspace=workspace_phases).peak_bytes
    run(*args)
    held: list[Any] = []
    measured = peak_bytes(allocation_events(lambda: held.append(run(*args))))
    return predicted, measured


def assert_close(found: tuple[int, int], rel: float = 0.01, slack: int = SLACK) -> None:
    predicted, measured = found
    assert abs(predicted - measured) <= rel * measured + slack, f"{predicted:,} / {measured:,}"


def convolution(
    sizes: Sequence[int], kernel: int, stride: int, channels_last: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, list[Any]]:
    """Input, weight and the other arguments; `sizes` are N, C, K, H, W."""
    n, c, k, h, w = sizes
    x, weight = torch.randn(n, c, h, w, dtype=dtype), torch.randn(k, c, kernel, kernel, dtype=dtype)
    if channels_last:
        x = x.to(memory_format=CHANNELS_LAST)
    pad = [kernel // 2] * 2
    return x, weight, [[stride] * 2, pad, [1, 1], False, [0, 0], 1]


def forward_peaks(
    sizes: Sequence[int], kernel: int, stride: int, channels_last: bool,
    dtype: torch.dtype = torch.float32,
) -> tuple[int, int]:  # fmt: skip
    x, w, rest = convolution(sizes, kernel, stride, channels_last, dtype)
    return peaks(lambda x, w: aten.convolution.default(x, w, None, *rest), x, w)


def backward_peaks(
    sizes: Sequence[int], kernel: int, stride: int, channels_last: bool, mask: list[bool],
    dtype: torch.dtype = torch.float32,
) -> tuple[int, int]:  # fmt: skip
    x, w, rest = convolution(sizes, kernel, stride, channels_last, dtype)
    gradient = torch.randn_like(aten.convolution.default(x, w, None, *rest))

    def run(g: Tensor, x: Tensor, w: Tensor) -> Any:
        return aten.convolution_backward.default(g, x, w, None, *rest, mask)

    return peaks(run, gradient, x, w)


SIZES = st.tuples(
    st.integers(1, 18), st.sampled_from([1, 2, 3, 4, 8, 12, 16, 24, 32, 48]),
    st.sampled_from([8, 16, 20, 32, 40, 64]), st.integers(6, 14), st.integers(6, 14),
)  # fmt: skip


@only_wide
@given(SIZES, st.sampled_from([1, 3, 5]), st.sampled_from([1, 2]))
@settings(max_examples=40)
def test_a_convolution_holds_its_copies_in_blocks(
    sizes: tuple[int, ...], kernel: int, stride: int
) -> None:
    # For one-pixel kernels that skip pixels, oneDNN needs a block of channels to use its own code.
    assume(kernel > 1 or stride == 1 or min(sizes[1:3]) >= 16)
    assert_close(forward_peaks(sizes, kernel, stride, channels_last=False))


@only_wide
@given(SIZES, st.sampled_from([1, 3]), st.sampled_from([[True, True, False], [False, True, False]]))
@settings(max_examples=40)
def test_gradients_of_a_convolution_are_made_in_blocks(
    sizes: tuple[int, ...], kernel: int, mask: list[bool]
) -> None:
    assert_close(backward_peaks(sizes, kernel, 1, channels_last=False, mask=mask))


@only_wide
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sizes", [(4, 16, 32, 32, 32), (18, 48, 32, 24, 16), (6, 64, 96, 28, 28)])
def test_a_strided_gradient_is_made_in_channels_last(sizes: tuple[int, ...], kernel: int) -> None:
    assert_close(backward_peaks(sizes, kernel, 2, False, [True, True, False]), rel=0.05)


@only_wide
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sizes", [(4, 16, 32, 40, 40), (18, 48, 32, 32, 32), (2, 3, 64, 64, 64)])
def test_a_convolution_in_channels_last_holds_its_packed_weight(
    sizes: tuple[int, ...], kernel: int, stride: int
) -> None:
    assert_close(forward_peaks(sizes, kernel, stride, channels_last=True), rel=0.03)


@only_wide
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sizes", [(4, 16, 32, 40, 40), (18, 48, 32, 32, 32), (20, 96, 96, 4, 4)])
def test_gradients_in_channels_last_hold_three_weights(sizes: tuple[int, ...], kernel: int) -> None:
    assert_close(backward_peaks(sizes, kernel, 1, True, [True, True, False]), rel=0.03)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@given(SIZES)
@settings(max_examples=8)
def test_double_precision_unfolds_to_columns(
    kernel: int, channels_last: bool, sizes: tuple[int, ...]
) -> None:
    found = forward_peaks(sizes, kernel, 1, channels_last, torch.float64)
    assert_close(found)
    mask = [True, True, False]
    assert_close(backward_peaks(sizes, kernel, 1, channels_last, mask, torch.float64))


def transposed_peaks(
    sizes: Sequence[int], kernel: int, stride: int, channels_last: bool,
    dtype: torch.dtype = torch.float32,
) -> tuple[int, int]:  # fmt: skip
    n, c, k, h, w = sizes
    x, weight, rest = convolution((n, k, c, h, w), kernel, stride, channels_last, dtype)
    rest[3:5] = [True, [(stride - 1) * (kernel % 2)] * 2]
    weight = weight.transpose(0, 1).contiguous()
    return peaks(lambda x, w: aten.convolution.default(x, w, None, *rest), x, weight)


@only_wide
@given(SIZES)
@settings(max_examples=15)
def test_a_transposed_convolution_holds_its_copies_in_blocks(sizes: tuple[int, ...]) -> None:
    assert_close(transposed_peaks(sizes, 3, 1, channels_last=False))


@only_wide
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("sizes", [(18, 48, 32, 24, 16), (32, 64, 96, 28, 28)])
def test_a_transposed_convolution_runs_as_the_gradient_that_it_is(
    sizes: tuple[int, ...], kernel: int, stride: int, channels_last: bool
) -> None:
    assert_close(transposed_peaks(sizes, kernel, stride, channels_last), rel=0.05)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
@given(SIZES)
@settings(max_examples=4)
def test_a_transposed_convolution_in_double_precision_unfolds_to_columns(
    kernel: int, stride: int, channels_last: bool, sizes: tuple[int, ...]
) -> None:
    assert_close(transposed_peaks(sizes, kernel, stride, channels_last, torch.float64))


@only_wide
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", [(16, 128, 512, 64), (5, 96, 32, 50)])
def test_a_copy_of_a_turned_image_lives_until_the_result_is_copied_out(
    sizes: tuple[int, ...], transposed: bool
) -> None:
    n, c, k, length = sizes
    x = torch.randn(n, length, c).transpose(1, 2)
    w = torch.randn(c, k, 1) if transposed else torch.randn(k, c, 1)
    rest = [[1], [0], [1], transposed, [0], 1]
    run = lambda x, w: aten.convolution.default(x, w, None, *rest)  # noqa: E731
    assert_close(peaks(run, x, w))
    if not transposed:
        mask = [False, True, False]
        gradient = torch.randn_like(run(x, w))
        back = lambda g, x, w: aten.convolution_backward.default(g, x, w, None, *rest, mask)  # noqa: E731
        assert_close(peaks(back, gradient, x, w))


@pytest.mark.parametrize("gradient_last", [False, True])
@pytest.mark.parametrize("input_last", [False, True])
@pytest.mark.parametrize("mask", [[True, True, True], [True, False, False]])
def test_the_gradient_of_a_batch_norm_needs_a_second_one_in_the_same_layout(
    mask: list[bool], input_last: bool, gradient_last: bool
) -> None:
    x, gradient = torch.randn(5, 12, 9, 11), torch.randn(5, 12, 9, 11)
    x = x.to(memory_format=CHANNELS_LAST) if input_last else x
    gradient = gradient.to(memory_format=CHANNELS_LAST) if gradient_last else gradient
    w, mean, var = torch.ones(12), torch.zeros(12), torch.ones(12)

    def run(g: Tensor, x: Tensor, w: Tensor, m: Tensor, v: Tensor) -> Any:
        return aten.native_batch_norm_backward.default(g, x, w, m, v, m, v, True, 1e-5, mask)

    assert_close(peaks(run, gradient, x, w, mean, var))


def _folded(kernel: int) -> Callable[..., Any]:
    edge = kernel // 2
    return lambda a: aten.col2im.default(a, [8, 8], [kernel] * 2, [1, 1], [edge] * 2, [2, 2])


IMAGE = torch.ones(5, 12, 8, 8)
ONES, TALL, STACK = torch.ones(70, 90), torch.ones(90, 80), torch.ones(3, 90, 80)
OTHERS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "sum of types": (aten.add.Tensor, (ONES, ONES.bool())),
    "product of one type": (aten.mul.Tensor, (ONES, ONES)),
    "sum of halves": (lambda a: aten.sum.dim_IntList(a, [0]), (ONES.bfloat16(),)),
    "sums of halves": (lambda a: aten.sum.dim_IntList(a, [0, 2]), (STACK.half(),)),
    "count": (aten.sum.default, (ONES.bool(),)),
    "sum": (lambda a: aten.sum.dim_IntList(a, [1]), (ONES,)),
    "dropout": (lambda a: aten.native_dropout.default(a, 0.3, True), (ONES,)),
    "product of matrices": (aten.mm.default, (ONES, TALL)),
    "product with a transpose": (aten.mm.default, (ONES, torch.ones(40, 90).t())),
    "product with gaps": (aten.mm.default, (ONES, TALL[:, ::2])),
    "batch": (aten.bmm.default, (torch.ones(3, 70, 90), STACK)),
    "batch of transposes": (aten.bmm.default, (torch.ones(3, 70, 80), STACK.mT)),
    "patches": (lambda a: aten.im2col.default(a, [3, 3], [1, 1], [1, 1], [2, 2]), (IMAGE,)),
    "patches of turned images": (
        lambda a: aten.im2col.default(a, [3, 3], [1, 1], [1, 1], [1, 1]),
        (IMAGE.contiguous(memory_format=CHANNELS_LAST),),
    ),
    "fewer pixels": (lambda a: aten.im2col.default(a, [1, 1], [1, 1], [0, 0], [2, 2]), (IMAGE,)),
    "patches added up": (_folded(3), (torch.ones(5, 108, 16),)),
    "turned patches added up": (_folded(3), (torch.ones(5, 16, 108).mT,)),
    "pixels apart": (_folded(1), (torch.ones(5, 12, 16),)),
    "batch with gaps": (aten.bmm.default, (torch.ones(3, 70, 90), STACK[..., ::2])),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_operators_hold_what_their_rules_say(name: str) -> None:
    run, args = OTHERS[name]
    assert_close(peaks(run, *args))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.uint8])
@pytest.mark.parametrize("layout", ["flat", "time"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_packing_and_unpacking_hold_a_chunk(bits: int, layout: str, dtype: torch.dtype) -> None:
    x = torch.ones(10, 130, 331).to(dtype)
    assert_close(peaks(lambda x: snn.pack_bits.default(x, bits, layout), x))
    assert_close(peaks(lambda x: snn.pack_bits.default(x.transpose(0, 1), bits, layout), x))
    packed = snn.pack_bits.default(x, bits, layout)
    run = lambda p: snn.unpack_bits.default(p, list(x.shape), dtype, bits, layout)  # noqa: E731
    assert_close(peaks(run, packed))


@pytest.mark.parametrize("layout", ["flat", "time"])
def test_packing_on_another_grid_holds_a_chunk(layout: str) -> None:
    x = torch.full((6, 99, 700), 0.5)
    assert_close(peaks(lambda x: snn.pack_bits.default(x, 2, layout, 0.25, 1), x))
    packed = snn.pack_bits.default(x, 2, layout, 0.25, 1)
    shape = list(x.shape)
    run = lambda p: snn.unpack_bits.default(p, shape, torch.bfloat16, 2, layout, 0.25, 1)  # noqa: E731
    assert_close(peaks(run, packed))


def test_memory_that_patches_leave_over_is_held_until_they_die() -> None:
    module = make_fx(lambda a: _folded(3)(a).relu(), tracing_mode="fake")(torch.ones(5, 108, 16))
    patches, result = 5 * 108 * 16 * 4, 5 * 12 * 8 * 8 * 4
    found = analyse_liveness(module.graph, workspace=workspace_phases)
    assert (found.timeline_bytes, found.end_bytes) == ((patches, patches + result), result)


def graph_of(run: Callable[..., Any], *args: Tensor) -> Graph:
    return make_fx(run, tracing_mode="fake")(*args).graph


def test_an_operator_without_a_rule_holds_nothing() -> None:
    nodes = [*call_nodes(graph_of(lambda x: x.relu().sin(), torch.ones(4)))]
    assert [workspace_phases(node) for node in nodes] == [(), ()]
    assert all(node.target not in WORKSPACE for node in nodes)


def test_nothing_is_known_about_other_devices() -> None:
    def on(device: str) -> tuple[Any, ...]:
        x, w = torch.empty(4, 3, 9, 9, device=device), torch.empty(8, 3, 3, 3, device=device)
        rest = [[1, 1], [1, 1], [1, 1], False, [0, 0], 1]
        graph = graph_of(lambda x, w: aten.convolution.default(x, w, None, *rest), x, w)
        return workspace_phases(_operator(graph))

    assert on("meta") == ()
    assert on("cpu") != ()


def _operator(graph: Graph) -> Node:
    return next(node for node in call_nodes(graph) if not is_getitem(node))


def test_the_gradient_of_a_transposed_convolution_is_not_known() -> None:
    x, w, g = torch.empty(4, 3, 9, 9), torch.empty(3, 8, 3, 3), torch.empty(4, 8, 9, 9)
    rest = [None, [1, 1], [1, 1], [1, 1], True, [0, 0], 1, [True, True, False]]
    run = lambda g, x, w: aten.convolution_backward.default(g, x, w, *rest)[:2]  # noqa: E731
    assert workspace_phases(_operator(graph_of(run, g, x, w))) == ()
