"""Tensors on a grid, and bitwise equality, for the tests of every implementation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES = (*FLOATS, torch.bool, *INTEGERS)
SIZES = (0, 1, 7, 8, 9, 63, 1000)


def highest_code(dtype: torch.dtype, bits: int, scale: float, lo: int) -> int:
    """Largest code whose value `dtype` holds, on a grid that is legal for it."""
    if dtype == torch.bool:
        return 1
    top = (1 << bits) - 1
    if dtype in INTEGERS:
        top = min(top, torch.iinfo(dtype).max // int(scale) - lo)
    if dtype == torch.bfloat16 and math.frexp(scale)[0] != 0.5:
        top = min(top, 127 - lo)  # beyond, two grid values round to the same bfloat16
    return top


def grid_tensor(
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    scale: float = 1.0,
    lo: int = 0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random grid values, and their codes, computed with Python numbers for each code.

    Returns:
        values in `dtype` and codes in int64, both of shape `shape`.
    """
    generator = torch.Generator().manual_seed(seed)
    top = highest_code(dtype, bits, scale, lo)
    codes = torch.randint(0, top + 1, tuple(shape), generator=generator)
    whole = dtype not in FLOATS
    values = [(code + lo) * (int(scale) if whole else scale) for code in range(top + 1)]
    return torch.tensor(values, dtype=dtype)[codes], codes


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Same shape, dtype and bytes: stricter than equality, which lets -0.0 pass for 0.0."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat_a, flat_b = a.reshape(-1).repeat(1), b.reshape(-1).repeat(1)
    return torch.equal(flat_a.view(torch.uint8), flat_b.view(torch.uint8))
