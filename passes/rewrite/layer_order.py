"""A backward layer by layer, where the forward called its layers once a time step.

A loop over time in the model's own code gives a backward that goes through all layers at the last
time step, then through all layers at the one before. A fused region needs a layer's gradients of
all time steps, so most of a layer's work would wait for the end of the loop, in full-size floats.
Where no layer needs what a later one did at an earlier step, the same operators can run layer by
layer, as in a network whose layers are called once with all time steps.

The layer of an operator is the largest number of operators of matrix work on a way to it from the
driving inputs. It never falls along a way, so sorting by it is a topological order; where layers do
depend on each other in time, as with recurrent weights, it grows with time and little changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch.fx import Graph, Node

from snnfx.passes.analysis.opkinds import is_heavy
from snnfx.passes.fxgraph import in_order_of_need
from snnfx.passes.rewrite.regions import ordering


def order_by_layer(graph: Graph, driving: Iterable[Node]) -> bool:
    """Put what follows from the driving inputs in the order of layers, all else before its reader.

    Args:
        graph: a backward, functional.
        driving: its gradients; see `snnfx.passes.rewrite.regions.find_regions`.

    Returns:
        Whether the order is a new one; a graph that draws random numbers twice keeps its own.
    """
    leads, drawn = ordering(graph, driving)
    ranks = _ranks(leads)
    ordered = sorted(leads, key=ranks.__getitem__)  # stable: ties stay in graph order
    if drawn or ordered == list(leads):
        return False
    end = graph.output_node()
    rest = [node for node in graph.nodes if node is not end]  # nobody needs these, where any is new
    roots = [*ordered, *end.all_input_nodes, *rest]
    for node in in_order_of_need(roots, lambda node: node.all_input_nodes):
        if node.op != "placeholder":
            end.prepend(node)
    graph.lint()
    return True


def _ranks(leads: Sequence[Node]) -> dict[Node, int]:
    ranks: dict[Node, int] = {}
    for node in leads:
        before = [ranks[s] + is_heavy(s) for s in node.all_input_nodes if s in ranks]
        ranks[node] = max(before, default=0)
    return ranks
