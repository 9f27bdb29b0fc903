"""Every operation of regions, for every dtype that it takes, against ATen."""

from __future__ import annotations

import pytest
import torch

from snnfx.kernels.region_ops import OPERATIONS
from snnfx.kernels.region_reference import run_reference

from tests.kernels.region_cases import Builder, run_kernel
from tests.kernels.region_operation_cases import DTYPES, SIZE, check_result, operand, program_of


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operations_equal_aten(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    ops = [op for op in OPERATIONS.values() if dtype in op.accepts]
    program, owners = program_of(ops, dtype)
    inputs = [operand(dtype)[None], operand(dtype)[None], operand(torch.bool)[None]]
    results = [torch.empty(1, SIZE, dtype=buffer.dtype) for buffer in program.outputs]
    expected = [torch.empty_like(result) for result in results]
    run_kernel(program, inputs, results, (SIZE,))
    run_reference(program, inputs, expected, (SIZE,))
    for op, result, reference in zip(owners, results, expected, strict=True):
        check_result(op, dtype, result, reference)


@pytest.mark.parametrize("target", [torch.uint8, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.float64, torch.int64], ids=str)
def test_casts_to_integers_truncate_and_wrap(source: torch.dtype, target: torch.dtype) -> None:
    builder = Builder()
    builder.store(0, 0, builder.op("cast", builder.load(0, 0, source), dtype=target))
    x = torch.linspace(-1000, 1000, 1237, dtype=torch.float64).to(source)[None]
    result = torch.empty(1, 1237, dtype=target)
    run_kernel(builder.program([source], [target], 1), [x], [result], (1237,))
    assert torch.equal(result, x.to(torch.int64).to(target))


def test_bfloat16_is_rounded_to_nearest_even_at_stores_only() -> None:
    builder = Builder()
    x = builder.load(0, 0, torch.bfloat16)
    third = builder.op("mul", x, builder.constant(1 / 3, torch.float32))
    builder.store(0, 0, third)
    builder.store(1, 0, builder.op("round_bfloat16", third))
    builder.store(2, 0, third)
    program = builder.program([torch.bfloat16], [torch.bfloat16, torch.float32, torch.float32], 1)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x_all = bits.view(torch.bfloat16)[None]
    outputs = [torch.empty(1, 2**16, dtype=buffer.dtype) for buffer in program.outputs]
    run_kernel(program, [x_all], outputs, (2**16,))
    exact = x_all.float() * (1 / 3)
    for result, expected in zip(
        outputs, (exact.bfloat16(), exact.bfloat16().float(), exact), strict=True
    ):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def test_constants_keep_their_exact_value() -> None:
    builder = Builder()
    cases = [
        (0.1, torch.float32), (0.1, torch.float64), (-0.0, torch.float32), (1e-45, torch.float32),
        (float("inf"), torch.float32), (-float("inf"), torch.float64), (2**62, torch.int64),
        (-(2**63), torch.int64), (2**63 - 1, torch.int64), (-7, torch.int32), (255, torch.uint8),
        (True, torch.bool), (float("nan"), torch.float64),
    ]  # fmt: skip
    for index, (value, dtype) in enumerate(cases):
        builder.store(index, 0, builder.constant(value, dtype))
    program = builder.program([], [dtype for _, dtype in cases], 1)
    outputs = [torch.empty(1, 5, dtype=dtype) for _, dtype in cases]
    run_kernel(program, [], outputs, (5,))
    for output, (value, dtype) in zip(outputs, cases, strict=True):
        expected = torch.full((1, 5), value, dtype=dtype)
        torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)
        if value == 0:
            assert torch.equal(output.signbit(), expected.signbit())
