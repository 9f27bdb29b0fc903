"""Gradients that autograd has none of: zeros, made where the backward first reads them.

What a stateful model keeps for its next call, such as its membrane potentials, are results of its
graph. As a rule no loss reads them, so autograd makes zeros in the sizes of all of them before the
backward starts: as much memory as one time step of every layer, most of it until the last layers
are done. Here autograd leaves them out, and each is made at its first reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from snnfx._torch_compat import leave_gradients_out
from snnfx.passes.fxgraph import (
    copied_module,
    has_static_shape,
    last_placeholders,
    tensor_value,
)

BoxedFunction = Callable[[list[Any]], Any]


def zeros_if_absent(
    gradient: Tensor | None,
    shape: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The gradient, or zeros in its place."""
    if gradient is not None:
        return gradient
    return torch.empty_strided(shape, stride, dtype=dtype, device=device).zero_()


def may_be_absent(tangents: Sequence[Node]) -> bool:
    """Whether a backward may get only some of its gradients, and can make the others.

    A single one is always there, or the backward would not run; the sizes have to be numbers.
    """
    return len(tangents) > 1 and all(map(has_static_shape, tangents))


def fill_at_first_use(module: GraphModule, tangents: int) -> GraphModule:
    """A backward that takes None for its gradients: a copy, or the module if there are none.

    Args:
        module: its last `tangents` placeholders are gradients.
        tangents: how many.
    """
    if not tangents:
        return module
    copy = copied_module(module)
    graph = copy.graph
    order = {node: i for i, node in enumerate(graph.nodes)}
    for tangent in last_placeholders(graph, tangents):
        if tangent.users:
            readers = list(tangent.users)
            with graph.inserting_before(min(readers, key=order.__getitem__)):
                filled = graph.call_function(zeros_if_absent, (tangent, *_spec(tangent)))
            filled.meta = dict(tangent.meta)
            for reader in readers:
                reader.replace_input_with(tangent, filled)
    return copy


def fill_before(function: BoxedFunction, tangents: Sequence[Node]) -> BoxedFunction:
    """A boxed backward that takes None for its last arguments, which stand for `tangents`."""
    specs = [_spec(node) for node in tangents]

    def run(args: list[Any]) -> Any:
        for i, spec in enumerate(specs, len(args) - len(specs)):
            args[i] = zeros_if_absent(args[i], *spec)
        return function(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def without_absent_gradients(
    function: Callable[..., Any], is_ready: Callable[[], bool]
) -> Callable[..., Any]:
    """A compiled graph whose backward gets None for the gradients that autograd has none of.

    Args:
        function: from AOTAutograd.
        is_ready: whether its backward takes None.
    """

    def run(*args: Any) -> Any:
        results = function(*args)
        if is_ready():
            leave_gradients_out(results, args)
        return results

    return run


def _spec(node: Node) -> tuple[tuple[int, ...], tuple[int, ...], torch.dtype, torch.device]:
    value = tensor_value(node)
    assert value is not None
    shape = tuple(int(size) for size in value.shape)
    return shape, tuple(int(step) for step in value.stride()), value.dtype, value.device
