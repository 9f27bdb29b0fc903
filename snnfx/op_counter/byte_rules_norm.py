"""Bytes of batch norms; other normalisations read all operands and write all results."""

from __future__ import annotations

from typing import Any

from snnfx.op_counter.byte_table import BYTES
from snnfx.op_counter.op_names import packets
from snnfx.op_counter.operands import Args, Kwargs, argument, size_in_bytes


@BYTES.rule(
    *packets(
        ["native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm"]
    )
)
def batch_norm_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, weight, bias, running_mean, running_var, training, ...)``.

    Training, it writes the statistics of the batch, and the running ones too (a correction: they
    are read, changed and written, as by any operator that works in place).
    """
    training = argument(args, kwargs, 5, "training", False)
    return _batch_norm(args, out, training)


@BYTES.rule(*packets(["_native_batch_norm_legit.no_stats"]))
def batch_norm_without_statistics_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, weight, bias, training, ...)``."""
    return size_in_bytes(args[:3]) + size_in_bytes(out)


@BYTES.rule(*packets(["_batch_norm_with_update"]))
def batch_norm_update_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A batch norm that is training."""
    return _batch_norm(args, out, True)


@BYTES.rule(*packets(["_batch_norm_no_update", "_native_batch_norm_legit_no_training"]))
def batch_norm_inference_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """A batch norm that takes its running statistics."""
    return _batch_norm(args, out, False)


def _batch_norm(args: Args, out: Any, training: bool) -> int:
    """Input, scales and running statistics; the output and, training, all statistics."""
    written = [*out[:3], *args[3:5]] if training else out[0]
    return size_in_bytes(args[:5]) + size_in_bytes(written)


@BYTES.rule(*packets(["native_batch_norm_backward", "batch_norm_backward"]))
def batch_norm_backward_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(grad_out, input, weight, mean, var, saved mean, saved invstd, train, eps, mask)``.

    The incoming gradient; statistics, with the input for the gradients of the input (training) and
    of the weight; the weight for the gradient of the input. Corrections: the gradients that are
    asked for are written; with running statistics it is these that are read.
    """
    gradient, x, weight = args[:3]
    training = argument(args, kwargs, 7, "train", False)
    mask = argument(args, kwargs, 9, "output_mask", (True, True, True))
    mean, deviation = args[5:7] if training else args[3:5]
    read = [gradient]
    if mask[1] or (mask[0] and training):
        read += [x, mean]
    if mask[0] or mask[1]:
        read.append(deviation)
    if mask[0]:
        read.append(weight)
    written = [result for result, asked in zip(out, mask, strict=False) if asked]
    return size_in_bytes(read) + size_in_bytes(written)


@BYTES.rule(*packets(["cudnn_batch_norm_backward", "miopen_batch_norm_backward"]))
def cudnn_batch_norm_backward_bytes(args: Args, kwargs: Kwargs, out: Any) -> int:
    """``(input, grad_out, weight, running statistics, saved statistics, ...)``: all but these."""
    return size_in_bytes([*args[:3], *args[5:7]]) + size_in_bytes(out)
