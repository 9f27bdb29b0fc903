"""What adds at places given by values, optimizers, recurrent layers, and what takes nothing."""

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
from snnfx.op_counter.spike_products import Operand, Product
from snnfx.op_counter.spike_table import Work, fixed, linear, nothing
from snnfx.op_counter.spikes import SpikeCall, exact_sum

NO_SUMS = names("""
    leaky_relu _prelu_kernel rrelu_with_noise rrelu_with_noise_functional hardtanh relu6 hardshrink
    xlogy sinc celu elu mish softplus clamp clip native_dropout _fused_dropout _masked_scale
    threshold_backward hardshrink_backward softshrink_backward leaky_relu_backward
    rrelu_with_noise_backward native_dropout_backward hardtanh_backward _prelu_kernel_backward
    hardsigmoid_backward elu_backward nll_loss_backward nll_loss2d_backward
    prod amax amin max min argmax argmin any all count_nonzero aminmax _aminmax _foreach_max
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d
    cumprod cummax cummin _cummax_helper _cummin_helper sort argsort msort topk median nanmedian
    kthvalue mode scatter index_copy index_fill
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


@fixed(*variants(["scatter_add"]))
def scatter_add(args: Args, kwargs: Kwargs, out: Tensor) -> Work:
    """``(x, dim, index, src)``: one for each element that is added."""
    return Work(ac=args[2].numel())


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


RNN_CELL, LSTM_CELL = Work(ac=1), Work(ac=7, mac=1)
"""Per hidden unit and step, besides matrix products and biases: ``tanh(a + b)``; four sums, three
sigmoids, and ``f c + i g``."""

RNN_BACKWARD, LSTM_BACKWARD = Work(mac=1), Work(ac=3, mac=3)
"""``1 - h h``; of the gates ``1 - o``, ``1 - i``, ``1 - f``, ``1 - g g``, and of the state
``gh o (1 - t t) + gc``."""

LSTM_MODE = 2
"""Of the modes that cuDNN numbers: relu, tanh, LSTM, GRU."""


def _cells(call: SpikeCall, mode: int, plain: Work, lstm: Work) -> Work:
    x, recurrent = call.args[0], call.args[2]
    return (lstm if mode == LSTM_MODE else plain).times(prod(x.shape[:-1]) * recurrent.shape[-1])


@linear(
    "mkldnn_rnn_layer",
    besides=lambda call: _cells(call, call.args[9], RNN_CELL, LSTM_CELL),
)
def rnn_layer(call: SpikeCall) -> tuple[Product, ...]:
    """``(x [T, N, I], w_ih [G H, I], w_hh [G H, H], ...)``: at each step, both with their matrix.

    States are made inside, and not binary.
    """
    x, of_input, recurrent = call.args[:3]
    steps = prod(x.shape[:-1])
    return (
        Product(Operand(0, of_input.shape[0]), Operand(1, steps), steps * of_input.numel(), _sums),
        Product(Operand(None, 0), Operand(2, steps), steps * recurrent.numel(), _sums),
    )


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """As of `linear`: coincidences of rows of `a` and rows of `b`."""
    return exact_sum(a.flatten(0, -2), [0]) * exact_sum(b, [0])


@linear(
    "mkldnn_rnn_layer_backward",
    besides=lambda call: _cells(call, call.args[14], RNN_BACKWARD, LSTM_BACKWARD),
)
def rnn_layer_backward(call: SpikeCall) -> tuple[Product, ...]:
    """The gradients of gates with both matrices, and with input and states."""
    forward = rnn_layer(call)
    made = Operand(None, 0)
    return tuple(
        Product(made, operand, product.dense, _sums)
        for product in forward
        for operand in (product.left, product.right)
    )
