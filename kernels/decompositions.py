"""Packing and unpacking as plain pointwise ATen, to be traced into a graph and fused there.

The same results as the operators in `snnfx.kernels.ops` (the layouts are defined in
`snnfx.kernels.bitpack_reference`), written so that Inductor puts all of it into the loop that makes
the values or uses them: every output byte is shifts and ors of a few inputs, every output value a
shift, a mask and a multiply-add of one byte, in uint8 as long as possible. Where a graph has the
time steps apart already, `pack_steps` and `unpack_step` save the stack. Layout ``time`` needs a
static T to pack; all other sizes may be symbolic.

Cost: 3 pointwise ops an element to pack, 3 to 5 to unpack, no temporaries once fused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from snnfx.kernels.bitpack_reference import (
    FLOAT_DTYPES,
    check_grid,
    decoding_scale,
    is_float32,
    packed_shape,
)
from snnfx.kernels.ops import PACK_OP, UNPACK_OP


def _encode(x: torch.Tensor, bits: int, scale: float, lo: int) -> torch.Tensor:
    """Codes of `x`, uint8, same shape."""
    # By way of float32: Inductor's CPU backend turns a mask into bytes one lane at a time.
    if x.dtype == torch.bool:
        return x.to(torch.float32).to(torch.uint8)
    if bits == 1 and lo == 0 and (scale != 1.0 or x.dtype not in FLOAT_DTYPES):
        return (x != 0).to(torch.float32).to(torch.uint8)
    if x.dtype in FLOAT_DTYPES:
        wide = x if x.dtype == torch.float64 else x.to(torch.float32)
        codes = wide if scale == 1.0 else torch.round(wide * (1.0 / scale))
        return (codes - lo).to(torch.uint8) if lo else codes.to(torch.uint8)
    if scale == 1.0 and lo == 0:
        return x.to(torch.uint8)
    steps = torch.div(x.to(torch.int64), int(scale), rounding_mode="floor")
    return (steps - lo).to(torch.uint8)


def _decode(
    codes: torch.Tensor, dtype: torch.dtype, bits: int, scale: float, lo: int
) -> torch.Tensor:
    """Values of uint8 `codes` in `dtype`, same shape, rounded as the reference does."""
    scale = decoding_scale(dtype, bits, scale, lo)
    if scale == 1.0 and lo == 0:
        return codes.to(dtype)
    if dtype not in FLOAT_DTYPES:
        return ((codes.to(torch.int64) + lo) * int(scale)).to(dtype)
    if dtype != torch.float64 and is_float32(scale):
        return ((codes.to(torch.float32) + lo) * scale).to(dtype)
    values = (codes.to(torch.float64) + lo) * scale
    return values if dtype == torch.float64 else values.to(torch.float32).to(dtype)


def _join(codes: Sequence[torch.Tensor], bits: int) -> torch.Tensor:
    """One byte of at most ``8 / bits`` uint8 codes, the first in the lowest bits."""
    byte = codes[0]
    for j, code in enumerate(codes[1:], start=1):
        byte = byte | (code << (j * bits))
    return byte


def pack_steps(
    steps: Sequence[torch.Tensor], bits: int, scale: float = 1.0, lo: int = 0
) -> torch.Tensor:
    """Pack a list of T time steps, each ``[*rest]``, as layout ``time`` packs their stack.

    Returns:
        uint8 ``[ceil(T * bits / 8), *rest]``.

    Raises:
        PackError: the grid is not supported for the dtype.
    """
    check_grid(steps[0].dtype, bits, scale, lo)
    per = 8 // bits
    codes = [_encode(step, bits, scale, lo) for step in steps]
    rows = [_join(codes[i : i + per], bits).reshape(-1) for i in range(0, len(codes), per)]
    # Flat rows: Inductor's CPU backend does not fuse a concatenation of 4-dim uint8 tensors.
    return torch.stack(rows).view(len(rows), *steps[0].shape)


def unpack_step(
    packed: torch.Tensor,
    step: int,
    dtype: torch.dtype,
    bits: int,
    scale: float = 1.0,
    lo: int = 0,
) -> torch.Tensor:
    """Time step `step`, ``[*rest]`` in `dtype`, of `packed` in layout ``time``.

    Raises:
        PackError: the grid is not supported for the dtype.
    """
    check_grid(dtype, bits, scale, lo)
    byte, lane = divmod(step, 8 // bits)
    codes = packed.select(0, byte)
    if lane:
        codes = codes >> (lane * bits)
    if bits < 8 and (lane + 1) * bits < 8:
        codes = codes & ((1 << bits) - 1)
    return _decode(codes, dtype, bits, scale, lo)


def pack_bits_decomposed(
    x: torch.Tensor, bits: int, layout: str = "flat", scale: float = 1.0, lo: int = 0
) -> torch.Tensor:
    """As ``snnfx::pack_bits``, in plain ATen."""
    check_grid(x.dtype, bits, scale, lo)
    shape = packed_shape(x.shape, bits, layout)
    if layout == "time":
        if x.shape[0] == 0:
            return x.new_empty(shape, dtype=torch.uint8)
        return pack_steps([x.select(0, step) for step in range(x.shape[0])], bits, scale, lo)
    per = 8 // bits
    codes = _encode(x, bits, scale, lo).reshape(-1)
    padding = shape[0] * per - x.numel()
    if not (isinstance(padding, int) and padding == 0):
        codes = torch.constant_pad_nd(codes, [0, padding])
    rows = codes.view(-1, per)
    return _join([rows.select(1, j) for j in range(per)], bits)


def unpack_bits_decomposed(
    packed: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    layout: str = "flat",
    scale: float = 1.0,
    lo: int = 0,
) -> torch.Tensor:
    """As ``snnfx::unpack_bits``, in plain ATen."""
    check_grid(dtype, bits, scale, lo)
    packed_shape(shape, bits, layout)
    per = 8 // bits
    if bits < 8:
        trailing = [1] * (packed.dim() - 1)
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        codes = (packed.unsqueeze(1) >> shifts.view(1, per, *trailing)) & ((1 << bits) - 1)
        codes = codes.flatten(0, 1)
    else:
        codes = packed
    count = math.prod(shape) if layout == "flat" else shape[0]
    return _decode(codes.narrow(0, 0, count), dtype, bits, scale, lo).reshape(tuple(shape))


DECOMPOSITIONS: dict[Any, Callable[..., torch.Tensor]] = {
    PACK_OP: pack_bits_decomposed,
    UNPACK_OP: unpack_bits_decomposed,
}
"""For `make_fx(decomposition_table=...)` and AOTAutograd."""
