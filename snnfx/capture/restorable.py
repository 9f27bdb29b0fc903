"""Which values of the forward the backward computes again, and could be given instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.fx import Graph, Node

from snnfx.capture.halves import Halves, Schedule
from snnfx.passes.analysis.liveness import last_readers, storage_roots
from snnfx.passes.analysis.opkinds import is_elementwise
from snnfx.passes.cost.roofline import Device, device_of, node_seconds
from snnfx.passes.fxgraph import is_getitem, is_view, node_bytes, tensor_value
from snnfx.passes.plan.restore import Restorable


def find_restorable(halves: Halves, schedule: Schedule) -> tuple[Restorable, ...]:
    """The values that the backward computes again by operators of their own."""
    device = device_of(halves.forward.graph)
    forward = {node.name: node for node in schedule.forward.nodes}
    released = _releases(schedule.forward)
    read, position = _last_uses(schedule.backward), _positions(schedule.backward)
    points = len(schedule.timeline.forward)
    found: dict[str, Restorable] = {}
    for node in schedule.backward.nodes:
        name = halves.origins.get(node.name)
        if name is None or name not in forward or not _is_worth_keeping(node):
            continue
        seconds = _recomputation_seconds(node, device)
        first, last = released[name], points + read[node]
        if name in found:
            before = found[name]
            found[name] = replace(before, last=max(before.last, last),
                                  seconds=before.seconds + seconds)  # fmt: skip
        else:
            made = points + position[node]
            found[name] = Restorable(name, node_bytes(node), first, last, seconds, made)
    return tuple(found.values())


def _is_worth_keeping(node: Node) -> bool:
    value = tensor_value(node)
    if value is None or node.op != "call_function":
        return False
    if is_getitem(node):
        source = node.all_input_nodes[0]
        return source.op == "call_function" and not is_view(source)
    return not is_elementwise(node) or _is_product(node)


def _is_product(node: Node) -> bool:
    """Whether a view shows the result of matrix work under the name of what it stands for."""
    source = node
    while is_view(source) and source.all_input_nodes and source.op == "call_function":
        source = source.all_input_nodes[0]
    return source is not node and source.op == "call_function" and not is_elementwise(source)


def _releases(graph: Graph) -> dict[str, int]:
    """For each node, the schedule point behind which its storage is released."""
    roots = storage_roots(graph)
    last = last_readers(graph, roots)
    position = _positions(graph)
    released = {
        root: position[node] + 1 for node, dying in last.items() for root in dying
        if node in position
    }  # fmt: skip
    return {
        node.name: max((released.get(root, len(position)) for root in roots[node]), default=0)
        for node in position
    }


def _last_uses(graph: Graph) -> dict[Node, int]:
    """For each node, the schedule point of its last direct reader."""
    position = _positions(graph)
    return {
        node: max([position[node], *(position[u] for u in node.users if u in position)])
        for node in position
    }


def _positions(graph: Graph) -> Mapping[Node, int]:
    steps = (node for node in graph.nodes if node.op not in ("placeholder", "output"))
    return {node: i for i, node in enumerate(steps)}


def _recomputation_seconds(node: Node, device: Device) -> float:
    """Seconds of the node and of what only it needs."""
    gone: set[Node] = set()
    stack, seconds = [node], 0.0
    while stack:
        current = stack.pop()
        if current in gone or current.op not in ("call_function", "call_module"):
            continue
        if current is not node and not gone.issuperset(current.users):
            continue
        gone.add(current)
        seconds += node_seconds(current, device)
        stack.extend(current.all_input_nodes)
    return seconds
