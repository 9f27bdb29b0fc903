"""What was decided for a graph, in the words of a `MemoryPlan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from snnfx.passes.analysis.opkinds import OpKind
from snnfx.passes.analysis.packs import Pack
from snnfx.passes.cost.graph import CostGraph
from snnfx.passes.plan.memory_plan import SavedTensor, Segment
from snnfx.passes.plan.segments import Checkpoints


def describe_segments(cost: CostGraph, checkpoints: Checkpoints) -> tuple[Segment, ...]:
    """One segment for each weight that is computed again, with the light work behind it.

    Light work in front of a weight, such as turning kept spikes into its input, belongs to it, too,
    if it is behind no other weight.
    """
    recomputed = frozenset(checkpoints.recomputed)
    owner: dict[str, str] = {}
    for name in checkpoints.recomputed:
        attrs = cost.nodes[name]
        before = [owner[p] for p in cost.predecessors(name) if p in owner]
        if attrs["kind"] is OpKind.HEAVY and not attrs["is_view"]:
            owner[name] = name
        elif before:
            owner[name] = before[0]
    members: dict[str, list[str]] = {}
    for name, weight in owner.items():
        members.setdefault(weight, []).append(name)
    kept = frozenset(checkpoints.kept)
    return tuple(
        Segment(
            weight,
            _kept_sources(cost, weight, recomputed, kept),
            len(values),
            sum(cost.nodes[value]["flops"] for value in values),
        )
        for weight, values in members.items()
    )


def _kept_sources(
    cost: CostGraph, weight: str, recomputed: frozenset[str], kept: frozenset[str]
) -> tuple[str, ...]:
    """The kept values from which the input of `weight` is computed, in graph order."""
    reached: set[str] = set()
    stack = list(cost.predecessors(weight))
    while stack:
        name = stack.pop()
        if name not in reached:
            reached.add(name)
            stack.extend(cost.predecessors(name) if name in recomputed else ())
    return tuple(name for name in cost if name in reached & kept)


def describe_saved(
    cost: CostGraph,
    checkpoints: Checkpoints,
    packs: Sequence[Pack],
    given: Mapping[str, bool] = MappingProxyType({}),
) -> tuple[SavedTensor, ...]:
    """What becomes of each value that is kept, or was kept without the plan.

    Args:
        cost: the values.
        checkpoints: which of them are kept at level 1.
        packs: how they are packed.
        given: what is saved as levels 2 to 4 decided instead, and whether packed.
    """
    packed = {member.name: pack for pack in packs for member in pack.members}
    saved: list[SavedTensor] = []
    for name in checkpoints.kept:
        if name in given:
            saved.append(_given(cost, name, given[name]))
            continue
        size, kind = cost.nodes[name]["bytes"], cost.nodes[name]["kind"].value
        if name in packed:
            bits = packed[name].encoding.bits
            stored = -(-packed[name].packed_bytes // len(packed[name].members))
            reason = f"{kind}: proven to take at most {2**bits} values"
            saved.append(SavedTensor(name, "packed", bits, size, stored, reason))
        else:
            saved.append(SavedTensor(name, "kept", None, size, size, kind))
    for name in checkpoints.recomputed:
        attrs = cost.nodes[name]
        if name in given:
            saved.append(_given(cost, name, given[name]))
        elif attrs["demanded"] and attrs["is_tensor"] and not attrs["is_view"]:
            reason = "computed again from the kept values of its segment"
            saved.append(SavedTensor(name, "dropped", None, attrs["bytes"], 0, reason))
    return tuple(saved)


def _given(cost: CostGraph, name: str, is_packed: bool) -> SavedTensor:
    attrs = cost.nodes[name]
    reason = "kept after all, so that it is not computed again"
    if is_packed:
        stored = attrs["packed_bytes"]
        return SavedTensor(name, "packed", attrs["bits"], attrs["bytes"], stored, reason)
    return SavedTensor(name, "kept", None, attrs["bytes"], attrs["bytes"], reason)
