"""How much memory the CPU kernels of `snnfx.kernels.bitpack_cpu` hold besides their results.

The same sizes as there, as numbers: chunk by chunk, so that nothing grows with the tensor beyond
one chunk. Tests hold both together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from snnfx.kernels.bitpack_cpu import CHUNK_ELEMENTS, WORDS
from snnfx.kernels.bitpack_reference import FLOAT_DTYPES, decoding_scale, is_float32


def pack_workspace_bytes(
    shape: Sequence[int],
    dtype: torch.dtype,
    is_contiguous: bool,
    bits: int,
    layout: str = "flat",
    scale: float = 1.0,
    lo: int = 0,
) -> int:
    """Bytes that `pack_bits_cpu` holds at most besides its result, within a few hundred.

    Args:
        shape: of the tensor to pack, and so `dtype`.
        dtype: see above.
        is_contiguous: whether it is; if not, it is copied by blocks of rows.
        bits: and all that follows, as for `pack_bits`.
        layout: see above.
        scale: see above.
        lo: see above.
    """
    count = math.prod(shape)
    if not count:
        return 0
    is_product = lo == 0 and dtype == torch.float32
    if layout == "flat":
        size = min(_chunk(), count)
        copied = 0 if is_contiguous else _copied_rows(shape, 16) * dtype.itemsize
        if is_product and bits == 1:
            return copied + size // 16 * 4
        codes = size if bits < 8 else 0
        return copied + codes + _encoder_bytes(dtype, bits, scale, lo) * size
    block, copied = count, 0
    if not is_contiguous and len(shape) > 2:
        rows = (shape[1], shape[0], *shape[2:])
        block = min(_block(rows, 1), count)
        copied = _copied_rows(rows, 1) * dtype.itemsize
    size = min(_chunk() // 2, _padded(block // shape[0]))
    if is_product:
        return copied + 4 * size
    return copied + (2 + _encoder_bytes(dtype, bits, scale, lo)) * size


def unpack_workspace_bytes(
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    layout: str = "flat",
    scale: float = 1.0,
    lo: int = 0,
) -> int:
    """Bytes that `unpack_bits_cpu` holds at most besides its result, within a few hundred.

    The tables that it makes the first time and keeps are left out.

    Args:
        shape: of the result, and so `dtype`.
        dtype: see above.
        bits: and all that follows, as for `unpack_bits`.
        layout: see above.
        scale: see above.
        lo: see above.
    """
    count, per = math.prod(shape), 8 // bits
    if not count:
        return 0
    decoded = _decoder_bytes(dtype, bits, scale, lo)
    if bits == 8:
        width = count if layout == "flat" else count // shape[0]
        return decoded * min(_chunk() // 2, width)
    if layout == "time":
        padded = _padded(min(_chunk() * bits // 4, count // shape[0]))
        return padded + per * padded * (1 + decoded)
    if bits == 1 or scale != 1.0 or lo != 0:
        return 4 * min(_chunk() // per, count // per)
    packed = -(-count // per)
    return 2 * WORDS[bits].itemsize * min(_chunk() * bits // 8, packed)


def _chunk() -> int:
    return CHUNK_ELEMENTS * torch.get_num_threads()


def _padded(count: int) -> int:
    return -(-count // 8) * 8


def _block(shape: Sequence[int], multiple: int) -> int:
    """Elements of a full block of rows, about a chunk and a multiple of `multiple`."""
    row = math.prod(shape[1:])
    rows_per_multiple = multiple // math.gcd(row, multiple)
    return max(1, _chunk() // max(1, row * rows_per_multiple)) * rows_per_multiple * row


def _copied_rows(shape: Sequence[int], multiple: int) -> int:
    """Elements of the copies alive at once: of a block, and of the one before."""
    return min(2 * _block(shape, multiple), math.prod(shape))


def _encoder_bytes(dtype: torch.dtype, bits: int, scale: float, lo: int) -> int:
    """Bytes an element of the buffer in which values become codes."""
    if dtype in FLOAT_DTYPES:
        wide = dtype in (torch.float32, torch.float64)
        return 0 if bits == 1 and lo == 0 and not wide else 4
    return 0 if lo == 0 and (bits == 1 or scale == 1.0) else 8


def _decoder_bytes(dtype: torch.dtype, bits: int, scale: float, lo: int) -> int:
    """Bytes an element of the buffer in which codes become values, where there is one."""
    scale = decoding_scale(dtype, bits, scale, lo)
    if scale == 1.0 and lo == 0:
        return 0
    if dtype not in FLOAT_DTYPES:
        return 0 if dtype == torch.int64 else 8
    if dtype == torch.float64 or not is_float32(scale):
        return 0 if dtype == torch.float64 else 12
    return 0 if dtype == torch.float32 else 4
