"""Bit packing in Triton: one kernel to pack and one to unpack, for both layouts and all dtypes.

A program handles `BLOCK` packed bytes as a tile ``[BLOCK, 8 / BITS]`` of elements. With `width`
the number of bytes a step has (1 in layout ``flat``, where all elements are steps of one column),
byte ``o`` holds the steps ``o // width * per ... + per - 1`` of column ``o % width``, and element
``(step, column)`` is at ``step * width + column``. In layout ``flat`` a tile is one contiguous
piece of memory; in layout ``time`` its rows are neighbours in each of ``per`` pieces.

Offsets are int64, so sizes beyond 2**31 work. Constants of the grid are compile-time constants:
run-time float arguments would reach the kernel as float32.

Cost: one pass over both tensors, no temporaries but a contiguous copy of a strided input.

This module needs triton, and a GPU or ``TRITON_INTERPRET=1`` set before it is imported.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from snnfx.kernels.bitpack_reference import (
    FLOAT_DTYPES,
    check_grid,
    check_packed,
    decoding_scale,
    is_float32,
    packed_shape,
)

BLOCK_BYTES = 512


@triton.jit
def pack_kernel(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    steps: tl.tensor,
    width: tl.tensor,
    count: tl.tensor,
    BITS: tl.constexpr,
    SCALE: tl.constexpr,
    INT_SCALE: tl.constexpr,
    LO: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Pack ``x [steps, width]`` into ``out [ceil(steps / per), width]``, `count` bytes in all.

    `MODE` says how an element becomes its code: ``nonzero``, ``integer``, ``float`` or ``double``
    (the precision in which it is divided by the scale).
    """
    PER: tl.constexpr = 8 // BITS
    CODE_MASK: tl.constexpr = 2**BITS - 1
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, PER)
    step = (byte // width)[:, None] * PER + lane[None, :]
    mask = (byte < count)[:, None] & (step < steps)
    x = tl.load(x_ptr + step * width + (byte % width)[:, None], mask=mask, other=0)
    if MODE == "nonzero":
        code = (x != 0).to(tl.int32)
    elif MODE == "integer":
        code = (x.to(tl.int64) // INT_SCALE - LO).to(tl.int32)
    elif MODE == "float":
        code = tl.floor(x.to(tl.float32) * (1.0 / SCALE) - LO + 0.5).to(tl.int32)
    else:
        inverse = tl.full([], 1.0 / SCALE, tl.float64)
        code = tl.floor(x.to(tl.float64) * inverse - LO + 0.5).to(tl.int32)
    code = tl.where(mask, code & CODE_MASK, 0)
    packed = tl.sum(code << (lane * BITS)[None, :], axis=1)
    tl.store(out_ptr + byte, packed.to(tl.uint8), mask=byte < count)


@triton.jit
def unpack_kernel(
    packed_ptr: tl.tensor,
    out_ptr: tl.tensor,
    steps: tl.tensor,
    width: tl.tensor,
    count: tl.tensor,
    BITS: tl.constexpr,
    SCALE: tl.constexpr,
    INT_SCALE: tl.constexpr,
    LO: tl.constexpr,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Unpack ``[ceil(steps / per), width]``, `count` bytes in all, into ``out [steps, width]``.

    `MODE` is the arithmetic of decoding: ``integer``, ``float``, ``double``, or ``narrowed``
    (double, then float32, then the dtype).
    """
    PER: tl.constexpr = 8 // BITS
    CODE_MASK: tl.constexpr = 2**BITS - 1
    byte = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, PER)
    step = (byte // width)[:, None] * PER + lane[None, :]
    mask = (byte < count)[:, None] & (step < steps)
    packed = tl.load(packed_ptr + byte, mask=byte < count, other=0).to(tl.int32)
    index = ((packed[:, None] >> (lane * BITS)[None, :]) & CODE_MASK) + LO
    if MODE == "integer":
        value = index.to(tl.int64) * INT_SCALE
    elif MODE == "float":
        value = index.to(tl.float32) * SCALE
    else:
        value = index.to(tl.float64) * tl.full([], SCALE, tl.float64)
        if MODE == "narrowed":
            value = value.to(tl.float32)
    target = out_ptr + step * width + (byte % width)[:, None]
    element = out_ptr.dtype.element_ty  # pyright: ignore[reportAttributeAccessIssue]
    tl.store(target, value.to(element), mask=mask)


def pack_mode(dtype: torch.dtype, bits: int, lo: int) -> str:
    """`MODE` of `pack_kernel` for values of `dtype`."""
    if bits == 1 and lo == 0:
        return "nonzero"
    if dtype not in FLOAT_DTYPES:
        return "integer"
    return "double" if dtype == torch.float64 else "float"


def unpack_mode(dtype: torch.dtype, scale: float) -> str:
    """`MODE` of `unpack_kernel` for values of `dtype`."""
    if dtype not in FLOAT_DTYPES:
        return "integer"
    if dtype == torch.float64:
        return "double"
    return "float" if is_float32(scale) else "narrowed"


def constants(bits: int, scale: float, lo: int, mode: str) -> dict[str, Any]:
    """Compile-time arguments of both kernels."""
    whole = int(scale) if float(scale).is_integer() else 0
    return {
        "BITS": bits,
        "SCALE": float(scale),
        "INT_SCALE": whole,
        "LO": lo,
        "MODE": mode,
        "BLOCK": BLOCK_BYTES,
    }


def _as_storage(x: torch.Tensor) -> torch.Tensor:
    """`x`, with bool seen as the bytes 0 and 1."""
    return x.view(torch.uint8) if x.dtype == torch.bool else x


def _launch(
    kernel: Any,
    source: torch.Tensor,
    target: torch.Tensor,
    sizes: tuple[int, int, int],
    options: dict[str, Any],
) -> None:
    """Run `kernel` with `sizes` (steps, width, number of packed bytes)."""
    device = source.device
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[(triton.cdiv(sizes[2], BLOCK_BYTES),)](
            _as_storage(source), _as_storage(target), *sizes, **options, enable_fp_fusion=False
        )


def _sizes(shape: Sequence[int], packed: torch.Tensor, layout: str) -> tuple[int, int, int]:
    """Steps, width and number of packed bytes."""
    if layout == "flat":
        return math.prod(shape), 1, packed.numel()
    return shape[0], math.prod(shape[1:]), packed.numel()


def pack_bits_triton(
    x: torch.Tensor, bits: int, layout: str = "flat", scale: float = 1.0, lo: int = 0
) -> torch.Tensor:
    """As `pack_bits_reference`, for CUDA tensors (any tensors where Triton interprets)."""
    check_grid(x.dtype, bits, scale, lo)
    out = torch.empty(packed_shape(x.shape, bits, layout), dtype=torch.uint8, device=x.device)
    if out.numel():
        options = constants(bits, scale, lo, pack_mode(x.dtype, bits, lo))
        _launch(pack_kernel, x.contiguous(), out, _sizes(x.shape, out, layout), options)
    return out


def unpack_bits_triton(
    packed: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    layout: str = "flat",
    scale: float = 1.0,
    lo: int = 0,
) -> torch.Tensor:
    """As `unpack_bits_reference`, for CUDA tensors (any tensors where Triton interprets)."""
    check_grid(dtype, bits, scale, lo)
    check_packed(packed, shape, bits, layout)
    out = torch.empty(tuple(shape), dtype=dtype, device=packed.device)
    if out.numel():
        scale = decoding_scale(dtype, bits, scale, lo)
        options = constants(bits, scale, lo, unpack_mode(dtype, scale))
        _launch(unpack_kernel, packed.contiguous(), out, _sizes(shape, packed, layout), options)
    return out
