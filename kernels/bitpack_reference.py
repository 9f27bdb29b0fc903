"""Definition of bit packing, in plain torch: every other implementation must equal this one.

A tensor whose values all lie on a grid ``{scale*k : lo <= k < lo + 2**bits}`` is stored as the
codes ``k - lo``, `bits` of them (1, 2, 4 or 8) each, ``8 // bits`` codes to a byte, the first code
in the lowest bits. Bits that hold no code are 0. Two layouts:

``flat``
    Element ``i`` in logical row-major order goes to byte ``i // per``, bit ``(i % per) * bits``,
    with ``per = 8 // bits``. Output ``[ceil(numel / per)]``.
``time``
    ``x [T, *rest]``: step ``t`` goes to byte ``t // per``, bit ``(t % per) * bits``, of the byte
    tensor ``[ceil(T / per), *rest]``. Neighbours never share a byte, so nothing crosses lanes.

Decoding is ``(code + lo) * scale``: for a floating result the product is taken in float64, rounded
to float32 (except for a float64 result), then to the dtype; for an integer result it is integer
arithmetic. A zero comes back as +0. A value on the grid is ``scale*k`` rounded to the dtype, with
``x / scale`` nearer to k than to any other integer: in bfloat16, where 8 bits are significant, that
needs ``abs(k) <= 127`` or a scale that is a power of two. Values off the grid get unspecified
codes: packing is for tensors whose grid is proven; `fits_grid` looks at one.

Cost: linear in the number of elements, with several temporaries of that size here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import torch

from snnfx.errors import PackError

BIT_WIDTHS = (1, 2, 4, 8)
LAYOUTS = ("flat", "time")
FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INT_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES = (*FLOAT_DTYPES, torch.bool, *INT_DTYPES)

MAX_OFFSET = 1 << 14
"""Largest ``abs(lo)``: k stays exact in int16 and float32, and rounding x/scale stays safe."""

MIN_SCALE, MAX_SCALE = 2.0**-64, 2.0**62
"""Outside, 1/scale or a grid value could leave float32 or int64."""


def check_grid(dtype: torch.dtype, bits: int, scale: float, lo: int) -> None:
    """Check that codes of `bits` bits can stand for values of `dtype`.

    Raises:
        PackError: the dtype, width, scale or offset is not supported.
    """
    if dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise PackError(f"cannot pack {dtype}; expected one of {names}: convert the tensor first")
    if bits not in BIT_WIDTHS:
        raise PackError(f"bits={bits} is not a packed width; use the next of {BIT_WIDTHS}")
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise PackError(f"scale={scale} must be a number from 2**-64 to 2**62; rescale the grid")
    if abs(lo) > MAX_OFFSET:
        raise PackError(
            f"lo={lo} must be from {-MAX_OFFSET} to {MAX_OFFSET}; shift the tensor before packing"
        )
    if dtype == torch.bool and (scale != 1.0 or lo != 0):
        raise PackError(f"bool holds only 0 and 1, got scale={scale}, lo={lo}; use scale=1.0, lo=0")
    if dtype in INT_DTYPES:
        _check_integer_grid(dtype, scale, lo)


def _check_integer_grid(dtype: torch.dtype, scale: float, lo: int) -> None:
    if not float(scale).is_integer():
        raise PackError(f"scale={scale} gives no {dtype} values; use a whole number, as in 1.0")
    info = torch.iinfo(dtype)
    if not info.min <= lo * int(scale) <= info.max:
        raise PackError(
            f"the lowest grid value {lo}*{int(scale)} does not fit {dtype} "
            f"({info.min} to {info.max}); use a wider dtype or another lo"
        )


def packed_shape(shape: Sequence[int], bits: int, layout: str) -> list[int]:
    """Shape of the packed uint8 tensor of a tensor of `shape`; sizes may be symbolic.

    Raises:
        PackError: unknown width or layout, or a 0-dim tensor packed along time.
    """
    if bits not in BIT_WIDTHS:
        raise PackError(f"bits={bits} is not a packed width; use the next of {BIT_WIDTHS}")
    if layout not in LAYOUTS:
        raise PackError(f"layout={layout!r} is unknown; use one of {LAYOUTS}")
    if layout == "flat":
        return [(math.prod(shape) * bits + 7) // 8]
    if len(shape) == 0:
        raise PackError("a 0-dim tensor has no time dimension to pack along; use layout='flat'")
    return [(shape[0] * bits + 7) // 8, *shape[1:]]


def check_packed(packed: torch.Tensor, shape: Sequence[int], bits: int, layout: str) -> None:
    """Check that `packed` can be what packing a tensor of `shape` gave.

    Raises:
        PackError: `packed` is not uint8 or has another shape.
    """
    if any(size < 0 for size in shape):
        raise PackError(f"shape={list(shape)} has a negative size; give the tensor's own shape")
    expected = packed_shape(shape, bits, layout)
    if packed.dtype != torch.uint8:
        raise PackError(f"packed must be uint8, got {packed.dtype}; pass the result of pack_bits")
    if list(packed.shape) != expected:
        raise PackError(
            f"packed has shape {list(packed.shape)}, but {list(shape)} at {bits} bits in layout "
            f"{layout!r} packs to {expected}; pass the shape, bits and layout used to pack"
        )


def is_float32(value: float) -> bool:
    """Whether `value` is a float32: then ``k * value`` in float32 is the exact product, rounded."""
    return struct.unpack("f", struct.pack("f", value))[0] == value


def decoding_scale(dtype: torch.dtype, bits: int, scale: float, lo: int) -> float:
    """A scale that decodes as `scale` does, and is a float32 where that is possible.

    With the grid values 0 and `scale` alone, rounding the scale or the product is the same.
    """
    if bits == 1 and lo == 0 and dtype in FLOAT_DTYPES and dtype != torch.float64:
        return struct.unpack("f", struct.pack("f", scale))[0]
    return scale


def _encode(x: torch.Tensor, bits: int, scale: float, lo: int) -> torch.Tensor:
    """Codes of `x`, uint8, same shape."""
    if x.dtype in FLOAT_DTYPES:
        steps = torch.round(x.to(torch.float64) / scale).to(torch.int64)
    else:
        steps = torch.div(x.to(torch.int64), int(scale), rounding_mode="floor")
    return ((steps - lo) & ((1 << bits) - 1)).to(torch.uint8)


def _decode(codes: torch.Tensor, dtype: torch.dtype, scale: float, lo: int) -> torch.Tensor:
    """Values of `codes` in `dtype`, same shape."""
    steps = codes.to(torch.int64) + lo
    if dtype not in FLOAT_DTYPES:
        return (steps * int(scale)).to(dtype)
    values = steps.to(torch.float64) * scale
    return values if dtype == torch.float64 else values.to(torch.float32).to(dtype)


def pack_bits_reference(
    x: torch.Tensor, bits: int, layout: str = "flat", scale: float = 1.0, lo: int = 0
) -> torch.Tensor:
    """Pack `x`, whose values lie on the grid ``scale * (lo + code)``.

    Args:
        x: any shape (at least 1-dim for layout ``time``), any of `DTYPES`, any strides.
        bits: width of a code: 1, 2, 4 or 8.
        layout: ``flat`` or ``time``.
        scale: distance of two grid values.
        lo: the grid's lowest multiple of `scale`; may be negative.

    Returns:
        uint8, contiguous, of shape `packed_shape`.

    Raises:
        PackError: an argument is not supported.
    """
    check_grid(x.dtype, bits, scale, lo)
    shape = packed_shape(x.shape, bits, layout)
    per = 8 // bits
    codes = _encode(x, bits, scale, lo)
    if layout == "flat":
        codes = codes.reshape(-1)
    padding = codes.new_zeros((shape[0] * per - codes.shape[0], *codes.shape[1:]))
    codes = torch.cat([codes, padding]).reshape(shape[0], per, *codes.shape[1:])
    packed = torch.zeros(shape, dtype=torch.uint8, device=x.device)
    for j in range(per):
        packed |= codes[:, j] << (j * bits)
    return packed


def unpack_bits_reference(
    packed: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    layout: str = "flat",
    scale: float = 1.0,
    lo: int = 0,
) -> torch.Tensor:
    """Inverse of `pack_bits_reference`, given the shape and dtype of what was packed.

    Returns:
        `dtype`, contiguous, of shape `shape`.

    Raises:
        PackError: an argument is not supported, or `packed` does not fit the others.
    """
    check_grid(dtype, bits, scale, lo)
    check_packed(packed, shape, bits, layout)
    per, mask = 8 // bits, (1 << bits) - 1
    codes = torch.stack([(packed >> (j * bits)) & mask for j in range(per)], dim=1)
    codes = codes.reshape(packed.shape[0] * per, *packed.shape[1:])
    count = math.prod(shape) if layout == "flat" else shape[0]
    return _decode(codes[:count], dtype, scale, lo).reshape(tuple(shape))


def fits_grid(x: torch.Tensor, bits: int, scale: float = 1.0, lo: int = 0) -> bool:
    """Whether packing `x` on this grid is lossless; looks at every element.

    The sign of a zero is not kept, and does not count.

    Raises:
        PackError: the grid is not supported for the dtype of `x`.
    """
    packed = pack_bits_reference(x, bits, "flat", scale, lo)
    return torch.equal(unpack_bits_reference(packed, x.shape, x.dtype, bits, "flat", scale, lo), x)
