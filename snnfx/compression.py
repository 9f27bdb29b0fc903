"""What every spike compressor has in common: the payload, the two hooks, strides brought back.

A compressor of one's own derives from `BaseSpikeCompressor` and defines `_compress` and
`_decompress`, with the signatures that they have in SpikingJelly's `memopt`. Differently from
there, `compress` returns a `CompressedSpikes`, which knows the shape, dtype and strides; so
compressors hold nothing of a call, and one may serve many layers, calls and threads.

The strides of a dense tensor are brought back whatever the hooks do; a tensor with gaps or overlaps
comes back contiguous. Compressing is not differentiable and records nothing for autograd.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from snnfx.errors import CompressionError


@final
@dataclass(frozen=True, slots=True, eq=False)
class CompressedSpikes:
    """What `BaseSpikeCompressor.compress` returns: the small tensor and how to read it.

    Attributes:
        data: the compressed tensor, of whatever shape and dtype its compressor chose.
        shape: of the tensor that was compressed, and so `dtype` and `stride`.
        dtype: see above.
        stride: where it was dense but not in the order of its dimensions; else None.
    """

    data: Tensor
    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...] | None

    @property
    def nbytes(self) -> int:
        """Size of the compressed tensor in bytes."""
        return self.data.nbytes

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors inside, for whoever has to save them through autograd."""
        return (self.data,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> CompressedSpikes:
        """The same with other tensors inside, as many as `tensors` gave."""
        (data,) = tensors
        return replace(self, data=data)


class BaseSpikeCompressor(abc.ABC):
    """A way to a small tensor and back; subclasses define `_compress` and `_decompress`.

    Attributes:
        requires_strictly_binary: whether only tensors of zeros and ones are held; whoever chooses
            a compressor asks this.
    """

    requires_strictly_binary: ClassVar[bool] = False

    _in_memory_order: ClassVar[bool] = False
    """Whether the hooks take any order of elements: a dense tensor is then read as it lies."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A class that overrides a hook means it, even where its parent has a faster way.
        if _distance(cls, "_decompress") < _distance(cls, "_decompress_to"):
            cls._decompress_to = BaseSpikeCompressor._decompress_to
        if _distance(cls, "_compress", "_decompress") < _distance(cls, "_expand"):
            cls._in_memory_order = False

    @abc.abstractmethod
    def _compress(self, s_seq: Tensor) -> Tensor:
        """The compressed form of `s_seq`, any shape; runs without gradients."""

    @abc.abstractmethod
    def _decompress(self, s_seq: Tensor, shape: torch.Size) -> Tensor:
        """The tensor of `shape` that `_compress` made `s_seq` of, in any dtype that holds it."""

    def _decompress_to(self, s_seq: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """`_decompress`, in `dtype`; overridden where that needs no step between."""
        return self._decompress(s_seq, shape).to(dtype)

    def compress(self, s_seq: Tensor) -> CompressedSpikes:
        """Compress `s_seq`, any shape and strides."""
        with torch.no_grad():
            stride = _stride_to_restore(s_seq)
            x = s_seq
            if self._in_memory_order and stride is not None:
                x = s_seq.permute(memory_order(stride))
            return CompressedSpikes(self._compress(x), s_seq.shape, s_seq.dtype, stride)

    def decompress(self, s_seq: CompressedSpikes, shape: Sequence[int] | None = None) -> Tensor:
        """Give back the tensor that was compressed; it does not require gradients.

        Args:
            s_seq: the result of this compressor's `compress`.
            shape: the shape expected. Not needed; accepted because SpikingJelly asks for it.

        Raises:
            CompressionError: `s_seq` is not such a result, or comes from another shape.
        """
        check_payload(self, s_seq, shape)
        with torch.no_grad():
            if self._in_memory_order and s_seq.stride is not None:
                order = memory_order(s_seq.stride)
                stored = torch.Size([s_seq.shape[d] for d in order])
                x = self._decompress_to(s_seq.data, stored, s_seq.dtype)
                x = x.permute([order.index(d) for d in range(len(order))])
            else:
                x = self._decompress_to(s_seq.data, s_seq.shape, s_seq.dtype)
            if x.shape != s_seq.shape:
                raise CompressionError(
                    f"{type(self).__name__}._decompress gave shape {tuple(x.shape)}, expected "
                    f"{tuple(s_seq.shape)}; return a tensor of the shape it is called with"
                )
            # Detached, since a view made here could not be written into where gradients are on.
            return _with_stride(x, s_seq.stride).detach()


def check_payload(
    compressor: BaseSpikeCompressor, s_seq: object, shape: Sequence[int] | None
) -> None:
    """Check that `s_seq` can be decompressed, to `shape` where that is given.

    Raises:
        CompressionError: it is not a `CompressedSpikes`, or holds another shape.
    """
    name = type(compressor).__name__
    if not isinstance(s_seq, CompressedSpikes):
        raise CompressionError(
            f"{name}.decompress takes the CompressedSpikes that compress returned, got "
            f"{type(s_seq).__name__}; pass that result on as it is"
        )
    if shape is not None and tuple(shape) != tuple(s_seq.shape):
        raise CompressionError(
            f"{name}.decompress was asked for shape {tuple(shape)}, but the spikes had shape "
            f"{tuple(s_seq.shape)}; leave the shape out, and reshape the result"
        )


def _distance(cls: type, *names: str) -> int:
    """How far up the bases of `cls` the first one that defines any of `names` is."""
    found = (i for i, base in enumerate(cls.__mro__) if any(name in vars(base) for name in names))
    return next(found, len(cls.__mro__))


def _contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def memory_order(stride: Sequence[int]) -> list[int]:
    """The dimensions from the slowest in memory to the fastest."""
    order: list[int] = []
    for d, step in enumerate(stride):  # Dynamo does not follow a sort of symbolic strides
        place = len(order)
        while place > 0 and stride[order[place - 1]] < step:
            place -= 1
        order.insert(place, d)
    return order


def _stride_to_restore(x: Tensor) -> tuple[int, ...] | None:
    """The strides of a dense tensor; None where a new tensor has them, or if it is not dense."""
    stride = x.stride()
    if stride == _contiguous_stride(x.shape):
        return None
    is_dense = x.is_contiguous() or x.permute(memory_order(stride)).is_contiguous()
    return stride if is_dense else None


def _with_stride(x: Tensor, stride: tuple[int, ...] | None) -> Tensor:
    """`x` with `stride`, by default contiguous; copied only where elements have to move."""
    stride = _contiguous_stride(x.shape) if stride is None else stride
    if x.stride() == stride:
        return x
    moving = [d for d, size in enumerate(x.shape) if size > 1]
    if x.numel() == 0 or all(x.stride(d) == stride[d] for d in moving):
        return x.as_strided(x.shape, stride)
    return torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device).copy_(x)
