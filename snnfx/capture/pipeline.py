"""From a joint graph to a planned pair of graphs: analyse, cost, plan, rewrite, split."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch.fx import GraphModule, Node

import snnfx.kernels.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers operators
from snnfx._torch_compat import extract_forward_backward
from snnfx.capture.describe import describe_saved, describe_segments
from snnfx.capture.timeline import step_timeline
from snnfx.config import Options
from snnfx.errors import SnnfxWarning
from snnfx.passes.analysis.opkinds import OpKind
from snnfx.passes.analysis.packs import Pack, find_packs
from snnfx.passes.analysis.value_range import ValueRanges, analyse_value_ranges
from snnfx.passes.cost.flops import node_flops
from snnfx.passes.cost.graph import CostGraph, backward_nodes, build_cost_graph
from snnfx.passes.fxgraph import JointRoles, is_on_cpu, tensor_value
from snnfx.passes.plan.memory_plan import MemoryPlan, Timeline
from snnfx.passes.plan.segments import Checkpoints, choose_checkpoints
from snnfx.passes.rewrite.accumulation import stack_accumulations
from snnfx.passes.rewrite.norms import expand_batch_norms
from snnfx.passes.rewrite.pooling import pool_packed_bits, replace_pooling
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
    baseline = _baseline(joint, roles, options)
    if options.level == 0:
        return _noted(baseline, "level 0 leaves the graph as it is")
    # Elsewhere no region takes in what is left of norms and pooling: ATen's operators are better.
    if _takes_apart(joint, options):
        expand_batch_norms(joint.graph)
        replace_pooling(joint.graph)
    stack_accumulations(joint.graph)
    roles = roles.refreshed(joint)
    ranges = analyse_value_ranges(joint.graph)
    cost = build_cost_graph(joint.graph, roles, ranges, options.compress)
    checkpoints = choose_checkpoints(cost)
    if not checkpoints.anchors:
        return _noted(baseline, NO_SPIKES)
    _warn_about_opaque(cost, checkpoints)
    planned = _apply(joint, roles, options, cost, ranges, checkpoints)
    plan = replace(
        planned.plan,
        baseline=baseline.plan.baseline,
        baseline_flops=baseline.plan.baseline_flops,
        extra_flops=_flops(planned.forward, planned.backward) - baseline.plan.baseline_flops,
        notes=(*baseline.plan.notes, *planned.plan.notes),
    )
    if plan.predicted_peak_bytes >= plan.baseline_peak_bytes:
        return _noted(
            baseline,
            f"the plan's predicted peak of {plan.predicted_peak_bytes:,} bytes does not beat the "
            f"baseline's {plan.baseline_peak_bytes:,}, so the graph is left as it is",
        )
    return replace(planned, plan=plan)


def _baseline(joint: GraphModule, roles: JointRoles, options: Options) -> Partition:
    """The graph as it is, with all that eager autograd would save."""
    forward, backward = _split(joint, roles, _saved_by_default(joint, roles))
    timeline = _timeline(forward, backward, roles)
    plan = MemoryPlan(
        level=options.level,
        applied=False,
        lowering=options.lowering,
        predicted=timeline,
        baseline=timeline,
        baseline_flops=_flops(forward, backward),
        notes=tuple(_unused(options)),
    )
    return Partition(forward, backward, plan)


def _unused(options: Options) -> Iterator[str]:
    """What the user asked for and does not get."""
    if options.level > IMPLEMENTED_LEVEL:
        yield f"level {options.level} runs what exists: level {IMPLEMENTED_LEVEL}"
    if options.memory_budget is not None:
        yield f"memory_budget is not used: level {IMPLEMENTED_LEVEL} has one plan, of least memory"
    if options.prefer != "balanced":
        yield f"prefer is not used: level {IMPLEMENTED_LEVEL} has one plan, of least memory"


def _noted(partition: Partition, note: str) -> Partition:
    plan = replace(partition.plan, notes=(*partition.plan.notes, note))
    return replace(partition, plan=plan)


def _apply(
    joint: GraphModule,
    roles: JointRoles,
    options: Options,
    cost: CostGraph,
    ranges: ValueRanges,
    checkpoints: Checkpoints,
) -> Partition:
    nodes = {node.name: node for node in joint.graph.nodes}
    kept = [nodes[name] for name in checkpoints.kept]
    packs = find_packs(kept, ranges) if options.compress else ()
    recomputed = [nodes[name] for name in checkpoints.recomputed]
    result = rematerialise(joint.graph, roles, recomputed, packs)
    if _takes_apart(joint, options):
        pool_packed_bits(joint.graph, [p for p in packs if not ranges.assumes_finite(p.source)])
    joint.graph.lint()
    forward, backward = _split(joint, roles, result.saved)
    plan = MemoryPlan(
        level=options.level,
        applied=True,
        lowering=options.lowering,
        segments=describe_segments(cost, checkpoints),
        saved=describe_saved(cost, checkpoints, packs),
        predicted=_timeline(forward, backward, roles),
        notes=_assumptions(packs, ranges),
    )
    return Partition(forward, backward, plan)


def _takes_apart(joint: GraphModule, options: Options) -> bool:
    """Whether operators are replaced by what fuses into regions, equal only up to rounding."""
    return options.lowering == "inductor" and is_on_cpu(joint.graph)


def _assumptions(packs: Sequence[Pack], ranges: ValueRanges) -> tuple[str, ...]:
    """Where packing is lossless for numbers but not for NaN: rounding hands a NaN on."""
    names = [pack.source.name for pack in packs if ranges.assumes_finite(pack.source)]
    if not names:
        return ()
    return (
        f"{', '.join(names)}: packed as numbers; where the forward computes NaN, so that its loss "
        "is NaN, the backward sees a number",
    )


def _timeline(forward: GraphModule, backward: GraphModule, roles: JointRoles) -> Timeline:
    return step_timeline(forward.graph, backward.graph, len(roles.forward_outputs))


def _flops(*halves: GraphModule) -> int:
    return sum(node_flops(node) for half in halves for node in half.graph.nodes)


def _split(
    joint: GraphModule, roles: JointRoles, saved: Sequence[Node]
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


def _warn_about_opaque(cost: CostGraph, checkpoints: Checkpoints) -> None:
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
