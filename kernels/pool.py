"""Pooling operators that regions can take in: no index tensors, no sizes from unneeded tensors.

ATen's max pooling returns flat int64 indices, 8 bytes an element, and its backwards read the full
tensor that was pooled, of which they need no more than the sizes. Here the position of a maximum
is its offset in its window, one byte; values and offsets are two operators, so that each can be
computed where it is needed; and spikes that are packed along time are pooled as they are.

All take images ``[N, C, H, W]`` of float32 or float64; windows are without dilation and never
reach beyond the padding. Results are channels-last where the argument is, as ATen's are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from snnfx.errors import KernelError

aten = torch.ops.aten

MAX_OFFSETS = 255
"""The most elements that a window of max pooling may have: 255 stands for no offset."""

KINDS = ("average", "maximum", "offsets")
_WINDOW = "int[] kernel, int[] stride, int[] padding"
_POOLS = f"(Tensor x, {_WINDOW}) -> Tensor"
_PACKED = (
    "(Tensor packed, int[] shape, ScalarType dtype, int bits, float scale, int lo, str kind, "
    f"{_WINDOW}) -> Tensor"
)


def pooled_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Height and width of what pooling makes of images of this height and width."""
    return [
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)
    ]


@torch.library.custom_op("snnfx::max_pool2d", mutates_args=(), schema=_POOLS)
def max_pool2d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The maximum of each window; NaN if it holds one."""
    return aten.max_pool2d_with_indices(x, kernel, stride, padding)[0]


@torch.library.custom_op("snnfx::max_pool2d_offsets", mutates_args=(), schema=_POOLS)
def max_pool2d_offsets(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Where in its window each maximum is: ``row * kernel width + column``, in uint8.

    The first of equal ones in row-major order, the last NaN, as ATen chooses on the CPU.
    """
    indices = aten.max_pool2d_with_indices(x, kernel, stride, padding)[1]
    top, left = _corners(indices, stride, padding)
    width = x.shape[3]
    rows = indices.div(width, rounding_mode="floor") - top
    return (rows * kernel[1] + indices % width - left).to(torch.uint8)


@torch.library.custom_op(
    "snnfx::max_pool2d_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor offsets, int[] shape, {_WINDOW}) -> Tensor",
)
def max_pool2d_backward(
    grad: Tensor,
    offsets: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The gradient of what was max-pooled, of this shape: each maximum gets its own."""
    top, left = _corners(offsets, stride, padding)
    position = offsets.to(torch.int64)
    rows = top + position.div(kernel[1], rounding_mode="floor")
    indices = rows * shape[3] + left + position % kernel[1]
    like = _empty(grad, shape, grad.dtype)
    return aten.max_pool2d_with_indices_backward(
        grad, like, kernel, stride, padding, [1, 1], False, indices
    )


@torch.library.custom_op(
    "snnfx::avg_pool2d_backward",
    mutates_args=(),
    schema=f"(Tensor grad, int[] shape, {_WINDOW}) -> Tensor",
)
def avg_pool2d_backward(
    grad: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The gradient of what was averaged, padding included, of this shape."""
    like = _empty(grad, shape, grad.dtype)
    return aten.avg_pool2d_backward(grad, like, kernel, stride, padding, False, True, None)


@torch.library.custom_op("snnfx::pool_packed", mutates_args=(), schema=_PACKED)
def pool_packed(
    packed: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    scale: float,
    lo: int,
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Pooling of ``[T, N, C, H, W]`` images that are packed along time.

    Args:
        packed: see `snnfx.kernels.ops.pack_bits`; any strides.
        shape: of what was packed.
        dtype: of what was packed, float32 or float64.
        bits: as it was packed, and so are `scale` and `lo`.
        scale: see above.
        lo: see above.
        kind: ``average`` (padding included), ``maximum`` or ``offsets``.
        kernel: height and width of a window.
        stride: of the windows.
        padding: on each side.

    Returns:
        ``[T * N, C, H', W']`` in the layout of a time step of `packed`; of `dtype`, offsets uint8.
    """
    images = torch.ops.snnfx.unpack_bits(packed, shape, dtype, bits, "time", scale, lo)
    images = images.flatten(0, 1)
    window = kernel, stride, padding
    if kind == "average":
        pooled = aten.avg_pool2d(images, *window)
    else:
        pooled = (max_pool2d if kind == "maximum" else max_pool2d_offsets)(images, *window)
    return pooled.contiguous(memory_format=_format_of(packed[0]))


@max_pool2d.register_fake
def _(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return _pooled(x, x.dtype, kernel, stride, padding)


@max_pool2d_offsets.register_fake
def _(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    return _pooled(x, torch.uint8, kernel, stride, padding)


@max_pool2d_backward.register_fake
def _(
    grad: Tensor,
    offsets: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    del offsets, kernel, stride, padding
    return _empty(grad, shape, grad.dtype)


@avg_pool2d_backward.register_fake
def _(
    grad: Tensor,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    del kernel, stride, padding
    return _empty(grad, shape, grad.dtype)


@pool_packed.register_fake
def _(
    packed: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    bits: int,
    scale: float,
    lo: int,
    kind: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    del bits, scale, lo
    if kind not in KINDS:
        raise KernelError(f"there is no pooling '{kind}'; known: {', '.join(KINDS)}")
    size = pooled_size(shape[3:], kernel, stride, padding)
    result = torch.uint8 if kind == "offsets" else dtype
    return _empty(packed[0], [shape[0] * shape[1], shape[2], *size], result)


def _corners(like: Tensor, stride: Sequence[int], padding: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Row ``[H', 1]`` and column ``[W']`` of the first element of each window, padding included."""
    rows, columns = (
        torch.arange(n, device=like.device) * s - p
        for n, s, p in zip(like.shape[2:], stride, padding, strict=True)
    )
    return rows.unsqueeze(1), columns


def _pooled(
    x: Tensor,
    dtype: torch.dtype,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    size = pooled_size(x.shape[2:], kernel, stride, padding)
    return _empty(x, [*x.shape[:2], *size], dtype)


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor in the memory format of `like`."""
    return like.new_empty(tuple(shape), dtype=dtype).contiguous(memory_format=_format_of(like))


def _format_of(x: Tensor) -> torch.memory_format:
    """Channels-last where strides say so, as ATen decides it for tensors of one channel, too."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_last else torch.contiguous_format
