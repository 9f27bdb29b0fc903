"""FLOPs of pooling and resizing.

A maximum of k values takes k - 1 comparisons, an average k - 1 additions and a division. Windows
count in full where they reach into the padding. Gradients that meet in one place are added; where
they do depends on values (max-pooling), the fewest additions are counted, none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snnfx.op_counter.counter import Rule
from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_names import names, packets
from snnfx.op_counter.operands import Args, Kwargs, sum_of_terms, window


@FLOPS.rule(*packets(["max_pool2d_with_indices"]))
def max_pool2d_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A kernel of one number is as wide as high (a correction)."""
    return out[0].numel() * (window(args[1], 2) - 1)


@FLOPS.rule(*packets(["max_pool3d_with_indices"]))
def max_pool3d_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """See `max_pool2d_flops`."""
    return out[0].numel() * (window(args[1], 3) - 1)


@FLOPS.rule(*packets(["avg_pool2d"]))
def avg_pool2d_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """A kernel of one number is as wide as high (a correction)."""
    return out.numel() * window(args[1], 2)


@FLOPS.rule(*packets(["avg_pool3d"]))
def avg_pool3d_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `avg_pool2d_flops`."""
    return out.numel() * window(args[1], 3)


@FLOPS.rule(*packets(["avg_pool2d_backward"]))
def avg_pool2d_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Each gradient is divided, and added to all elements of its window but where it is first."""
    return _spread(args[0], out, window(args[2], 2))


@FLOPS.rule(*packets(["avg_pool3d_backward"]))
def avg_pool3d_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `avg_pool2d_backward_flops`."""
    return _spread(args[0], out, window(args[2], 3))


def _spread(gradient: Tensor, out: Tensor, size: int) -> int:
    return gradient.numel() + sum_of_terms(gradient.numel() * size, out.numel())


@FLOPS.rule(*packets(["_adaptive_avg_pool2d"]))
def adaptive_avg_pool2d_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """As many as there are elements in all windows, see `adaptive_windows`."""
    return adaptive_windows(args[0], out, 2)


@FLOPS.rule(*packets(["_adaptive_avg_pool3d"]))
def adaptive_avg_pool3d_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """As many as there are elements in all windows, see `adaptive_windows`."""
    return adaptive_windows(args[0], out, 3)


@FLOPS.rule(*packets(["_adaptive_avg_pool2d_backward"]))
def adaptive_avg_pool2d_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `avg_pool2d_backward_flops`."""
    return _adaptive_spread(args[0], out, 2)


@FLOPS.rule(*packets(["_adaptive_avg_pool3d_backward"]))
def adaptive_avg_pool3d_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `avg_pool2d_backward_flops`."""
    return _adaptive_spread(args[0], out, 3)


def _adaptive_spread(gradient: Tensor, out: Tensor, dimensions: int) -> int:
    terms = adaptive_windows(out, gradient, dimensions)
    return gradient.numel() + sum_of_terms(terms, out.numel())


@FLOPS.rule(*packets(["adaptive_max_pool2d"]))
def adaptive_max_pool2d_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """One comparison less than elements, for each window."""
    return adaptive_windows(args[0], out[0], 2) - out[0].numel()


@FLOPS.rule(*packets(["adaptive_max_pool3d"]))
def adaptive_max_pool3d_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """See `adaptive_max_pool2d_flops`."""
    return adaptive_windows(args[0], out[0], 3) - out[0].numel()


def adaptive_windows(large: Tensor, small: Tensor, dimensions: int) -> int:
    """The elements of all windows of adaptive pooling.

    Of `size` elements, the i-th of `count` windows holds those from ``floor(i size / count)`` to
    ``ceil((i + 1) size / count)``.
    """
    total = 1
    for d, (size, count) in enumerate(zip(large.shape, small.shape, strict=True)):
        if d < large.dim() - dimensions:
            total *= count
        else:
            ends = [-(-(i + 1) * size // count) for i in range(count)]
            total *= sum(end - i * size // count for i, end in enumerate(ends))
    return total


_TAPS = {"linear1d": 2, "bilinear2d": 4, "trilinear3d": 8, "bicubic2d": 16}
"""Elements of the input that make one of the output."""


def _interpolation(taps: int) -> Rule:
    """Of k elements: k products and k - 1 additions; the weights, a few a row, are left out."""

    def flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
        return out.numel() * (2 * taps - 1)

    return flops


def _interpolation_backward(taps: int) -> Rule:
    """Each gradient goes, weighted, to the k elements that its result was made of."""

    def flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
        terms = taps * args[0].numel()
        return terms + sum_of_terms(terms, out.numel())

    return flops


for _mode, _taps in _TAPS.items():
    FLOPS.rule(*packets([f"upsample_{_mode}"]))(_interpolation(_taps))
    FLOPS.rule(*packets([f"upsample_{_mode}_backward"]))(_interpolation_backward(_taps))


@FLOPS.rule(
    *packets(
        names("""upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward
        _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward
        _upsample_nearest_exact3d_backward col2im
        reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward
        replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward""")
    )
)
def overlap_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Elements that were one before are summed up."""
    return sum_of_terms(args[0].numel(), out.numel())
