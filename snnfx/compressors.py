"""Spike compressors: what a checkpoint keeps of its input, and gives back bit for bit.

Spikes carry one bit an element, and are stored as floats of 16 or 32. A compressor turns them into
a smaller tensor between the forward and the backward:

=========================  ==============================================  =====================
compressor                 holds without loss                              bytes, of n elements
=========================  ==============================================  =====================
`NullSpikeCompressor`      everything                                      as before: it is a no-op
`BooleanSpikeCompressor`   0 and 1                                         n
`Uint8SpikeCompressor`     integers from 0 to 255                          n
`BitSpikeCompressor`       0 and 1                                         n / 8
`SparseSpikeCompressor`    0 and 1                                         8 (or 4, 2, 1) a spike
`GridSpikeCompressor`      ``scale * (lo + code)``, codes of 1 to 8 bits   n * bits / 8
=========================  ==============================================  =====================

*Without loss* means: values, shape, dtype and device are the same, and so are the strides of a
tensor that is dense in memory, permuted or not, because a convolution on other strides may round
otherwise. A tensor with gaps or overlaps (a slice, an expanded one) comes back contiguous.

Nothing else is held: -0.0 comes back as 0.0, NaN as a number. With ``check=True`` any value that
would not come back is an error; without, each class says what becomes of it. Checking reads all
values, which waits for a GPU and cannot be traced into a graph; fake and meta tensors have no
values and are not checked.

How to write a compressor of one's own is said in `snnfx.compression`.

Cost: linear in the number of elements, in time.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from snnfx.compression import (
    BaseSpikeCompressor,
    CompressedSpikes,
    check_payload,
    memory_order,
)
from snnfx.errors import CompressionError, OptionError
from snnfx.kernels.bitpack_reference import (
    check_grid,
    pack_bits_reference,
    unpack_bits_reference,
)
from snnfx.kernels.ops import pack_bits, unpack_bits

__all__ = [
    "BaseSpikeCompressor",
    "BitSpikeCompressor",
    "BooleanSpikeCompressor",
    "CompressedSpikes",
    "GridSpikeCompressor",
    "NullSpikeCompressor",
    "SparseSpikeCompressor",
    "Uint8SpikeCompressor",
]

CHECKED_ELEMENTS = 1 << 18
"""Elements that are checked at a time, so that checking needs little memory."""

INDEX_ELEMENTS = 1 << 20
"""Elements or indices at a time where indices are not int64, which torch takes and gives."""

INDEX_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class NullSpikeCompressor(BaseSpikeCompressor):
    """Holds any tensor as it is: both ways give the very same tensor, strides and all."""

    def _compress(self, s_seq: Tensor) -> Tensor:
        return s_seq

    def _decompress(self, s_seq: Tensor, shape: torch.Size) -> Tensor:
        return s_seq

    def compress(self, s_seq: Tensor) -> CompressedSpikes:
        """Wrap `s_seq`, of any shape, dtype and layout."""
        return CompressedSpikes(s_seq, s_seq.shape, s_seq.dtype, None)

    def decompress(self, s_seq: CompressedSpikes, shape: Sequence[int] | None = None) -> Tensor:
        """The tensor itself, so it is not for writing into; arguments as in the base class."""
        check_payload(self, s_seq, shape)
        return s_seq.data


class _ElementCompressor(BaseSpikeCompressor):
    """What stores each element for itself, so that the order of elements does not matter."""

    _in_memory_order = True
    _expected: ClassVar[str]
    """The values that are held, in words."""

    check: bool = False

    @abc.abstractmethod
    def _expand(self, s_seq: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The tensor of `shape` and `dtype` that `_compress` made `s_seq` of."""

    def _round_trip(self, piece: Tensor) -> Tensor:
        """The nearest to `piece` that is held: it differs from `piece` where that is not."""
        return piece.to(torch.bool).to(piece.dtype)

    def _decompress(self, s_seq: Tensor, shape: torch.Size) -> Tensor:
        return self._expand(s_seq, shape, torch.float64)  # which holds every grid

    def _decompress_to(self, s_seq: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._expand(s_seq, shape, dtype)

    def compress(self, s_seq: Tensor) -> CompressedSpikes:
        """Compress `s_seq`, any shape and strides.

        Raises:
            CompressionError: its dtype or, with `check`, one of its values cannot be held.
        """
        self._check(s_seq)
        return super().compress(s_seq)

    def _check(self, s_seq: Tensor) -> None:
        if s_seq.dtype.is_complex:
            raise CompressionError(
                f"{type(self).__name__} holds {self._what()}, got a tensor of {s_seq.dtype}; "
                "compress its real and imaginary part, or use NullSpikeCompressor"
            )
        if self.check and not s_seq.is_meta and not isinstance(s_seq, FakeTensor):
            self._check_values(s_seq)

    def _check_values(self, s_seq: Tensor) -> None:
        order = memory_order(s_seq.stride())
        x = s_seq.detach().permute(order)
        for start, piece in enumerate(x.reshape(-1).split(CHECKED_ELEMENTS)):
            is_lost = _differs(piece, self._round_trip(piece))
            if is_lost.any():
                offset = torch.argmax(is_lost.to(torch.uint8))
                place = torch.unravel_index(offset + start * CHECKED_ELEMENTS, x.shape)
                index = [int(place[order.index(d)]) for d in range(len(order))]
                raise CompressionError(
                    f"{type(self).__name__} holds {self._what()}, but element {index} is "
                    f"{piece[offset].item()!r} ({s_seq.dtype}); use a compressor that holds it, "
                    "such as NullSpikeCompressor"
                )

    def _what(self) -> str:
        return self._expected


def _differs(x: Tensor, other: Tensor) -> Tensor:
    """Where `x` is not `other`, bool, same shape; the sign of a zero counts, NaN always differs."""
    differs = x != other
    if x.is_floating_point():
        differs.logical_or_(torch.signbit(x) != torch.signbit(other))
    return differs


class _BytewiseCompressor(_ElementCompressor):
    """Stores each element as a number of one byte."""

    _stored: ClassVar[torch.dtype]

    def _compress(self, s_seq: Tensor) -> Tensor:
        return s_seq.to(self._stored, memory_format=torch.contiguous_format)

    def _expand(self, s_seq: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return s_seq.to(dtype)


@dataclass(frozen=True)
class BooleanSpikeCompressor(_BytewiseCompressor):
    """Holds 0 and 1 as bool: a byte an element. Without `check`, all else comes back as 1.

    A bool tensor is held as it is, not copied.

    Args:
        check: whether other values are an error.
    """

    requires_strictly_binary = True
    _expected = "only 0 and 1"
    _stored = torch.bool

    _: KW_ONLY
    check: bool = False


@dataclass(frozen=True)
class Uint8SpikeCompressor(_BytewiseCompressor):
    """Holds integers from 0 to 255, such as sums of spikes, as uint8: a byte an element.

    Without `check`, a fraction loses what is behind the point, and a value outside of the range
    comes back as an unspecified one inside. A uint8 tensor is held as it is, not copied.

    Args:
        check: whether other values are an error.
    """

    _expected = "only integers from 0 to 255"
    _stored = torch.uint8

    _: KW_ONLY
    check: bool = False

    def _round_trip(self, piece: Tensor) -> Tensor:
        return piece.to(torch.uint8).to(piece.dtype)


class _PackingCompressor(_ElementCompressor):
    """Packs codes with the kernels of `snnfx.kernels.ops`, in layout ``flat``."""

    @abc.abstractmethod
    def _grid(self) -> tuple[int, float, int]:
        """Bits, scale and offset, as in `snnfx.kernels.bitpack_reference`."""

    def _compress(self, s_seq: Tensor) -> Tensor:
        bits, scale, lo = self._grid()
        return pack_bits(s_seq, bits, "flat", scale, lo)

    def _expand(self, s_seq: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        bits, scale, lo = self._grid()
        return unpack_bits(s_seq, shape, dtype, bits, "flat", scale, lo)


@dataclass(frozen=True)
class BitSpikeCompressor(_PackingCompressor):
    """Holds 0 and 1, eight elements a byte; nothing larger than the result is made on the way.

    Without `check`, another value comes back as 0 or 1, and so may its up to 15 neighbours in
    memory: use it for tensors that are known to be spikes.

    Args:
        check: whether other values are an error.
    """

    requires_strictly_binary = True
    _expected = "only 0 and 1"

    _: KW_ONLY
    check: bool = False

    def _grid(self) -> tuple[int, float, int]:
        return 1, 1.0, 0


@dataclass(frozen=True)
class GridSpikeCompressor(_PackingCompressor):
    """Holds the values ``scale * (lo + code)``, codes from 0 to ``2**bits - 1``.

    Two bits hold the sum of up to three spike tensors, or with ``lo=-1`` ternary spikes; with
    ``scale=0.25`` and four bits, the 2 x 2 average of spikes. Without `check`, any other value
    comes back as an unspecified one of the grid, and so may its up to 15 neighbours in memory.

    Args:
        bits: 1, 2, 4 or 8, the size of an element.
        scale: distance of two values; a whole number for integer tensors.
        lo: the lowest value is ``lo * scale``; may be negative.
        check: whether other values are an error.

    Raises:
        PackError: such a grid is not supported, here or for the dtype of a tensor.
    """

    bits: int
    scale: float = 1.0
    lo: int = 0
    _: KW_ONLY
    check: bool = False

    def __post_init__(self) -> None:
        check_grid(torch.float64, self.bits, self.scale, self.lo)

    def _grid(self) -> tuple[int, float, int]:
        return self.bits, self.scale, self.lo

    def _round_trip(self, piece: Tensor) -> Tensor:
        grid = (self.bits, "flat", self.scale, self.lo)
        packed = pack_bits_reference(piece, *grid)
        return unpack_bits_reference(packed, piece.shape, piece.dtype, *grid)

    def _what(self) -> str:
        return f"only {self.scale} * k for k from {self.lo} to {self.lo + (1 << self.bits) - 1}"


@dataclass(frozen=True)
class SparseSpikeCompressor(_ElementCompressor):
    """Holds 0 and 1 as the places of the ones: an index a spike, so its size depends on the data.

    Smaller than `BitSpikeCompressor` below one spike in 64 elements (32 with int32 indices).
    Without `check`, all that is not 0 comes back as 1. A meta tensor, or a fake one of a mode
    without symbolic sizes, is held as if every element were a spike.

    Args:
        dtype: of the indices: int8, uint8, int16, int32 or int64.
        check: whether other values are an error.

    Raises:
        OptionError: `dtype` is another.
        CompressionError: a tensor has more elements than `dtype` can count.
    """

    requires_strictly_binary = True
    _expected = "only 0 and 1"

    dtype: torch.dtype = torch.int64
    _: KW_ONLY
    check: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in INDEX_DTYPES:
            names = ", ".join(str(dtype) for dtype in INDEX_DTYPES)
            raise OptionError(f"dtype={self.dtype} holds no indices; use one of {names}")

    def _check(self, s_seq: Tensor) -> None:
        if s_seq.numel() - 1 > torch.iinfo(self.dtype).max:
            fitting = next(d for d in INDEX_DTYPES if s_seq.numel() - 1 <= torch.iinfo(d).max)
            raise CompressionError(
                f"SparseSpikeCompressor(dtype={self.dtype}) cannot count the {s_seq.numel()} "
                f"elements of a tensor of shape {tuple(s_seq.shape)}; use dtype={fitting} or wider"
            )
        super()._check(s_seq)

    def _compress(self, s_seq: Tensor) -> Tensor:
        if s_seq.is_meta or (isinstance(s_seq, FakeTensor) and s_seq.fake_mode.shape_env is None):
            return torch.empty(s_seq.numel(), dtype=self.dtype, device=s_seq.device)
        flat = (s_seq if s_seq.is_contiguous() else s_seq != 0).reshape(-1)
        if self.dtype == torch.int64:
            return flat.nonzero().reshape(-1)
        return torch.cat([*self._narrow_indices(flat)])

    def _narrow_indices(self, flat: Tensor) -> Iterator[Tensor]:
        """The indices in pieces, since they are found as int64."""
        for i, piece in enumerate(flat.split(INDEX_ELEMENTS)):
            yield piece.nonzero().reshape(-1).add_(i * INDEX_ELEMENTS).to(self.dtype)

    def _expand(self, s_seq: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        x = torch.zeros(shape, dtype=dtype, device=s_seq.device)
        flat = x.view(-1)
        for indices in s_seq.split(INDEX_ELEMENTS):
            flat.index_fill_(0, indices.to(torch.int64), 1)
        return x
