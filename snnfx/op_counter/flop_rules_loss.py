"""FLOPs of losses and their gradients.

With n elements: what each takes, and what ``reduction`` (0 none, 1 mean, 2 sum) adds, which is
n - 1 additions and for a mean a division.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from snnfx.op_counter.counter import Rule
from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_names import packets
from snnfx.op_counter.operands import Args, Kwargs, argument, sum_of_terms

MEAN, SUM = 1, 2


def _reduced(n: int, reduction: int) -> int:
    """What a reduction of n elements adds."""
    return {MEAN: n, SUM: sum_of_terms(n, 1)}.get(reduction, 0)


@FLOPS.rule(*packets(["mse_loss"]))
def mse_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``(x - y)^2``."""
    n = args[0].numel()
    return 2 * n + _reduced(n, argument(args, kwargs, 2, "reduction", MEAN))


@FLOPS.rule(*packets(["smooth_l1_loss", "huber_loss"]))
def smooth_l1_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``z = abs(x - y)``, a comparison, ``z * z / 2 / beta``: 6; a Huber loss has as many."""
    n = args[0].numel()
    return 6 * n + _reduced(n, argument(args, kwargs, 2, "reduction", MEAN))


def _difference(cost: int) -> Rule:
    """A gradient ``(grad_out, x, y, reduction, ...)`` of `cost` an element.

    ``grad_out`` with the constant factors is scaled first: once for all if it is one number.
    """

    def flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
        return cost * out.numel() + args[0].numel()

    return flops


FLOPS.rule(*packets(["mse_loss_backward"]))(_difference(2))
"""``g * (x - y)``."""
FLOPS.rule(*packets(["smooth_l1_loss_backward", "huber_loss_backward"]))(_difference(4))
"""``g * (x - y)`` between two comparisons."""


@FLOPS.rule(*packets(["binary_cross_entropy"]))
def bce_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``(t - 1) * log(1 - x) - t * log x``: 7, and 1 for a weight."""
    n = args[0].numel()
    weighted = argument(args, kwargs, 2, "weight") is not None
    return (8 if weighted else 7) * n + _reduced(n, argument(args, kwargs, 3, "reduction", MEAN))


@FLOPS.rule(*packets(["binary_cross_entropy_backward"]))
def bce_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``g * (x - t) / (x * (1 - x))``: 5, and 1 for a weight; g is divided for a mean."""
    weighted = argument(args, kwargs, 3, "weight") is not None
    mean = argument(args, kwargs, 4, "reduction", MEAN) == MEAN
    return (6 if weighted else 5) * out.numel() + (args[0].numel() if mean else 0)


@FLOPS.rule(*packets(["binary_cross_entropy_with_logits"]))
def bce_with_logits_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``(1 - t) * x - log_sigmoid(x)``: 9; weights 1, positive weights ``(p - 1) * t + 1`` 4."""
    n = args[0].numel()
    each = 9 + (1 if argument(args, kwargs, 2, "weight") is not None else 0)
    each += 4 if argument(args, kwargs, 3, "pos_weight") is not None else 0
    return each * n + _reduced(n, argument(args, kwargs, 4, "reduction", MEAN))


@FLOPS.rule(*packets(["nll_loss_forward", "nll_loss2d_forward"]))
def nll_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``-w[target] * x[target]``: of n targets, n products with weights, and the sum.

    Without a reduction there are n signs, with one just that of the sum; a mean divides it by the
    number of targets, or by the sum of their weights.
    """
    _, target, weight, reduction = args[:4]
    n = target.numel()
    flops = n if weight is not None else 0
    if reduction not in (MEAN, SUM):
        return flops + n
    flops += sum_of_terms(n, 1) + 1
    if reduction == MEAN:
        flops += 1 + (sum_of_terms(n, 1) if weight is not None else 0)
    return flops


@FLOPS.rule(*packets(["nll_loss_backward", "nll_loss2d_backward"]))
def nll_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``-g * w[target]``, at the places of the targets: signs of g, a division, n products."""
    gradient, _, target, weight, reduction = args[:5]
    scaled = gradient.numel() + (1 if reduction == MEAN else 0)
    return scaled + (target.numel() if weight is not None else 0)


@FLOPS.rule(*packets(["multi_margin_loss"]))
def multi_margin_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``max(0, margin - x[target] + x)``: 3 an element, their sum, a division a row."""
    n = args[0].numel()
    rows = args[1].numel()
    return 3 * n + sum_of_terms(n, rows) + rows + _reduced(rows, args[5] if len(args) > 5 else MEAN)


@FLOPS.rule(*packets(["multi_margin_loss_backward"]))
def multi_margin_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``margin - x[target] + x`` 2, a comparison, and the sum of a row at its target."""
    return 4 * out.numel()
