"""The predicted memory of one training step: a forward graph, then its backward graph."""

from __future__ import annotations

from torch.fx import Graph, Node

from snnfx.passes.analysis.liveness import analyse_liveness
from snnfx.passes.fxgraph import node_bytes, output_args
from snnfx.passes.plan.memory_plan import Timeline


def step_timeline(forward: Graph, backward: Graph, num_outputs: int) -> Timeline:
    """Predicted activation bytes over a forward and a backward, run in their own order.

    What belongs to the caller does not count: parameters, inputs, and the gradients that the
    backward returns.

    Args:
        forward: its results after the first `num_outputs` are saved for the backward.
        backward: its placeholders are named as the forward's saved results.
        num_outputs: how many results of the forward go to the caller.
    """
    owners = {n.name for n in forward.find_nodes(op="placeholder")}
    first = analyse_liveness(forward)
    saved = [n for n in output_args(forward)[num_outputs:] if isinstance(n, Node)]
    names = {n.name for n in saved if n.name not in owners}
    owned = {n: node_bytes(n) for n in backward.find_nodes(op="placeholder") if n.name in names}
    rest = max(0, first.end_bytes - sum(node_bytes(n) for n in saved if n.name in names))
    second = analyse_liveness(backward, owned, count_results=False)
    return Timeline(first.timeline_bytes, tuple(b + rest for b in second.timeline_bytes))
