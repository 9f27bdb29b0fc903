"""Products of matrices and vectors, and attention.

Corrections of what SpikingJelly 2.0.0 counts:

- **A factor** ``alpha`` of `addmm` and `baddbmm`. With ``beta c + alpha (x @ w)`` and spikes x, the
  sums ``x @ w`` are the same accumulations as without the factor, which scales each sum once, after
  them. The peer counts neither MACs nor ACs for them, so that the product disappears.
- **Coincidences in half precision.** Of binary x and y it adds up the result of ``x @ y``, which in
  float16 or bfloat16 is rounded where a sum passes 2048 or 256. Here integers are summed:
  ``sum over m, n of (sum over k of x[m, k] y[k, n])`` is ``sum over k of (sum over m of x[m, k])
  (sum over n of y[k, n])``, which takes no matrix product, either.

Biases are left out, as there: a bias is no spike, and its addition is one for each result, not for
each product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snnfx.op_counter.op_names import names
from snnfx.op_counter.spike_products import Operand, Product
from snnfx.op_counter.spike_table import linear
from snnfx.op_counter.spikes import SpikeCall, exact_sum


def _matrices(call: SpikeCall, x: int, y: int) -> tuple[Product, ...]:
    """``[.., m, k] @ [.., k, n]``: an element of x is used n times, one of y m times."""
    left, right = call.args[x], call.args[y]
    rows, columns = left.shape[-2], right.shape[-1]
    return (
        Product(
            Operand(x, columns),
            Operand(y, rows),
            dense=left.numel() * columns,
            contract=lambda a, b: exact_sum(a, [-2]) * exact_sum(b, [-1]),
        ),
    )


@linear("mm", "bmm", "_int_mm")
def product(call: SpikeCall) -> tuple[Product, ...]:
    """``x @ y``."""
    return _matrices(call, 0, 1)


@linear("addmm", "addmm_", "baddbmm", "baddbmm_", "addbmm", "addbmm_")
def added_product(call: SpikeCall) -> tuple[Product, ...]:
    """``beta c + alpha (x @ y)``; `addbmm` sums over the batch as well."""
    return _matrices(call, 1, 2)


def _by_vector(call: SpikeCall, x: int, y: int) -> tuple[Product, ...]:
    matrix = call.args[x]
    return (
        Product(
            Operand(x, 1),
            Operand(y, matrix.shape[0]),
            dense=matrix.numel(),
            contract=lambda a, b: exact_sum(a, [0]) * b,
        ),
    )


@linear("mv")
def by_vector(call: SpikeCall) -> tuple[Product, ...]:
    """``[m, k] @ [k]``."""
    return _by_vector(call, 0, 1)


@linear("addmv", "addmv_")
def added_by_vector(call: SpikeCall) -> tuple[Product, ...]:
    """``beta c + alpha ([m, k] @ [k])``."""
    return _by_vector(call, 1, 2)


@linear("dot", "vdot")
def vectors(call: SpikeCall) -> tuple[Product, ...]:
    """``[k] @ [k]``."""
    return (Product(Operand(0, 1), Operand(1, 1), call.args[0].numel(), torch.logical_and),)


@linear("addr", "addr_")
def outer_product(call: SpikeCall) -> tuple[Product, ...]:
    """``beta c + alpha outer(x, y)``."""
    m, n = call.args[1].numel(), call.args[2].numel()
    return (
        Product(
            Operand(1, n),
            Operand(2, m),
            dense=m * n,
            contract=lambda a, b: exact_sum(a, [0]) * exact_sum(b, [0]),
        ),
    )


ATTENTION = names("""
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable
""")
"""Fused kernels of ``softmax(q k^T) v``, q ``[N, H, L, E]``, k ``[N, H', S, E]``,
v ``[N, H', S, V]``, where ``H / H'`` heads of queries share one of keys and values."""


@linear(*ATTENTION)
def attention(call: SpikeCall) -> tuple[Product, ...]:
    """``q k^T`` and ``p v``, with probabilities p, which are not binary.

    What kernels do between the two, and masks, are left out; those leave results out, not products.
    """
    q, k, v = call.args[:3]
    return _scores(q, k, 0), _weighted_values(q, v, Operand(None, 0), 2)


@linear(*(f"{name}_backward" for name in ATTENTION))
def attention_backward(call: SpikeCall) -> tuple[Product, ...]:
    """Of ``(grad_out [N, H, L, V], q, k, v, ...)``, the five products of the gradients.

    The scores again, ``q k^T``; those of probabilities ``grad_p = grad_out v^T``, of values
    ``grad_v = p^T grad_out``, of queries ``grad_q = grad_s k`` and of keys ``grad_k = grad_s^T q``.
    Every element is used as often as in the forward; p and grad_s are not binary.
    """
    _, q, k, v = call.args[:4]
    made = Operand(None, 0)
    scores = _scores(q, k, 1)
    values = _weighted_values(q, v, made, 3)
    gradient = Operand(0, k.shape[-2])
    return (
        scores,
        Product(gradient, values.right, values.dense, _paired_heads),
        Product(gradient, made, values.dense, _paired_heads),
        Product(made, scores.right, scores.dense, _paired_heads),
        Product(scores.left, made, scores.dense, _paired_heads),
    )


def _scores(q: Tensor, k: Tensor, position: int) -> Product:
    """``q k^T``, with q and k at `position` and the one after it."""
    return Product(
        Operand(position, k.shape[-2]),
        Operand(position + 1, q.shape[-2] * _sharing(q, k)),
        dense=q.numel() * k.shape[-2],
        contract=_paired_heads,
    )


def _weighted_values(q: Tensor, v: Tensor, weights: Operand, position: int) -> Product:
    """``p v``: a value is used by each query of the heads that share it."""
    uses = q.shape[-2] * _sharing(q, v)
    return Product(weights, Operand(position, uses), v.numel() * uses, _paired_heads)


def _sharing(q: Tensor, k: Tensor) -> int:
    return q.shape[1] // k.shape[1]


def _paired_heads(a: Tensor, b: Tensor) -> Tensor:
    """Coincidences of ``[N, H, L, E]`` and ``[N, H', S, E]``: column by column, as of `mm`."""
    left, right = exact_sum(a, [-2]), exact_sum(b, [-2])
    return left.unflatten(1, (right.shape[1], -1)).sum(2) * right
