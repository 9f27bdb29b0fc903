"""FLOPs of a node: matrix work by PyTorch's own formulas, everything else one FLOP an element."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils.flop_counter import flop_registry

from snnfx.passes.analysis.opkinds import packet
from snnfx.passes.fxgraph import is_getitem, is_view, node_value, numel, size_hint


def node_flops(node: Node) -> int:
    """FLOPs (a multiply-add counts 2) of the operator that the node calls.

    Matrix work follows `torch.utils.flop_counter.flop_registry`; an elementwise operator counts one
    FLOP for each element of its results, a view and a getitem none. Symbolic sizes count as they
    were when the graph was traced.
    """
    if node.op != "call_function" or is_getitem(node) or is_view(node):
        return 0
    value = node_value(node)
    if packet(node) in flop_registry:
        args = _values(node.args)
        kwargs = {name: _values(arg) for name, arg in node.kwargs.items()}
        # Not int(): that would fix the symbolic sizes in the formula to what they were.
        return size_hint(flop_registry[packet(node)](*args, **kwargs, out_val=value))
    values = value if isinstance(value, (tuple, list)) else (value,)
    return sum(numel(item) for item in values if isinstance(item, Tensor))


def _values(arg: Any) -> Any:
    """An argument with fake tensors in the place of nodes."""
    if isinstance(arg, Node):
        return node_value(arg)
    if isinstance(arg, (tuple, list)):
        return type(arg)(_values(item) for item in arg)
    return arg
