"""FLOPs of fused recurrent cells and layers.

Per hidden unit and step, besides the matrix products: the sum of what comes from input and state,
activations (a sigmoid 4, a tanh 1), and the new state.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_names import packets
from snnfx.op_counter.operands import Args, Kwargs, argument, elements, sum_of_terms


class Cell(NamedTuple):
    """FLOPs of one hidden unit in one step.

    Attributes:
        gates: how many there are.
        forward: without products and biases.
        backward: the gradients of gates and state, from the activations.
    """

    gates: int
    forward: int
    backward: int


RNN = Cell(gates=1, forward=2, backward=3)
"""``h = tanh(a + b)`` or relu; ``g * (1 - h * h)``."""

LSTM = Cell(gates=4, forward=22, backward=23)
"""Sums 4, three sigmoids 12, tanh 1, ``c = f c + i g`` 3, ``h = o tanh c`` 2. Backward, with
``t = tanh c`` 1: of o ``gh t o (1 - o)`` 4, of c ``gh o (1 - t t) + gc`` 5, of i and f
``gc g i (1 - i)`` 4 each, of g ``gc i (1 - g g)`` 4, of the former state ``gc f`` 1."""

GRU = Cell(gates=3, forward=16, backward=16)
"""Two gates of a sum and a sigmoid 10, ``n = tanh(a + r b)`` 3, ``n + z (h - n)`` 3. Backward: of z
``g (h - n) z (1 - z)`` 5, of n ``g (1 - z) (1 - n n)`` 5, of r ``gn b r (1 - r)`` 4, of b
``gn r`` 1, of the former state ``g z`` 1."""

_CELLS = (RNN, RNN, LSTM, GRU)
"""By the number that cuDNN's modes have: relu, tanh, LSTM, GRU."""


def _biases(values: tuple[Any, ...], batch: int) -> int:
    """An addition for each element of a bias and sample."""
    return batch * elements(values)


@FLOPS.rule(*packets(["_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"]))
def cell_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input_gates, hidden_gates, state [N, H], input_bias, hidden_bias)``, products done."""
    state = args[2]
    cell = LSTM if args[0].shape[-1] == LSTM.gates * state.shape[-1] else GRU
    biases = tuple(argument(args, kwargs, i + 3, n) for i, n in enumerate(_BIASES))
    return cell.forward * state.numel() + _biases(biases, prod(state.shape[:-1]))


_BIASES = ("input_bias", "hidden_bias")


@FLOPS.rule(*packets(["_thnn_fused_lstm_cell_backward_impl", "_thnn_fused_lstm_cell_backward"]))
def lstm_cell_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_hy, grad_cy, cx [N, H], cy, workspace, has_bias)``; gradients of biases are sums."""
    state, has_bias = args[2], args[5]
    sums = sum_of_terms(state.numel(), state.shape[-1]) if has_bias else 0
    return LSTM.backward * state.numel() + LSTM.gates * sums


@FLOPS.rule(*packets(["_thnn_differentiable_lstm_cell_backward"]))
def differentiable_lstm_cell_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_hy, grad_cy, input_gates, hidden_gates, input_bias, hidden_bias, cx, cy)``.

    The activations are computed again: sums 4, three sigmoids and a tanh 13.
    """
    state = args[6]
    has_bias = args[4] is not None
    sums = sum_of_terms(state.numel(), state.shape[-1]) if has_bias else 0
    biases = _biases(args[4:6], state.shape[0])
    return (LSTM.backward + 17) * state.numel() + LSTM.gates * sums + biases


@FLOPS.rule(*packets(["_thnn_fused_gru_cell_backward"]))
def gru_cell_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_hy [N, H], workspace, has_bias)``; of the sums of gates, and of n's b apart."""
    state, has_bias = args[0], args[2]
    sums = sum_of_terms(state.numel(), state.shape[-1]) if has_bias else 0
    return GRU.backward * state.numel() + (GRU.gates + 1) * sums


@FLOPS.rule(*packets(["mkldnn_rnn_layer"]))
def mkldnn_rnn_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input [T, N, I], w_ih, w_hh, b_ih, b_hh, ..., mode, hidden, layers, has_biases, ...)``."""
    biases = list(args[3:5]) if args[12] else []
    return _layers(args[0], [*args[1:3], *biases], _CELLS[args[9]], args[10])


@FLOPS.rule(*packets(["mkldnn_rnn_layer_backward"]))
def mkldnn_rnn_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """See `_layers_backward`."""
    biases = list(args[3:5]) if args[17] else []
    return _layers_backward(args[0], [*args[1:3], *biases], _CELLS[args[14]], args[15])


@FLOPS.rule(*packets(["_cudnn_rnn"]))
def cudnn_rnn_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, weights, stride, buffer, hx, cx, mode, hidden, ...)``: all layers, directions."""
    return _layers(args[0], args[1], _CELLS[args[6]], args[7])


@FLOPS.rule(*packets(["_cudnn_rnn_backward"]))
def cudnn_rnn_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, weights, stride, buffer, hx, cx, output, 3 gradients, mode, hidden, ...)``."""
    return _layers_backward(args[0], args[1], _CELLS[args[10]], args[11])


def _matrices(weights: list[Tensor]) -> list[Tensor]:
    return [w for w in weights if w.dim() == 2]


def _units(weights: list[Tensor], cell: Cell, hidden: int) -> int:
    """The hidden units of all layers and directions: each has its gates in two matrices."""
    rows = sum(w.shape[0] for w in _matrices(weights) if w.shape[0] == cell.gates * hidden)
    return rows // (2 * cell.gates)


def _layers(x: Tensor, weights: list[Tensor], cell: Cell, hidden: int) -> int:
    """At each of the ``T * N`` steps: a product with each matrix, biases, cells."""
    steps = prod(x.shape[:-1])
    biases = sum(w.numel() for w in weights if w.dim() == 1)
    return steps * (
        2 * elements(_matrices(weights)) + biases + cell.forward * _units(weights, cell, hidden)
    )


def _layers_backward(x: Tensor, weights: list[Tensor], cell: Cell, hidden: int) -> int:
    """Two products with each matrix, for its own gradient and that of what it was applied to.

    Both biases of a gate have one gradient, the sum over all steps.
    """
    steps = prod(x.shape[:-1])
    biases = sum(w.numel() for w in weights if w.dim() == 1) // 2
    flops = steps * (
        4 * elements(_matrices(weights)) + cell.backward * _units(weights, cell, hidden)
    )
    return flops + sum_of_terms(steps * biases, biases)
