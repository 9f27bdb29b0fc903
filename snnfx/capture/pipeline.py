"""From a joint graph to a planned pair of graphs: analyse, cost, plan, rewrite, split."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch.fx import GraphModule, Node

import snnfx.kernels.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers operators
from snnfx._torch_compat import extract_forward_backward
from snnfx.capture.describe import describe_saved, describe_segments
from snnfx.capture.halves import Halves
from snnfx.capture.planning import plan_levels
from snnfx.capture.timeline import recorded, step_timeline
from snnfx.config import Options
from snnfx.errors import SnnfxWarning
from snnfx.lowering.outer import Outline
from snnfx.passes.analysis.opkinds import OpKind
from snnfx.passes.analysis.packs import Pack, find_packs
from snnfx.passes.analysis.value_range import Encoding, ValueRanges, analyse_value_ranges
from snnfx.passes.cost.flops import node_flops
from snnfx.passes.cost.graph import CostGraph, backward_nodes, build_cost_graph
from snnfx.passes.cost.roofline import device_of, graph_seconds
from snnfx.passes.fxgraph import (
    JointRoles,
    is_on_cpu,
    node_value,
    output_args,
    set_value,
    tensor_value,
)
from snnfx.passes.plan.memory_plan import MemoryPlan
from snnfx.passes.plan.segments import Checkpoints, choose_checkpoints
from snnfx.passes.rewrite.accumulation import (
    add_up_stacks,
    stack_accumulations,
    sum_by_channel,
)
from snnfx.passes.rewrite.convolutions import (
    multiply_weight_bound,
    split_convolution_backwards,
)
from snnfx.passes.rewrite.layout import prefer_channels_last
from snnfx.passes.rewrite.norms import expand_batch_norms
from snnfx.passes.rewrite.pooling import pool_packed_bits, replace_pooling
from snnfx.passes.rewrite.rematerialise import rematerialise
from snnfx.passes.rewrite.stages import recompute_between_stages, share_copies

NO_SPIKES = "no tensor of this graph is proven to be spikes, so it is left as it is"


@dataclass(frozen=True)
class Partition:
    """A joint graph split in two, and the plan behind the split.

    Attributes:
        forward: the forward of a step.
        backward: its backward.
        plan: what was decided.
        outlines: how both halves run, where their regions are to be compiled.
    """

    forward: GraphModule
    backward: GraphModule
    plan: MemoryPlan
    outlines: tuple[Outline, Outline] | None = None


@contextmanager
def _without_collection() -> Generator[None]:
    """No garbage collection: planning makes many small objects that stay, a quarter of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collection()
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
    fused = options.lowering == "inductor" and is_on_cpu(joint.graph)
    if fused:
        expand_batch_norms(joint.graph)
        replace_pooling(joint.graph)
        split_convolution_backwards(joint.graph)
    stack_accumulations(joint.graph)
    if fused:
        add_up_stacks(joint.graph)
        sum_by_channel(joint.graph)
    roles = roles.refreshed(joint)
    ranges = analyse_value_ranges(joint.graph)
    cost = build_cost_graph(joint.graph, roles, ranges, options.compress)
    checkpoints = choose_checkpoints(cost)
    if not checkpoints.anchors:
        return _noted(baseline, NO_SPIKES)
    _warn_about_opaque(cost, checkpoints)
    nodes = {node.name: node for node in joint.graph.nodes}
    kept = [nodes[name] for name in checkpoints.kept]
    packs = find_packs(kept, ranges) if options.compress else ()
    exact = [pack for pack in packs if not ranges.assumes_finite(pack.source)]
    halves = _halves(joint, roles, checkpoints, packs, exact if fused else None)
    if options.compress:
        halves = replace(halves, encodings=_encodings(checkpoints, nodes, ranges))
    planned = plan_levels(halves, options, baseline.plan.baseline_peak_bytes)
    plan = replace(
        baseline.plan,
        applied=True,
        segments=describe_segments(
            cost, checkpoints, planned.schedule, planned.halves.origins, halves.origins
        ),
        saved=describe_saved(cost, checkpoints, packs, planned.given),
        predicted=planned.schedule.recorded(planned.halves),
        predicted_seconds=planned.schedule.seconds,
        extra_flops=_flops(planned.halves.forward, planned.halves.backward)
        - baseline.plan.baseline_flops,
        decisions=planned.decisions,
        notes=(*baseline.plan.notes, *_assumptions(packs, ranges)),
    )
    reason = _why_not(plan)
    if reason is not None:
        return _noted(baseline, reason)
    halves = planned.halves
    return Partition(halves.forward, halves.backward, plan, planned.schedule.outlines)


def _why_not(plan: MemoryPlan) -> str | None:
    """Why the graph as it was is better than the plan, if it is."""
    fits = plan.memory_budget is not None and plan.baseline_peak_bytes <= plan.memory_budget
    if fits and plan.baseline_seconds <= plan.predicted_seconds:
        return "the graph fits memory_budget as it is, and is predicted to be faster than any plan"
    if plan.predicted_peak_bytes >= plan.baseline_peak_bytes:
        return (
            f"the plan's predicted peak of {plan.predicted_peak_bytes:,} bytes does not beat the "
            f"baseline's {plan.baseline_peak_bytes:,}, so the graph is left as it is"
        )
    return None


def _halves(
    joint: GraphModule,
    roles: JointRoles,
    checkpoints: Checkpoints,
    packs: Sequence[Pack],
    poolable: Sequence[Pack] | None,
) -> Halves:
    """Level 1: the two halves, the backward computing again all that is not kept.

    Args:
        joint: the graph, which is changed.
        roles: its ends.
        checkpoints: what is kept.
        packs: how it is packed.
        poolable: the packs whose bits can be pooled instead of their values; None where no regions
            will be compiled.
    """
    nodes = {node.name: node for node in joint.graph.nodes}
    recomputed = [nodes[name] for name in checkpoints.recomputed]
    fused = poolable is not None
    result = rematerialise(joint.graph, roles, recomputed, packs, fused)
    if poolable is not None:
        pool_packed_bits(joint.graph, poolable)
    joint.graph.lint()
    forward, backward = _split(joint, roles, result.saved)
    outputs = len(roles.forward_outputs)
    halves = Halves(forward, backward, outputs, len(roles.tangents), result.origins, fused)
    if fused:
        _lay_out(halves)
    return halves


def _encodings(
    checkpoints: Checkpoints, nodes: Mapping[str, Node], ranges: ValueRanges
) -> dict[str, Encoding]:
    """How values that are computed again could be packed instead."""
    found = ((name, ranges.encoding(nodes[name])) for name in checkpoints.recomputed)
    return {
        name: encoding
        for name, encoding in found
        if encoding is not None and not ranges.assumes_finite(nodes[name])
    }


def _lay_out(halves: Halves) -> None:
    """Give both halves the layouts and forms of operators that the CPU is best at."""
    for half in (halves.forward, halves.backward):
        multiply_weight_bound(half.graph)
    prefer_channels_last(halves.forward.graph)
    saved = {n.name: n for n in output_args(halves.forward.graph) if isinstance(n, Node)}
    for placeholder in halves.backward.graph.find_nodes(op="placeholder"):
        if placeholder.name in saved:  # with the strides that the forward gives it
            set_value(placeholder, node_value(saved[placeholder.name]))
    prefer_channels_last(halves.backward.graph)
    for half in (halves.forward, halves.backward):
        share_copies(half.graph, halves.driving(half))
    recompute_between_stages(halves.backward.graph, halves.driving(halves.backward))


def _baseline(joint: GraphModule, roles: JointRoles, options: Options) -> Partition:
    """The graph as it is, with all that eager autograd would save."""
    forward, backward = _split(joint, roles, _saved_by_default(joint, roles))
    outputs = len(roles.forward_outputs)
    timeline = step_timeline(forward.graph, backward.graph, outputs)
    timeline = recorded(timeline, forward.graph, backward.graph, outputs)
    device = device_of(joint.graph)
    seconds = graph_seconds(forward.graph, device) + graph_seconds(backward.graph, device)
    plan = MemoryPlan(
        level=options.level,
        applied=False,
        lowering=options.lowering,
        predicted=timeline,
        baseline=timeline,
        baseline_flops=_flops(forward, backward),
        predicted_seconds=seconds,
        baseline_seconds=seconds,
        memory_budget=options.memory_budget,
        prefer=options.prefer,
    )
    return Partition(forward, backward, plan)


def _noted(partition: Partition, note: str) -> Partition:
    plan = replace(partition.plan, notes=(*partition.plan.notes, note))
    return replace(partition, plan=plan)


def _assumptions(packs: Sequence[Pack], ranges: ValueRanges) -> tuple[str, ...]:
    """Where packing is lossless for numbers but not for NaN: rounding hands a NaN on."""
    names = [pack.source.name for pack in packs if ranges.assumes_finite(pack.source)]
    if not names:
        return ()
    return (
        f"{', '.join(names)}: packed as numbers; where the forward computes NaN, so that its loss "
        "is NaN, the backward sees a number",
    )


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
