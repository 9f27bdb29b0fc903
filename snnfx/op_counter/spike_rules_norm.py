"""Normalisations: n elements in c groups that are normalised together.

As SpikingJelly counts a batch norm: the sum of a mean takes ``n - c`` ACs, a variance, as the mean
of squares less the square of the mean, n, ``variance + eps`` c, ``x - mean`` n; a scale and a shift
are one MAC an element, and running statistics, ``old + momentum * (new - old)``, a MAC and an AC
each for mean and variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from snnfx.op_counter.operands import Args, Kwargs, argument, sum_of_terms
from snnfx.op_counter.spike_table import Work, fixed


@fixed(
    "native_batch_norm", "_native_batch_norm_legit_functional", "cudnn_batch_norm",
    "miopen_batch_norm", "_native_batch_norm_legit",
)  # fmt: skip
def batch_norm(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(input, weight, bias, running_mean, running_var, training, ...)``."""
    running = argument(args, kwargs, 3, "running_mean")
    return _batch_norm(args[0], args[1], running, argument(args, kwargs, 5, "training", False))


@fixed("_native_batch_norm_legit.no_stats")
def batch_norm_without_statistics(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(input, weight, bias, training, ...)``."""
    return _batch_norm(args[0], args[1], None, argument(args, kwargs, 3, "training", False))


@fixed("_batch_norm_with_update", "_batch_norm_with_update_functional")
def batch_norm_with_update(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """A batch norm that is training."""
    return _batch_norm(args[0], args[1], args[3], True)


@fixed("_batch_norm_no_update", "_native_batch_norm_legit_no_training")
def batch_norm_without_update(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """A batch norm that takes its running statistics."""
    return _batch_norm(args[0], args[1], args[3], False)


def _batch_norm(x: Tensor, weight: Any, running: Any, training: bool) -> Work:
    """See the module."""
    n, c = x.numel(), x.shape[1]
    work = Work(ac=n + c, mac=n if weight is not None else 0)
    if training:
        work += Work(ac=sum_of_terms(n, c) + n)
        if running is not None:
            work += Work(ac=2 * c, mac=2 * c)
    return work


@fixed("native_batch_norm_backward", "batch_norm_backward")
def batch_norm_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(grad_out, input, weight, mean, var, saved mean, saved invstd, train, eps, mask)``."""
    training = argument(args, kwargs, 7, "train", False)
    mask = argument(args, kwargs, 9, "output_mask", (True, True, True))
    return _batch_norm_backward(args[0], training, mask)


@fixed("cudnn_batch_norm_backward", "miopen_batch_norm_backward")
def cudnn_batch_norm_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(input, grad_out, weight, ...)``; always training, and all three gradients."""
    return _batch_norm_backward(args[1], True, (True, True, True))


def _batch_norm_backward(gradient: Tensor, training: bool, mask: Sequence[bool]) -> Work:
    """The gradients of a batch norm of n elements in c channels, ``x̂ = (x - mean) invstd``.

    x̂ takes n ACs; the channel sums of g and ``g x̂``, which are the gradients of bias and weight,
    ``n - c`` ACs and n MACs. With them ``invstd weight (g - mean(g) - x̂ mean(g x̂))`` an AC and a
    MAC an element. With running statistics the gradient of the input is a product.
    """
    n, c = gradient.numel(), gradient.shape[1]
    of_input = training and mask[0]
    work = Work(ac=n, mac=n) if of_input else Work()
    if of_input or mask[1]:
        work += Work(ac=n, mac=n)
    if of_input or mask[2]:
        work += Work(ac=sum_of_terms(n, c))
    return work


@fixed("native_layer_norm")
def layer_norm(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(input, normalized_shape, weight, bias, eps)``."""
    return _rows_norm(args[0].numel(), _rows(args[0], args[1]), args[2], args[3])


@fixed("native_group_norm")
def group_norm(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(input, weight, bias, N, C, HxW, groups, eps)``."""
    return _rows_norm(args[0].numel(), args[3] * args[6], args[1], args[2])


def _rows_norm(n: int, rows: int, weight: Any, bias: Any) -> Work:
    """As a batch norm that is training; a weight alone makes products, a bias alone sums."""
    work = Work(ac=sum_of_terms(n, rows) + 2 * n + rows)
    if bias is not None:
        work += Work(ac=n) if weight is None else Work(mac=n)
    return work


@fixed("native_layer_norm_backward")
def layer_norm_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(grad_out, input, normalized_shape, mean, rstd, weight, bias, mask)``."""
    return _rows_backward(args[1].numel(), _rows(args[1], args[2]), prod(args[2]), args[7])


@fixed("native_group_norm_backward")
def group_norm_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(grad_out, input, mean, rstd, weight, N, C, HxW, groups, mask)``."""
    batch, channels, groups, mask = args[5], args[6], args[8], args[9]
    return _rows_backward(args[1].numel(), batch * groups, channels, mask)


def _rows_backward(n: int, rows: int, weights: int, mask: Sequence[bool]) -> Work:
    """As `_batch_norm_backward`, with sums over rows, and those of weight and bias apart."""
    work = Work(ac=n) if mask[0] or mask[1] else Work()
    if mask[0]:
        work += Work(ac=sum_of_terms(n, rows) + n, mac=2 * n)
    if mask[1]:
        work += Work(mac=n)
    return work + (Work(ac=sum_of_terms(n, weights)) if mask[2] else Work())


@fixed("_fused_rms_norm")
def rms_norm(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``x weight / sqrt(mean of squares + eps)``: the squares are summed up."""
    return Work(mac=args[0].numel(), ac=_rows(args[0], args[1]))


@fixed("_fused_rms_norm_backward")
def rms_norm_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(grad_out, input, normalized_shape, rstd, weight, mask)``.

    For the input the row means of ``h x̂`` and ``h - x̂ mean``, for the weight the sum of ``g x̂``.
    """
    n, mask = args[1].numel(), args[5]
    return Work(mac=(2 * n if mask[0] else 0) + (n if mask[1] else 0))


def _rows(x: Tensor, normalized_shape: Sequence[int]) -> int:
    return prod(x.shape[: x.dim() - len(normalized_shape)])
