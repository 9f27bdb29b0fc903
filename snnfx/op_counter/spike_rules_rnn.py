"""Fused recurrent layers and cells.

Matrix products as everywhere: of spikes of the input accumulations; states are made inside a layer
and not looked at. Biases are left out, as in `spike_rules_matmul`. Besides, per hidden unit and
step, with the activations that `spike_rules_pointwise` counts:

| cell | forward | backward |
|---|---|---|
| RNN | ``tanh(a + b)`` | ``1 - h h`` |
| LSTM | four sums, three sigmoids; ``f c + i g`` | ``1 - o``, ``1 - i``, ``1 - f``; ``1 - g g``, \
``1 - t t`` and ``gh o (1 - t t) + gc`` of the state |
| GRU | two gates of a sum and a sigmoid, ``h - n``; ``a + r b``, ``n + z (h - n)`` | ``h - n``, \
``1 - z`` twice, ``1 - r``; ``1 - n n`` |
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from snnfx.op_counter.operands import Args, Kwargs
from snnfx.op_counter.spike_products import Operand, Product
from snnfx.op_counter.spike_table import Work, fixed, linear
from snnfx.op_counter.spikes import SpikeCall, exact_sum


class Cell(NamedTuple):
    """What one hidden unit takes in one step, besides matrix products and biases."""

    forward: Work
    backward: Work


RNN = Cell(Work(ac=1), Work(mac=1))
LSTM = Cell(Work(ac=7, mac=1), Work(ac=3, mac=3))
GRU = Cell(Work(ac=5, mac=2), Work(ac=4, mac=1))

CELLS = (RNN, RNN, LSTM, GRU)
"""By the number that cuDNN's modes have: relu, tanh, LSTM, GRU."""

MADE = Operand(None, 0)


def _coincidences(x: Tensor, weight: Tensor) -> Tensor:
    """Of rows ``[T, N, I]`` with rows ``[G H, I]``."""
    return exact_sum(x.flatten(0, -2), [0]) * exact_sum(weight, [0])


def _gradients(products: tuple[Product, ...]) -> tuple[Product, ...]:
    """Of gates that are made inside, with both operands of each product of the forward."""
    return tuple(
        Product(MADE, operand, product.dense, _coincidences)
        for product in products
        for operand in (product.left, product.right)
    )


def _layer(call: SpikeCall) -> tuple[Product, ...]:
    """``(x [T, N, I], w_ih [G H, I], w_hh [G H, H], ...)``: each step with both matrices."""
    x, of_input, recurrent = call.args[:3]
    steps, rows = prod(x.shape[:-1]), of_input.shape[0]
    return (
        Product(Operand(0, rows), Operand(1, steps), steps * of_input.numel(), _coincidences),
        Product(MADE, Operand(2, steps), steps * recurrent.numel(), _coincidences),
    )


def _layer_cells(mode: int, backward: bool) -> Callable[[SpikeCall], Work]:
    """What the cells of a layer take, whose mode is the argument `mode`."""

    def work(call: SpikeCall) -> Work:
        units = prod(call.args[0].shape[:-1]) * call.args[2].shape[-1]
        return CELLS[call.args[mode]][int(backward)].times(units)

    return work


@linear("mkldnn_rnn_layer", besides=_layer_cells(9, False))
def layer(call: SpikeCall) -> tuple[Product, ...]:
    """``(input, w_ih, w_hh, 2 biases, hx, cx, reverse, batch_sizes, mode, ...)``."""
    return _layer(call)


@linear("mkldnn_rnn_layer_backward", besides=_layer_cells(14, True))
def layer_backward(call: SpikeCall) -> tuple[Product, ...]:
    """``(input, w_ih, w_hh, 2 biases, hx, cx, 3 outputs, 3 gradients, reverse, mode, ...)``."""
    return _gradients(_layer(call))


def _stack(call: SpikeCall, bidirectional: int) -> tuple[Product, ...]:
    """``(x [T, N, I], weights)``, of all layers and directions; those of the first layer first.

    The matrices are in a list, which is not looked into; all but the first layer's have states for
    their input.
    """
    x, weights = call.args[:2]
    steps = prod(x.shape[:-1])
    matrices = [w for w in weights if w.dim() == 2]
    each = 3 if call.args[bidirectional - 5] else 2  # a projection is a third
    directions = 2 if call.args[bidirectional] else 1
    first = [i * each for i in range(directions)]
    return tuple(
        Product(
            Operand(0, w.shape[0]) if i in first else MADE, MADE, steps * w.numel(), _coincidences
        )
        for i, w in enumerate(matrices)
    )


def _stack_cells(mode: int, hidden: int, backward: bool) -> Callable[[SpikeCall], Work]:
    """What the cells of all layers and directions take."""

    def work(call: SpikeCall) -> Work:
        units = prod(call.args[0].shape[:-1]) * call.args[hidden]
        layers = call.args[hidden + 2] * (2 if call.args[hidden + 6] else 1)
        return CELLS[call.args[mode]][int(backward)].times(units * layers)

    return work


@linear("_cudnn_rnn", besides=_stack_cells(6, 7, False))
def stack(call: SpikeCall) -> tuple[Product, ...]:
    """``(input, weights, stride, buffer, hx, cx, mode, hidden, projected, layers, ...)``."""
    return _stack(call, bidirectional=13)


@linear("_cudnn_rnn_backward", besides=_stack_cells(10, 11, True))
def stack_backward(call: SpikeCall) -> tuple[Product, ...]:
    """``(input, weights, stride, buffer, hx, cx, output, 3 gradients, mode, hidden, ...)``."""
    return _gradients(_stack(call, bidirectional=17))


@fixed("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell")
def cell(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(input_gates, hidden_gates, state [N, H], ...)``, products done."""
    state = args[2]
    kind = LSTM if args[0].shape[-1] == 4 * state.shape[-1] else GRU
    return kind.forward.times(state.numel())


@fixed("_thnn_fused_lstm_cell_backward_impl", "_thnn_fused_lstm_cell_backward")
def lstm_cell_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(grad_hy, grad_cy, cx [N, H], ...)``."""
    return LSTM.backward.times(args[2].numel())


@fixed("_thnn_differentiable_lstm_cell_backward")
def differentiable_lstm_cell_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(grad_hy, grad_cy, 2 gates, 2 biases, cx [N, H], cy)``; gates are computed again."""
    return (LSTM.backward + Work(ac=7)).times(args[6].numel())


@fixed("_thnn_fused_gru_cell_backward")
def gru_cell_backward(args: Args, kwargs: Kwargs, out: Any) -> Work:
    """``(grad_hy [N, H], ...)``."""
    return GRU.backward.times(args[0].numel())
