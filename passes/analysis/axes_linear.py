"""Which operators turn parts of a sum into parts of a sum: those that are linear in them.

If x is the sum of parts, f(x) is the sum of f over the parts for a linear f. The rules below are
about exact arithmetic: rounding to a narrower dtype is none of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.fx import Node

from snnfx.passes.analysis.axes_rules import MOVES, tensor_operands
from snnfx.passes.analysis.placement import AxisValue, Partial
from snnfx.passes.fxgraph import tensor_value

aten, prims = torch.ops.aten, torch.ops.prims

LINEAR = MOVES | {
    *(aten.neg.default, aten.select_backward.default, aten.slice_backward.default),
    *(aten.sum.default, aten.sum.dim_IntList, aten.mean.default, aten.mean.dim),
}
"""Linear in their one tensor."""

ADDITIVE = frozenset(
    {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor, aten.stack.default, aten.cat.default}
)
"""Linear in all of their tensors together."""

PRODUCTS = frozenset(
    {aten.mul.Tensor, aten.mul.Scalar, aten.mm.default, aten.bmm.default, aten.mv.default}
)
"""Linear in each of their two factors."""

QUOTIENTS = frozenset({aten.div.Tensor, aten.div.Scalar})
"""Linear in their first argument."""


def stays_partial(node: Node, values: Mapping[Node, AxisValue]) -> bool:
    """Whether the result is a sum over slices, where every operand is one or is constant."""
    operands = tensor_operands(node)
    partial = [isinstance(values[operand], Partial) for operand in operands]
    if node.target in LINEAR:
        return len(operands) == 1 and _same_dtype(operands[0], node)
    if node.target in ADDITIVE:
        return all(partial) and not _has_number(node)
    if node.target in PRODUCTS:
        return sum(partial) == 1
    return node.target in QUOTIENTS and sum(partial) == 1 and partial[0]


def _same_dtype(source: Node, node: Node) -> bool:
    """Whether a conversion changes nothing; other operators convert by their own rules."""
    if node.target not in (aten._to_copy.default, prims.convert_element_type.default):
        return True
    before, after = tensor_value(source), tensor_value(node)
    return before is not None and after is not None and before.dtype == after.dtype


def _has_number(node: Node) -> bool:
    """Whether a sum has a term that is a number, which would be added once for each slice."""
    terms = () if node.target in (aten.stack.default, aten.cat.default) else node.args[:2]
    return not all(isinstance(term, Node) or term == 0 for term in terms)
