"""The operators ``snnfx::pack_bits`` and ``snnfx::unpack_bits``; importing this registers them.

Both are opaque to tracing: a graph holds one node for each. The CPU and CUDA have kernels of their
own, every other device runs the reference. `decompositions` has the same operators as plain ATen,
for graphs where they should fuse with what is around them.

Neither has a gradient: packing has an integer result, unpacking an integer input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

import torch

from snnfx.errors import PackError
from snnfx.kernels.bitpack_cpu import pack_bits_cpu, unpack_bits_cpu
from snnfx.kernels.bitpack_reference import (
    check_grid,
    pack_bits_reference,
    packed_shape,
    unpack_bits_reference,
)

HAS_TRITON = find_spec("triton") is not None
IS_LITTLE_ENDIAN = sys.byteorder == "little"


# Spelled out: an inferred schema would let `bits` and `lo` be symbolic.
PACK_SCHEMA = '(Tensor x, int bits, str layout="flat", float scale=1.0, int lo=0) -> Tensor'
UNPACK_SCHEMA = (
    "(Tensor packed, SymInt[] shape, ScalarType dtype, int bits, "
    'str layout="flat", float scale=1.0, int lo=0) -> Tensor'
)


@torch.library.custom_op("snnfx::pack_bits", mutates_args=(), schema=PACK_SCHEMA)
def pack_bits(
    x: torch.Tensor, bits: int, layout: str = "flat", scale: float = 1.0, lo: int = 0
) -> torch.Tensor:
    """Pack `x`, whose values lie on the grid ``scale * (lo + code)``, `bits` bits an element.

    See `snnfx.kernels.bitpack_reference` for the layouts and the exact meaning.

    Args:
        x: any shape (at least 1-dim for layout ``time``) and strides; a floating, integer or bool
            dtype.
        bits: 1, 2, 4 or 8.
        layout: ``flat`` (neighbours share a byte) or ``time`` (steps along dim 0 share a byte).
        scale: distance of two grid values.
        lo: the grid's lowest multiple of `scale`; may be negative.

    Returns:
        uint8, contiguous: ``[ceil(numel * bits / 8)]`` or ``[ceil(T * bits / 8), *rest]``.

    Raises:
        PackError: an argument is not supported.
    """
    return pack_bits_reference(x, bits, layout, scale, lo)


@torch.library.custom_op("snnfx::unpack_bits", mutates_args=(), schema=UNPACK_SCHEMA)
def unpack_bits(
    packed: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    layout: str = "flat",
    scale: float = 1.0,
    lo: int = 0,
) -> torch.Tensor:
    """Give back what `pack_bits` packed; the other arguments must be those it was packed with.

    Args:
        packed: uint8, the result of `pack_bits`.
        shape: shape of the tensor that was packed.
        dtype: its dtype.
        bits: as for `pack_bits`, and so are `layout`, `scale` and `lo`.
        layout: see above.
        scale: see above.
        lo: see above.

    Returns:
        `dtype`, contiguous, of shape `shape`.

    Raises:
        PackError: an argument is not supported, or `packed` does not fit the others.
    """
    return unpack_bits_reference(packed, shape, dtype, bits, layout, scale, lo)


@pack_bits.register_fake
def _pack_bits_fake(
    x: torch.Tensor, bits: int, layout: str = "flat", scale: float = 1.0, lo: int = 0
) -> torch.Tensor:
    check_grid(x.dtype, bits, scale, lo)
    return x.new_empty(packed_shape(x.shape, bits, layout), dtype=torch.uint8)


@unpack_bits.register_fake
def _unpack_bits_fake(
    packed: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    layout: str = "flat",
    scale: float = 1.0,
    lo: int = 0,
) -> torch.Tensor:
    # The sizes are checked when the operator runs: comparing symbolic ones would guard on them.
    check_grid(dtype, bits, scale, lo)
    rank = len(packed_shape(shape, bits, layout))
    if packed.dtype != torch.uint8 or packed.dim() != rank:
        raise PackError(
            f"packed must be uint8 with {rank} dims, got {packed.dtype} with {packed.dim()}; "
            "pass the result of pack_bits with the layout used to pack"
        )
    return packed.new_empty(shape, dtype=dtype)


if IS_LITTLE_ENDIAN:
    pack_bits.register_kernel("cpu")(pack_bits_cpu)
    unpack_bits.register_kernel("cpu")(unpack_bits_cpu)

if HAS_TRITON:

    @pack_bits.register_kernel("cuda")
    def _pack_bits_cuda(
        x: torch.Tensor, bits: int, layout: str = "flat", scale: float = 1.0, lo: int = 0
    ) -> torch.Tensor:
        from snnfx.kernels.bitpack_triton import pack_bits_triton

        return pack_bits_triton(x, bits, layout, scale, lo)

    @unpack_bits.register_kernel("cuda")
    def _unpack_bits_cuda(
        packed: torch.Tensor,
        shape: Sequence[int],
        dtype: torch.dtype,
        bits: int,
        layout: str = "flat",
        scale: float = 1.0,
        lo: int = 0,
    ) -> torch.Tensor:
        from snnfx.kernels.bitpack_triton import unpack_bits_triton

        return unpack_bits_triton(packed, shape, dtype, bits, layout, scale, lo)


PACK_OP = torch.ops.snnfx.pack_bits.default
UNPACK_OP = torch.ops.snnfx.unpack_bits.default
"""What a graph node that packs or unpacks has as its target."""
