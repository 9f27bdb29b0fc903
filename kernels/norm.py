"""The operator ``snnfx::batch_norm_statistics``: the full pass of a batch norm, without the rest.

What a batch norm then does to each element is pointwise, and fuses with what is around it.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCHEMA = (
    "(Tensor x, Tensor? running_mean, Tensor? running_var, float momentum, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.custom_op("snnfx::batch_norm_statistics", mutates_args=(), schema=SCHEMA)
def batch_norm_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of each channel, and the running statistics that follow from them.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015; running variance is unbiased.

    Args:
        x: ``[N, C, *]``, float32 or float64.
        running_mean: ``[C]``, or None if none is kept.
        running_var: ``[C]``, or None if none is kept.
        momentum: weight of the new statistics in the running ones.
        eps: added to the variance.

    Returns:
        mean, 1/sqrt(variance + eps), new running mean, new running variance, each ``[C]``; the
        running ones are empty if none are kept.
    """
    new_mean = None if running_mean is None else running_mean.clone()
    new_var = None if running_var is None else running_var.clone()
    mean, variance = torch.ops.aten.batch_norm_update_stats(x, new_mean, new_var, momentum)
    empty = x.new_empty(0)
    return (
        mean,
        (variance + eps).rsqrt(),
        empty if new_mean is None else new_mean,
        x.new_empty(0) if new_var is None else new_var,
    )


@batch_norm_statistics.register_fake
def _(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del momentum, eps
    channels = x.shape[1]
    sizes = (channels, channels, 0 if running_mean is None else channels,
             0 if running_var is None else channels)  # fmt: skip
    first, second, third, fourth = (x.new_empty(size) for size in sizes)
    return first, second, third, fourth
