"""Level 1: which values of the forward are kept, so that every layer is its own checkpoint.

**Problem.** The backward demands values of the forward. Each is kept, or computed again from what
is kept. A *segment* is the work between one weight (matrix work) and the next: computing again must
never cross two weights, or the backward would hold the whole network at once. So what a weight
reads has to be had from kept values without another weight.

**Method.** A minimum vertex cut (Ford and Fulkerson, 1956; by `networkx.minimum_cut` on the graph
with each vertex split in two) between the *sources*: results of weights, random numbers, operators
that are not understood; and the *sinks*: what the weights read. The capacity of a value is its
packed bytes. Three kinds of value are kept in any case, and so cost the cut nothing:

- *anchors*, results of jumps (comparisons, rounding) that the forward's results depend on: the
  backward has to follow the forward's trajectory, whatever rounding does. Packed they are bits;
- *statistics*, small results of reductions, such as those of a batch norm;
- random and opaque values that are demanded.

What is kept but not reached from the demands is dropped again. Bytes of views count as their own.
Not optimal in one respect: a value on two segments' way is computed twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

from snnfx.passes.analysis.opkinds import OpKind
from snnfx.passes.cost.graph import CostGraph

SOURCE, SINK = ("source",), ("sink",)
KEPT_KINDS = (OpKind.RANDOM, OpKind.OPAQUE)
CUT_KINDS = (OpKind.HEAVY, *KEPT_KINDS)


@dataclass(frozen=True)
class Checkpoints:
    """What level 1 decides about the values of the forward.

    Attributes:
        kept: values to keep for the backward, in graph order.
        recomputed: values that the backward computes again, in graph order.
        anchors: the kept values that are results of jumps.
    """

    kept: tuple[str, ...]
    recomputed: tuple[str, ...]
    anchors: frozenset[str]


def choose_checkpoints(cost: CostGraph) -> Checkpoints:
    """Choose what to keep: every layer is computed again from its (packed) input."""
    demanded = [name for name, attrs in cost.nodes.items() if attrs["demanded"]]
    relevant = _ancestors(cost, demanded)
    anchors = frozenset(name for name in relevant if _is_anchor(cost.nodes[name]))
    kept = set(anchors)
    kept |= {n for n in relevant if cost.nodes[n]["kind"] is OpKind.STATISTIC}
    kept |= {n for n in relevant if _must_keep(cost, n)}
    kept |= _minimum_cut(cost, relevant, kept)
    reached = _ancestors(cost, demanded, stop=kept)
    kept &= reached
    free = {n for n in reached if cost.nodes[n]["kind"] is OpKind.FREE}
    recomputed = reached - kept - free
    return Checkpoints(
        kept=tuple(n for n in cost if n in kept),
        recomputed=tuple(n for n in cost if n in recomputed),
        anchors=anchors & kept,
    )


def weight_inputs(cost: CostGraph, names: Iterable[str]) -> set[str]:
    """What the weights among `names` read: the values whose absence ends a segment."""
    heavy = [n for n in names if _is_weight(cost.nodes[n])]
    return {source for name in heavy for source in cost.predecessors(name)}


def _is_weight(attrs: dict[str, object]) -> bool:
    """Whether this is the operator itself, not one of its several results."""
    return attrs["kind"] is OpKind.HEAVY and not attrs["is_view"]


def _is_anchor(attrs: dict[str, object]) -> bool:
    jumps = attrs["kind"] is OpKind.THRESHOLD and attrs["feeds_forward"]
    return bool(jumps and attrs["is_tensor"])


def _must_keep(cost: CostGraph, name: str) -> bool:
    """Whether the value cannot be computed again. Of several results each counts by itself."""
    attrs = cost.nodes[name]
    return attrs["kind"] in KEPT_KINDS and attrs["is_tensor"]


def _ancestors(
    cost: CostGraph, names: Iterable[str], stop: Iterable[str] = frozenset()
) -> set[str]:
    reached: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name not in reached:
            reached.add(name)
            if name not in stop:
                stack.extend(cost.predecessors(name))
    return reached


def _minimum_cut(cost: CostGraph, relevant: set[str], kept: set[str]) -> set[str]:
    """The values with the fewest packed bytes that part the weights from each other's inputs."""
    network = nx.DiGraph()
    network.add_nodes_from((SOURCE, SINK))
    sinks = weight_inputs(cost, relevant)
    for name in relevant - kept:
        attrs = cost.nodes[name]
        network.add_edge((name, "in"), (name, "out"), capacity=_capacity(attrs))
        if attrs["kind"] in CUT_KINDS:
            network.add_edge(SOURCE, (name, "in"))
        else:
            for before in cost.predecessors(name):
                if before not in kept:
                    network.add_edge((before, "out"), (name, "in"))
        if name in sinks:
            network.add_edge((name, "out"), SINK)
    useful = nx.descendants(network, SOURCE) & nx.ancestors(network, SINK)
    if not useful:
        return set()
    network = network.subgraph(useful | {SOURCE, SINK})
    _, (left, right) = nx.minimum_cut(network, SOURCE, SINK)
    return {n for n in relevant - kept if (n, "in") in left and (n, "out") in right}


def _capacity(attrs: dict[str, object]) -> float:
    """Packed bytes; what is no tensor cannot be kept."""
    return float(attrs["packed_bytes"]) if attrs["is_tensor"] else float("inf")  # type: ignore
