"""Bit packing on the CPU: ATen calls on cache-sized chunks, no compiler and no other library.

Packing is a dot product with powers of two. In layout ``flat``, 16 bits of output are one row of a
matrix-vector product of the codes ``[n, 16 / bits]`` with ``[1, 2**bits, 4**bits, ...]``; in layout
``time`` one byte is the sum over its steps. Both are exact in float32: every partial sum is an
integer below 2**16. A sum becomes bytes by adding 2**23, which rounds it to an integer that stands
in the lowest bits of the float, and by narrowing the float's bits; that is several times faster
than a conversion of float to uint8.

Where `x` is float32 already and ``lo == 0``, the product reads it directly, with ``1 / scale`` in
the weights: an element is within 2**-23 of its grid value, relatively, so the sum is within 0.1 of
the integer that it stands for. Otherwise the chunk's codes are computed first, each rounded for
itself.

Unpacking in layout ``flat`` gathers rows of a table of 256 rows, one per byte, that the reference
fills. In layout ``time`` (and at 8 bits, where the layouts agree) it shifts eight bytes at a time.

Cost: one pass over the larger tensor in memory, about 3 to 6 in the level-2 cache; temporaries of
at most 7 bytes an element of one chunk. Both layouts assume a little-endian machine, see `ops`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from snnfx.kernels.bitpack_reference import (
    FLOAT_DTYPES,
    check_grid,
    check_packed,
    is_float32,
    pack_bits_reference,
    packed_shape,
    unpack_bits_reference,
)

CHUNK_ELEMENTS = 1 << 18
"""Elements a thread works on at a time: 1 MiB of float32."""

ROUND_BIAS = float(1 << 23)
"""float32 values of this size have a unit in the last place of 1."""

LOW_BITS = 0x0101010101010101


def _chunk_elements() -> int:
    return CHUNK_ELEMENTS * torch.get_num_threads()


def _row_blocks(shape: Sequence[int], multiple: int) -> Iterator[slice]:
    """Slices of dim 0 of about a chunk each; all but the last hold a multiple of `multiple`."""
    row = math.prod(shape[1:])
    rows_per_multiple = multiple // math.gcd(row, multiple)
    rows = max(1, _chunk_elements() // max(1, row * rows_per_multiple)) * rows_per_multiple
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


class _Encoder:
    """Turns contiguous pieces of a tensor into float32 codes times `1 / weight_scale`."""

    def __init__(self, dtype: torch.dtype, bits: int, scale: float, lo: int, size: int) -> None:
        self.bits, self.scale, self.lo = bits, scale, lo
        self.is_float = dtype in FLOAT_DTYPES
        self.is_direct = dtype == torch.float32 and lo == 0
        self.weight_scale = 1.0 / scale if self.is_direct else 1.0
        self.codes = torch.empty(0 if self.is_direct else size)
        needs_integer = not self.is_float and (scale != 1.0 or lo != 0)
        self.steps = torch.empty(size if needs_integer else 0, dtype=torch.int64)

    def __call__(self, piece: torch.Tensor) -> torch.Tensor:
        """Codes of `piece` [n], float32 [n]; the next call may overwrite them."""
        if self.is_direct:
            return piece
        codes = self.codes[: piece.numel()]
        if self.steps.numel():
            steps = self.steps[: piece.numel()].copy_(piece)
            steps.div_(int(self.scale), rounding_mode="floor")
            return codes.copy_(steps.sub_(self.lo))
        codes.copy_(piece)
        if self.scale != 1.0:
            codes.mul_(1.0 / self.scale).round_()
        return codes.sub_(self.lo) if self.lo else codes


def _narrow(sums: torch.Tensor, out: torch.Tensor) -> None:
    """Write float32 `sums` [n], near integers from 0 to 2**16 - 1, as the integers `out` [n]."""
    out.copy_(sums.add_(ROUND_BIAS).view(torch.int32))


def pack_flat_into(
    x: torch.Tensor, out: torch.Tensor, bits: int, scale: float = 1.0, lo: int = 0
) -> None:
    """Pack `x` (any shape and strides) into `out`, uint8 ``[ceil(numel * bits / 8)]``, contiguous.

    Arguments as `pack_bits_reference`, already checked.
    """
    if bits == 8:
        offset = 0
        for piece in _flat_pieces(x, 1):
            target = out[offset : offset + piece.numel()]
            _pack_bytes_into(piece.unsqueeze(0), target.unsqueeze(0), scale, lo)
            offset += piece.numel()
        return
    lanes = 16 // bits
    bulk = x.numel() - x.numel() % lanes
    encode = _Encoder(x.dtype, bits, scale, lo, min(_chunk_elements(), bulk))
    exponents = torch.arange(lanes, dtype=torch.float64) * bits
    weights = (torch.exp2(exponents) * encode.weight_scale).to(torch.float32)
    sums = torch.empty(min(_chunk_elements(), bulk) // lanes)
    words = out[: bulk * bits // 8].view(torch.int16)
    offset = 0
    for piece in _flat_pieces(x, lanes):
        count = piece.numel() // lanes
        if count:
            codes = encode(piece[: count * lanes]).view(count, lanes)
            torch.mv(codes, weights, out=sums[:count])
            _narrow(sums[:count], words[offset : offset + count])
        if count * lanes < piece.numel():
            tail = pack_bits_reference(piece[count * lanes :], bits, "flat", scale, lo)
            out[bulk * bits // 8 :] = tail
        offset += count


def _flat_pieces(x: torch.Tensor, multiple: int) -> Iterator[torch.Tensor]:
    """`x` flattened, in contiguous pieces of at most a chunk, each but the last a multiple long.

    A tensor that is not contiguous is made so by blocks of rows, never as a whole.
    """
    chunk = _chunk_elements()
    blocks = [slice(None)] if x.is_contiguous() else _row_blocks(x.shape, multiple)
    for block in blocks:
        flat = x[block].reshape(-1) if x.dim() else x.reshape(-1)
        for start in range(0, flat.numel(), chunk):
            yield flat[start : start + chunk]


def pack_time_into(
    x: torch.Tensor, out: torch.Tensor, bits: int, scale: float = 1.0, lo: int = 0
) -> None:
    """Pack `x` ``[T, *rest]`` into `out`, uint8 ``[ceil(T * bits / 8), *rest]``, contiguous.

    Arguments as `pack_bits_reference`, already checked.
    """
    for steps, packed in _time_blocks(x, out):
        if bits == 8:
            _pack_bytes_into(steps, packed, scale, lo)
        else:
            _pack_steps_into(steps, packed, bits, scale, lo)


def _time_blocks(
    x: torch.Tensor, packed: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs ``x [T, n]`` and ``packed [bytes, n]``, every row contiguous; x is copied by blocks."""
    steps = x.shape[0]
    if x.dim() <= 2 or x.is_contiguous():
        yield x.reshape(steps, -1), packed.view(packed.shape[0], -1)
        return
    for block in _row_blocks([x.shape[1], steps, *x.shape[2:]], 1):
        yield x[:, block].reshape(steps, -1), packed[:, block].flatten(1)


def _pack_steps_into(x: torch.Tensor, out: torch.Tensor, bits: int, scale: float, lo: int) -> None:
    """Pack `x` ``[T, n]`` into `out` ``[bytes, n]`` along time, `bits` below 8."""
    steps, width = x.shape
    per, chunk = 8 // bits, min(_chunk_elements() // 2, width)
    encode = _Encoder(x.dtype, bits, scale, lo, chunk)
    sums = torch.empty(chunk)
    for start in range(0, width, max(chunk, 1)):
        columns = slice(start, min(start + chunk, width))
        total = sums[: columns.stop - start]
        for byte in range(out.shape[0]):
            first = byte * per
            torch.mul(encode(x[first, columns]), encode.weight_scale, out=total)
            for step in range(first + 1, min(first + per, steps)):
                weight = encode.weight_scale * (1 << (step - first) * bits)
                torch.add(total, encode(x[step, columns]), alpha=weight, out=total)
            _narrow(total, out[byte, columns].view(torch.int8))


def _pack_bytes_into(x: torch.Tensor, out: torch.Tensor, scale: float, lo: int) -> None:
    """Pack `x` ``[rows, n]`` into `out` ``[rows, n]``, one byte an element."""
    if x.dtype not in FLOAT_DTYPES and scale == 1.0 and lo == 0:
        out.copy_(x)
        return
    width = x.shape[1]
    chunk = min(_chunk_elements() // 2, width)
    encode = _Encoder(x.dtype, 8, scale, lo, chunk)
    sums = torch.empty(chunk)
    for source, target in zip(x, out, strict=True):
        for start in range(0, width, max(chunk, 1)):
            columns = slice(start, min(start + chunk, width))
            total = sums[: columns.stop - start]
            torch.mul(encode(source[columns]), encode.weight_scale, out=total)
            _narrow(total, target[columns].view(torch.int8))


def unpack_flat_into(
    packed: torch.Tensor, out: torch.Tensor, bits: int, scale: float = 1.0, lo: int = 0
) -> None:
    """Unpack uint8 `packed` ``[ceil(numel * bits / 8)]`` into `out` of any shape, contiguous.

    Arguments as `unpack_bits_reference`, already checked.
    """
    if bits == 8:
        _unpack_bytes_into(packed.view(1, -1), out.view(1, -1), scale, lo)
        return
    per, flat = 8 // bits, out.view(-1)
    every_byte = torch.arange(256, dtype=torch.uint8)
    table = unpack_bits_reference(every_byte, [256, per], out.dtype, bits, "flat", scale, lo)
    whole = flat.numel() // per
    rows, chunk = flat[: whole * per].view(whole, per), _chunk_elements() // per
    indices = torch.empty(min(chunk, whole), dtype=torch.int32)
    for start in range(0, whole, chunk):
        stop = min(start + chunk, whole)
        index = indices[: stop - start].copy_(packed[start:stop])
        torch.index_select(table, 0, index, out=rows[start:stop])
    if whole * per < flat.numel():
        flat[whole * per :] = table[int(packed[whole]), : flat.numel() - whole * per]


def unpack_time_into(
    packed: torch.Tensor, out: torch.Tensor, bits: int, scale: float = 1.0, lo: int = 0
) -> None:
    """Unpack uint8 `packed` ``[ceil(T * bits / 8), *rest]`` into `out` ``[T, *rest]``, contiguous.

    Arguments as `unpack_bits_reference`, already checked.
    """
    for steps, rows in _time_blocks(packed, out):
        if bits == 8:
            _unpack_bytes_into(steps, rows, scale, lo)
        else:
            _unpack_steps_into(steps, rows, bits, scale, lo)


def _unpack_bytes_into(packed: torch.Tensor, out: torch.Tensor, scale: float, lo: int) -> None:
    """Unpack `packed` ``[rows, n]`` into `out` ``[rows, n]``, one byte an element."""
    chunk = _chunk_elements() // 2
    decode = _Decoder(out.dtype, scale, lo, min(chunk, out.shape[1]))
    for row in range(out.shape[0]):
        for start in range(0, out.shape[1], chunk):
            columns = slice(start, start + chunk)
            decode(packed[row, columns], out[row, columns])


def _unpack_steps_into(
    packed: torch.Tensor, out: torch.Tensor, bits: int, scale: float, lo: int
) -> None:
    """Unpack `packed` ``[bytes, n]`` into `out` ``[T, n]`` along time, `bits` below 8."""
    width = out.shape[1]
    per, chunk = 8 // bits, _chunk_elements() * bits // 8
    padded = -(-min(chunk, width) // 8) * 8
    words = torch.zeros(padded // 8, dtype=torch.int64)
    codes = torch.empty((per, padded // 8), dtype=torch.int64)
    decode = _Decoder(out.dtype, scale, lo, per * padded)
    shifts = torch.arange(per).mul_(bits).unsqueeze(1)
    for start in range(0, width, chunk):
        columns = slice(start, min(start + chunk, width))
        count = columns.stop - start
        for byte in range(packed.shape[0]):
            first = byte * per
            words.view(torch.uint8)[:count] = packed[byte, columns]
            torch.bitwise_right_shift(words, shifts, out=codes)
            codes.bitwise_and_(LOW_BITS * ((1 << bits) - 1))
            target = out[first : first + per, columns]
            decode(codes.view(torch.uint8)[: target.shape[0], :count], target)


class _Decoder:
    """Writes the values that codes stand for, rounding as the reference does."""

    def __init__(self, dtype: torch.dtype, scale: float, lo: int, size: int) -> None:
        self.scale, self.lo = scale, lo
        self.is_plain = scale == 1.0 and lo == 0
        if dtype not in FLOAT_DTYPES:
            compute = torch.int64
        elif dtype == torch.float64 or not is_float32(scale):
            compute = torch.float64
        else:
            compute = torch.float32
        self.values = torch.empty(0 if self.is_plain else size, dtype=compute)

    def __call__(self, codes: torch.Tensor, out: torch.Tensor) -> None:
        """Decode uint8 `codes` into `out` of the same shape."""
        if self.is_plain:
            out.copy_(codes)
            return
        values = self.values[: codes.numel()].view(codes.shape).copy_(codes)
        values.add_(self.lo).mul_(self.scale if values.is_floating_point() else int(self.scale))
        if values.dtype == torch.float64 and out.dtype != torch.float64:
            values = values.to(torch.float32)
        out.copy_(values)


def pack_bits_cpu(
    x: torch.Tensor, bits: int, layout: str = "flat", scale: float = 1.0, lo: int = 0
) -> torch.Tensor:
    """As `pack_bits_reference`, for CPU tensors."""
    check_grid(x.dtype, bits, scale, lo)
    out = torch.empty(packed_shape(x.shape, bits, layout), dtype=torch.uint8)
    if out.numel():
        pack_into = pack_flat_into if layout == "flat" else pack_time_into
        pack_into(x.detach(), out, bits, scale, lo)
    return out


def unpack_bits_cpu(
    packed: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    layout: str = "flat",
    scale: float = 1.0,
    lo: int = 0,
) -> torch.Tensor:
    """As `unpack_bits_reference`, for CPU tensors."""
    check_grid(dtype, bits, scale, lo)
    check_packed(packed, shape, bits, layout)
    out = torch.empty(tuple(shape), dtype=dtype)
    if out.numel():
        unpack_into = unpack_flat_into if layout == "flat" else unpack_time_into
        unpack_into(packed.contiguous(), out, bits, scale, lo)
    return out
