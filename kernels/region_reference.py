"""What a region's program computes, in plain torch: the definition that kernels are tested with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snnfx.errors import KernelError
from snnfx.kernels.region_ir import ChannelSum, Compute, Constant, Load, Program, Store
from snnfx.kernels.region_ops import operation


def run_reference(
    program: Program,
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    base_sizes: Sequence[int],
) -> None:
    """Run `program`, one tensor operation an instruction.

    Args:
        program: the program.
        inputs: views ``[steps, *base_sizes]``, expanded where the program broadcasts.
        outputs: views ``[steps, *base_sizes]``, written in place; the output of a `ChannelSum` is
            ``[1, *base_sizes]`` with stride 0 in the dims that are summed over.
        base_sizes: sizes of the base dims, ``program.rank`` of them.

    Raises:
        KernelError: `program` is not valid, or `base_sizes` is not of its rank.
    """
    program.validate()
    if len(base_sizes) != program.rank:
        raise KernelError(f"base sizes {tuple(base_sizes)}; the program's rank is {program.rank}")
    values: list[torch.Tensor] = []
    for instruction in program.instructions:
        values.append(_evaluate(instruction, values, inputs))
    shape = torch.Size(base_sizes)
    sums: dict[int, torch.Tensor] = {}
    for instruction in program.instructions:
        if isinstance(instruction, Store):
            outputs[instruction.output][instruction.step].copy_(values[instruction.value])
        elif isinstance(instruction, ChannelSum):
            value = values[instruction.value].expand(shape)
            index = instruction.output
            sums[index] = sums[index] + value if index in sums else value
    for index, value in sums.items():
        _store_sum(value, outputs[index][0])


def _evaluate(
    instruction: object, values: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The value of an instruction, of the base shape or a scalar; empty for one without value."""
    if isinstance(instruction, Load):
        value = inputs[instruction.buffer][instruction.step]
        return value.to(torch.float32) if value.dtype == torch.bfloat16 else value.clone()
    if isinstance(instruction, Constant):
        return torch.tensor(instruction.value, dtype=instruction.dtype)
    if isinstance(instruction, Compute):
        args = [values[arg] for arg in instruction.args]
        function = operation(instruction.op).reference
        return function(*args, instruction.dtype) if instruction.op == "cast" else function(*args)
    return torch.empty(0)


def _store_sum(value: torch.Tensor, target: torch.Tensor) -> None:
    """Write the sum of `value` over the dims in which `target`, of the same shape, has stride 0."""
    for dim in range(value.dim()):
        if target.stride(dim) == 0 or value.shape[dim] == 1:
            value = value.to(torch.float64).sum(dim, keepdim=True)
    target.as_strided(value.shape, target.stride()).copy_(value)
