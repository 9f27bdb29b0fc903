"""Every storage of a training step, from its operator in the forward to its last use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch.fx import Graph, Node

from snnfx.passes.analysis.lifetimes import Lifetime, source_lines, storage_lifetimes
from snnfx.passes.plan.memory_plan import Allocation

_TRACER = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


def step_allocations(
    forward: Graph,
    backward: Graph,
    owned: Mapping[Node, int],
    aliases: Mapping[Node, Node],
    late: Collection[Node],
    holders: Mapping[Node, Node],
) -> tuple[Allocation, ...]:
    """The storages of a forward and a backward; steps of the backward follow on the forward's.

    Args:
        forward: as in `snnfx.capture.timeline.step_timeline`.
        backward: as there.
        owned: placeholders of the backward that bring storages of the forward, with their bytes.
        aliases: placeholders of the backward that come in the storage of an earlier one.
        late: placeholders of the backward whose storages it allocates at their first readers.
        holders: for each storage that passes to the backward, the placeholder that brings it there.
    """
    offset, total = _count(forward), _count(forward) + _count(backward)
    later = storage_lifetimes(backward, owned, aliases, late, count_results=False)
    passed = {life.node: life for life in later if life.node in owned}
    found: list[Allocation] = []
    for life in storage_lifetimes(forward):
        last = life.last
        if last is None:
            holder = passed.get(holders.get(life.node, life.node))
            last = total - 1 if holder is None or holder.last is None else offset + holder.last
        found.append(_allocation(life, 0, last))
    for life in later:
        if life.node not in passed:
            last = total - 1 if life.last is None else offset + life.last
            found.append(_allocation(life, offset, last))
    return tuple(found)


def _allocation(life: Lifetime, offset: int, last: int) -> Allocation:
    lines = (line for line in source_lines(life.node) if not line.startswith((_TRACER, _TORCH)))
    return Allocation(life.node.name, life.bytes, life.first + offset, last, tuple(lines))


def _count(graph: Graph) -> int:
    return sum(node.op not in ("placeholder", "output") for node in graph.nodes)
