"""The predicted memory of one training step: a forward graph, then its backward graph."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Graph, Node

from snnfx.capture.allocations import step_allocations
from snnfx.lowering.absent import may_be_absent
from snnfx.passes.analysis.liveness import Workspace, analyse_liveness, storage_roots
from snnfx.passes.cost.workspace import workspace_phases
from snnfx.passes.fxgraph import last_placeholders, node_bytes, output_args, tensor_value
from snnfx.passes.plan.memory_plan import Timeline


def step_timeline(
    forward: Graph,
    backward: Graph,
    num_outputs: int,
    num_tangents: int = 0,
    workspace: Workspace | None = workspace_phases,
) -> Timeline:
    """Predicted activation bytes over a forward and a backward, run in their own order.

    What belongs to the caller does not count: parameters, inputs, and the gradients that the
    backward returns.

    Args:
        forward: its results after the first `num_outputs` are saved for the backward.
        backward: its placeholders are the forward's saved results, then the tangents.
        num_outputs: how many results of the forward go to the caller.
        num_tangents: how many of the last placeholders of the backward are gradients that come in.
            Those that may be absent (see `snnfx.lowering.absent`) are taken to be made where they
            are first read, others count nothing.
        workspace: what operators allocate inside themselves; None leaves it out.
    """
    first = analyse_liveness(forward, workspace=workspace)
    owned, aliases, _ = _passed_storages(forward, backward, num_outputs)
    rest = max(0, first.end_bytes - sum(owned.values()))
    second = analyse_liveness(
        backward,
        owned,
        aliases,
        late_tangents(backward, num_tangents),
        count_results=False,
        workspace=workspace,
    )
    backward_bytes = tuple(b + rest for b in second.timeline_bytes)
    return Timeline(first.timeline_bytes, backward_bytes, first.names, second.names)


def recorded(
    timeline: Timeline, forward: Graph, backward: Graph, num_outputs: int, num_tangents: int = 0
) -> Timeline:
    """The timeline with a record of each storage, for those who want to look into it."""
    owned, aliases, holders = _passed_storages(forward, backward, num_outputs)
    late = late_tangents(backward, num_tangents)
    return replace(
        timeline, allocations=step_allocations(forward, backward, owned, aliases, late, holders)
    )


def late_tangents(backward: Graph, count: int) -> tuple[Node, ...]:
    """The gradients that come into a backward, where it makes them at their first readers."""
    tangents = last_placeholders(backward, count)
    return tuple(tangents) if may_be_absent(tangents) else ()


def _passed_storages(
    forward: Graph, backward: Graph, num_outputs: int
) -> tuple[dict[Node, int], dict[Node, Node], dict[Node, Node]]:
    """The storages that pass from forward to backward: their bytes, and who comes in them.

    Bytes are by the placeholder of the backward that brings a storage; then who else comes in the
    storage of an earlier placeholder, and who brings a storage of the forward.

    A saved view keeps the whole storage that it lies in; one of the caller's keeps nothing more.
    Saved tensors come in one order on both sides, before the tangents. Their names may differ.
    """
    roots = storage_roots(forward)
    saved = [n for n in output_args(forward)[num_outputs:] if _is_tensor(n)]
    placeholders = [n for n in backward.find_nodes(op="placeholder") if _is_tensor(n)]
    owned: dict[Node, int] = {}
    aliases: dict[Node, Node] = {}
    first_in: dict[Node, Node] = {}
    for value, placeholder in zip(saved, placeholders, strict=False):
        for root in roots[value]:
            if root in first_in:
                aliases[placeholder] = first_in[root]
            elif root.op != "placeholder":
                first_in[root] = placeholder
                owned[placeholder] = owned.get(placeholder, 0) + node_bytes(root)
    return owned, aliases, first_in


def _is_tensor(value: object) -> bool:
    return isinstance(value, Node) and tensor_value(value) is not None
