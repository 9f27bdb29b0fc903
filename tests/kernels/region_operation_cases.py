"""Programs that apply every operation of regions, and operands for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snnfx.kernels.region_ir import Program
from snnfx.kernels.region_ops import Operation

from tests.kernels.region_cases import Builder

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


def program_of(ops: Sequence[Operation], dtype: torch.dtype) -> tuple[Program, list[Operation]]:
    """A program that stores each result in an output of its own, and which operation made it.

    Its inputs ``[1, SIZE]`` are two of `dtype` and a condition.
    """
    builder, owners, kinds = Builder(), list[Operation](), list[torch.dtype]()
    for op in ops:
        for value in applications(builder, op, dtype):
            builder.store(len(owners), 0, value)
            owners.append(op)
            kinds.append(builder.dtypes[value] or torch.bool)
    return builder.program([dtype, dtype, torch.bool], kinds, 1), owners


def check_result(
    op: Operation, dtype: torch.dtype, result: torch.Tensor, reference: torch.Tensor
) -> None:
    """Exact operations give equal numbers, others agree to 4 units in the last place."""
    exact = op.is_exact or not dtype.is_floating_point
    rtol, atol = (0.0, 0.0) if exact else (4 * torch.finfo(dtype).eps, 1e-38)
    torch.testing.assert_close(
        result, reference, rtol=rtol, atol=atol, equal_nan=True, msg=f"{op.name} of {dtype}"
    )
