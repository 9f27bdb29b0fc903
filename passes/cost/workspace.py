"""Workspace: what operators allocate and release inside themselves, from shapes and layouts.

A rule takes a node and gives the moments at which its operator may hold most, as `Phase`s; an
operator without a rule allocates nothing but its results. Only what goes through PyTorch's
allocator counts, as only that is measured. Scalars that PyTorch wraps into tensors (a dozen bytes
an operator) are left out.

Rules hold for the CPU and were measured with torch 2.13.0; where a rule follows PyTorch's source,
it names the file. On CUDA no workspace is known: cuDNN and cuBLAS choose theirs when they run, so
nothing is added there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from snnfx.kernels.bitpack_workspace import pack_workspace_bytes, unpack_workspace_bytes
from snnfx.kernels.ops import PACK_OP, UNPACK_OP
from snnfx.passes.analysis.liveness import Phase
from snnfx.passes.cost.workspace_conv import (
    backward_phases,
    forward_phases,
    read_convolution,
    transposed_phases,
)
from snnfx.passes.fxgraph import node_value, numel, size_hint, tensor_bytes, tensor_value
from snnfx.passes.optable import OpTable

aten = torch.ops.aten
WorkspaceRule = Callable[[Node], tuple[Phase, ...]]
WORKSPACE: OpTable[WorkspaceRule] = OpTable("CPU workspace")


def workspace_phases(node: Node) -> tuple[Phase, ...]:
    """The phases of a node's operator; none if it needs no workspace, or none is known."""
    rule = WORKSPACE.find(node.target) if node.op == "call_function" else None
    if rule is None or _device(node) != "cpu":
        return ()
    return rule(node)


def _device(node: Node) -> str | None:
    value = node_value(node)
    values = value if isinstance(value, (tuple, list)) else (value,)
    return next((v.device.type for v in values if isinstance(v, Tensor)), None)


def _tensors(node: Node) -> list[Tensor]:
    """The tensors among the arguments."""
    found = (tensor_value(source) for source in node.all_input_nodes)
    return [value for value in found if value is not None]


@WORKSPACE.rule(aten.convolution)
def convolution_workspace(node: Node) -> tuple[Phase, ...]:
    """Copies in blocks, or columns: see `snnfx.passes.cost.workspace_conv`."""
    conv = read_convolution(node)
    phases = transposed_phases if node.args[6] else forward_phases
    return () if conv is None else phases(conv)


@WORKSPACE.rule(aten.convolution_backward)
def convolution_backward_workspace(node: Node) -> tuple[Phase, ...]:
    """The same of the gradients; `args[10]` says which of them are wanted."""
    conv = read_convolution(node)
    mask: Any = node.args[10]
    return () if conv is None else backward_phases(conv, mask)


@WORKSPACE.rule(aten.native_batch_norm_backward)
def batch_norm_backward_workspace(node: Node) -> tuple[Phase, ...]:
    """A second tensor of the size of the input's gradient, where both operands are in one layout.

    Source: `batch_norm_backward_cpu` in `native/Normalization.cpp` (its contiguous case). In other
    layouts a generic loop works in place.
    """
    gradient, image = (tensor_value(arg) for arg in node.args[:2] if isinstance(arg, Node))
    mask: Any = node.args[9]
    if gradient is None or image is None or not mask[0] or not _same_dense(gradient, image):
        return ()
    return (Phase(tensor_bytes(image), tuple(i for i, wanted in enumerate(mask) if wanted)),)


def _same_dense(a: Tensor, b: Tensor) -> bool:
    layouts = [torch.contiguous_format]
    layouts += {4: [torch.channels_last], 5: [torch.channels_last_3d]}.get(a.dim(), [])
    return any(all(t.is_contiguous(memory_format=f) for t in (a, b)) for f in layouts)


@WORKSPACE.rule(aten.add, aten.sub, aten.mul, aten.div)
def binary_workspace(node: Node) -> tuple[Phase, ...]:
    """Operands of another dtype than the result's are converted as a whole.

    Source: `TensorIteratorBase::build` in `TensorIterator.cpp` (`promote_inputs_to_common_dtype`).
    """
    result = tensor_value(node)
    if result is None:
        return ()
    converted = sum(
        numel(value) * result.element_size()
        for value in _tensors(node)
        if value.dtype != result.dtype and value.dim()
    )
    return (Phase(converted, (0,)),) if converted else ()


@WORKSPACE.rule(aten.sum, aten.mean)
def reduction_workspace(node: Node) -> tuple[Phase, ...]:
    """Elements of another dtype than the result's are converted before they are summed.

    Those of 16 bits are summed in float32: within the kernel, or after they are converted where
    they are summed over dimensions with others between them.

    Source: `make_reduction` in `native/ReduceOpsUtils.h`; `should_use_acc_buffer` in
    `native/ReduceOps.cpp`.
    """
    result = tensor_value(node)
    operands = _tensors(node)
    if result is None or not operands:
        return ()
    value = operands[0]
    if value.dtype != result.dtype:
        return (Phase(numel(value) * result.element_size(), (0,)),)
    if value.dtype in (torch.bfloat16, torch.float16) and _reduced_runs(value, node.args) > 1:
        return (Phase(4 * (numel(value) + numel(result)), (0,)),)
    return ()


def _reduced_runs(value: Tensor, args: tuple[Any, ...]) -> int:
    """How many separate stretches of memory dimensions a reduction sums over."""
    dims = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else range(value.dim())
    reduced = {int(dim) % max(1, value.dim()) for dim in dims}
    sizes = [size_hint(size) for size in value.shape]
    order = sorted(range(value.dim()), key=lambda d: -size_hint(value.stride(d)))
    flags = [d in reduced for d in order if sizes[d] != 1]
    return sum(flag and not before for before, flag in zip([False, *flags], flags, strict=False))


@WORKSPACE.rule(aten.native_dropout)
def dropout_workspace(node: Node) -> tuple[Phase, ...]:
    """The mask as numbers of the input's dtype, before it is one of bools.

    Source: `native_dropout_cpu` in `native/Dropout.cpp`.
    """
    value = _tensors(node)[0]
    return (Phase(tensor_bytes(value), (0, 1)),)


@WORKSPACE.rule(aten.mm, aten.bmm, aten.addmm, aten.baddbmm)
def matmul_workspace(node: Node) -> tuple[Phase, ...]:
    """A matrix whose rows and columns both have gaps is copied, one of a batch at a time.

    Source: `prepare_matrix_for_cublas`'s counterpart `addmm_impl_cpu_` in
    `native/LinearAlgebra.cpp`; bmm calls it for each matrix of such a batch.
    """
    copied = 0
    for value in _tensors(node)[-2:]:
        if value.dim() >= 2 and not _is_gemm_operand(value):
            copied += math.prod(size_hint(s) for s in value.shape[-2:]) * value.element_size()
    return (Phase(copied, (0,)),) if copied else ()


def _is_gemm_operand(value: Tensor) -> bool:
    """Whether one of the two last dimensions is dense, and the other reaches over it."""
    (rows, columns), (down, along) = (
        [size_hint(x) for x in items[-2:]] for items in (value.shape, value.stride())
    )
    return (along == 1 and down >= max(1, columns)) or (down == 1 and along >= max(1, rows))


@WORKSPACE.rule(aten.im2col, aten.col2im)
def unfolding_workspace(node: Node) -> tuple[Phase, ...]:
    """A row-major copy of the operand; for a larger result, first memory of the operand's size.

    Source: `im2col_cpu` in `native/Im2Col.cpp`, `col2im_cpu` in `native/Col2Im.cpp`. Both make an
    `empty_like` of the operand and resize it, which allocates again where that is too small, and
    keeps it where it is not: see `snnfx.passes.analysis.liveness.storage_bytes`.
    """
    value, result = _tensors(node)[0], tensor_value(node)
    if result is None:
        return ()
    held = tensor_bytes(value)
    copied = 0 if value.is_contiguous() else held
    copied += held if tensor_bytes(result) > held else 0
    return (Phase(copied, (0,)),) if copied else ()


@WORKSPACE.rule(PACK_OP)
def pack_workspace(node: Node) -> tuple[Phase, ...]:
    """Sums or codes of one chunk, and a copy of it where it is not contiguous."""
    value = _tensors(node)[0]
    shape = [size_hint(size) for size in value.shape]
    grid, named = _grid(node, 1)
    held = pack_workspace_bytes(shape, value.dtype, value.is_contiguous(), *grid, **named)
    return (Phase(held, (0,)),)


@WORKSPACE.rule(UNPACK_OP)
def unpack_workspace(node: Node) -> tuple[Phase, ...]:
    """Indices or codes of one chunk, and the table of all bytes."""
    result = tensor_value(node)
    if result is None:
        return ()
    shape = [size_hint(size) for size in result.shape]
    grid, named = _grid(node, 3)
    held = unpack_workspace_bytes(shape, result.dtype, *grid, **named)
    return (Phase(held, (0,)),)


def _grid(node: Node, first: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments from `bits` on, by place and by name; `first` is the place of `bits`."""
    names = ("bits", "layout", "scale", "lo")
    return tuple(node.args[first:]), {n: node.kwargs[n] for n in names if n in node.kwargs}
