"""Sums over elements: reductions, pooling, softmax, norms, distances, losses.

n elements that are summed up to m results take ``n - m`` ACs, products n MACs. Reductions count
elements, spikes or not, as SpikingJelly does.

Corrections of what SpikingJelly 2.0.0 counts: a sum of no elements takes no addition (-1 there); a
pooling window given by one number is as wide as high (it counts a row); ``x.mean()`` takes what
``x.mean(dims)`` takes (it has no rule).
"""

from __future__ import annotations

from math import inf
from typing import Any

from torch import Tensor

from snnfx.op_counter.flop_rules_pool import adaptive_windows
from snnfx.op_counter.op_names import names, variants
from snnfx.op_counter.operands import Args, Kwargs, argument, main_result, sum_of_terms, window
from snnfx.op_counter.spike_table import Work, WorkRule, fixed

MEAN, SUM = 1, 2
"""What ``reduction`` of a loss is; 0 is none."""


@fixed("sum", "nansum", "mean", "nanmean")
def total(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``n - m``."""
    return Work(ac=sum_of_terms(args[0].numel(), out.numel()))


@fixed("var", "var_mean", "std", "std_mean")
def variance(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """The sum of a mean, and n, as in a batch norm (`spike_rules_norm`)."""
    n = args[0].numel()
    return Work(ac=sum_of_terms(n, main_result(args, out).numel()) + n)


@fixed("linalg_vector_norm", "norm")
def norm(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """See `_norm`."""
    order = argument(args, kwargs, 1, "ord", kwargs.get("p", 2))
    return _norm(args[0].numel(), out.numel(), order)


@fixed("_foreach_norm")
def foreach_norm(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """A norm of each tensor of a list."""
    order = argument(args, kwargs, 1, "ord", 2)
    return sum((_norm(x.numel(), 1, order) for x in args[0]), Work())


def _norm(n: int, m: int, order: float | None) -> Work:
    """Squares are products that are summed up; other powers are functions, a maximum is no sum."""
    if order in (None, 2):
        return Work(mac=n)
    return Work() if order in (inf, -inf) else Work(ac=sum_of_terms(n, m))


@fixed("_weight_norm_interface")
def weight_norm(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``v * (g / norm of v)`` for each row: squares."""
    return Work(mac=args[0].numel())


@fixed("_weight_norm_interface_backward")
def weight_norm_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``s = sum(grad_w v)`` and ``g / norm (grad_w - v s / norm^2)``."""
    return Work(mac=2 * args[1].numel())


@fixed("_softmax", "_safe_softmax", "softmax.int")
def softmax(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """Differences with the maximum n, sums of exponentials."""
    n = out.numel()
    return Work(ac=n + sum_of_terms(n, _rows(out, argument(args, kwargs, 1, "dim"))))


@fixed("_log_softmax")
def log_softmax(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """As `softmax`, and differences with the logarithm n."""
    return softmax(args, kwargs, out) + Work(ac=out.numel())


@fixed("_softmax_backward_data")
def softmax_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``y (g - sum(g y))``."""
    return Work(ac=out.numel(), mac=out.numel())


@fixed("_log_softmax_backward_data")
def log_softmax_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``g - exp(y) sum(g)``."""
    n = out.numel()
    return Work(ac=sum_of_terms(n, _rows(out, args[2])), mac=n)


@fixed("logsumexp")
def logsumexp(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """Differences with the maximum n, sums, and the maximum once more m."""
    n, m = args[0].numel(), out.numel()
    return Work(ac=n + sum_of_terms(n, m) + m)


@fixed(*variants(["cumsum"]))
def cumulative_sum(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """Each element but the first of a row."""
    return Work(ac=sum_of_terms(args[0].numel(), _rows(args[0], args[1])))


@fixed("logcumsumexp", "_logcumsumexp")
def log_cumulative_sum(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """Each element but the first of a row takes ``max + log1p(exp(-abs(a - b)))``."""
    return Work(ac=2 * sum_of_terms(args[0].numel(), _rows(args[0], args[1])))


@fixed("_cdist_forward")
def distance(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``x1 [.., P, M]``, ``x2 [.., R, M]``: differences, and a norm of M for each pair."""
    terms = out.numel() * args[0].shape[-1]
    return Work(ac=terms) + _norm(terms, out.numel(), args[2])


@fixed("_cdist_backward")
def distance_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``grad (x1 - x2) / distance`` for each pair and component, and their sum over pairs."""
    terms = args[0].numel() * args[1].shape[-1]
    return Work(ac=terms + sum_of_terms(terms, out.numel()))


def _rows(x: Tensor, dim: int) -> int:
    length = x.shape[dim] if x.dim() else 1
    return x.numel() // length if length else 0


def _average(dimensions: int) -> WorkRule:
    """Each window in full, also where it reaches into the padding."""

    def rule(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
        return Work(ac=out.numel() * (window(args[1], dimensions) - 1))

    return rule


def _average_backward(dimensions: int) -> WorkRule:
    """Each gradient is added to all elements of its window but where it is the first."""

    def rule(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
        terms = args[0].numel() * window(args[2], dimensions)
        return Work(ac=sum_of_terms(terms, out.numel()))

    return rule


def _adaptive(dimensions: int) -> WorkRule:
    """The elements of all windows; one less for each."""

    def rule(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
        return Work(ac=adaptive_windows(args[0], out, dimensions) - out.numel())

    return rule


def _adaptive_backward(dimensions: int) -> WorkRule:
    """See `_average_backward`."""

    def rule(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
        return Work(ac=sum_of_terms(adaptive_windows(out, args[0], dimensions), out.numel()))

    return rule


for _dimensions in (2, 3):
    fixed(f"avg_pool{_dimensions}d")(_average(_dimensions))
    fixed(f"avg_pool{_dimensions}d_backward")(_average_backward(_dimensions))
    fixed(f"_adaptive_avg_pool{_dimensions}d")(_adaptive(_dimensions))
    fixed(f"_adaptive_avg_pool{_dimensions}d_backward")(_adaptive_backward(_dimensions))


@fixed(
    *names("""upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward
    _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward
    _upsample_nearest_exact3d_backward col2im
    reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward
    replication_pad1d_backward replication_pad2d_backward replication_pad3d_backward""")
)
def overlap(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """Elements that were one before are summed up."""
    return Work(ac=sum_of_terms(args[0].numel(), out.numel()))


def _interpolated(taps: int) -> WorkRule:
    """Each result is a weighted sum of `taps` elements."""

    def rule(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
        return Work(mac=taps * out.numel())

    return rule


def _interpolated_backward(taps: int) -> WorkRule:
    """Each gradient goes, weighted, to as many."""

    def rule(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
        return Work(mac=taps * args[0].numel())

    return rule


for _mode, _taps in {"linear1d": 2, "bilinear2d": 4, "trilinear3d": 8, "bicubic2d": 16}.items():
    fixed(f"upsample_{_mode}")(_interpolated(_taps))
    fixed(f"upsample_{_mode}_backward")(_interpolated_backward(_taps))


def _loss(each: Work, reduction_at: int, squares: bool = False) -> WorkRule:
    """`each` for n elements, and their sum; squares that are summed up are MACs."""

    def rule(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
        n = args[0].numel()
        work = each.times(n)
        if argument(args, kwargs, reduction_at, "reduction", MEAN) not in (MEAN, SUM):
            return work
        return work + (Work(mac=n) if squares else Work(ac=sum_of_terms(n, 1)))

    return rule


fixed("mse_loss")(_loss(Work(ac=1), 2, squares=True))
"""``(x - y)^2``."""
fixed("smooth_l1_loss", "huber_loss")(_loss(Work(ac=1), 2))
"""``z = abs(x - y)``, ``z * z / 2 / beta``."""
fixed("binary_cross_entropy")(_loss(Work(ac=2, mac=1), 3))
"""``(t - 1) * log(1 - x) - t * log x``."""


@fixed("mse_loss_backward", "smooth_l1_loss_backward", "huber_loss_backward")
def difference_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``g * (x - y)``, as far as it is between two bounds."""
    return Work(ac=out.numel())


@fixed("binary_cross_entropy_backward")
def bce_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``g * (x - t) / (x * (1 - x))``."""
    return Work(ac=2 * out.numel())


@fixed("binary_cross_entropy_with_logits")
def bce_with_logits(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``(1 - t) * x - (min(x, 0) - log1p(exp(-abs x)))``; with ``(p - 1) * t + 1`` for weights."""
    each = Work(ac=2, mac=1)
    if argument(args, kwargs, 3, "pos_weight") is not None:
        each += Work(ac=1, mac=1)
    return _loss(each, 4)(args, kwargs, out)


@fixed("nll_loss_forward", "nll_loss2d_forward")
def nll(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``-w[target] * x[target]``, summed up over n targets; a mean sums up weights as well."""
    _, target, weight, reduction = args[:4]
    n = target.numel()
    if reduction not in (MEAN, SUM):
        return Work()
    if weight is None:
        return Work(ac=sum_of_terms(n, 1))
    return Work(mac=n, ac=sum_of_terms(n, 1) if reduction == MEAN else 0)


@fixed("multi_margin_loss")
def multi_margin(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``max(0, margin - x[target] + x)``, summed up over the classes, and over the samples."""
    n, rows = args[0].numel(), args[1].numel()
    reduced = argument(args, kwargs, 5, "reduction", MEAN) in (MEAN, SUM)
    return Work(ac=2 * n + sum_of_terms(n, rows) + (sum_of_terms(rows, 1) if reduced else 0))


@fixed("multi_margin_loss_backward")
def multi_margin_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``margin - x[target] + x``, and the sum of a row at its target."""
    return Work(ac=3 * out.numel())
