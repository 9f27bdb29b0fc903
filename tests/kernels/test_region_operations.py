"""Every operation of regions, for every dtype that it takes, against ATen."""

from __future__ import annotations

import pytest
import torch

from snnfx.kernels.region_ops import OPERATIONS, Operation
from snnfx.kernels.region_reference import run_reference

from tests.kernels.region_cases import Builder, run_kernel

DTYPES = [torch.float32, torch.float64, torch.uint8, torch.int32, torch.int64, torch.bool]
SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e-42, 2.5, -3.5, 1e30]
EXPONENTS = (0.0, 1.0, 2.0, 3.0, 0.5, -0.5, -1.0, -2.0, 1.7)
SIZE = 2000


def operand(dtype: torch.dtype) -> torch.Tensor:
    """Random numbers ``[SIZE]``; floats begin with special values, in another order each time."""
    if dtype == torch.bool:
        return torch.rand(SIZE) < 0.5
    if not dtype.is_floating_point:
        low = 0 if dtype == torch.uint8 else -300
        return torch.randint(low, 256, (SIZE,)).to(dtype)
    values = torch.randn(SIZE, dtype=dtype) * 3
    values[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=dtype)
    return torch.cat([values[:200].repeat(5)[torch.randperm(1000)], values[200:1200]])


def applications(builder: Builder, op: Operation, dtype: torch.dtype) -> list[int]:
    """Values of `op` on the builder's inputs: two of `dtype`, a condition, a shift count."""
    x, y = builder.load(0, 0, dtype), builder.load(1, 0, dtype)
    if op.name == "where":
        return [builder.op("where", builder.load(2, 0, torch.bool), x, y)]
    if op.name == "cast":
        targets = [t for t in DTYPES if t.is_floating_point or t == torch.bool or t == dtype]
        return [builder.op("cast", x, dtype=target) for target in targets]
    if op.name == "pow":
        exponents = [builder.constant(exponent, dtype) for exponent in EXPONENTS]
        return [builder.op("pow", x, exponent) for exponent in exponents]
    if op.name.startswith("shift"):
        return [
            builder.op(op.name, x, builder.constant(count, dtype)) for count in (0, 1, 7, 8, 31)
        ]
    return [builder.op(op.name, *(x, y)[: op.arity])]


def program_of(ops: list[Operation], dtype: torch.dtype) -> tuple[Builder, list[Operation]]:
    """A program that stores each result in an output of its own, and which operation made it."""
    builder, owners = Builder(), list[Operation]()
    for op in ops:
        for value in applications(builder, op, dtype):
            builder.store(len(owners), 0, value)
            owners.append(op)
    return builder, owners


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_operations_equal_aten(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    ops = [op for op in OPERATIONS.values() if dtype in op.accepts]
    builder, owners = program_of(ops, dtype)
    stores = [i.value for i in builder.instructions if hasattr(i, "output")]
    kinds = [builder.dtypes[value] or torch.bool for value in stores]
    inputs = [operand(dtype)[None], operand(dtype)[None], operand(torch.bool)[None]]
    program = builder.program([dtype, dtype, torch.bool], kinds, 1)
    results = [torch.empty(1, SIZE, dtype=kind) for kind in kinds]
    expected = [torch.empty(1, SIZE, dtype=kind) for kind in kinds]
    run_kernel(program, inputs, results, (SIZE,))
    run_reference(program, inputs, expected, (SIZE,))
    for op, result, reference in zip(owners, results, expected, strict=True):
        exact = op.is_exact or not dtype.is_floating_point
        rtol = 0.0 if exact else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            result, reference, rtol=rtol, atol=0 if exact else 1e-38, equal_nan=True, msg=op.name
        )


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
