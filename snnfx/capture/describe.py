"""What was decided for a graph, in the words of a `MemoryPlan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch.fx import Node

from snnfx.capture.halves import Schedule
from snnfx.passes.analysis.opkinds import OpKind
from snnfx.passes.analysis.packs import Pack
from snnfx.passes.cost.graph import CostGraph
from snnfx.passes.fxgraph import is_getitem, tile_of
from snnfx.passes.plan.memory_plan import SavedTensor, Segment
from snnfx.passes.plan.segments import Checkpoints


@dataclass
class _Rerun:
    """Where a value of the forward is computed again.

    Attributes:
        points: steps of the backward.
        tiles: the first slice of each tile that is computed for itself.
    """

    points: list[int] = field(default_factory=list)
    tiles: set[int] = field(default_factory=set)


def describe_segments(
    cost: CostGraph,
    checkpoints: Checkpoints,
    schedule: Schedule,
    origins: Mapping[str, str],
    first_origins: Mapping[str, str],
) -> tuple[Segment, ...]:
    """One segment for each weight that is computed again, with the light work behind it.

    Light work in front of a weight, such as turning kept spikes into its input, belongs to it, too,
    if it is behind no other weight.

    Args:
        cost: the values.
        checkpoints: which of them are computed again.
        schedule: the order in which the backward runs.
        origins: see `snnfx.capture.halves.Halves`.
        first_origins: the same before anything was tiled, since tiles take the place of wholes.
    """
    recomputed = frozenset(checkpoints.recomputed)
    kept = frozenset(checkpoints.kept)
    reruns = _reruns(schedule, origins, first_origins)
    return tuple(
        _placed(
            Segment(
                weight,
                _kept_sources(cost, weight, recomputed, kept),
                len(values),
                sum(cost.nodes[value]["flops"] for value in values),
            ),
            [reruns[value] for value in values if value in reruns],
        )
        for weight, values in _members(cost, checkpoints).items()
    )


def _members(cost: CostGraph, checkpoints: Checkpoints) -> dict[str, list[str]]:
    """The values of each segment, by its weight."""
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
    return members


def _reruns(
    schedule: Schedule, origins: Mapping[str, str], first_origins: Mapping[str, str]
) -> dict[str, _Rerun]:
    """For the values of the forward that the backward computes again: when, and in which tiles."""
    found: dict[str, _Rerun] = {}
    running = (n for n in schedule.backward.nodes if n.op not in ("placeholder", "output"))
    for point, step in enumerate(running):
        for node in _computed(step, schedule):
            tile = tile_of(node)
            origin = origins.get(node.name) if tile is None else first_origins.get(tile[0])
            if origin is not None:
                rerun = found.setdefault(origin, _Rerun())
                rerun.points.append(point)
                rerun.tiles.update(() if tile is None else (tile[1],))
    return found


def _computed(step: Node, schedule: Schedule) -> Iterator[Node]:
    """The nodes of the backward that a step of its schedule computes."""
    calls = schedule.outlines[1].calls if schedule.outlines is not None else {}
    if step.op == "call_module":
        yield from calls[str(step.target)][1].nodes
    elif not is_getitem(step):  # which computes nothing, and is named anew where regions are
        yield step


def _placed(segment: Segment, reruns: Sequence[_Rerun]) -> Segment:
    """The segment, with where it is computed again and in how many tiles."""
    points = [point for rerun in reruns for point in rerun.points]
    tiles = max((len(rerun.tiles) for rerun in reruns), default=0)
    return replace(
        segment,
        tiles=max(1, tiles),
        axis="batch" if tiles > 1 else None,
        backward_points=(min(points), max(points)) if points else None,
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
