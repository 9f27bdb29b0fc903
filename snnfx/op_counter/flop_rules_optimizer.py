"""FLOPs of fused optimizer steps, and of the scaling of gradients in mixed precision."""

from __future__ import annotations

from typing import Any

from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_names import packets
from snnfx.op_counter.operands import Args, Kwargs, elements


def _options(kwargs: Kwargs, *names: str) -> int:
    """How many of these options are on."""
    return sum(bool(kwargs.get(name)) for name in names)


@FLOPS.rule(*packets(["_fused_adam_", "_fused_adam", "_fused_adamw_", "_fused_adamw"]))
def adam_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """An Adam step.

    Per parameter, g its gradient: ``m += (1 - b1) (g - m)`` 3, ``v = b2 v + (1 - b2) g g`` 4,
    ``p -= lr m / (sqrt(v) / c + eps)`` 6; a decay of weights 2, amsgrad's maximum and the sign of a
    maximization 1 each. Corrections of bias, once a tensor, are left out.
    """
    each = 13 + _options(kwargs, "amsgrad", "maximize") + 2 * _options(kwargs, "weight_decay")
    return elements(args[0]) * each


@FLOPS.rule(*packets(["_fused_sgd_", "_fused_sgd"]))
def sgd_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A step of gradient descent.

    Per parameter: ``p -= lr g`` 2; a decay of weights 2, the sign of a maximization 1; momentum
    ``b = mu b + (1 - damping) g`` 2, 3 with a damping, none in the first step, and Nesterov's
    ``g + mu b`` 2.
    """
    each = 2 + _options(kwargs, "maximize") + 2 * _options(kwargs, "weight_decay")
    if kwargs.get("momentum"):
        first = kwargs.get("is_first_step", False)
        each += 0 if first else 2 + _options(kwargs, "dampening")
        each += 2 * _options(kwargs, "nesterov")
    return elements(args[0]) * each


@FLOPS.rule(*packets(["_fused_adagrad_", "_fused_adagrad"]))
def adagrad_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Per parameter: ``s += g g`` 2, ``p -= lr g / (sqrt(s) + eps)`` 5; else as `sgd_flops`."""
    each = 7 + _options(kwargs, "maximize") + 2 * _options(kwargs, "weight_decay")
    return elements(args[0]) * each


@FLOPS.rule(*packets(["_amp_foreach_non_finite_check_and_unscale_"]))
def unscale_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A check and a product for each element of the gradients."""
    return 2 * elements(args[0])


@FLOPS.rule(*packets(["_amp_update_scale_"]))
def update_scale_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Two comparisons, a count of steps, a product."""
    return 4
