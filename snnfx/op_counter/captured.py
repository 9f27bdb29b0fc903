"""The operators of a captured joint graph, as a record of a step."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch.fx import Node

from snnfx.capture.offline import Capture, WithLoss
from snnfx.op_counter.neuron_types import is_neuron_type
from snnfx.op_counter.record import RecordedCall, StepRecord
from snnfx.op_counter.report import Stage
from snnfx.passes.fxgraph import ancestors, call_nodes, is_getitem, module_stack

_QUOTED_MEMBER = re.compile(r"(?:\.__dict__)?(?:\['_modules'\]|\._modules)?\['?([^'\]]+)'?\]")
"""How the tracer writes a member of a module that no attribute access reaches."""


def record_of_capture(capture: Capture, train: bool) -> StepRecord:
    """The operators of a joint graph, of its forward or of both halves.

    An operator belongs to the forward if a result of the forward depends on it. Modules are those
    of the forward's code; of an operator of the backward, the module whose backward it is.
    """
    graph, roles = capture.graph_module.graph, capture.roles
    forward = ancestors(node for node in roles.forward_outputs if node is not None)
    calls: list[RecordedCall] = []
    neurons: set[str] = set()
    for node in call_nodes(graph):
        stage: Stage = "forward" if node in forward else "backward"
        if not is_getitem(node) and (train or stage == "forward"):
            path = _named(node, neurons)
            calls.append(RecordedCall(node, path, stage, None))
    names = dict(zip(roles.primals, capture.names, strict=True))
    return StepRecord(graph, tuple(calls), (), (), names, frozenset(neurons), False)


def _named(node: Node, neurons: set[str]) -> tuple[str, ...]:
    """The modules of a node, outermost first; those that are neurons are added to `neurons`."""
    stack = [(name, kind) for name, kind in module_stack(node) if kind is not WithLoss]
    path = _paths(name for name, _ in stack)
    if not stack:
        return ()
    outermost = getattr(stack[0][1], "__name__", str(stack[0][1]))
    names = tuple(f"{outermost}.{inner}" if inner else outermost for inner in path)
    neurons.update(
        name
        for name, (_, kind) in zip(names, stack, strict=True)
        if isinstance(kind, type) and is_neuron_type(kind)
    )
    return names


def _paths(names: Iterable[str]) -> list[str]:
    """Paths from the outermost module, such as ``stages.0.first``, of the tracer's expressions."""
    plain = [_QUOTED_MEMBER.sub(r".\1", name).lstrip("L.") for name in names]
    root = plain[0] if plain else ""
    return [name.removeprefix(root).lstrip(".") for name in plain]
