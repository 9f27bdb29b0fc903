"""Bit packing on the CPU: ATen calls on cache-sized chunks, no compiler and no other library.

A float becomes a byte by adding 1.5 * 2**23, which rounds it to an integer that stands in the
lowest bits of the float, and by narrowing those: several times faster than converting it.

Packing float32 with ``lo == 0`` is a matrix-vector product with powers of two over the scale: of
rows of 16 elements in layout ``flat`` at 1 bit, of the transposed steps in layout ``time``. With
scale 1 every partial sum is an integer below 2**16; otherwise an element is within 2**-22 of its
grid value, relatively, so a sum is within 0.1 of its integer. All other packing computes one byte
a code, each rounded for itself, and gathers the codes of a word of 2, 4 or 8 bytes by one
multiplication, or of several steps by shifts.

Unpacking in layout ``flat`` gathers rows of a table of 256 rows, one per byte, that the reference
fills, except at 8 bits and where 2 or 4 bits need no arithmetic. Everything else shifts and masks
several bytes at a time, then converts.

Cost: one pass over the larger tensor in memory, about 3 to 6 in the level-2 cache; temporaries of
at most 7 bytes an element of one chunk. Both layouts assume a little-endian machine, see `ops`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch

from snnfx.kernels.bitpack_reference import (
    FLOAT_DTYPES,
    check_grid,
    check_packed,
    decoding_scale,
    is_float32,
    pack_bits_reference,
    packed_shape,
    unpack_bits_reference,
)

CHUNK_ELEMENTS = 1 << 18
"""Elements a thread works on at a time: 1 MiB of float32."""

ROUND_BIAS = 1.5 * (1 << 23)
"""Added to a float32 of at most 2**22, it rounds that to an integer, held in the lowest bits."""

WORDS = {1: torch.int64, 2: torch.int32, 4: torch.int16, 8: torch.uint8}
"""The integer with one byte for each code that a packed byte of this width holds."""

SPREADS = {2: ((12, 0x000F000F), (6, 0x03030303)), 4: ((4, 0x0F0F),)}
"""Shifts and masks that spread the codes of a byte over the bytes of its word."""

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


def _narrow(values: torch.Tensor, out: torch.Tensor) -> None:
    """Write float32 `values` [n], biased by `ROUND_BIAS`, as integers of any width."""
    out.copy_(values.view(torch.int32))


class _Encoder:
    """Writes the codes of contiguous pieces of a tensor as bytes."""

    def __init__(self, dtype: torch.dtype, bits: int, scale: float, lo: int, size: int) -> None:
        self.scale, self.lo = scale, lo
        self.is_float = dtype in FLOAT_DTYPES
        self.is_nonzero = bits == 1 and lo == 0 and dtype not in (torch.float32, torch.float64)
        self.is_plain = not self.is_float and scale == 1.0 and lo == 0
        compute = torch.float32 if self.is_float else torch.int64
        needs_buffer = not self.is_plain and not self.is_nonzero
        self.values = torch.empty(size if needs_buffer else 0, dtype=compute)

    def __call__(self, piece: torch.Tensor, out: torch.Tensor) -> None:
        """Write the codes of `piece` [n] to uint8 `out` [n]."""
        if self.is_nonzero:
            out.view(torch.bool).copy_(piece)
        elif self.is_plain:
            out.copy_(piece)
        elif self.is_float:
            self._encode_floats(piece, self.values[: piece.numel()], out)
        else:
            steps = self.values[: piece.numel()].copy_(piece)
            out.copy_(steps.div_(int(self.scale), rounding_mode="floor").sub_(self.lo))

    def _encode_floats(self, piece: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> None:
        if piece.dtype != torch.float32:
            piece = values.copy_(piece)
        if self.scale != 1.0:
            piece = torch.mul(piece, 1.0 / self.scale, out=values)
        _narrow(torch.add(piece, ROUND_BIAS - self.lo, out=values), out.view(torch.int8))


def pack_flat_into(
    x: torch.Tensor, out: torch.Tensor, bits: int, scale: float = 1.0, lo: int = 0
) -> None:
    """Pack `x` (any shape and strides) into `out`, uint8 ``[ceil(numel * bits / 8)]``, contiguous.

    Arguments as `pack_bits_reference`, already checked.
    """
    size = min(_chunk_elements(), x.numel())
    is_product = bits == 1 and lo == 0 and x.dtype == torch.float32
    merge = (
        _ProductMerger(scale, size) if is_product else _WordMerger(x.dtype, bits, scale, lo, size)
    )
    start = 0
    for piece in _flat_pieces(x, 16):
        count = piece.numel() // 16 * 16
        stop = start + count * bits // 8
        if count:
            merge(piece[:count], out[start:stop])
        if count < piece.numel():
            out[stop:] = pack_bits_reference(piece[count:], bits, "flat", scale, lo)
        start = stop


@functools.lru_cache(maxsize=64)
def _powers(count: int, bits: int, scale: float) -> torch.Tensor:
    """What the codes of `count` neighbours weigh in their sum, ``2**(bits * j) / scale``."""
    exponents = torch.arange(count, dtype=torch.float64) * bits
    return (torch.exp2(exponents) / scale).float()


class _ProductMerger:
    """Packs float32 pieces at one bit an element: 16 elements times 16 powers of two."""

    def __init__(self, scale: float, size: int) -> None:
        self.weights = _powers(16, 1, scale)
        self.sums = torch.empty(size // 16)

    def __call__(self, piece: torch.Tensor, out: torch.Tensor) -> None:
        """Pack `piece` [16 * n] into `out` [2 * n]."""
        sums = self.sums[: piece.numel() // 16]
        torch.mv(piece.view(-1, 16), self.weights, out=sums)
        _narrow(sums.add_(ROUND_BIAS), out.view(torch.int16))


class _WordMerger:
    """Packs pieces of any kind: codes as bytes, then every word of ``8 / bits`` bytes to one byte.

    Multiplying a word by ``sum(2**gather(j))`` moves code j to bit ``bits * j`` of the top byte; no
    two partial products meet in a bit, so nothing carries into it.
    """

    def __init__(self, dtype: torch.dtype, bits: int, scale: float, lo: int, size: int) -> None:
        self.encode = _Encoder(dtype, bits, scale, lo, size)
        per = 8 // bits
        self.top = 8 * (per - 1)
        self.multiplier = sum(1 << (self.top - (8 - bits) * j) for j in range(per))
        self.word = WORDS[bits]
        self.codes = torch.empty(size if bits < 8 else 0, dtype=torch.uint8)

    def __call__(self, piece: torch.Tensor, out: torch.Tensor) -> None:
        """Pack `piece` [n] into `out` [n * bits / 8], n a multiple of 16."""
        if not self.top:
            self.encode(piece, out)
            return
        codes = self.codes[: piece.numel()]
        self.encode(piece, codes)
        words = codes.view(self.word).mul_(self.multiplier).bitwise_right_shift_(self.top)
        out.view(torch.int8).copy_(words)


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
    per = 8 // bits
    for steps, packed in _time_blocks(x, out):
        width = steps.shape[1]
        chunk = min(_chunk_elements() // 2, -(-width // 8) * 8)
        is_product = lo == 0 and x.dtype == torch.float32
        merge = (
            _StepProduct(bits, scale, chunk)
            if is_product
            else _StepShifter(x.dtype, bits, scale, lo, chunk)
        )
        for start, byte in itertools.product(range(0, width, chunk), range(packed.shape[0])):
            columns = slice(start, start + chunk)
            merge(steps[byte * per : (byte + 1) * per, columns], packed[byte, columns])


class _StepProduct:
    """Packs float32 time steps: their transpose times powers of two."""

    def __init__(self, bits: int, scale: float, size: int) -> None:
        self.weights = _powers(8 // bits, bits, scale)
        self.sums = torch.empty(size)

    def __call__(self, steps: torch.Tensor, out: torch.Tensor) -> None:
        """Pack `steps` [at most 8 / bits, n] into `out` [n]."""
        sums = self.sums[: out.numel()]
        torch.mv(steps.t(), self.weights[: steps.shape[0]], out=sums)
        _narrow(sums.add_(ROUND_BIAS), out.view(torch.int8))


class _StepShifter:
    """Packs time steps of any kind: codes as bytes, eight of them shifted at a time."""

    def __init__(self, dtype: torch.dtype, bits: int, scale: float, lo: int, size: int) -> None:
        self.bits, self.encode = bits, _Encoder(dtype, bits, scale, lo, size)
        self.codes = torch.zeros(size, dtype=torch.uint8)
        self.bytes = torch.zeros(size, dtype=torch.uint8)

    def __call__(self, steps: torch.Tensor, out: torch.Tensor) -> None:
        """Pack `steps` [at most 8 / bits, n] into `out` [n]."""
        self.encode(steps[0], self.bytes[: out.numel()])
        for j, step in enumerate(steps[1:], start=1):
            self.encode(step, self.codes[: out.numel()])
            words = self.codes.view(torch.int64).bitwise_left_shift_(self.bits * j)
            self.bytes.view(torch.int64).bitwise_or_(words)
        out.copy_(self.bytes[: out.numel()])


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


def unpack_flat_into(
    packed: torch.Tensor, out: torch.Tensor, bits: int, scale: float = 1.0, lo: int = 0
) -> None:
    """Unpack uint8 `packed` ``[ceil(numel * bits / 8)]`` into `out` of any shape, contiguous.

    Arguments as `unpack_bits_reference`, already checked.
    """
    if bits == 8:
        _unpack_bytes_into(packed.view(1, -1), out.view(1, -1), scale, lo)
    elif bits == 1 or scale != 1.0 or lo != 0:
        _unpack_by_table(packed, out.view(-1), bits, scale, lo)
    else:
        _unpack_words_into(packed, out.view(-1), bits)


def _unpack_words_into(packed: torch.Tensor, flat: torch.Tensor, bits: int) -> None:
    """Unpack the codes in `packed` into `flat` [n]: a byte is spread to a word of several."""
    per, chunk = 8 // bits, _chunk_elements() * bits // 8
    words = torch.empty((2, min(chunk, packed.numel())), dtype=WORDS[bits])
    for start in range(0, packed.numel(), chunk):
        piece = packed[start : start + chunk]
        word, shifted = words[:, : piece.numel()]
        word.copy_(piece)
        for shift, mask in SPREADS[bits]:
            torch.bitwise_left_shift(word, shift, out=shifted)
            word.bitwise_or_(shifted).bitwise_and_(mask)
        target = flat[start * per : (start + piece.numel()) * per]
        target.copy_(word.view(torch.uint8)[: target.numel()])


def _unpack_by_table(
    packed: torch.Tensor, flat: torch.Tensor, bits: int, scale: float, lo: int
) -> None:
    """Unpack `packed` into `flat` [n]: every byte selects a row of ``8 / bits`` values."""
    per, table = 8 // bits, _table(flat.dtype, bits, scale, lo)
    whole = flat.numel() // per
    rows, chunk = flat[: whole * per].view(whole, per), _chunk_elements() // per
    indices = torch.empty(min(chunk, whole), dtype=torch.int32)
    for start in range(0, whole, chunk):
        stop = min(start + chunk, whole)
        index = indices[: stop - start].copy_(packed[start:stop])
        torch.index_select(table, 0, index, out=rows[start:stop])
    if whole * per < flat.numel():
        flat[whole * per :] = table[int(packed[whole]), : flat.numel() - whole * per]


@functools.lru_cache(maxsize=64)
def _table(dtype: torch.dtype, bits: int, scale: float, lo: int) -> torch.Tensor:
    """The values in each byte, ``[256, 8 / bits]``: 16 KiB at most, and only read once made."""
    every_byte = torch.arange(256, dtype=torch.uint8)
    return unpack_bits_reference(every_byte, [256, 8 // bits], dtype, bits, "flat", scale, lo)


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
    decode = _Decoder(out.dtype, 8, scale, lo, min(chunk, out.shape[1]))
    for row in range(out.shape[0]):
        for start in range(0, out.shape[1], chunk):
            columns = slice(start, start + chunk)
            decode(packed[row, columns], out[row, columns])


def _unpack_steps_into(
    packed: torch.Tensor, out: torch.Tensor, bits: int, scale: float, lo: int
) -> None:
    """Unpack `packed` ``[bytes, n]`` into `out` ``[T, n]`` along time, `bits` below 8."""
    width = out.shape[1]
    per, chunk = 8 // bits, _chunk_elements() * bits // 4
    padded = -(-min(chunk, width) // 8) * 8
    words = torch.zeros(padded // 8, dtype=torch.int64)
    codes = torch.empty((per, padded // 8), dtype=torch.int64)
    decode = _Decoder(out.dtype, bits, scale, lo, per * padded)
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

    def __init__(self, dtype: torch.dtype, bits: int, scale: float, lo: int, size: int) -> None:
        self.scale, self.lo = decoding_scale(dtype, bits, scale, lo), lo
        if dtype not in FLOAT_DTYPES:
            self.compute = torch.int64
        elif dtype == torch.float64 or not is_float32(self.scale):
            self.compute = torch.float64
        else:
            self.compute = torch.float32
        self.is_direct = self.compute == dtype or (self.scale == 1.0 and lo == 0)
        self.values = torch.empty(0 if self.is_direct else size, dtype=self.compute)

    def __call__(self, codes: torch.Tensor, out: torch.Tensor) -> None:
        """Decode uint8 `codes` into `out` of the same shape."""
        values = out if self.is_direct else self.values[: codes.numel()].view(codes.shape)
        values.copy_(codes)
        if self.lo:
            values.add_(self.lo)
        if self.scale != 1.0:
            values.mul_(self.scale if values.is_floating_point() else int(self.scale))
        if not self.is_direct:
            narrowed = values.dtype == torch.float64
            out.copy_(values.to(torch.float32) if narrowed else values)


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
