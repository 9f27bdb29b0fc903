"""From a joint graph to a planned pair of graphs: analyse, cost, plan, rewrite, split."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import networkx as nx
from torch.fx import GraphModule, Node

import snnfx.kernels.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers operators
from snnfx._torch_compat import extract_forward_backward
from snnfx.capture.timeline import step_timeline
from snnfx.config import Options
from snnfx.errors import SnnfxWarning
from snnfx.passes.analysis.opkinds import OpKind
from snnfx.passes.analysis.packs import Pack, find_packs
from snnfx.passes.analysis.value_range import ValueRanges, analyse_value_ranges
from snnfx.passes.cost.graph import backward_nodes, build_cost_graph
from snnfx.passes.fxgraph import JointRoles, call_nodes, tensor_value
from snnfx.passes.plan.memory_plan import MemoryPlan, SavedTensor, Segment
from snnfx.passes.plan.segments import Checkpoints, choose_checkpoints
from snnfx.passes.rewrite.accumulation import stack_accumulations
from snnfx.passes.rewrite.norms import expand_batch_norms
from snnfx.passes.rewrite.rematerialise import rematerialise

IMPLEMENTED_LEVEL = 1
NO_SPIKES = "no tensor of this graph is proven to be spikes, so it is left as it is"


@dataclass(frozen=True)
class Partition:
    """A joint graph split in two, and the plan behind the split."""

    forward: GraphModule
    backward: GraphModule
    plan: MemoryPlan


def partition_joint(joint: GraphModule, roles: JointRoles, options: Options) -> Partition:
    """Plan and rewrite a joint graph, and split it into its forward and its backward.

    Args:
        joint: raw ATen, functional, with fake tensors; it is changed.
        roles: its ends.
        options: of the user.
    """
    if options.lowering == "inductor":
        expand_batch_norms(joint.graph)
    stack_accumulations(joint.graph)
    ranges = analyse_value_ranges(joint.graph)
    cost = build_cost_graph(joint.graph, roles, ranges, options.compress)
    baseline = _split(joint, roles, _saved_by_default(joint, roles))
    before = step_timeline(baseline[0].graph, baseline[1].graph, len(roles.forward_outputs))
    notes = _notes(options)
    flops = sum(cost.nodes[n]["flops"] for n in cost)
    if options.level == 0:
        plan = MemoryPlan(0, False, options.lowering, baseline=before, predicted=before,
                          baseline_flops=flops, notes=("level 0 leaves the graph as it is",))  # fmt: skip
        return Partition(*baseline, plan)
    checkpoints = choose_checkpoints(cost)
    if not checkpoints.anchors:
        plan = MemoryPlan(options.level, False, options.lowering, baseline=before,
                          predicted=before, baseline_flops=flops, notes=(*notes, NO_SPIKES))  # fmt: skip
        return Partition(*baseline, plan)
    return _apply(joint, roles, options, cost, ranges, checkpoints, Partition(
        *baseline, MemoryPlan(options.level, False, options.lowering, baseline=before,
                              predicted=before, baseline_flops=flops, notes=notes)))  # fmt: skip


def _apply(
    joint: GraphModule,
    roles: JointRoles,
    options: Options,
    cost: nx.DiGraph,
    ranges: ValueRanges,
    checkpoints: Checkpoints,
    baseline: Partition,
) -> Partition:
    nodes = {node.name: node for node in joint.graph.nodes}
    warn_about_opaque(cost, checkpoints)
    kept = [nodes[name] for name in checkpoints.kept]
    packs = find_packs(kept, ranges) if options.compress else ()
    result = rematerialise(
        joint.graph, roles, [nodes[name] for name in checkpoints.recomputed], packs
    )
    joint.graph.lint()
    forward, backward = _split(joint, roles, result.saved)
    after = step_timeline(forward.graph, backward.graph, len(roles.forward_outputs))
    plan = MemoryPlan(
        level=options.level,
        applied=True,
        lowering=options.lowering,
        segments=_segments(cost, checkpoints),
        saved=_saved_tensors(cost, checkpoints, packs),
        predicted=after,
        baseline=baseline.plan.baseline,
        extra_flops=sum(cost.nodes[n]["flops"] for n in checkpoints.recomputed),
        baseline_flops=baseline.plan.baseline_flops,
        notes=baseline.plan.notes,
    )
    if plan.predicted_peak_bytes >= plan.baseline_peak_bytes:
        note = (
            f"the plan's predicted peak of {plan.predicted_peak_bytes:,} bytes does not beat the "
            f"baseline's {plan.baseline_peak_bytes:,}, so the graph is left as it is"
        )
        kept_plan = MemoryPlan(
            options.level, False, options.lowering, baseline=plan.baseline,
            predicted=plan.baseline, baseline_flops=plan.baseline_flops, notes=(*plan.notes, note),
        )  # fmt: skip
        return Partition(baseline.forward, baseline.backward, kept_plan)
    return Partition(forward, backward, plan)


def _split(
    joint: GraphModule, roles: JointRoles, saved: tuple[Node, ...]
) -> tuple[GraphModule, GraphModule]:
    symbols = [n for n in saved if not _is_tensor(n)]
    tensors = [n for n in saved if _is_tensor(n)]
    return extract_forward_backward(joint, tensors, symbols, len(roles.forward_outputs))


def _is_tensor(node: Node) -> bool:
    return tensor_value(node) is not None


def _saved_by_default(joint: GraphModule, roles: JointRoles) -> tuple[Node, ...]:
    """What eager autograd would save: all that the backward reads of the forward."""
    backward = backward_nodes(joint.graph, roles)
    used = {s for node in backward for s in node.all_input_nodes if s not in backward}
    used |= {n for n in roles.backward_outputs if n is not None and n not in backward}
    return tuple(node for node in joint.graph.nodes if node in used)


def _notes(options: Options) -> tuple[str, ...]:
    if options.level > IMPLEMENTED_LEVEL:
        return (f"level {options.level} runs what exists: level {IMPLEMENTED_LEVEL}",)
    return ()


def warn_about_opaque(cost: nx.DiGraph, checkpoints: Checkpoints) -> None:
    """One warning that names what is kept because it is not understood."""
    opaque = [
        f"'{name}' ({cost.nodes[name]['op']})"
        for name in checkpoints.kept
        if cost.nodes[name]["kind"] is OpKind.OPAQUE and cost.in_degree(name)
    ]
    if opaque:
        warnings.warn(
            f"snnmem keeps the results of {', '.join(opaque)} as they are: the operator is not "
            "understood, so it is never computed again",
            SnnfxWarning,
            stacklevel=2,
        )


def _segments(cost: nx.DiGraph, checkpoints: Checkpoints) -> tuple[Segment, ...]:
    """One segment for each weight that is computed again, with the light work behind it."""
    recomputed = set(checkpoints.recomputed)
    kept = set(checkpoints.kept)
    owner: dict[str, str] = {}
    members: dict[str, list[str]] = {}
    for name in checkpoints.recomputed:
        attrs = cost.nodes[name]
        before = [owner[p] for p in cost.predecessors(name) if p in owner]
        heavy = attrs["kind"] is OpKind.HEAVY and not attrs["is_view"]
        owner[name] = name if heavy or not before else before[0]
        members.setdefault(owner[name], []).append(name)
    segments: list[Segment] = []
    for name, values in members.items():
        if cost.nodes[name]["kind"] is OpKind.HEAVY:
            inputs = nx.ancestors(cost.subgraph(recomputed | kept), name) & kept
            flops = sum(cost.nodes[v]["flops"] for v in values)
            segments.append(Segment(name, tuple(sorted(inputs)), len(values), flops))
    return tuple(segments)


def _saved_tensors(
    cost: nx.DiGraph, checkpoints: Checkpoints, packs: tuple[Pack, ...]
) -> tuple[SavedTensor, ...]:
    packed = {member.name: pack for pack in packs for member in pack.members}
    saved: list[SavedTensor] = []
    for name in checkpoints.kept:
        size, kind = cost.nodes[name]["bytes"], cost.nodes[name]["kind"].value
        if name in packed:
            pack = packed[name]
            stored = -(-pack.packed_bytes // len(pack.members))
            reason = f"{kind}: on a grid of {pack.encoding.bits} bits, proven"
            saved.append(SavedTensor(name, "packed", pack.encoding.bits, size, stored, reason))
        else:
            saved.append(SavedTensor(name, "kept", None, size, size, kind))
    for name in checkpoints.recomputed:
        attrs = cost.nodes[name]
        if attrs["demanded"] and attrs["is_tensor"] and not attrs["is_view"]:
            reason = "computed again from the kept values of its segment"
            saved.append(SavedTensor(name, "dropped", None, attrs["bytes"], 0, reason))
    return tuple(saved)


def count_calls(module: GraphModule) -> int:
    """The number of operators in a graph."""
    return sum(1 for _ in call_nodes(module.graph))
