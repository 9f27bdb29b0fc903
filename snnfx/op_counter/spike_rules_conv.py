"""Convolutions, forward and backward, in any number of dimensions.

**Geometry.** A convolution ties each position s of a *small* grid to the positions
``l = s * stride - padding + k * dilation`` of a *large* one, k running over the kernel, separately
in each dimension. Small is the output and large the input; transposed, the other way round. The
weight is ``[C_small, C_large / groups, *kernel]`` in both cases. The products that a forward sums
are those of all ``(sample, s, k, c_small, c_large)`` whose channels are in one group, and so are
those of both gradients: the three pair weight and input, weight and the gradient of the output,
input and the gradient of the output, and sum over what is left.

**Uses.** An element of the large grid is used once for each s and k that reach it, in each of the
``C_small / groups`` channels: the number of (s, k) is the product over the dimensions of a vector,
its *coverage*. An element of the small grid is used once for each k whose l is on the large grid,
in each of ``C_large / groups`` channels. So the accumulations of a spiking convolution are a sum of
the spikes, weighted by the vectors, and no convolution has to run. Spikes meet the weights only
where there are both: what a kernel that reaches into the padding would read is no spike.

**Dense counts** take padding as zeros that are multiplied (as does SpikingJelly):
``samples * positions of the small grid * weights``; so do spiking weights with a dense input.

**Backward** (an extension: the peer counts that of linear layers, which are matrix products, and
leaves convolutions out): the gradient of the input is of MACs unless weight or gradient are binary,
that of the weight turns into accumulations for each use of a spike of the input.

Corrections of what SpikingJelly 2.0.0 counts: it convolves spikes with ones in float32, by
whichever algorithm is fastest, and cuts off what comes out. Sums of more than 2 ** 24, and
algorithms that transform the input, do not give integers. Here integers are summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

from torch import Tensor

from snnfx.op_counter.operands import sum_of_terms
from snnfx.op_counter.spike_products import Coverage, Operand, Product
from snnfx.op_counter.spike_table import Work, linear
from snnfx.op_counter.spikes import SpikeCall, exact_sum

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """One dimension of a convolution.

    Attributes:
        small: positions s.
        large: positions l.
        kernel: positions k.
        stride: of l as s grows.
        padding: how far the first l are before the grid.
        dilation: of l as k grows.
    """

    small: int
    large: int
    kernel: int
    stride: int
    padding: int
    dilation: int


@dataclass(frozen=True)
class Tap:
    """The positions that one place of a kernel ties together.

    Attributes:
        small: on the small grid.
        large: on the large grid, as many.
    """

    small: slice
    large: slice


@lru_cache(maxsize=1024)
def taps(grid: Grid) -> tuple[Tap, ...]:
    """One for each k: those s with ``0 <= s * stride + offset < large``, and their l."""
    found: list[Tap] = []
    for k in range(grid.kernel):
        offset = k * grid.dilation - grid.padding
        first = max(0, -(offset // grid.stride))
        last = min(grid.small - 1, (grid.large - 1 - offset) // grid.stride)
        count = max(0, last - first + 1)
        start = first * grid.stride + offset if count else 0
        end = start + (count - 1) * grid.stride + 1 if count else 0
        first = first if count else 0
        found.append(Tap(slice(first, first + count), slice(start, end, grid.stride)))
    return tuple(found)


@lru_cache(maxsize=1024)
def coverage(grid: Grid, of_large: bool) -> tuple[int, ...]:
    """How many (s, k) reach each l; or, of the small grid, how many k each s reaches l by."""
    reached = [0] * (grid.large if of_large else grid.small)
    for tap in taps(grid):
        positions = range(len(reached))[tap.large if of_large else tap.small]
        for position in positions:
            reached[position] += 1
    return tuple(reached)


@dataclass(frozen=True)
class Convolution:
    """The products of a convolution.

    Attributes:
        grids: of each dimension.
        samples: of a batch.
        small: channels of the small grid.
        large: channels of the large grid, in one group.
        groups: how many.
    """

    grids: tuple[Grid, ...]
    samples: int
    small: int
    large: int
    groups: int

    @property
    def dense(self) -> int:
        """All products, with those of zeros in the padding."""
        spatial = prod(grid.small * grid.kernel for grid in self.grids)
        return self.samples * spatial * self.small * self.large

    @property
    def inside(self) -> int:
        """All products of elements."""
        spatial = prod(sum(coverage(grid, False)) for grid in self.grids)
        return self.samples * spatial * self.small * self.large

    def of_large(self, position: int) -> Operand:
        """What is on the large grid."""
        return Operand(position, self.small // self.groups, self._coverage(True))

    def of_small(self, position: int) -> Operand:
        """What is on the small grid."""
        return Operand(position, self.large, self._coverage(False))

    def of_weight(self, position: int) -> Operand:
        """The weight, each element of it used at each position of the small grid."""
        return Operand(position, self.samples * prod(grid.small for grid in self.grids))

    def _coverage(self, of_large: bool) -> Coverage:
        return tuple(coverage(grid, of_large) for grid in self.grids)

    def product(
        self, left: Operand, right: Operand, contract: Callable[[Tensor, Tensor], Tensor]
    ) -> Product:
        """All products of two operands."""
        return Product(left, right, self.dense, contract, self.inside)

    def tied(self) -> Iterator[tuple[Sizes, tuple[slice, ...], tuple[slice, ...]]]:
        """Of each place of the kernel, the positions on the small and on the large grid."""
        for places in product(*(enumerate(taps(grid)) for grid in self.grids)):
            yield (
                tuple(k for k, _ in places),
                tuple(tap.small for _, tap in places),
                tuple(tap.large for _, tap in places),
            )

    def large_with_weight(self, large: Tensor, weight: Tensor) -> Tensor:
        """Coincidences of ``[N, C_large * groups, *]`` and the weight."""
        totals = exact_sum(large, [0])
        grouped = weight.unflatten(0, (self.groups, -1))
        weights = exact_sum(grouped, [1]).flatten(0, 1)
        return self._with_weights(totals, weights, of_large=True)

    def small_with_weight(self, small: Tensor, weight: Tensor) -> Tensor:
        """Coincidences of ``[N, C_small, *]`` and the weight."""
        return self._with_weights(exact_sum(small, [0]), exact_sum(weight, [1]), of_large=False)

    def _with_weights(self, totals: Tensor, weights: Tensor, of_large: bool) -> Tensor:
        """Of ``[C, *]``, the sum over samples, and ``[C, *kernel]``, that over other channels."""
        found = totals.new_zeros(())
        spatial = list(range(1, totals.ndim))
        for k, small, large in self.tied():
            reached = totals[(slice(None), *(large if of_large else small))]
            found += (reached.sum(spatial) * weights[(slice(None), *k)]).sum()
        return found

    def small_with_large(self, small: Tensor, large: Tensor) -> Tensor:
        """Coincidences of ``[N, C_small, *]`` and ``[N, C_large * groups, *]``."""
        smalls = exact_sum(small.unflatten(1, (self.groups, -1)), [2])
        larges = exact_sum(large.unflatten(1, (self.groups, -1)), [2])
        found = smalls.new_zeros(())
        whole = (slice(None), slice(None))
        for _, at_small, at_large in self.tied():
            found += (smalls[whole + at_small] * larges[whole + at_large]).sum()
        return found

    def large_with_small(self, large: Tensor, small: Tensor) -> Tensor:
        """See `small_with_large`."""
        return self.small_with_large(small, large)


def _convolution(small: Tensor, large: Tensor, weight: Tensor, options: Sequence[Any]) -> Any:
    """From the tensors on both grids, and ``stride, padding, dilation, groups``."""
    kernel = weight.shape[2:]
    stride, padding, dilation = (_each(option, len(kernel)) for option in options[:3])
    grids = tuple(
        Grid(*(int(size) for size in sizes))
        for sizes in zip(
            small.shape[2:], large.shape[2:], kernel, stride, padding, dilation, strict=True
        )
    )
    return Convolution(grids, small.shape[0], weight.shape[0], weight.shape[1], options[3])


def _each(option: int | Sequence[int], dimensions: int) -> list[int]:
    """An option that may be given once for all dimensions."""
    values = [option] if isinstance(option, int) else list(option)
    return values * dimensions if len(values) == 1 else values


@linear("convolution", "_convolution", "convolution_overrideable")
def convolution(call: SpikeCall) -> tuple[Product, ...]:
    """``(input, weight, bias, stride, padding, dilation, transposed, _, groups)``."""
    x, weight, _, stride, padding, dilation, transposed, _, groups = call.args[:9]
    options = (stride, padding, dilation, groups)
    if transposed:
        conv = _convolution(x, call.out, weight, options)
        return (conv.product(conv.of_small(0), conv.of_weight(1), conv.small_with_weight),)
    conv = _convolution(call.out, x, weight, options)
    return (conv.product(conv.of_large(0), conv.of_weight(1), conv.large_with_weight),)


def _bias_sums(call: SpikeCall) -> Work:
    """The gradient of a bias: the sum over samples and positions, of each channel."""
    gradient, mask = call.args[0], call.args[-1]
    return Work(ac=sum_of_terms(gradient.numel(), gradient.shape[1]) if mask[2] else 0)


@linear("convolution_backward", "convolution_backward_overrideable", besides=_bias_sums)
def convolution_backward(call: SpikeCall) -> tuple[Product, ...]:
    """The gradients that the mask asks for.

    ``(grad_out, input, weight, [bias sizes,] stride, padding, dilation, transposed, _, groups,
    mask)``.
    """
    gradient, x, weight = call.args[:3]
    rest = call.args[len(call.args) - 7 :]
    stride, padding, dilation, transposed, _, groups, mask = rest
    options = (stride, padding, dilation, groups)
    small, large = (x, gradient) if transposed else (gradient, x)
    conv = _convolution(small, large, weight, options)
    products: list[Product] = []
    if mask[0]:
        products.append(_of_input(conv, transposed))
    if mask[1]:
        products.append(_of_weight(conv, transposed))
    return tuple(products)


def _of_input(conv: Convolution, transposed: bool) -> Product:
    """The gradient of the output with the weight."""
    if transposed:
        return conv.product(conv.of_large(0), conv.of_weight(2), conv.large_with_weight)
    return conv.product(conv.of_small(0), conv.of_weight(2), conv.small_with_weight)


def _of_weight(conv: Convolution, transposed: bool) -> Product:
    """The gradient of the output with the input."""
    if transposed:
        return conv.product(conv.of_small(1), conv.of_large(0), conv.small_with_large)
    return conv.product(conv.of_large(1), conv.of_small(0), conv.large_with_small)
