"""Convolutions taken apart and turned into products: equal to autograd, and smaller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from snnfx.passes.rewrite.convolutions import (
    ConvolutionsResult,
    multiply_weight_bound,
    split_convolution_backwards,
)

from examples.measure import allocation_events, peak_bytes

aten = torch.ops.aten
CONVOLUTION = aten.convolution.default
BACKWARD = aten.convolution_backward.default
Pass = Callable[[Graph], ConvolutionsResult]


@dataclass(frozen=True)
class Case:
    """A convolution; `places` are the output's spatial sizes, the rest has one number for all.

    `extra` input places at the end of each dimension are read by no window.
    """

    places: tuple[int, ...] = (3, 2)
    images: int = 2
    channels: int = 2
    outputs: int = 3
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1
    extra: int = 0
    transposed: bool = False
    biased: bool = True

    @property
    def numbers(self) -> tuple[Any, ...]:
        """Arguments 3 to 8 of `aten.convolution`."""
        dims = len(self.places)
        lists = [[n] * dims for n in (self.stride, self.padding, self.dilation)]
        return (*lists, self.transposed, [self.extra if self.transposed else 0] * dims, self.groups)

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random gradient of the output, input, weight and bias."""
        generator = torch.Generator().manual_seed(0)
        reach = self.dilation * (self.kernel - 1) + 1
        wide = [(n - 1) * self.stride + reach + self.extra - 2 * self.padding for n in self.places]
        inner, outer = self.channels * self.groups, self.outputs * self.groups
        narrow = [self.images, outer, *self.places]
        shapes = [narrow, [self.images, inner, *wide],
                  [outer, self.channels, *[self.kernel] * len(wide)],
                  [inner if self.transposed else outer]]  # fmt: skip
        drawn = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
        grad, image, weight, bias = drawn
        return (image, grad, weight, bias) if self.transposed else (grad, image, weight, bias)


@st.composite
def cases(draw: st.DrawFn, dims: Sequence[int] = (1, 2, 3), outputs: int = 3) -> Case:
    places = draw(
        st.lists(st.integers(1, 3), min_size=1, max_size=3).filter(lambda p: len(p) in dims)
    )
    stride, kernel = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2))
    return Case(
        tuple(places),
        images=draw(st.integers(1, 2)),
        outputs=outputs,
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        padding=draw(st.integers(0, dilation * (kernel - 1) // 2)),
        groups=draw(st.integers(1, 2)),
        extra=draw(st.integers(0, stride - 1)),
        biased=draw(st.booleans()),
    )


def gradients_of(case: Case) -> Callable[..., list[Tensor]]:
    """Autograd's gradients of input, weight and bias (if there is one)."""

    def run(grad: Tensor, image: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (image, weight, bias)]
        leaves = leaves if case.biased else leaves[:2]
        added = leaves[2] if case.biased else None
        result = CONVOLUTION(leaves[0], leaves[1], added, *case.numbers)
        return list(torch.autograd.grad(result, leaves, grad))

    return run


def backward_of(case: Case, *wanted: int) -> Callable[..., list[Tensor]]:
    """All three gradients computed, some of them used."""

    def run(grad: Tensor, image: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        numbers = ([len(bias)], *case.numbers, [True] * 3)
        found = BACKWARD(grad, image, weight, *numbers)
        return [found[i] for i in wanted]

    return run


def forward_of(case: Case) -> Callable[..., Tensor]:
    def run(grad: Tensor, image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return CONVOLUTION(image, weight, bias if case.biased else None, *case.numbers)

    return run


def traced(function: Callable[..., Any], tensors: Sequence[Tensor]) -> GraphModule:
    return make_fx(function, tracing_mode="fake")(*tensors)


def rewrite(module: GraphModule, *passes: Pass) -> int:
    """Run passes; how many convolutions they changed."""
    changed = sum(rewrite_pass(module.graph).changed for rewrite_pass in passes)
    module.graph.lint()
    module.recompile()
    return changed


def targets(module: GraphModule) -> list[Any]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def value_shapes(module: GraphModule) -> list[tuple[int, ...]]:
    (output,) = module.graph.find_nodes(op="output")
    return [tuple(node.meta["val"].shape) for node in output.all_input_nodes]


def assert_close(found: Any, expected: Any, bound: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


@settings(max_examples=60)
@given(cases())
def test_gradients_taken_apart_are_those_of_autograd(case: Case) -> None:
    tensors = case.tensors()
    module = traced(gradients_of(case), tensors)
    assert rewrite(module, split_convolution_backwards) == 1
    found = module(*tensors)
    assert_close(found, gradients_of(case)(*tensors))
    assert value_shapes(module) == [tuple(g.shape) for g in found]
    assert rewrite(module, split_convolution_backwards) == 0


CHANNELS_LAST = torch.channels_last


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not built in")
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize(
    "case",
    [
        Case((8, 8), channels=3, outputs=16),
        Case((5, 5), channels=16, outputs=32, stride=2),
        Case((7, 7), images=4, channels=32, outputs=16, stride=2, padding=0, extra=1),
        Case((8, 8), channels=8, outputs=8, kernel=1, padding=0),
    ],
)
def test_in_float32_the_bits_of_onednn_stay(case: Case, memory_format: torch.memory_format) -> None:
    grad, image, weight, bias = case.tensors(torch.float32)
    grad, image = (t.contiguous(memory_format=memory_format) for t in (grad, image))
    tensors = (grad, image, weight, bias)
    module = traced(gradients_of(case), tensors)
    assert rewrite(module, split_convolution_backwards) == 1
    for found, expected in zip(module(*tensors), gradients_of(case)(*tensors), strict=True):
        assert torch.equal(found, expected)


def test_the_gradient_of_the_input_does_not_read_the_input() -> None:
    case = Case(stride=2, extra=1)
    module = traced(gradients_of(case), case.tensors())
    rewrite(module, split_convolution_backwards)
    (backward,) = module.graph.find_nodes(op="call_function", target=BACKWARD)
    *_, image, _, _ = module.graph.find_nodes(op="placeholder")
    (convolution,) = (
        n for n in module.graph.find_nodes(op="call_function", target=CONVOLUTION) if n.args[6]
    )
    assert backward.args[10] == [False, True, True]
    assert image not in convolution.all_input_nodes
    order = list(module.graph.nodes)
    assert order.index(backward) < order.index(convolution)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (2, 1, 0)])
def test_gradients_that_nobody_uses_do_no_harm(wanted: tuple[int, ...]) -> None:
    case = Case(stride=2, extra=1)
    tensors = case.tensors()
    module = traced(backward_of(case, *wanted), tensors)
    assert rewrite(module, split_convolution_backwards) == 1
    assert_close(module(*tensors), backward_of(case, *wanted)(*tensors))
    assert (BACKWARD in targets(module)) == (wanted != (0,))


def test_one_gradient_alone_is_left_as_it_is() -> None:
    case = Case()

    def run(grad: Tensor, image: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        alone = ([True, False, True], [False, True, True])
        return [BACKWARD(grad, image, weight, [3], *case.numbers, mask)[2] for mask in alone]

    assert rewrite(traced(run, case.tensors()), split_convolution_backwards) == 0


def test_transposed_convolutions_are_left_alone() -> None:
    case = Case(transposed=True)
    tensors = case.tensors()
    module = traced(gradients_of(case), tensors)
    assert rewrite(module, split_convolution_backwards) == 0
    assert_close(module(*tensors), gradients_of(case)(*tensors))


@pytest.mark.parametrize("each", [split_convolution_backwards, multiply_weight_bound])
def test_symbolic_sizes_are_left_alone(each: Pass) -> None:
    case = Case(outputs=64)
    module = make_fx(gradients_of(case), tracing_mode="symbolic")(*case.tensors())
    assert rewrite(module, each) == 0


@settings(max_examples=60)
@given(cases(dims=(2,), outputs=64))
def test_products_give_the_convolution(case: Case) -> None:
    tensors = case.tensors()
    module = traced(forward_of(case), tensors)
    assert rewrite(module, multiply_weight_bound) == (case.groups == 1)
    assert (CONVOLUTION in targets(module)) == (case.groups != 1)
    assert_close(module(*tensors), forward_of(case)(*tensors))
    assert rewrite(module, multiply_weight_bound) == 0


@settings(max_examples=60)
@given(cases(dims=(2,), outputs=64))
def test_products_give_the_gradients_of_a_convolution_taken_apart(case: Case) -> None:
    case = replace(case, biased=False, groups=1)
    tensors = case.tensors()
    module = traced(gradients_of(case), tensors)
    # The forward that autograd ran is dead, and so is not counted.
    module.graph.eliminate_dead_code()
    passes = (split_convolution_backwards, multiply_weight_bound)
    assert rewrite(module, *passes) == 3
    assert {CONVOLUTION, BACKWARD}.isdisjoint(targets(module))
    assert_close(module(*tensors), gradients_of(case)(*tensors))


@settings(max_examples=60)
@given(cases(dims=(2,), outputs=64))
def test_products_give_a_transposed_convolution(case: Case) -> None:
    case = replace(case, transposed=True)
    tensors = case.tensors()
    module = traced(forward_of(case), tensors)
    assert rewrite(module, multiply_weight_bound) == (case.groups == 1 and not case.biased)
    assert_close(module(*tensors), forward_of(case)(*tensors))


def test_what_a_transposed_convolution_adds_beyond_its_stride_is_left_to_it() -> None:
    case = Case((2, 2), outputs=64, dilation=2, padding=0, extra=1, transposed=True, biased=False)
    tensors = case.tensors()
    module = traced(forward_of(case), tensors)
    assert rewrite(module, multiply_weight_bound) == 0
    assert_close(module(*tensors), forward_of(case)(*tensors))


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        (Case((2, 2), outputs=16), True),
        (Case((2, 2), outputs=15), False),  # 8 rows, twice over, are more than 15
        (Case((2,), outputs=64), False),
        (Case((1, 1, 2), outputs=64), False),
    ],
)
def test_only_images_that_are_far_smaller_than_the_weights_are_multiplied(
    case: Case, changes: bool
) -> None:
    assert rewrite(traced(forward_of(case), case.tensors()), multiply_weight_bound) == changes


def test_weights_that_are_not_row_major_are_left_alone() -> None:
    case = Case((2, 2), outputs=64)
    grad, image, weight, bias = case.tensors()
    tensors = (grad, image, weight.contiguous(memory_format=CHANNELS_LAST), bias)
    assert rewrite(traced(forward_of(case), tensors), multiply_weight_bound) == 0


def test_a_product_takes_the_name_of_its_convolution() -> None:
    case = Case((2, 2), outputs=64)
    module = traced(forward_of(case), case.tensors())
    before: list[Node] = module.graph.find_nodes(op="output")[0].all_input_nodes
    names = [node.name for node in before]
    rewrite(module, multiply_weight_bound)
    after = module.graph.find_nodes(op="output")[0].all_input_nodes
    assert [node.name for node in after] == names


WEIGHT_BOUND = Case((2, 2), channels=128, outputs=128, biased=False)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not built in")
@pytest.mark.parametrize("function", [forward_of(WEIGHT_BOUND), gradients_of(WEIGHT_BOUND)])
def test_products_need_less_memory_than_the_convolution(function: Callable[..., Any]) -> None:
    tensors = WEIGHT_BOUND.tensors(torch.float32)
    module = traced(function, tensors)
    module.graph.eliminate_dead_code()
    before = peak_of(module, tensors)
    assert rewrite(module, split_convolution_backwards, multiply_weight_bound)
    weight_bytes = 4 * tensors[2].numel()
    assert peak_of(module, tensors) < before - weight_bytes / 2


def peak_of(module: GraphModule, tensors: Sequence[Tensor]) -> int:
    module.recompile()
    module(*tensors)  # whatever is allocated once only
    return peak_bytes(allocation_events(lambda: module(*tensors)))
