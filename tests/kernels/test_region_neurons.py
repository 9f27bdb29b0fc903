"""Regions of a spiking layer, against their programs run one tensor operation at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from snnfx.kernels.region_build import compile_program
from snnfx.kernels.region_reference import run_reference

from tests.kernels.region_cases import (
    layout_of,
    lif_backward,
    lif_forward,
    lif_tensors,
    run_kernel,
    sums_like,
)

SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (4, 8, 20, 20), (3, 1, 1, 40), (0, 3, 4, 4)]
STEPS = 10

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
both_orders = pytest.mark.parametrize("channels_last", [False, True])


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@both_orders
@both_dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_equals_the_reference_bit_for_bit(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    inputs, outputs, _ = lif_tensors(STEPS, shape, dtype, channels_last)
    expected = [output.clone() for output in outputs]
    run_reference(lif_forward(STEPS, dtype), inputs[:5], expected, shape)
    run_kernel(lif_forward(STEPS, dtype), inputs[:5], outputs, shape)
    assert all(torch.equal(o, e) for o, e in zip(outputs, expected, strict=True))
    if outputs[0].numel() > 1000:
        assert 0.05 < outputs[0].mean().item() < 0.95


@both_orders
@both_dtypes
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_equals_the_reference_and_sums_are_close(
    shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype
) -> None:
    inputs, forward, outputs = lif_tensors(STEPS, shape, dtype, channels_last)
    run_kernel(lif_forward(STEPS, dtype), inputs[:5], forward, shape)
    expected = [outputs[0].clone(), sums_like(outputs[1]), sums_like(outputs[2])]
    run_reference(lif_backward(STEPS, dtype), inputs, expected, shape)
    run_kernel(lif_backward(STEPS, dtype), inputs, outputs, shape)
    assert torch.equal(outputs[0], expected[0])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for total, reference in zip(outputs[1:], expected[1:], strict=True):
        torch.testing.assert_close(
            total.as_strided((shape[1],), (1,)),
            reference.as_strided((shape[1],), (1,)),
            rtol=tolerance,
            atol=tolerance,
        )


@pytest.mark.parametrize("steps", [1, 9, 33])
def test_any_number_of_steps_is_packed_and_unpacked(steps: int) -> None:
    shape = (2, 4, 6, 6)
    inputs, forward, outputs = lif_tensors(steps, shape)
    run_kernel(lif_forward(steps), inputs[:5], forward, shape)
    expected = [outputs[0].clone(), sums_like(outputs[1]), sums_like(outputs[2])]
    run_reference(lif_backward(steps), inputs, expected, shape)
    run_kernel(lif_backward(steps), inputs, outputs, shape)
    assert torch.equal(outputs[0], expected[0])


@both_orders
def test_a_gradient_may_be_overwritten_by_the_result(channels_last: bool) -> None:
    shape = (3, 8, 12, 12)
    inputs, forward, outputs = lif_tensors(STEPS, shape, channels_last=channels_last)
    run_kernel(lif_forward(STEPS), inputs[:5], forward, shape)
    run_kernel(lif_backward(STEPS), inputs, outputs, shape)
    for overwritten in (5, 0):
        kept = inputs[overwritten].clone()
        again = [inputs[overwritten], sums_like(outputs[1]), sums_like(outputs[2])]
        run_kernel(lif_backward(STEPS), inputs, again, shape)
        assert all(torch.equal(a, o) for a, o in zip(again, outputs, strict=True))
        inputs[overwritten].copy_(kept)


@both_orders
def test_results_do_not_depend_on_the_number_of_threads(channels_last: bool) -> None:
    shape = (4, 16, 33, 17)
    inputs, forward, outputs = lif_tensors(STEPS, shape, channels_last=channels_last)
    run_kernel(lif_forward(STEPS), inputs[:5], forward, shape)
    results = list[list[torch.Tensor]]()
    for threads in (1, 2, 3, 3):
        torch.set_num_threads(threads)
        run_kernel(lif_backward(STEPS), inputs, outputs, shape)
        results.append([output.clone() for output in outputs])
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))


def test_one_kernel_serves_all_sizes_and_layouts() -> None:
    kernel = compile_program(lif_forward(STEPS))
    for shape, channels_last in (((2, 3, 4, 5), False), ((1, 8, 9, 9), True), ((2, 3, 4, 5), True)):
        inputs, outputs, _ = lif_tensors(STEPS, shape, channels_last=channels_last)
        layouts = tuple(map(layout_of, inputs[:5])), tuple(map(layout_of, outputs))
        expected = [output.clone() for output in outputs]
        run_reference(kernel.program, inputs[:5], expected, shape)
        kernel(inputs[:5], outputs, shape, *layouts)
        assert all(torch.equal(o, e) for o, e in zip(outputs, expected, strict=True))
