"""What a region's program computes, in plain torch: the definition that kernels are tested with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snnfx.errors import KernelError
from snnfx.kernels.region_ir import (
    ChannelSum,
    Compute,
    Constant,
    Load,
    Position,
    Program,
    Store,
    Window,
)
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
        inputs: views ``[steps, *base_sizes]``, expanded where the program broadcasts; windowed ones
            have sizes of their own in the windowed dims.
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
        values.append(_evaluate(instruction, values, inputs, base_sizes))
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
    instruction: object,
    values: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    base_sizes: Sequence[int],
) -> torch.Tensor:
    """The value of an instruction, of the base shape or a scalar; empty for one without value."""
    if isinstance(instruction, Load):
        value = inputs[instruction.buffer][instruction.step]
        for window in instruction.windows:
            value = _through(value, window, base_sizes[window.dim], instruction.fill)
        return value.to(torch.float32) if value.dtype == torch.bfloat16 else value.clone()
    if isinstance(instruction, Position):
        index = torch.arange(base_sizes[instruction.dim], dtype=torch.int32) + instruction.offset
        index = index % instruction.modulus if instruction.modulus else index
        return _along(index, instruction.dim, len(base_sizes)).expand(tuple(base_sizes))
    if isinstance(instruction, Constant):
        return torch.tensor(instruction.value, dtype=instruction.dtype)
    if isinstance(instruction, Compute):
        args = [values[arg] for arg in instruction.args]
        function = operation(instruction.op).reference
        return function(*args, instruction.dtype) if instruction.op == "cast" else function(*args)
    return torch.empty(0)


def _along(vector: torch.Tensor, dim: int, rank: int) -> torch.Tensor:
    return vector.view([-1 if d == dim else 1 for d in range(rank)])


def _through(value: torch.Tensor, window: Window, size: int, fill: float) -> torch.Tensor:
    """`value` seen through a window: `size` elements in its dim."""
    x = torch.arange(size) * window.multiplier + window.offset
    index, own = x.div(window.divisor, rounding_mode="floor"), value.shape[window.dim]
    found = (x % window.divisor < window.span) & (index >= 0) & (index < own)
    if not own:
        shape = [size if d == window.dim else n for d, n in enumerate(value.shape)]
        return value.new_full(shape, fill)
    taken = value.index_select(window.dim, index.clamp(0, own - 1))
    return taken.where(
        _along(found, window.dim, value.dim()), torch.tensor(fill, dtype=value.dtype)
    )


def _store_sum(value: torch.Tensor, target: torch.Tensor) -> None:
    """Write the sum of `value` over the dims in which `target`, of the same shape, has stride 0."""
    for dim in range(value.dim()):
        if target.stride(dim) == 0 or value.shape[dim] == 1:
            value = value.to(torch.float64).sum(dim, keepdim=True)
    target.as_strided(value.shape, target.stride()).copy_(value)
