"""From operators that run outside of layers, such as functional ones, to pieces of work.

A functional operator costs what the layer that does the same costs. Where SpikingJelly 2.0.0 does
not hold to this, and what is done instead:

- The two products of a linear backward are told apart by what they read: the one that reads a
  weight gives the gradient of the input, the one that reads the input of a forward product with a
  weight gives the gradient of that weight. The peer goes by the shape of the result alone, takes
  the operands for ``x^T g`` where PyTorch may compute ``g^T x``, and so asks the gradient whether
  it is spikes.
- The gradient of an input sums over the outputs of the forward: C and K are the forward's, as in a
  layer's backward; the peer has them swapped here, and with them the number of rounds.
- A transposed convolution multiplies once for each *input* place: its places are those of the
  input. The peer takes the output's, which are stride^2 times as many.
- Backwards of functional convolutions are counted; the peer has no rule for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from snnfx.op_counter.neuromc import costs
from snnfx.op_counter.neuromc.modules import (
    Stage,
    backward_products,
    forward_products,
    is_spikes,
    normalisation,
    normalisation_backward,
    plane,
)
from snnfx.op_counter.neuromc.piece import Loops, Piece
from snnfx.passes.optable import OpTable

aten = torch.ops.aten


class Products:
    """Remembers products of forwards until the backward asks whose gradients it computes.

    Args:
        model: whose trainable parameters are the weights.
    """

    def __init__(self, model: nn.Module) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        self._weights = {_storage(parameter) for parameter in trainable}
        self._weight_shapes = {parameter.shape for parameter in trainable}
        self._inputs: defaultdict[tuple[int, int], list[bool]] = defaultdict(list)
        self._shapes: defaultdict[tuple[torch.Size, torch.Size], list[bool]] = defaultdict(list)

    def remember(self, x: Tensor, y: Tensor, out: Tensor, spikes: bool) -> None:
        """Remember ``out = x @ y``, for as long as autograd keeps the operands."""
        if x.requires_grad:
            self._shapes[x.shape, out.shape].append(spikes)
        if y.requires_grad and _storage(y) in self._weights:
            self._inputs[_storage(x), y.numel()].append(spikes)

    def weight_gradient(self, a: Tensor, b: Tensor, out: Tensor) -> WeightGradient | None:
        """What ``a @ b`` is if it is the gradient of a weight; None if it is none."""
        if self.reads_weight(a, b):
            return None
        for x, gradient, swapped in ((b, a, True), (a, b, False)):
            remembered = self._inputs.get((_storage(x), out.numel()))
            if remembered:
                return WeightGradient(x, gradient, remembered.pop(), swapped)
        if out.shape in self._weight_shapes:
            return WeightGradient(a, b, is_spikes(a), swapped=False)
        return None

    def reads_weight(self, *operands: Tensor) -> bool:
        """Whether an operand is a weight of the model."""
        return any(_storage(operand) in self._weights for operand in operands)

    def input_spikes(self, a: Tensor, out: Tensor) -> bool:
        """Whether the input was spikes whose gradient ``out = a @ y^T`` is; no, if not known."""
        remembered = self._shapes.get((out.shape, a.shape))
        return bool(remembered) and remembered.pop()


@dataclass(frozen=True)
class WeightGradient:
    """One product that is the gradient of a weight.

    Attributes:
        x: the input of the forward.
        gradient: of its output.
        spikes: whether the input was spikes.
        swapped: whether it is computed as ``gradient^T x``, instead of ``x^T gradient``.
    """

    x: Tensor
    gradient: Tensor
    spikes: bool
    swapped: bool


@dataclass(frozen=True)
class OperatorCall:
    """One call of an operator.

    Attributes:
        name: of the operator.
        args: as it was called.
        out: what it returned.
        stage: in which it ran.
        products: what ran before.
    """

    name: str
    args: tuple[Any, ...]
    out: Any
    stage: Stage
    products: Products


OperatorRule = Callable[[OperatorCall], "Iterable[Piece] | None"]

FORWARD: OpTable[OperatorRule] = OpTable("NeuroMC's work in forwards")
BACKWARD: OpTable[OperatorRule] = OpTable("NeuroMC's work in backwards")
"""The pieces of one call; None if this call is outside of the model."""

_GEMMS = (aten.mm.default, aten.addmm.default, aten.bmm.default)


@FORWARD.rule(*_GEMMS)
def _product(call: OperatorCall) -> Iterable[Piece]:
    x, y = call.args[-2:]
    spikes = is_spikes(x)
    call.products.remember(x, y, call.out, spikes)
    loops = Loops(batch=prod(x.shape[:-1]), channels_in=x.shape[-1], channels_out=y.shape[-1])
    yield _from_trace(
        forward_products(call.stage, call.name, spikes, loops, y.numel(), call.out.numel())
    )


@BACKWARD.rule(*_GEMMS)
def _product_backward(call: OperatorCall) -> Iterable[Piece]:
    a, b = call.args[-2:]
    found = call.products.weight_gradient(a, b, call.out)
    inner = a.shape[-1]
    if found is None:
        core = costs.INPUT_GRADIENT[call.products.input_spikes(a, call.out)]
        loops = Loops(batch=prod(a.shape[:-1]), channels_in=b.shape[-1], channels_out=inner)
        weight_numel = b.numel()
    else:
        core = costs.WEIGHT_GRADIENT[found.spikes]
        sizes = a.shape[-2], b.shape[-1]
        channels_in, channels_out = reversed(sizes) if found.swapped else sizes
        batch = prod(a.shape[:-2]) * inner
        loops = Loops(batch=batch, channels_in=channels_in, channels_out=channels_out)
        weight_numel = found.gradient.numel()
    yield _from_trace(
        backward_products(call.stage, call.name, core, loops, weight_numel, call.out.numel()),
        call.stage,
    )


@FORWARD.rule(aten.convolution.default)
def _convolution(call: OperatorCall) -> Iterable[Piece] | None:
    x, weight = call.args[:2]
    if x.dim() > 4:
        return None
    loops = _convolution_loops(x, weight, call.out, call.args[6], call.args[8])
    sizes = weight.numel(), call.out.numel()
    return [_from_trace(forward_products(call.stage, call.name, is_spikes(x), loops, *sizes))]


@BACKWARD.rule(aten.convolution_backward.default)
def _convolution_backward(call: OperatorCall) -> Iterable[Piece] | None:
    gradient, x, weight = call.args[:3]
    if x.dim() > 4:
        return None
    loops = _convolution_loops(x, weight, gradient, call.args[7], call.args[9])
    spikes = is_spikes(x)
    wanted = (
        (costs.INPUT_GRADIENT[spikes], weight.numel(), x.numel()),
        (costs.WEIGHT_GRADIENT[spikes], gradient.numel(), weight.numel()),
    )
    return [
        _from_trace(backward_products(call.stage, call.name, core, loops, *sizes), call.stage)
        for (core, *sizes), is_wanted in zip(wanted, call.args[10], strict=False)
        if is_wanted
    ]


@FORWARD.rule(aten.native_batch_norm.default, aten.cudnn_batch_norm.default)
def _norm(call: OperatorCall) -> Iterable[Piece] | None:
    x = call.args[0]
    if x.dim() > 4:
        return None
    return [_from_trace(normalisation(call.stage, None, x.shape, is_spikes(x)))]


@BACKWARD.rule(aten.native_batch_norm_backward.default)
def _norm_backward(call: OperatorCall) -> Iterable[Piece]:
    gradient, x = call.args[:2]
    piece = normalisation_backward(call.stage, None, gradient.shape, is_spikes(x))
    yield _from_trace(piece)


@BACKWARD.rule(aten.cudnn_batch_norm_backward.default)
def _cudnn_norm_backward(call: OperatorCall) -> Iterable[Piece]:
    x, gradient = call.args[:2]
    piece = normalisation_backward(call.stage, None, gradient.shape, is_spikes(x))
    yield _from_trace(piece)


def _convolution_loops(
    x: Tensor, weight: Tensor, out: Tensor, transposed: bool, groups: int
) -> Loops:
    rows, columns = plane((x if transposed else out).shape[2:])
    kernel_rows, kernel_columns = plane(weight.shape[2:])
    return Loops(
        batch=x.shape[0],
        channels_in=x.shape[1] // groups,
        channels_out=out.shape[1] // groups,
        rows=rows,
        columns=columns,
        kernel_rows=kernel_rows,
        kernel_columns=kernel_columns,
        groups=groups,
    )


def _from_trace(piece: Piece, stage: Stage | None = None) -> Piece:
    reuses = piece.reuses_weights if stage is None else stage.reuse_weights
    return replace(piece, source="trace", reuses_weights=reuses)


def _storage(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


_MOVES = """
    detach view t transpose permute expand slice select alias _unsafe_view as_strided unsqueeze
    squeeze unbind clone copy_ cat stack split split_with_sizes index index_put flip roll
    select_backward slice_backward _reshape_alias lift_fresh
    _to_copy _local_scalar_dense empty empty_like empty_strided new_empty new_empty_strided zeros
    zeros_like new_zeros ones ones_like new_ones full full_like fill_ zero_ scalar_tensor
    repeat _foreach_zero_
"""

_ARITHMETIC = """
    add sub rsub mul div neg abs reciprocal pow sqrt rsqrt exp log sign clamp minimum maximum where
    sigmoid sigmoid_backward tanh tanh_backward atan heaviside all sum mean eq ne lt le gt ge
    logical_and logical_or logical_xor logical_not
"""

_LOSSES = """
    mse_loss mse_loss_backward _log_softmax _log_softmax_backward_data nll_loss_forward
    nll_loss_backward smooth_l1_loss smooth_l1_loss_backward binary_cross_entropy
    binary_cross_entropy_backward binary_cross_entropy_with_logits
"""

FREE = frozenset(name.rstrip("_") for name in (_MOVES + _ARITHMETIC + _LOSSES).split())
"""Operators that the model does not count, by name, in place or not: moves of data, arithmetic by
element, as neurons and their surrogate gradients use, that the cores do on the way, and losses,
which the host computes. SpikingJelly 2.0.0 leaves out most of them, too; it refuses the others."""


def is_free(func: Any) -> bool:
    """Whether an operator costs nothing in the model."""
    namespace, _, name = func._schema.name.partition("::")
    return namespace == "profiler" or (namespace == "aten" and name.rstrip("_") in FREE)
