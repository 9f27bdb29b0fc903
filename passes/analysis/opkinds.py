"""What kind of work an operator does, as far as planning has to know.

Kinds come from public facts: operator tags and schemas, and PyTorch's table of operators that do
matrix work (`torch.utils.flop_counter.flop_registry`). The few lists below hold what neither says.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch.fx import Node
from torch.utils.flop_counter import flop_registry

import snnfx.kernels.norm  # pyright: ignore[reportUnusedImport]  # registers
import snnfx.kernels.pool  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers
from snnfx.passes.fxgraph import (
    is_getitem,
    is_view,
    numel,
    producer,
    schema_of,
    tensor_value,
)

aten = torch.ops.aten

KNOWN_NAMESPACES = frozenset({"aten", "prims", "prim", "snnfx"})

THRESHOLDS = frozenset(
    {
        aten.ge, aten.gt, aten.le, aten.lt, aten.eq, aten.ne, aten.sign, aten.heaviside,
        aten.round, aten.floor, aten.ceil, aten.trunc, aten.argmax, aten.argmin, aten.signbit,
    }
)  # fmt: skip
"""Operators whose result jumps: a rounding difference in their input can change it by one level."""

BATCH_NORMS = frozenset(
    {
        aten._native_batch_norm_legit_functional, aten._batch_norm_with_update_functional,
        aten.native_batch_norm, aten._native_batch_norm_legit, aten.cudnn_batch_norm,
    }
)  # fmt: skip
"""Batch norms that return statistics of a few numbers a channel besides their output."""

JOINS = frozenset(
    {aten.stack, aten.cat, aten.clone, aten.full, aten.repeat, aten._to_copy,
     aten.full_like, aten.zeros_like, aten.ones_like, aten.empty_like,
     torch.ops.prims.convert_element_type}
)  # fmt: skip
"""Operators that only make, move or convert elements, though no tag says so."""

POOLINGS = frozenset({aten.avg_pool2d, torch.ops.snnfx.max_pool2d})
"""Pooling that fused regions do on the fly, where regions are compiled."""

STATISTIC_RATIO = 8
"""A result this many times smaller than the largest input counts as a statistic."""


class OpKind(Enum):
    """How a value of the forward can be had again in the backward."""

    FREE = "free"  # a parameter, buffer or input that is alive anyway
    HEAVY = "heavy"  # matrix work: recomputed once its inputs are there
    RANDOM = "random"  # cannot be computed again
    OPAQUE = "opaque"  # not understood, so never computed again
    THRESHOLD = "threshold"  # jumps: the backward must see the forward's very result
    STATISTIC = "statistic"  # small against its input: kept
    LIGHT = "light"  # everything else: views and elementwise work


def packet(node: Node) -> object:
    """The operator without its overload; the target itself if it is no operator."""
    target = node.target
    return target.overloadpacket if isinstance(target, torch._ops.OpOverload) else target


def is_known(node: Node) -> bool:
    """Whether the node calls a functional operator of a namespace that we have semantics for."""
    if is_getitem(node):
        return is_known(producer(node))
    if node.op == "get_attr":
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function" and getattr(node.target, "__module__", "") in (
            "_operator", "math", "torch", "torch.fx.experimental.symbolic_shapes"
        )  # fmt: skip
    return node.target.namespace in KNOWN_NAMESPACES and not schema_of(node).is_mutable


def is_random(node: Node) -> bool:
    """Whether the operator draws random numbers."""
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in target.tags
    )


def is_heavy(node: Node) -> bool:
    """Whether the operator does matrix work: convolutions, products, attention."""
    return packet(node) in flop_registry


def is_statistic(node: Node) -> bool:
    """Whether the result is far smaller than what it was computed from."""
    source = producer(node)
    if is_view(source):
        return False
    value = tensor_value(node)
    inputs = [tensor_value(n) for n in source.all_input_nodes]
    sizes = [numel(v) for v in inputs if v is not None]
    small = value is not None and bool(sizes) and numel(value) * STATISTIC_RATIO <= max(sizes)
    if packet(source) is torch.ops.snnfx.batch_norm_statistics:
        return is_getitem(node)
    if is_getitem(node) and packet(source) in BATCH_NORMS:
        return bool(node.args[1] != 0)
    schema = schema_of(source)
    names = {a.name for a in schema.arguments} if schema is not None else set[str]()
    return small and bool(names & {"dim", "dims", "normalized_shape", "correction"})


def kind_of(node: Node) -> OpKind:
    """The kind of a node of the forward."""
    source = producer(node)
    if node.op in ("placeholder", "get_attr"):
        return OpKind.FREE
    if is_random(source):
        return OpKind.RANDOM
    if not is_known(source):
        return OpKind.OPAQUE
    if is_heavy(source):
        return OpKind.HEAVY
    if packet(source) in THRESHOLDS:
        return OpKind.THRESHOLD
    return OpKind.STATISTIC if is_statistic(node) else OpKind.LIGHT


def is_elementwise(node: Node) -> bool:
    """Whether the node only views, copies, joins or computes element by element."""
    if is_getitem(node) or is_view(node) or packet(node) in JOINS:
        return True
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
