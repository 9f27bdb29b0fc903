"""Bytes of operators that do not read all their operands, or do not write all their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from snnfx.eager.storages import tensors_in
from snnfx.op_counter.byte_table import BYTES
from snnfx.op_counter.flop_rules_linear import ATTENTION
from snnfx.op_counter.flop_rules_pointwise import MARKS
from snnfx.op_counter.op_families import (
    ALLOCATIONS,
    COPIES,
    FILLS,
    GATHERS,
    QUESTIONS,
    VIEWS,
)
from snnfx.op_counter.op_names import names, packets
from snnfx.op_counter.operands import (
    Args,
    Kwargs,
    argument,
    elements,
    places,
    results,
    size_in_bytes,
)


@BYTES.rule(*packets([*VIEWS, *ALLOCATIONS, *QUESTIONS]), *MARKS)
def no_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """No element is touched."""
    return 0


@BYTES.rule(*packets(FILLS))
def filled_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Results are written, and nothing is read."""
    return size_in_bytes(results(args, out))


@BYTES.rule(*packets(COPIES))
def copied_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """The source is read and the destination written, which is not read."""
    return size_in_bytes(args[1]) + size_in_bytes(results(args, out))


@BYTES.rule(*packets(GATHERS))
def gathered_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Indices, the elements at these places, and the results."""
    return size_in_bytes(args[1:]) + 2 * size_in_bytes(out)


@BYTES.rule(*packets(["scatter_", "index_copy_", "index_fill_"]))
def scattered_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``(x, dim, index, values)`` in place: indices and values are read, some places written."""
    at_places = places(args) * out.element_size()
    values = at_places if isinstance(args[3], Tensor) and args[3].dim() else 0
    return size_in_bytes(args[2]) + values + at_places


@BYTES.rule(*packets(["scatter_add_", "scatter_reduce_", "index_add_", "index_reduce_"]))
def accumulated_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """As `scattered_bytes`; what is at these places is read as well."""
    return size_in_bytes(args[2]) + 3 * places(args) * out.element_size()


@BYTES.rule(*packets(["index_put_", "_index_put_impl_"]))
def put_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``(x, indices, values, accumulate)`` in place; accumulating, places are read as well."""
    accessed = 2 if argument(args, kwargs, 3, "accumulate", False) else 1
    return size_in_bytes(args[1:3]) + accessed * elements(args[2]) * out.element_size()


@BYTES.rule(*packets(["masked_scatter_"]))
def masked_scatter_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``(x, mask, source)`` in place: as if the mask took the whole of the source."""
    return size_in_bytes(args[1]) + 2 * size_in_bytes(args[2])


@BYTES.rule(
    *packets(["addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "addmv_", "addbmm", "addbmm_",
              "addr", "addr_"])
)  # fmt: skip
def added_product_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """A term with the factor ``beta = 0`` is not read."""
    added = size_in_bytes(args[0]) if kwargs.get("beta", 1) != 0 else 0
    return added + size_in_bytes(args[1:3]) + size_in_bytes(out)


@BYTES.rule(*packets(["convolution_backward", "convolution_backward_overrideable"]))
def convolution_backward_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """The incoming gradient; the weight for that of the input, the input for that of the weight."""
    gradient, x, weight = args[:3]
    mask = argument(args, kwargs, 10, "output_mask", (True, True, True))
    read = size_in_bytes(gradient)
    read += (size_in_bytes(weight) if mask[0] else 0) + (size_in_bytes(x) if mask[1] else 0)
    return read + _asked_for(out, mask)


def _asked_for(out: Any, mask: Sequence[bool]) -> int:
    """The results that a mask asks for."""
    return sum(size_in_bytes(x) for x, asked in zip(out, mask, strict=False) if asked)


@BYTES.rule(*packets(["max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward"]))
def max_pool_backward_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """Gradient, indices and result.

    ``(grad_output, input, kernel, stride, padding, dilation, ceil_mode, indices)``: the input, of
    which just the shape matters, is not read but the indices are (a correction).
    """
    indices = argument(args, kwargs, 7, "indices")
    return size_in_bytes(args[0]) + size_in_bytes(indices) + size_in_bytes(out)


@BYTES.rule(*packets(["adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward"]))
def adaptive_max_pool_backward_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """``(grad_output, input, indices)``, see `max_pool_backward_bytes`."""
    return size_in_bytes(args[0]) + size_in_bytes(args[2]) + size_in_bytes(out)


@BYTES.rule(
    *packets(
        names("""avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward
        _adaptive_avg_pool3d_backward reflection_pad1d_backward reflection_pad2d_backward
        reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward
        replication_pad3d_backward value_selecting_reduction_backward""")
    )
)
def shaped_gradient_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """The gradient is read; of the input only the shape matters."""
    indices = [x for x in args[1:] if isinstance(x, Tensor) and not x.is_floating_point()]
    return size_in_bytes(args[0]) + size_in_bytes(indices) + size_in_bytes(out)


@BYTES.rule(*packets(["nll_loss_forward", "nll_loss2d_forward"]))
def nll_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Of each row the target, the element there, and its weight."""
    x, target, weight = args[:3]
    picked = target.numel() * (x.element_size() + (0 if weight is None else x.element_size()))
    return size_in_bytes(target) + picked + size_in_bytes(out)


@BYTES.rule(*packets(["nll_loss_backward", "nll_loss2d_backward"]))
def nll_backward_bytes(args: Args, kwargs: Kwargs, out: Tensor) -> int:
    """As `nll_bytes`, for ``(grad_out, x, target, weight, reduction, ignored, total)``."""
    gradient, _, target, weight = args[:4]
    picked = 0 if weight is None else target.numel() * out.element_size()
    return size_in_bytes([gradient, target, args[6]]) + picked + size_in_bytes(out)


@BYTES.rule(*packets(ATTENTION))
def attention_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Queries, keys, values and their mask; the output, and the row sums of its softmax.

    The sums are results as the statistics of a batch norm are (a correction); states of random
    generators, a few bytes, are left out.
    """
    mask = args[3] if len(args) > 3 and isinstance(args[3], Tensor) else None
    mask = kwargs.get("attn_mask", kwargs.get("attn_bias")) if mask is None else mask
    return size_in_bytes([*args[:3], mask, *out[:2]])


@BYTES.rule(*packets(f"{name}_backward" for name in ATTENTION))
def attention_backward_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_out, q, k, v, ..., out, logsumexp, ...)`` and a mask; the gradients.

    The kernel also reads the forward's output and row sums (a correction).
    """
    floating = [x for x in tensors_in([*args, *kwargs.values()]) if x.is_floating_point()]
    return size_in_bytes(floating) + size_in_bytes(out)


@BYTES.rule(*packets(["_cudnn_rnn", "_cudnn_rnn_backward"]))
def cudnn_rnn_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """The buffer of weights is where the weights are: they are not read twice."""
    read = [*args[:3], *args[4:]] if args[1] else args
    return size_in_bytes(read) + size_in_bytes(out)


@BYTES.rule(*packets(["_fused_adam_", "_fused_adamw_"]))
def adam_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """Parameters, gradients and states are read; parameters and states written."""
    parameters, gradients, averages, squares, maxima, steps = args[:6]
    maxima = maxima if kwargs.get("amsgrad") else []
    changed = size_in_bytes([parameters, averages, squares, maxima])
    return 2 * changed + size_in_bytes([gradients, steps])


@BYTES.rule(*packets(["_fused_sgd_"]))
def sgd_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """As `adam_bytes`; buffers of momentum are only written in the first step."""
    parameters, gradients, momenta = args[:3]
    buffers = size_in_bytes(momenta) if kwargs.get("momentum") else 0
    read = 0 if kwargs.get("is_first_step") else buffers
    return 2 * size_in_bytes(parameters) + size_in_bytes(gradients) + buffers + read


@BYTES.rule(*packets(["_fused_adagrad_"]))
def adagrad_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """As `adam_bytes`."""
    parameters, gradients, sums, steps = args[:4]
    return 2 * size_in_bytes([parameters, sums]) + size_in_bytes([gradients, steps])


@BYTES.rule(*packets(["_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_"]))
def unscale_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """What comes first is changed in place, as is the second; the others are read."""
    return 2 * size_in_bytes(args[:2]) + size_in_bytes(args[2:])
