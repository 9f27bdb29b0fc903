"""Operators that compute each element of their result by itself.

An addition or subtraction is an AC; with a term that is a product made for it, the two are a MAC.
Products, quotients, comparisons and elementary functions (exp, log1p, erf, tanh, ...) by themselves
are neither. What is made of several steps counts its steps, in the formulas of `flop_rules`.

Corrections of what SpikingJelly 2.0.0 counts:

- **In-place sums** (`add_`): it asks whether the operands are spikes after the sum has overwritten
  the first. Here they are looked at before (`snnfx.op_counter.modes`).
- **sigmoid**: ``1 / (1 + exp(-x))`` has one addition wherever it is written; the peer counts the
  in-place variant only.
- **Broadcast spikes**: where ``x + y`` repeats a spike of y over r elements of the result, it is
  added r times, so spikes of each operand count ``elements of the result / elements of the
  operand`` times. Without broadcasting this is the peer's sum of both numbers.
- **A factor**: ``x + alpha * y`` with another alpha than 1 and -1 adds products: MACs, unless y is
  made of spikes, where alpha itself is added. The peer counts an AC for each element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snnfx.op_counter.op_names import foreach, names, packets, variants
from snnfx.op_counter.operands import Args, Kwargs, argument, elements, main_result, results
from snnfx.op_counter.spike_products import Operand, Product
from snnfx.op_counter.spike_table import ACS, MACS, NOTHING, SYNOPS, Work, WorkRule, fixed
from snnfx.op_counter.spikes import Count, SpikeCall

_SUM = variants(["add", "sub"])


@ACS.rule(*packets(_SUM))
def sum_acs(call: SpikeCall) -> Count:
    """``x + alpha * y``: of two binary operands their spikes, of others one an element."""
    return _sum_acs(call, scaled=1)


@MACS.rule(*packets(_SUM))
def sum_macs(call: SpikeCall) -> Count:
    """See `sum_acs`."""
    return _sum_macs(call, scaled=1)


@ACS.rule(*packets(["rsub"]))
def reverse_difference_acs(call: SpikeCall) -> Count:
    """``y - alpha * x``."""
    return _sum_acs(call, scaled=0)


@MACS.rule(*packets(["rsub"]))
def reverse_difference_macs(call: SpikeCall) -> Count:
    """See `reverse_difference_acs`."""
    return _sum_macs(call, scaled=0)


SYNOPS.rule(*packets([*_SUM, "rsub"]))(NOTHING)


def _sum_acs(call: SpikeCall, scaled: int) -> Count:
    facts, size = call.facts, call.out.numel()
    if _adds_products(call, scaled):
        return 0
    if facts.is_binary(0) and facts.is_binary(1):
        return sum(_copies(call.args[i], size) * facts.spikes(i) for i in (0, 1))
    return size


def _sum_macs(call: SpikeCall, scaled: int) -> Count:
    return call.out.numel() if _adds_products(call, scaled) else 0


def _adds_products(call: SpikeCall, scaled: int) -> bool:
    """Whether a factor makes products of the operand `scaled`; of one number it makes none."""
    args, kwargs = tuple(call.args), call.kwargs
    if argument(args, kwargs, 2, "alpha", 1) in (1, -1):
        return False
    return isinstance(args[scaled], Tensor) and not call.facts.is_binary(scaled)


def _copies(x: Tensor, size: int) -> int:
    """How often each element of an operand is in a result of `size` elements."""
    return size // x.numel() if x.numel() else 0


_ADDCMUL = packets(variants(["addcmul"]))
SYNOPS.rule(*_ADDCMUL)(NOTHING)


@ACS.rule(*_ADDCMUL)
def added_product_acs(call: SpikeCall) -> Count:
    """``x + value * a * b``; see `_added_products`."""
    return _added_products(call).acs(call.facts)


@MACS.rule(*_ADDCMUL)
def added_product_macs(call: SpikeCall) -> Count:
    """See `added_product_acs`."""
    return _added_products(call).macs(call.facts)


def _added_products(call: SpikeCall) -> Product:
    """As a product of matrices with one term a sum; a value but 1 and -1 is one factor more."""
    shape, size = call.out.shape, call.out.numel()
    scaled = call.kwargs.get("value", 1) not in (1, -1)
    left, right = (
        Operand(None if scaled else position, _copies(call.args[position], size))
        for position in (1, 2)
    )
    return Product(left, right, size, lambda a, b: torch.logical_and(a, b).expand(shape))


def _each(work: Work) -> WorkRule:
    """`work` for each element of the (first) result."""

    def rule(args: Args, kwargs: Kwargs, out: Any) -> Work:
        return work.times(main_result(args, out).numel())

    return rule


def _each_of_list(work: Work) -> WorkRule:
    """`work` for each element of the tensors of a list."""

    def rule(args: Args, kwargs: Kwargs, out: Any) -> Work:
        return work.times(elements(results(args, out)))

    return rule


FUNCTIONS: dict[Work, list[str]] = {
    Work(ac=1): names("""
        softshrink logit sigmoid silu glu hardsigmoid hardswish log_sigmoid_forward addcdiv
    """),
    Work(ac=2): names("logaddexp logaddexp2"),
    Work(ac=1, mac=1): names("lerp"),
}
"""By what one element takes.

| operator | formula |
|---|---|
| softshrink | ``x - lambda`` |
| logit | ``log(x / (1 - x))`` |
| sigmoid, silu, glu | ``1 / (1 + exp(-x))`` |
| hardsigmoid, hardswish | ``min(max(x + 3, 0), 6) / 6`` |
| log_sigmoid | ``min(x, 0) - log1p(exp(-abs x))`` |
| addcdiv | ``x + value * a / b``, a quotient is no product |
| logaddexp | ``max(a, b) + log1p(exp(-abs(a - b)))`` |
| lerp | ``x + weight * (y - x)`` |
"""

GRADIENTS: dict[Work, list[str]] = {
    Work(ac=1): names("sigmoid_backward logit_backward softplus_backward glu_backward"),
    Work(mac=1): names("tanh_backward hardswish_backward"),
    Work(ac=2): names("log_sigmoid_backward"),
    Work(ac=2, mac=1): names("silu_backward"),
    Work(ac=1, mac=2): names("mish_backward"),
}
"""By what one element takes; g is the gradient that comes in.

| operator | formula |
|---|---|
| sigmoid, logit | ``g * y * (1 - y)``, ``g / (x * (1 - x))`` |
| softplus | ``g * z / (z + 1)`` |
| glu | ``1 + exp(-b)`` and ``1 - s`` for two elements |
| tanh | ``1 - y * y`` |
| hardswish | ``x / 3 + 1 / 2`` |
| log_sigmoid | ``m - s * z / (1 + z)``, a quotient |
| silu | sigmoid, ``1 - s``, ``1 + x * (1 - s)`` |
| mish | ``t = tanh(log1p(exp x))``, sigmoid, ``1 - t * t``, ``t + x * s * (1 - t * t)`` |
"""


def _register_tables() -> None:
    for work, listed in FUNCTIONS.items():
        fixed(*variants(listed))(_each(work))
        fixed(*foreach(listed))(_each_of_list(work))
    for work, listed in GRADIENTS.items():
        fixed(*listed)(_each(work))


_register_tables()


@fixed(*variants(["gelu"]))
def gelu(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``x / 2 * (1 + erf(x / sqrt 2))``; approximated, ``1 + tanh(b * (x + k * x^3))``."""
    return Work(ac=1, mac=int(kwargs.get("approximate") == "tanh")).times(out.numel())


@fixed("gelu_backward")
def gelu_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``g * (cdf + x * pdf)``, with ``1 + erf`` in the cdf.

    Approximated, with ``t = tanh(b (x + k x^3))``: ``1 + t``; ``x + k x^3``, ``1 - t * t``,
    ``1 + 3 k x^2``, and the sum of both parts.
    """
    return Work(ac=1, mac=4 if kwargs.get("approximate") == "tanh" else 1).times(out.numel())


@fixed(*foreach(["add", "sub"]))
def foreach_sum(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """As `sum_acs`, of each tensor of a list; lists are of parameters, and not looked at."""
    scaled = argument(args, kwargs, 2, "alpha", 1) not in (1, -1)
    return Work(mac=int(scaled), ac=int(not scaled)).times(elements(args[0]))


@fixed(*foreach(["addcmul"]))
def foreach_added_products(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """As `added_products`, of each tensor of a list."""
    return Work(mac=elements(args[0]))
