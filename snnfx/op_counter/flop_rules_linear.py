"""FLOPs of what is linear: matrix products, convolutions, attention.

A product that is added to a sum counts 2, also the first of a sum, as is usual: a dot product of
length k counts 2 k.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from snnfx.op_counter.flop_table import FLOPS
from snnfx.op_counter.op_names import names, packets
from snnfx.op_counter.operands import Args, Kwargs, argument, sum_of_terms


@FLOPS.rule(*packets(["mm", "bmm", "_int_mm", "mv", "dot", "vdot"]))
def product_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``[.., m, k] @ [.., k, n]``: 2 k for each of the results."""
    return 2 * out.numel() * args[0].shape[-1]


@FLOPS.rule(*packets(["addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addmv_"]))
def added_product_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``beta * c + alpha * (a @ b)``."""
    return 2 * out.numel() * args[1].shape[-1] + _combination(args[0], out, kwargs)


@FLOPS.rule(*packets(["addbmm", "addbmm_"]))
def added_products_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``beta * c + alpha * sum over i of (a[i] @ b[i])``, with ``a`` of ``[B, m, k]``."""
    return 2 * args[1].numel() * args[2].shape[-1] + _combination(args[0], out, kwargs)


@FLOPS.rule(*packets(["addr", "addr_"]))
def added_outer_product_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``beta * c + alpha * outer(a, b)``: one multiplication a product."""
    return out.numel() + _combination(args[0], out, kwargs)


def _combination(added: Tensor, out: Tensor, kwargs: Kwargs) -> int:
    """The scaling of a product and the addition of a scaled term; a factor of 1 is none."""
    alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
    scale_product = out.numel() if alpha != 1 else 0
    scale_added = added.numel() if beta not in (0, 1) else 0
    return scale_product + scale_added + (out.numel() if beta != 0 else 0)


@FLOPS.rule(*packets(["_trilinear"]))
def trilinear_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``sum of a * b * c`` over some dimensions: three for each term.

    ``expand1..3`` say at which dimensions the operands are expanded; all shapes then agree.
    """
    shapes: list[list[int]] = []
    for operand, expanded in zip(args[:3], args[3:6], strict=True):
        shape = list(operand.shape)
        for dim in sorted(expanded):
            shape.insert(dim, 1)
        shapes.append(shape)
    return 3 * prod(max(sizes) for sizes in zip(*shapes, strict=True))


@FLOPS.rule(*packets(["convolution", "_convolution", "convolution_overrideable"]))
def convolution_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``2 * batch * positions * weights``, and an addition of the bias for each result.

    Each weight is used once at each position of the batch: of the output, or of the input where
    the convolution is transposed. A weight ``[C_out, C_in / groups, *kernel]`` holds the groups
    already. Positions in the padding count as any other.
    """
    transposed = argument(args, kwargs, 6, "transposed", False)
    bias = argument(args, kwargs, 2, "bias")
    return convolution_products(args[0] if transposed else out, args[1]) + _bias(bias, out)


@FLOPS.rule(
    *packets(
        names("""cudnn_convolution mkldnn_convolution miopen_convolution
        miopen_depthwise_convolution _slow_conv2d_forward slow_conv3d_forward
        _conv_depthwise2d conv_depthwise3d
        slow_conv_dilated2d slow_conv_dilated3d""")
    )
)
def plain_convolution_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `convolution_flops`, of kernels that are not transposed."""
    bias = [x for x in args[2:4] if isinstance(x, Tensor)]
    return convolution_products(out, args[1]) + (out.numel() if bias else 0)


@FLOPS.rule(*packets(["cudnn_convolution_relu", "miopen_convolution_relu"]))
def convolution_relu_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """A convolution, and one comparison for each result."""
    bias = argument(args, kwargs, 2, "bias")
    return convolution_products(out, args[1]) + _bias(bias, out) + out.numel()


@FLOPS.rule(*packets(["cudnn_convolution_transpose", "miopen_convolution_transpose"]))
def transposed_convolution_flops(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """See `convolution_flops`."""
    return convolution_products(args[0], args[1])


@FLOPS.rule(*packets(["convolution_backward", "convolution_backward_overrideable"]))
def convolution_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """The gradients that are asked for, of input and weight as many products as the forward.

    Grouped (a correction): weight ``w[o, i]`` gets the product of output channel o and the i-th of
    the ``C_in / groups`` input channels of its group, at each position of the batch. This is
    ``2 * batch * positions * C_out * C_in / groups * kernel``; as a plain convolution of all C_in
    with all C_out channels it would be `groups` times as much. Bias: the sum over all positions.
    """
    gradient, x, weight = args[:3]
    transposed = argument(args, kwargs, 7, "transposed", False)
    mask = argument(args, kwargs, 10, "output_mask", (True, True, True))
    products = convolution_products(x if transposed else gradient, weight)
    flops = products * (bool(mask[0]) + bool(mask[1]))
    if mask[2] and args[3] is not None:
        flops += sum_of_terms(gradient.numel(), gradient.shape[1])
    return flops


def convolution_products(positions: Tensor, weight: Tensor) -> int:
    """Two for each weight and position ``[N, C, *positions]``."""
    return 2 * positions.shape[0] * prod(positions.shape[2:]) * weight.numel()


def _bias(bias: Tensor | None, out: Tensor) -> int:
    return 0 if bias is None else out.numel()


ATTENTION = names("""
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
    _scaled_dot_product_fused_attention_overrideable
""")
"""Fused kernels of ``softmax(q k^T) v``."""


@FLOPS.rule(*packets(ATTENTION))
def attention_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """The two matrix products, of ``q [N, H, L, E]``, ``k [N, _, S, E]``, ``v [N, _, S, V]``.

    What fused kernels do to the scores between the products is left out, as in
    `torch.utils.flop_counter`.
    """
    query, key, value = args[:3]
    return 2 * _scores(query, key) * (query.shape[-1] + value.shape[-1])


@FLOPS.rule(*packets(name + "_backward" for name in ATTENTION))
def attention_backward_flops(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Five matrix products: the scores once more, and the gradients of scores, q, k and v.

    Those of scores, q and k are as long as q, the other two as v.
    """
    query, key, value = args[1:4]
    return 2 * _scores(query, key) * (3 * query.shape[-1] + 2 * value.shape[-1])


def _scores(query: Tensor, key: Tensor) -> int:
    return prod(query.shape[:-1]) * key.shape[-2]
