"""FLOPs of normalisations.

With n elements in c groups that are normalised together (channels of a batch norm, rows of a layer
norm): the mean takes n, the variance as the mean of squares less the square of the mean 2 n + 2 c,
``sqrt(variance + eps)`` 2 c, ``(x - mean) / std`` 2 n, a scale and a shift n each.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_names import packets
from snnfx.op_counter.operands import Args, Kwargs, argument, sum_of_terms


@FLOPS.rule(
    *packets(
        ["native_batch_norm", "_native_batch_norm_legit_functional", "cudnn_batch_norm",
         "miopen_batch_norm", "_native_batch_norm_legit"]
    )
)  # fmt: skip
def batch_norm_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, weight, bias, running_mean, running_var, training, ...)``; weights are affine."""
    training = argument(args, kwargs, 5, "training", False)
    return _batch_norm(args[0], args[1], argument(args, kwargs, 3, "running_mean"), training)


@FLOPS.rule(*packets(["_native_batch_norm_legit.no_stats"]))
def batch_norm_without_statistics_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, weight, bias, training, ...)``."""
    return _batch_norm(args[0], args[1], None, argument(args, kwargs, 3, "training", False))


@FLOPS.rule(*packets(["_batch_norm_with_update", "_batch_norm_with_update_functional"]))
def batch_norm_update_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A batch norm that is training."""
    return _batch_norm(args[0], args[1], args[3], True)


@FLOPS.rule(*packets(["_batch_norm_no_update", "_native_batch_norm_legit_no_training"]))
def batch_norm_inference_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A batch norm that takes its running statistics."""
    return _batch_norm(args[0], args[1], args[3], False)


def _batch_norm(x: Tensor, weight: Any, running: Any, training: bool) -> int:
    """Running statistics take three for each of two: ``old + momentum * (new - old)``."""
    n, c = x.numel(), x.shape[1]
    flops = _normalised(n, c, affine=weight is not None)
    if training:
        flops += 3 * n + 2 * c + (6 * c if running is not None else 0)
    return flops


def _normalised(n: int, groups: int, affine: bool) -> int:
    """What follows mean and variance."""
    return 2 * n + 2 * groups + (2 * n if affine else 0)


@FLOPS.rule(*packets(["native_batch_norm_backward", "batch_norm_backward"]))
def batch_norm_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_out, input, weight, mean, var, saved mean, saved invstd, train, eps, mask)``."""
    training = argument(args, kwargs, 7, "train", False)
    mask = argument(args, kwargs, 9, "output_mask", (True, True, True))
    return _batch_norm_backward(args[0], args[2] is not None, training, mask)


@FLOPS.rule(*packets(["cudnn_batch_norm_backward", "miopen_batch_norm_backward"]))
def cudnn_batch_norm_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, grad_out, weight, ...)``; always training, and all three gradients."""
    return _batch_norm_backward(args[1], args[2] is not None, True, (True, True, True))


def _batch_norm_backward(
    gradient: Tensor, affine: bool, training: bool, mask: Sequence[bool]
) -> int:
    """The gradients of a batch norm of n elements in c channels, ``x̂ = (x - mean) invstd``.

    Training, with that of the input: x̂ 2 n; the channel sums of g and of ``g x̂``, which are the
    gradients of bias and weight as well, ``n - c`` and ``2 n - c``; and
    ``invstd weight / n (n g - sum g - x̂ sum(g x̂))`` 5 n + 2 c. Without a weight (a correction) the
    factor is ``invstd / n``, so c less: ``10 n - c``. With running statistics the input's is
    ``g invstd weight``, 2 n, or n without a weight.
    """
    n, c = gradient.numel(), gradient.shape[1]
    sum_g, sum_gx = sum_of_terms(n, c), 2 * n - min(c, n)
    if not training:
        flops = (2 * n if affine else n) if mask[0] else 0
        return flops + (2 * n + sum_gx if mask[1] else 0) + (sum_g if mask[2] else 0)
    if mask[0]:
        return 2 * n + sum_g + sum_gx + 5 * n + (2 * c if affine else c)
    return (2 * n + sum_gx if mask[1] else 0) + (sum_g if mask[2] else 0)


@FLOPS.rule(*packets(["native_layer_norm"]))
def layer_norm_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Rows of ``normalized_shape``; weight and bias are given each by itself."""
    n, rows = args[0].numel(), _rows(args[0], args[1])
    scales = sum(x is not None for x in args[2:4])
    return 3 * n + 2 * rows + _normalised(n, rows, affine=False) + scales * n


@FLOPS.rule(*packets(["native_group_norm"]))
def group_norm_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, weight, bias, N, C, HxW, groups, eps)``: rows of one sample and group."""
    n, rows = args[0].numel(), args[3] * args[6]
    scales = sum(x is not None for x in args[1:3])
    return 3 * n + 2 * rows + _normalised(n, rows, affine=False) + scales * n


@FLOPS.rule(*packets(["native_layer_norm_backward"]))
def layer_norm_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_out, input, normalized_shape, mean, rstd, weight, bias, mask)``."""
    x, shape, weight, mask = args[1], args[2], args[5], args[7]
    return _rows_backward(x.numel(), _rows(x, shape), prod(shape), weight is not None, mask)


@FLOPS.rule(*packets(["native_group_norm_backward"]))
def group_norm_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_out, input, mean, rstd, weight, N, C, HxW, groups, mask)``."""
    x, weight, batch, channels, groups, mask = *args[1:2], *args[4:7], *args[8:10]
    return _rows_backward(x.numel(), batch * groups, channels, weight is not None, mask)


def _rows_backward(n: int, rows: int, weights: int, affine: bool, mask: Sequence[bool]) -> int:
    """The gradients of a norm of rows, whose weights lie across them.

    ``x̂`` 2 n, shared; for the input ``h = g weight`` n; the row sums of h and ``h x̂`` n - rows and
    2 n - rows; ``invstd / m (m h - sum h - x̂ sum(h x̂))`` 5 n + rows. For the weight the sum of
    ``g x̂`` 2 n - weights, for the bias that of g.
    """
    flops = 2 * n if mask[0] or mask[1] else 0
    if mask[0]:
        flops += sum_of_terms(n, rows) + 2 * n - min(rows, n) + 5 * n + rows
        flops += n if affine else 0
    if mask[1]:
        flops += 2 * n - min(weights, n)
    return flops + (sum_of_terms(n, weights) if mask[2] else 0)


@FLOPS.rule(*packets(["_fused_rms_norm"]))
def rms_norm_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``x weight / sqrt(mean of squares + eps)``: 2 n, 2 a row, then n, and n for a weight."""
    n, rows = args[0].numel(), _rows(args[0], args[1])
    return 3 * n + 2 * rows + (n if args[2] is not None else 0)


@FLOPS.rule(*packets(["_fused_rms_norm_backward"]))
def rms_norm_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_out, input, normalized_shape, rstd, weight, mask)``.

    ``x̂ = x rstd`` n, shared; for the input ``h = g weight`` n, the row means of ``h x̂`` 2 n, and
    ``rstd (h - x̂ mean)`` 3 n; for the weight the sum of ``g x̂``.
    """
    x, shape, weight, mask = args[1], args[2], args[4], args[5]
    n = x.numel()
    flops = n if mask[0] or mask[1] else 0
    if mask[0]:
        flops += 5 * n + (n if weight is not None else 0)
    return flops + (2 * n - min(prod(shape), n) if mask[1] else 0)


def _rows(x: Tensor, normalized_shape: Sequence[int]) -> int:
    return prod(x.shape[: x.dim() - len(normalized_shape)])
