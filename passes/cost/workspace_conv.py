"""Workspace of convolutions on the CPU: oneDNN's blocked copies, and the columns of slow_conv2d.

PyTorch (`aten/src/ATen/native/Convolution.cpp`) gives a convolution of float32, bfloat16 or float16
to oneDNN (`ConvBackend::Mkldnn`) in most cases, and one of float64 to `slow_conv2d`. What oneDNN
allocates for itself goes through PyTorch's allocator (`native/mkldnn/IDeepRegistration.cpp`).

oneDNN computes in the layout it likes and reorders what comes in another one:

- **row-major** ``[N, C, *]``: images are copied into blocks of `block` channels, channel counts
  rounded up to whole blocks, weights likewise in both of their channel dimensions; the result is
  made in blocks and copied out when the other copies are gone. An image of fewer channels than a
  block is read as it is by a kernel larger than 1x1.
- **channels-last**: images are used as they are. PyTorch brings the weight to channels-last and
  oneDNN packs that once more; the gradient of the weight is made in blocks, row-major, and
  channels-last, one after the other.

Measured with torch 2.13.0 (oneDNN 3.12) on a CPU with AVX-512, where blocks have 16 channels; AVX2
is taken to do the same with blocks of 8. Left out: the reduction buffers of several threads.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from snnfx._torch_compat import FakeTensorMode, convolution_backend
from snnfx.passes.analysis.liveness import Phase
from snnfx.passes.fxgraph import size_hint, tensor_value

THREAD_BYTES = 4120
"""Batch descriptors of oneDNN's channels-last kernels: a page and 24 bytes for each thread."""


@dataclass(frozen=True)
class Convolution:
    """Sizes of one convolution; a transposed one is told as the one whose gradient it is.

    Attributes:
        batch: N.
        channels_in: C.
        channels_out: K.
        pixels_in: product of the spatial sizes of the input.
        pixels_out: the same of the output.
        taps: product of the kernel's sizes.
        groups: of channels.
        is_strided: whether a stride is not 1.
        is_plain: whether a pixel is computed from one pixel at the same place (1x1, no padding).
        itemsize: bytes an element.
        backend: PyTorch's name of the implementation.
        channels_last: whether that runs in channels-last.
        copied_bytes: input or gradient that is not in the layout of the implementation.
        weight_is_last: whether the weight comes in channels-last.
    """

    batch: int
    channels_in: int
    channels_out: int
    pixels_in: int
    pixels_out: int
    taps: int
    groups: int
    is_strided: bool
    is_plain: bool
    itemsize: int
    backend: str
    channels_last: bool
    weight_is_last: bool
    copied_bytes: int = 0

    @property
    def image_bytes(self) -> int:
        """Bytes of the input."""
        return self.batch * self.channels_in * self.pixels_in * self.itemsize

    @property
    def result_bytes(self) -> int:
        """Bytes of the output."""
        return self.batch * self.channels_out * self.pixels_out * self.itemsize

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight."""
        per_group = self.channels_in // self.groups
        return self.channels_out * per_group * self.taps * self.itemsize

    def rounded(self, channels: int, block: int) -> int:
        """Channels up to whole blocks; grouped channels are not rounded."""
        return channels if self.groups > 1 else -(-channels // block) * block

    def blocked_image(self, block: int) -> int:
        """Bytes of the input in blocks."""
        return self.image_bytes // self.channels_in * self.rounded(self.channels_in, block)

    def blocked_result(self, block: int) -> int:
        """Bytes of the output in blocks."""
        return self.result_bytes // self.channels_out * self.rounded(self.channels_out, block)

    def blocked_weight(self, block_in: int, block_out: int) -> int:
        """Bytes of the weight with both channel counts rounded; a block of 1 rounds nothing."""
        pair = self.channels_in * self.channels_out
        rounded = self.rounded(self.channels_in, block_in)
        return self.weight_bytes // pair * rounded * self.rounded(self.channels_out, block_out)


def block_channels() -> int:
    """Channels in a block of oneDNN: the floats in a vector register."""
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def forward_phases(conv: Convolution) -> tuple[Phase, ...]:
    """`aten.convolution`: operands copied; then, in blocks, the result copied out.

    Source: `mkldnn_convolution` in `native/mkldnn/Conv.cpp`; `_slow_conv2d_forward` in
    `native/ConvolutionMM2d.cpp`, which unfolds the whole batch to columns.
    """
    if conv.backend == "Slow2d":
        return (Phase(_columns(conv), (0,)),)
    if conv.backend != "Mkldnn":
        return ()
    if conv.channels_last:
        packed = conv.blocked_weight(1, block_channels())
        return (Phase(conv.copied_bytes + _weight_copy(conv) + packed + _threads_bytes(), (0,)),)
    block = block_channels()
    image, weight = _blocked_operands(conv, block)
    result = conv.blocked_result(block)
    working = image + weight + result + _one_pixel_bytes(conv, block)
    return Phase(conv.copied_bytes + working), Phase(conv.copied_bytes + result, (0,))


def transposed_phases(conv: Convolution) -> tuple[Phase, ...]:
    """A transposed `aten.convolution`: the kernel of an input's gradient, or columns.

    Its result has the sizes of `conv`'s input, and its input those of `conv`'s result.

    Source: `mkldnn_convolution_transpose` in `native/mkldnn/Conv.cpp`;
    `slow_conv_transpose2d_out_cpu_template` in `native/NaiveConvolutionTranspose2d.cpp`, whose
    columns ``[N, C * taps, pixels_out]`` are those of the whole batch.
    """
    if conv.backend == "SlowTranspose2d":
        copied = conv.copied_bytes + (_weight_copy(conv) if conv.channels_last else 0)
        unfolded = conv.batch * conv.channels_in * conv.taps * conv.pixels_out * conv.itemsize
        return (Phase(copied + unfolded, (0,)),)
    return tuple(_image_gradient(conv)) if conv.backend == "MkldnnTranspose" else ()


def backward_phases(conv: Convolution, mask: Sequence[bool]) -> tuple[Phase, ...]:
    """`aten.convolution_backward`: the input's gradient (result 0), then the weight's (1).

    Source: `mkldnn_convolution_backward` in `native/mkldnn/Conv.cpp`; `slow_conv2d_backward_cpu` in
    `native/ConvolutionMM2d.cpp`.
    """
    done = (0,) if mask[0] else ()
    made = tuple(i for i, wanted in enumerate(mask) if wanted)
    if conv.backend == "Slow2d":
        return (Phase(_columns(conv), made),)
    if conv.backend != "Mkldnn":
        return ()
    phases: list[Phase] = []
    if mask[0]:
        phases += _image_gradient(conv)
    if mask[1]:
        phases += _weight_gradient(conv, done, made)
    return tuple(phases)


def _image_gradient(conv: Convolution) -> Iterator[Phase]:
    block = block_channels()
    packed = conv.blocked_weight(block, 1)
    if conv.channels_last:
        held = conv.copied_bytes + _weight_copy(conv) + packed
        threads = _strided_bytes(conv) if conv.is_strided else _threads_bytes() + 128
        yield Phase(held + threads, (0,))
    elif conv.is_strided and block == 16 and conv.groups == 1:
        # oneDNN has a kernel for strided gradients in channels-last only. Its result comes in that
        # layout, is copied by oneDNN, and once more by PyTorch.
        working = conv.result_bytes + packed + conv.image_bytes + _strided_bytes(conv)
        yield Phase(conv.copied_bytes + working)
        yield Phase(conv.copied_bytes + 2 * conv.image_bytes, (0,))
    else:
        image = conv.blocked_image(block)
        weight = conv.blocked_weight(block, block)
        yield Phase(conv.copied_bytes + conv.blocked_result(block) + weight + image)
        yield Phase(conv.copied_bytes + image, (0,))


def _weight_gradient(
    conv: Convolution, done: tuple[int, ...], made: tuple[int, ...]
) -> Iterator[Phase]:
    block = block_channels()
    if conv.channels_last:
        image, weight = _blocked_operands(conv, block)
        held = conv.copied_bytes + _weight_copy(conv) + weight
        yield Phase(held + conv.weight_bytes, made)
        return
    if 3 < conv.channels_in < block and conv.taps > 1 and conv.groups == 1:
        block = 8  # the kernel of AVX2: that of AVX-512 takes 1 to 3 channels, or whole blocks
        image = conv.blocked_image(block)
        weight = conv.blocked_weight(block, block)
    else:
        image, weight = _blocked_operands(conv, block)
    scratch = _one_pixel_bytes(conv, block)
    yield Phase(conv.copied_bytes + conv.blocked_result(block) + image + weight + scratch, done)
    yield Phase(conv.copied_bytes + weight, made)


def _blocked_operands(conv: Convolution, block: int) -> tuple[int, int]:
    """Bytes of the copies of image and weight; a first layer's image is not copied."""
    if conv.channels_in < block and conv.taps > 1 and conv.groups == 1:
        return 0, conv.blocked_weight(1, block)
    return conv.blocked_image(block), conv.blocked_weight(block, block)


def _one_pixel_bytes(conv: Convolution, block: int) -> int:
    """A strided 1x1 kernel gathers the pixels that it reads, for each thread."""
    if not conv.is_strided or conv.taps > 1:
        return 0
    channels = conv.rounded(conv.channels_in, block)
    gathered = channels * conv.pixels_out * conv.itemsize
    return 128 + torch.get_num_threads() * gathered


def _weight_copy(conv: Convolution) -> int:
    """The weight in channels-last; a 1x1 kernel is in both layouts at once."""
    return 0 if conv.weight_is_last or conv.taps == 1 else conv.weight_bytes


def _threads_bytes() -> int:
    return (torch.get_num_threads() + 1) * THREAD_BYTES


def _strided_bytes(conv: Convolution) -> int:
    """What the kernel of strided gradients holds: in each thread two descriptors and an image."""
    gathered = conv.result_bytes // conv.batch
    pages = 2 * 4096 + 24 + -(-gathered // 4096) * 4096
    return 3 * 4096 + 128 + torch.get_num_threads() * pages


def _columns(conv: Convolution) -> int:
    """slow_conv2d's unfolded input ``[N, C * taps, pixels_out]``, and copies to its layout."""
    copied = conv.copied_bytes + (_weight_copy(conv) if conv.channels_last else 0)
    if conv.is_plain:
        return copied
    return copied + conv.batch * conv.channels_in * conv.taps * conv.pixels_out * conv.itemsize


def convolution_of(
    image: Tensor,
    weight: Tensor,
    pixels_out: int,
    arguments: Sequence[Any],
    others: Sequence[Tensor],
) -> Convolution:
    """Read the sizes of a convolution.

    Args:
        image: the fake input ``[N, C, *]``; all sizes count as they were when traced.
        weight: ``[K, C / groups, *]``.
        pixels_out: product of the spatial sizes of the output.
        arguments: stride, padding, dilation, transposed, output padding, groups.
        others: the tensors whose layout has to be the implementation's.
    """
    sizes, kernel = _sizes(image), _sizes(weight)
    stride, padding, _, transposed, _, groups = arguments
    steps = tuple(size_hint(step) for step in stride)
    edges = tuple(size_hint(edge) for edge in padding)
    backend, channels_last = _backend(
        _layout(image), _layout(weight), image.dtype, _frozen(arguments), torch.get_num_threads()
    )
    taps = math.prod(kernel[2:])
    is_strided = any(step != 1 for step in steps)
    pixels = math.prod(sizes[2:]), pixels_out
    return Convolution(
        batch=sizes[0],
        channels_in=kernel[1] * groups,
        channels_out=kernel[0],
        pixels_in=pixels[transposed],
        pixels_out=pixels[not transposed],
        taps=taps,
        groups=groups,
        is_strided=is_strided,
        is_plain=taps == 1 and not is_strided and not any(edges),
        itemsize=image.element_size(),
        backend=backend,
        channels_last=channels_last,
        weight_is_last=_is_in(weight, channels_last=True),
        copied_bytes=sum(
            math.prod(_sizes(t)) * t.element_size()
            for t in (image, *others)
            if not _is_in(t, channels_last)
        ),
    )


def _sizes(value: Tensor) -> tuple[int, ...]:
    return tuple(size_hint(size) for size in value.shape)


def _layout(value: Tensor) -> Layout:
    return _sizes(value), tuple(size_hint(stride) for stride in value.stride())


def _is_in(value: Tensor, channels_last: bool) -> bool:
    """Whether the elements lie in this order without gaps."""
    sizes, strides = _layout(value)
    order = [0, *range(2, len(sizes)), 1] if channels_last else range(len(sizes))
    step = 1
    for dim in reversed(list(order)):
        if sizes[dim] != 1 and strides[dim] != step:
            return False
        step *= sizes[dim]
    return True


def _frozen(arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(
        tuple(size_hint(item) for item in arg) if isinstance(arg, (list, tuple)) else arg
        for arg in arguments
    )


Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Sizes and strides."""


@functools.lru_cache(maxsize=4096)
def _backend(
    image: Layout, weight: Layout, dtype: torch.dtype, arguments: tuple[Any, ...], threads: int
) -> tuple[str, bool]:
    """See `convolution_backend`; `threads` is what PyTorch looks at besides."""
    del threads
    with FakeTensorMode():
        x = torch.empty_strided(*image, dtype=dtype)
        w = torch.empty_strided(*weight, dtype=dtype)
        lists = [list(arg) if isinstance(arg, tuple) else arg for arg in arguments]
        return convolution_backend(x, w, None, lists)


def read_convolution(node: Node) -> Convolution | None:
    """The convolution that a node of `aten.convolution` or its backward computes, if it is known.

    The backward of a transposed one is not.
    """
    is_backward = node.target is torch.ops.aten.convolution_backward.default
    first = 1 if is_backward else 0
    image, weight = (_tensor(arg) for arg in node.args[first : first + 2])
    result = _tensor(node.args[0]) if is_backward else tensor_value(node)
    arguments = node.args[4 if is_backward else 3 :][:6]
    if image is None or weight is None or result is None or (is_backward and arguments[3]):
        return None
    pixels_out = math.prod(_sizes(result)[2:])
    return convolution_of(image, weight, pixels_out, arguments, (result,) if is_backward else ())


def _tensor(arg: Any) -> Tensor | None:
    return tensor_value(arg) if isinstance(arg, Node) else None
