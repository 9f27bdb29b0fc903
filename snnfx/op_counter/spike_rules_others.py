"""What adds at places that are given by values, optimizers, and what takes nothing."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from snnfx.op_counter.flop_rules_pointwise import NO_ATEN, ONE
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
from snnfx.op_counter.operands import Args, Kwargs, argument, elements, sum_of_terms
from snnfx.op_counter.spike_table import Work, fixed, nothing

NO_SUMS = names("""
    leaky_relu _prelu_kernel rrelu_with_noise rrelu_with_noise_functional hardtanh relu6 hardshrink
    xlogy sinc celu elu mish softplus clamp clip native_dropout _fused_dropout _masked_scale
    threshold_backward hardshrink_backward softshrink_backward leaky_relu_backward
    rrelu_with_noise_backward native_dropout_backward hardtanh_backward _prelu_kernel_backward
    hardsigmoid_backward elu_backward nll_loss_backward nll_loss2d_backward
    prod amax amin max min argmax argmin any all count_nonzero aminmax _aminmax _foreach_max
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d
    cumprod cummax cummin _cummax_helper _cummin_helper sort argsort msort topk median nanmedian
    kthvalue mode scatter index_copy index_fill masked_scatter_ poisson
    _amp_foreach_non_finite_check_and_unscale_ _amp_update_scale_
""")
"""Products, comparisons and elementary functions, elements that are chosen, ordered and placed."""


def _register_what_takes_nothing() -> None:
    moves = [*VIEWS, *ALLOCATIONS, *QUESTIONS, *FILLS, *MOVES, *COPIES, *GATHERS]
    plain = [name for name in ONE if "." not in name and not name.startswith("__")]
    others = [f"{name}_" for name in [*plain, *NO_SUMS] if not name.endswith("_")]
    found = packets([*moves, *ONE, *NO_SUMS, *others, *foreach(plain)])
    nothing(*dict.fromkeys(found), *NO_ATEN)


_register_what_takes_nothing()


@fixed(*variants(["index_put", "_index_put_impl"]), "_unsafe_index_put")
def index_put(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """Accumulating, one addition for each of the values."""
    return Work(ac=args[2].numel() if argument(args, kwargs, 3, "accumulate", False) else 0)


@fixed(*variants(["scatter_add", "scatter_reduce", "index_reduce"]))
def scatter_add(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``(x, dim, index, src, reduce)``: one for each element that is added, none of products."""
    index, source, reduce = args[2], args[3], argument(args, kwargs, 4, "reduce", "sum")
    if reduce not in ("sum", "mean"):
        return Work()
    return Work(ac=source.numel() if index.dim() == 1 else index.numel())


@fixed(*variants(["index_add"]))
def index_add(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``x + alpha * source``, at some places."""
    n = args[3].numel()
    return Work(ac=n) if kwargs.get("alpha", 1) in (1, -1) else Work(mac=n)


@fixed("embedding_dense_backward")
def embedding_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """Rows of gradients are added up in a table, as evenly as possible (`flop_rules_indexing`)."""
    return Work(ac=sum_of_terms(args[0].numel(), out.numel()))


@fixed("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """The sum of the rows of each bag, weighted or not; a maximum (mode 2) is none."""
    terms = args[1].numel() * args[0].shape[-1]
    if argument(args, kwargs, 6, "per_sample_weights") is not None:
        return Work(mac=terms)
    maximum = argument(args, kwargs, 4, "mode", 0) == 2
    return Work(ac=0 if maximum else sum_of_terms(terms, out[0].numel()))


@fixed("_embedding_bag_backward", "_embedding_bag_dense_backward")
def embedding_bag_backward(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """Each row of a bag gets its gradient, divided or weighted before."""
    return Work(ac=sum_of_terms(args[1].numel() * args[0].shape[-1], out.numel()))


@fixed("_trilinear")
def trilinear(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``sum of a * b * c`` over some dimensions; ``expand1..3`` say where operands are expanded."""
    shapes: list[list[int]] = []
    for operand, expanded in zip(args[:3], args[3:6], strict=True):
        shape = list(operand.shape)
        for dim in sorted(expanded):
            shape.insert(dim, 1)
        shapes.append(shape)
    return Work(mac=prod(max(sizes) for sizes in zip(*shapes, strict=True)))


@fixed("_fused_adam_", "_fused_adam", "_fused_adamw_", "_fused_adamw")
def adam(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``m += (1 - b1) (g - m)``, ``v = b2 v + (1 - b2) g g``, ``p -= lr m / (sqrt(v) / c + eps)``.

    A decay of weights adds a product, to the gradient or to the parameter.
    """
    decay = int(bool(kwargs.get("weight_decay")))
    return Work(ac=3, mac=2 + decay).times(elements(args[0]))


@fixed("_fused_sgd_", "_fused_sgd")
def sgd(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``p -= lr g``; a decay, momentum ``mu b + g`` but in the first step, and Nesterov's one."""
    sums = 1 + bool(kwargs.get("weight_decay"))
    if kwargs.get("momentum"):
        sums += (not kwargs.get("is_first_step", False)) + bool(kwargs.get("nesterov"))
    return Work(mac=sums * elements(args[0]))


@fixed("_fused_adagrad_", "_fused_adagrad")
def adagrad(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``s += g g``, ``p -= lr g / (sqrt(s) + eps)``; a decay of weights."""
    decay = int(bool(kwargs.get("weight_decay")))
    return Work(ac=2, mac=1 + decay).times(elements(args[0]))
