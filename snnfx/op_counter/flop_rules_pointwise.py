"""FLOPs of operators that compute each element of their result by itself.

One multiplication, division, addition, comparison, logical operation or rounding is one FLOP, and
so is one call of an elementary function (exp, log, sqrt, a power, tanh, erf, ...). What is made of
these counts what it is made of: a sigmoid ``1 / (1 + exp(-x))`` is 4. Of branches the longest
counts. Choosing (where) and converting are none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnfx.op_counter.counter import Rule
from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_families import (
    ALLOCATIONS,
    COPIES,
    FILLS,
    GATHERS,
    MOVES,
    QUESTIONS,
    VIEWS,
)
from snnfx.op_counter.op_names import foreach, names, packets, variants
from snnfx.op_counter.operands import Args, Kwargs, argument, elements, main_result, results

ONE = names("""
    abs neg sign sgn reciprocal sqrt rsqrt square exp exp2 expm1 log log2 log10 log1p sin cos tan
    asin acos atan sinh cosh tanh asinh acosh atanh erf erfc erfinv lgamma digamma i0
    floor ceil round trunc frac relu isnan isinf isfinite signbit nan_to_num
    mul div pow maximum minimum fmax fmin atan2 fmod remainder floor_divide copysign hypot
    heaviside max.other min.other ge gt le lt eq ne logical_and logical_or logical_xor logical_not
    bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __or__ __xor__ __lshift__ __rshift__
    clamp_min clamp_max threshold conj_physical angle
""")
"""Arithmetic, comparisons and elementary functions."""

COMPOSITE: dict[int, list[str]] = {
    2: ["leaky_relu", "_prelu_kernel", "rrelu_with_noise", "rrelu_with_noise_functional",
        "hardtanh", "relu6", "hardshrink", "xlogy", "sinc"],
    3: ["softshrink", "logit"],
    4: ["sigmoid", "celu", "hardsigmoid", "mish"],
    5: ["silu", "hardswish", "softplus", "glu"],
    6: ["log_sigmoid_forward"],
    7: ["logaddexp", "logaddexp2"],
}  # fmt: skip
"""Functions of several steps, by what one element takes.

| operator | formula |
|---|---|
| leaky_relu, prelu, rrelu | a comparison, ``slope * x`` |
| hardtanh, hardshrink | two comparisons |
| xlogy | ``x * log y`` |
| softshrink | two comparisons, ``x - lambda`` |
| logit | ``log(x / (1 - x))`` |
| sigmoid | ``1 / (1 + exp(-x))`` |
| celu | a comparison, ``a * expm1(x / a)`` |
| hardsigmoid | ``min(max(x + 3, 0), 6) / 6`` |
| mish | ``x * tanh(log1p(exp x))`` |
| silu, glu | ``a * sigmoid(b)`` |
| hardswish | ``x * hardsigmoid(x)`` |
| softplus | a comparison, ``log1p(exp(b * x)) / b`` |
| log_sigmoid | ``min(x, 0) - log1p(exp(-abs x))`` |
| logaddexp | ``max(a, b) + log1p(exp(-abs(a - b)))`` |
"""

GRADIENTS: dict[int, list[str]] = {
    1: ["threshold_backward", "hardshrink_backward", "softshrink_backward"],
    2: ["leaky_relu_backward", "rrelu_with_noise_backward",
        "native_dropout_backward", "hardtanh_backward"],
    3: ["sigmoid_backward", "tanh_backward", "_prelu_kernel_backward",
        "hardsigmoid_backward", "logit_backward"],
    4: ["elu_backward", "glu_backward"],
    5: ["hardswish_backward"],
    6: ["softplus_backward", "log_sigmoid_backward"],
    9: ["silu_backward"],
    13: ["mish_backward"],
}  # fmt: skip
"""Gradients of functions, by what one element takes; g is the gradient that comes in.

| operator | formula |
|---|---|
| threshold, shrinks | a comparison with what was kept |
| leaky_relu, rrelu | a comparison, ``g * slope`` |
| prelu | a comparison, ``g * slope``, ``g * x`` |
| hardtanh | two comparisons |
| dropout | ``g * mask * scale`` |
| sigmoid, tanh | ``g * y * (1 - y)``, ``g * (1 - y * y)`` |
| hardsigmoid | two comparisons, ``g / 6`` |
| logit | ``g / (x * (1 - x))`` |
| elu | a comparison, ``g * (a * exp x)`` |
| glu | with ``h = g * sigmoid(b)``: ``h`` and ``h * (1 - s) * a``, 8 for two elements |
| hardswish | two comparisons, ``g * (x / 3 + 1 / 2)`` |
| softplus | a comparison, ``z = exp(b * x)``, ``g * z / (z + 1)`` |
| log_sigmoid | a comparison, ``g * (m - s * z / (1 + z))`` with the z of the forward |
| silu | sigmoid, ``g * s * (1 + x * (1 - s))`` |
| mish | ``t = tanh(log1p(exp x))``, sigmoid, ``g * (t + x * s * (1 - t * t))`` |
"""


def _each(cost: int) -> Rule:
    """`cost` for each element of the (first) result."""

    def flops(args: Args, kwargs: Kwargs, out: Any) -> int:
        return cost * main_result(args, out).numel()

    return flops


def _each_of_list(cost: int) -> Rule:
    """`cost` for each element of the tensors of a list."""

    def flops(args: Args, kwargs: Kwargs, out: Any) -> int:
        return cost * elements(results(args, out))

    return flops


@FLOPS.rule(
    *packets([*VIEWS, *ALLOCATIONS, *QUESTIONS, *FILLS, *MOVES, *COPIES, *GATHERS]),
)
def no_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Views, constants, random numbers, moves and choices."""
    return 0


def _register_tables() -> None:
    for cost, listed in {1: ONE, **COMPOSITE}.items():
        plain = [name for name in listed if not name.startswith("__") and "." not in name]
        FLOPS.rule(*packets([*listed, *(f"{name}_" for name in plain)]))(_each(cost))
        FLOPS.rule(*packets(foreach(plain)))(_each_of_list(cost))
    for cost, listed in GRADIENTS.items():
        FLOPS.rule(*packets(listed))(_each(cost))


_register_tables()


@FLOPS.rule(*packets(variants(["add", "sub"])))
def add_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``x + alpha * y``; a factor of 1 takes nothing, another one product for each element of y.

    ``add.Scalar`` and ``sub.Scalar`` take the factor by its position as well (a correction).
    """
    factor = argument(args, kwargs, 2, "alpha", 1)
    return out.numel() + (_elements_or_one(args[1]) if factor != 1 else 0)


@FLOPS.rule(*packets(["rsub"]))
def reverse_subtract_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``y - alpha * x``: the factor scales the first operand (a correction)."""
    factor = argument(args, kwargs, 2, "alpha", 1)
    return out.numel() + (args[0].numel() if factor != 1 else 0)


def _elements_or_one(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 1


@FLOPS.rule(*packets(foreach(["add", "sub"])))
def foreach_add_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """As `add_flops`, of each tensor of a list."""
    scaled = elements(args[1]) if kwargs.get("alpha", 1) != 1 else 0
    return elements(args[0]) + scaled


@FLOPS.rule(*packets([*variants(["addcmul", "addcdiv"])]))
def add_product_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``x + value * a * b``, or with a quotient; a value of 1 takes nothing."""
    return out.numel() * (2 if kwargs.get("value", 1) == 1 else 3)


@FLOPS.rule(*packets(foreach(["addcmul", "addcdiv"])))
def foreach_add_product_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """As `add_product_flops`, with one value for all, or one for each."""
    values = argument(args, kwargs, 3, "value", kwargs.get("scalars", 1))
    return elements(args[0]) * (2 if isinstance(values, (int, float)) and values == 1 else 3)


@FLOPS.rule(*packets(variants(["lerp"])))
def interpolation_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``x + weight * (y - x)``."""
    return 3 * out.numel()


FLOPS.rule(*packets(foreach(["lerp"])))(_each_of_list(3))


@FLOPS.rule(*packets(variants(["clamp", "clip"])))
def clamp_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """One comparison for each of the bounds."""
    bounds = (argument(args, kwargs, 1, "min"), argument(args, kwargs, 2, "max"))
    return out.numel() * sum(bound is not None for bound in bounds)


@FLOPS.rule(*packets(variants(["elu"])))
def elu_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """A comparison, ``scale * alpha * expm1(input_scale * x)``; scales of 1 take nothing."""
    scales = (
        argument(args, kwargs, 2, "scale", 1),
        argument(args, kwargs, 3, "input_scale", 1),
    )
    return out.numel() * (3 + sum(scale != 1 for scale in scales))


@FLOPS.rule(*packets(variants(["gelu"])))
def gelu_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``x / 2 * (1 + erf(x / sqrt 2))`` 5, or with ``tanh(b * (x + k * x^3))`` for the erf 9."""
    return out.numel() * (9 if kwargs.get("approximate") == "tanh" else 5)


@FLOPS.rule(*packets(["gelu_backward"]))
def gelu_backward_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``g * (cdf + x * pdf)``: 4 for the normal distribution, 4 for its density, 3.

    Approximated: ``t = tanh(b (x + k x^3))`` 6, ``1 + t`` and the halves of it and of x 3,
    ``1 - t * t`` 2, ``b (1 + 3 k x^2)`` 3, two products, a sum and the product with g 4.
    """
    return out.numel() * (18 if kwargs.get("approximate") == "tanh" else 11)


@FLOPS.rule(*packets(["native_dropout", "_fused_dropout", "_masked_scale"]))
def dropout_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``x * mask * scale``; drawing the mask takes none."""
    return 2 * args[0].numel()


ops = torch.ops
MARKS = [ops.profiler._record_function_enter_new, ops.profiler._record_function_exit]
"""What optimizers leave for the profiler."""

NO_ATEN = [ops.prims.convert_element_type, *MARKS]
"""Operators of other namespaces: conversions in decomposed graphs, and marks."""

FLOPS.rule(*NO_ATEN)(no_flops)
