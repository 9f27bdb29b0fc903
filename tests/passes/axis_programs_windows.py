"""Steps of random programs that look through windows: our pooling, patches, transposed kernels."""

from __future__ import annotations

import torch

from tests.passes.axis_programs import Program, aten, shape, snn, step


@step
def pooled_for_regions(p: Program) -> None:
    image = p.image(4)
    if image is None:
        return
    size = [p.pick(1, 2), p.pick(1, 2)]
    window = (size, p.pick([1, 1], [2, 2]), [0, p.pick(0, size[1] // 2)])
    largest = p.call(snn.max_pool2d.default, image, *window)
    offsets = p.call(snn.max_pool2d_offsets.default, image, *window)
    if largest is None or offsets is None:
        return
    grad = p.call(aten.mul.Tensor, largest, 0.5)
    sizes = list(shape(image))
    p.call(snn.max_pool2d_backward.default, grad, offsets, sizes, *window)
    p.call(snn.avg_pool2d_backward.default, grad, sizes, *window)


@step
def pooled_packed(p: Program) -> None:
    """Steps that are packed along time: all of them in a byte or two, and the rest sliced."""
    whole = p.image(5)
    if whole is None:
        return
    kind, bits = p.pick("average", "maximum", "offsets"), p.pick(1, 2)
    spikes = p.call(aten.gt.Scalar, whole, 0)
    packed = p.call(snn.pack_bits.default, spikes, bits, "time")
    if packed is None:
        return
    size = [p.pick(1, 2), p.pick(1, 2)]
    window = (size, p.pick([1, 1], [2, 2]), [0, size[1] // 2])
    values = (torch.float64, bits, 1.0, 0, kind)
    pooled = p.call(snn.pool_packed.default, packed, list(shape(whole)), *values, *window)
    p.call(aten._to_copy.default, pooled, dtype=torch.float64)


@step
def patches(p: Program) -> None:
    image = p.image(p.pick(3, 4))
    if image is None:
        return
    kernel, dilation = [p.pick(1, 2), p.pick(1, 2)], p.pick([1, 1], [1, 2])
    window = (kernel, dilation, p.pick([0, 0], [1, 0]), p.pick([1, 1], [2, 1]))
    columns = p.call(aten.im2col.default, image, *window)
    twice = p.call(aten.mul.Tensor, columns, 2.0)
    p.call(aten.col2im.default, twice, list(shape(image)[-2:]), *window)


@step
def convolved_transposed(p: Program) -> None:
    rank = p.pick(3, 4)
    image = p.image(rank)
    if image is None:
        return
    dims, channels = rank - 2, p.pick(1, 2)
    weight = p.constant([shape(image)[1], channels, *[p.pick(1, 3)] * dims])
    bias = p.pick(None, p.constant([channels]))
    numbers = ([2] * dims, [0] * dims, [1] * dims, True, [p.pick(0, 1)] * dims, 1)
    result = p.call(aten.convolution.default, image, weight, bias, *numbers)
    if result is not None:
        mask = [p.pick(True, False), True, bias is not None]
        grad = p.call(aten.mul.Tensor, result, 0.5)
        back = (grad, image, weight, [channels], *numbers, mask)
        p.items(p.call(aten.convolution_backward.default, *back))
