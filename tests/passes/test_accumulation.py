"""Sums over time steps become stacks with the very same bits, or additions, or are left alone.

Sums of whole tensors become sums by channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from snnfx.passes.rewrite.accumulation import (
    AccumulationResult,
    add_up_stacks,
    stack_accumulations,
    sum_by_channel,
)

aten = torch.ops.aten
Result = TypeVar("Result")
SPECIAL = (0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3.4e38, 1.5, -2.25)
NOTHING = AccumulationResult(0, 0)


def traced(function: Callable[..., Tensor], *args: Tensor) -> GraphModule:
    return make_fx(function, tracing_mode="fake")(*args)


def sum_of_steps(order: list[int], sizes: list[int], dim: int = 0) -> Callable[..., Tensor]:
    """The gradient of the steps of a tensor of `sizes`, added up in `order`."""

    def run(*slices: Tensor) -> Tensor:
        total = aten.select_backward(slices[0], sizes, dim, order[0])
        for step, piece in zip(order[1:], slices[1:], strict=True):
            total = aten.add(total, aten.select_backward(piece, sizes, dim, step))
        return total

    return run


def calls(module: GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def bits(tensor: Tensor) -> Tensor:
    """The bits of floats, so that -0.0 and the payload of a NaN count."""
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def assert_same_bits(module: GraphModule, *args: Tensor) -> AccumulationResult:
    before = module(*args)
    result = stack_accumulations(module.graph)
    module.graph.lint()
    module.recompile()
    after = module(*args)
    assert after.stride() == before.stride()
    assert torch.equal(bits(after), bits(before))
    return result


@given(
    st.permutations(range(4)),
    st.lists(st.sampled_from(SPECIAL), min_size=12, max_size=12),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
@settings(max_examples=40)
def test_every_bit_of_the_sum_stays_in_any_order_of_steps(
    order: list[int], numbers: list[float], dtype: torch.dtype
) -> None:
    slices = torch.tensor(numbers, dtype=torch.float64).to(dtype).view(4, 3).unbind()
    module = traced(sum_of_steps(list(order), [4, 3]), *slices)
    assert assert_same_bits(module, *slices) == AccumulationResult(1, 4)
    assert aten.select_backward.default not in calls(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_negative_zeros_come_out_as_the_sum_makes_them(dtype: torch.dtype) -> None:
    slices = torch.full((3, 2), -0.0, dtype=dtype).unbind()
    module = traced(sum_of_steps([2, 1, 0], [3, 2]), *slices)
    assert assert_same_bits(module, *slices).changed == 1
    assert not torch.signbit(module(*slices)).any()


def test_steps_counted_from_the_end_are_the_same_steps() -> None:
    slices = torch.randn(3, 2).unbind()
    module = traced(sum_of_steps([-1, 0, -2], [3, 2]), *slices)
    assert assert_same_bits(module, *slices).changed == 1


def test_the_gradient_of_a_loop_over_time_becomes_one_stack() -> None:
    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        state = torch.zeros_like(x[0])
        for step in range(x.shape[0]):
            state = torch.tanh(state * 0.5 + x[step])
        return torch.autograd.grad(state.sum(), x)[0]

    x = torch.randn(5, 2, 3)
    module = traced(gradient, x)
    assert calls(module).count(aten.select_backward.default) == 5
    assert assert_same_bits(module, x) == AccumulationResult(1, 5)
    assert calls(module).count(aten.stack.default) == 1
    assert stack_accumulations(module.graph) == NOTHING


def test_two_sums_become_two_stacks() -> None:
    def run(a: Tensor, b: Tensor) -> Tensor:
        first = sum_of_steps([0, 1], [2, 3])(a, b)
        second = sum_of_steps([1, 0], [2, 3])(a, b)
        return first * second

    pieces = (torch.randn(3), torch.randn(3))
    assert assert_same_bits(traced(run, *pieces), *pieces) == AccumulationResult(2, 4)


def test_the_new_nodes_know_their_values() -> None:
    slices = torch.randn(3, 2).unbind()
    module = traced(sum_of_steps([2, 1, 0], [3, 2]), *slices)
    stack_accumulations(module.graph)
    (stack,) = (node for node in module.graph.nodes if node.target is aten.stack.default)
    for node in (stack, *stack.all_input_nodes):
        assert node.meta["val"].shape == ((3, 2) if node is stack else (2,))


def missing_step(*slices: Tensor) -> Tensor:
    return sum_of_steps([0, 1, 2], [4, 3])(*slices)


def repeated_step(*slices: Tensor) -> Tensor:
    return sum_of_steps([0, 1, 1], [3, 3])(*slices)


def scaled_term(*slices: Tensor) -> Tensor:
    terms = [aten.select_backward(piece, [3, 3], 0, t) for t, piece in enumerate(slices)]
    return aten.add(aten.add(terms[0], terms[1]), terms[2], alpha=2)


def mixed_dimensions(*slices: Tensor) -> Tensor:
    first = aten.select_backward(slices[0], [3, 3], 0, 0)
    second = aten.select_backward(slices[1], [3, 3], 1, 1)
    return aten.add(aten.add(first, second), aten.select_backward(slices[2], [3, 3], 0, 2))


def constant_term(*slices: Tensor) -> Tensor:
    return aten.add(sum_of_steps([0, 1, 2], [3, 3])(*slices), 1.0)


def inner_sum_is_used_elsewhere(*slices: Tensor) -> Tensor:
    terms = [aten.select_backward(piece, [3, 3], 0, t) for t, piece in enumerate(slices)]
    inner = aten.add(terms[0], terms[1])
    return aten.mul(aten.add(inner, terms[2]), inner)


def inner_dimension(*slices: Tensor) -> Tensor:
    return sum_of_steps([0, 1, 2], [3, 3], dim=1)(*slices)


@pytest.mark.parametrize(
    "function",
    [missing_step, repeated_step, scaled_term, mixed_dimensions, inner_sum_is_used_elsewhere],
)
def test_other_sums_are_left_alone(function: Callable[..., Tensor]) -> None:
    slices = torch.randn(3, 3).unbind()
    module = traced(function, *slices)
    before = calls(module)
    assert assert_same_bits(module, *slices) == NOTHING
    assert calls(module) == before


@pytest.mark.parametrize("function", [constant_term, inner_dimension])
def test_sums_next_to_something_else_keep_their_bits(function: Callable[..., Tensor]) -> None:
    slices = torch.tensor(SPECIAL).view(3, 3).unbind()
    assert_same_bits(traced(function, *slices), *slices)


def rewritten(
    rewrite: Callable[[Graph], Result], function: Callable[..., Tensor], *args: Tensor
) -> tuple[GraphModule, Result]:
    """A function whose graph was rewritten, held to give what it gave but for rounding."""
    module = traced(function, *args)
    expected = module(*args)
    result = rewrite(module.graph)
    module.graph.lint()
    module.recompile()
    found = module(*args)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    return module, result


def added_up(function: Callable[..., Tensor], *args: Tensor) -> tuple[GraphModule, int]:
    """A function whose sums over steps are additions, held to give what it gave."""
    module, result = rewritten(add_up_stacks, function, *args)
    assert add_up_stacks(module.graph) == NOTHING
    if not result.changed:
        assert result == NOTHING
    return module, result.slices


@given(st.integers(1, 6), st.booleans(), st.sampled_from([0.0, 1.5]))
@settings(max_examples=25)
def test_a_sum_over_a_stack_becomes_additions(steps: int, merged: bool, scale: float) -> None:
    def run(*parts: Tensor) -> Tensor:
        stack = aten.stack([part * scale for part in parts])
        whole = stack.view(steps, 6) if merged else stack
        return aten.sum.dim_IntList(whole, [0]) + 1

    parts = torch.randn(steps, 2, 3, dtype=torch.float64).unbind()
    module, slices = added_up(run, *parts)
    assert slices == steps
    assert {aten.sum.dim_IntList, aten.stack.default}.isdisjoint(calls(module))


def test_a_stack_that_is_read_elsewhere_stays_beside_the_additions() -> None:
    def run(*parts: Tensor) -> Tensor:
        stack = aten.stack(parts)
        return aten.sum.dim_IntList(stack, [0]) + stack

    module, slices = added_up(run, *torch.randn(3, 2, dtype=torch.float64).unbind())
    assert slices == 3
    assert calls(module).count(aten.stack.default) == 1


def test_the_gradient_of_an_image_at_every_step_is_added_up() -> None:
    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        steps = x.repeat(4, 1, 1)
        state = torch.zeros_like(x)
        for step in steps.unbind():
            state = torch.tanh(state * 0.5 + step)
        return torch.autograd.grad(state.sum(), x)[0]

    module, slices = added_up(gradient, torch.randn(2, 3, dtype=torch.float64))
    assert slices == 4
    assert aten.sum.dim_IntList not in calls(module)


def test_nodes_of_additions_know_their_values() -> None:
    module, _ = added_up(
        lambda *p: aten.sum.dim_IntList(aten.stack(p), [0]), *torch.randn(3, 2).unbind()
    )
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    assert [tuple(node.meta["val"].shape) for node in nodes] == [(2,)] * len(nodes)


OTHER_SUMS: dict[str, Callable[..., Tensor]] = {
    "other dimension": lambda *p: aten.sum.dim_IntList(aten.stack(p), [1]),
    "two dimensions": lambda *p: aten.sum.dim_IntList(aten.stack(p), [0, 1]),
    "kept dimension": lambda *p: aten.sum.dim_IntList(aten.stack(p), [0], True),
    "other dtype": lambda *p: aten.sum.dim_IntList(aten.stack(p), [0], dtype=torch.float64),
    "stacked elsewhere": lambda *p: aten.sum.dim_IntList(aten.stack(p, 1), [0]),
    "steps split by a view": lambda *p: aten.sum.dim_IntList(aten.stack(p).view(6, 2), [0]),
    "no stack": lambda *p: aten.sum.dim_IntList(aten.cat(p), [0]),
    "not all of it": lambda *p: aten.sum.dim_IntList(aten.stack(p)[1:], [0]),
}


@pytest.mark.parametrize("name", OTHER_SUMS)
def test_sums_of_anything_else_stay(name: str) -> None:
    parts = torch.randn(3, 4, dtype=torch.float32).unbind()
    module, slices = added_up(OTHER_SUMS[name], *parts)
    assert slices == 0
    assert aten.sum.dim_IntList in calls(module)


def test_sums_of_symbolic_sizes_stay() -> None:
    parts = torch.randn(3, 4).unbind()
    module = make_fx(lambda *p: aten.sum.dim_IntList(aten.stack(p), [0]), tracing_mode="symbolic")(
        *parts
    )
    assert add_up_stacks(module.graph) == NOTHING


def summed_by_channel(function: Callable[..., Tensor], *args: Tensor) -> tuple[GraphModule, int]:
    """A function whose sums of whole tensors are sums by channels, held to give what it gave."""
    module, changed = rewritten(sum_by_channel, function, *args)
    assert sum_by_channel(module.graph) == 0
    return module, changed


@given(st.lists(st.integers(0, 4), min_size=2, max_size=5), st.booleans())
@settings(max_examples=40)
def test_the_sum_of_a_whole_tensor_is_summed_by_channels_first(
    sizes: list[int], transposed: bool
) -> None:
    x = torch.randn(sizes, dtype=torch.float64)
    x = x.transpose(0, -1) if transposed else x
    module, changed = summed_by_channel(lambda x: aten.sum.default(x * 2) + 1, x)
    assert changed == 1
    channels, total = (n for n in module.graph.nodes if "sum" in n.name)
    assert channels.args[1] == [d for d in range(len(sizes)) if d != 1]
    assert channels.meta["val"].shape == (x.shape[1],)
    assert total.target is aten.sum.default
    assert total.args == (channels,)
    assert total.meta["val"].shape == ()


def test_every_sum_of_whole_tensors_is_changed() -> None:
    def run(x: Tensor, y: Tensor) -> Tensor:
        return aten.sum.default(x) * aten.sum.default(y) * aten.sum.default(x[0])

    tensors = torch.randn(3, 2, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    module, changed = summed_by_channel(run, *tensors)
    assert changed == 3
    assert calls(module).count(aten.sum.dim_IntList) == 3


def test_single_floats_are_summed_by_channels_too() -> None:
    x = torch.arange(24.0).view(2, 3, 4)  # whose sums have no rounding
    assert summed_by_channel(aten.sum.default, x)[1] == 1


OTHER_TOTALS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "one dimension": (aten.sum.default, torch.randn(6)),
    "a number": (aten.sum.default, torch.randn(())),
    "integers": (aten.sum.default, torch.arange(6).view(2, 3)),
    "truth": (aten.sum.default, torch.ones(2, 3, dtype=torch.bool)),
    "half precision": (aten.sum.default, torch.ones(2, 3, dtype=torch.bfloat16)),
    "complex numbers": (aten.sum.default, torch.ones(2, 3, dtype=torch.complex64)),
    "other dtype": (lambda x: aten.sum.default(x, dtype=torch.float64), torch.randn(2, 3)),
    "some dimensions": (lambda x: aten.sum.dim_IntList(x, [0, 1]), torch.randn(2, 3)),
}


@pytest.mark.parametrize("name", OTHER_TOTALS)
def test_other_totals_are_left_alone(name: str) -> None:
    function, x = OTHER_TOTALS[name]
    before = calls(traced(function, x))
    module, changed = summed_by_channel(function, x)
    assert changed == 0
    assert calls(module) == before
