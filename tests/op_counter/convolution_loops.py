"""Convolutions as loops over single products, which count them: the reference of the rules.

A convolution relates a large tensor (padded), a small one, and a weight: each product joins the
large one at ``position * stride + tap * dilation``, the small one at ``position`` and the weight at
``tap``. Forward, transposed forward and the three gradients differ in which of the three is summed
up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Index = tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """How a convolution steps; see `torch.nn.functional.conv2d`."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    transposed: bool

    def arguments(self) -> tuple[object, ...]:
        """As ``aten.convolution`` takes them after the bias."""
        return (
            list(self.stride), list(self.padding), list(self.dilation), self.transposed,
            list(self.output_padding), self.groups,
        )  # fmt: skip


def products(
    small: Tensor, weight: Tensor, geometry: Geometry
) -> Iterator[tuple[Index, Index, Index]]:
    """The indices into the three tensors that one product joins, for every product."""
    channels, per_group = weight.shape[0] // geometry.groups, weight.shape[1]
    sizes = (*small.shape[:1], *weight.shape[:2], *small.shape[2:], *weight.shape[2:])
    dims = small.dim() - 2
    for n, o, i, *rest in itertools.product(*(range(size) for size in sizes)):
        position, tap = rest[:dims], rest[dims:]
        place = [
            p * s + k * d
            for p, k, s, d in zip(position, tap, geometry.stride, geometry.dilation, strict=True)
        ]
        channel = o // channels * per_group + i
        yield (n, channel, *place), (n, o, *position), (o, i, *tap)


def padded(x: Tensor, geometry: Geometry) -> Tensor:
    """Zeros around each spatial dimension."""
    return F.pad(x, [p for p in reversed(geometry.padding) for _ in range(2)])


def cropped(x: Tensor, geometry: Geometry) -> Tensor:
    """Without what `padded` adds."""
    for d, p in enumerate(geometry.padding):
        x = x.narrow(d + 2, p, x.shape[d + 2] - 2 * p)
    return x


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, out: Tensor
) -> tuple[Tensor, int]:
    """The result, of the shape of `out`, and the FLOPs that it took."""
    if geometry.transposed:
        large, small = torch.zeros_like(padded(out, geometry)), x
    else:
        large, small = padded(x, geometry), torch.zeros_like(out)
    flops = 0
    for at_large, at_small, at_weight in products(small, weight, geometry):
        if geometry.transposed:
            large[at_large] += small[at_small] * weight[at_weight]
        else:
            small[at_small] += large[at_large] * weight[at_weight]
        flops += 2
    result = cropped(large, geometry) if geometry.transposed else small
    if bias is not None:
        result = result + bias.view(-1, *[1] * (x.dim() - 2))
        flops += result.numel()
    return result, flops


def gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, geometry: Geometry
) -> tuple[list[Tensor], list[int]]:
    """Those of input, weight and bias, and the FLOPs of each."""
    outer, inner = (gradient, x) if geometry.transposed else (x, gradient)
    large, small = padded(outer, geometry), inner
    of_large, of_small, of_weight = (torch.zeros_like(t) for t in (large, small, weight))
    flops = [0, 0, 0]
    for at_large, at_small, at_weight in products(small, weight, geometry):
        if geometry.transposed:
            of_small[at_small] += large[at_large] * weight[at_weight]
        else:
            of_large[at_large] += small[at_small] * weight[at_weight]
        of_weight[at_weight] += large[at_large] * small[at_small]
        flops[0] += 2
        flops[1] += 2
    of_bias, flops[2] = _channel_sums(gradient)
    of_input = of_small if geometry.transposed else cropped(of_large, geometry)
    return [of_input, of_weight, of_bias], flops


def _channel_sums(gradient: Tensor) -> tuple[Tensor, int]:
    """The sum of each channel, added up one by one."""
    sums, flops = [], 0
    for channel in gradient.transpose(0, 1).flatten(1):
        total = channel[0]
        for value in channel[1:]:
            total = total + value
            flops += 1
        sums.append(total)
    return torch.stack(sums), flops
