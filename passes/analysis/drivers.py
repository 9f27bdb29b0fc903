"""Which of the gradients that come into a backward set its pace.

What follows from the gradient of the loss runs as early as it can, all else next to its first
reader. The gradient of a neuron's last state flows into the same layers, but it joins them late:
were what follows from it to run first, that neuron would be computed again at the very start, and
be kept until its layer's turn. Such a gradient is a *tributary* of another one: the two meet, and
all matrix work that it reaches is reached by the other, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Graph, Node

from snnfx.passes.analysis.opkinds import is_heavy


def find_drivers(graph: Graph, tangents: Sequence[Node]) -> list[Node]:
    """The gradients that are not tributaries of another driver, in their order.

    Of two that are tributaries of each other the one that reaches more matrix work drives, of
    equals in that the one that reaches more nodes, and then the first.

    Args:
        graph: a backward.
        tangents: its incoming gradients.
    """
    reached = _reached(graph, tangents)
    count = len(tangents)
    sizes, work, meets, shared = [0] * count, [0] * count, [0] * count, [-1] * count
    masks: dict[int, tuple[int, int]] = {}
    for node, mask in reached.items():
        nodes, heavy = masks.get(mask, (0, 0))
        masks[mask] = nodes + 1, heavy + is_heavy(node)
    for mask, (nodes, heavy) in masks.items():
        for i in range(count):
            if mask >> i & 1:
                sizes[i] += nodes
                work[i] += heavy
                meets[i] |= mask
                shared[i] &= mask if heavy else -1
    drivers: list[int] = []
    for i in sorted(range(count), key=lambda i: (-work[i], -sizes[i])):
        if not any((meets[i] & shared[i]) >> j & 1 for j in drivers):
            drivers.append(i)
    return [tangents[i] for i in sorted(drivers)]


def _reached(graph: Graph, tangents: Sequence[Node]) -> dict[Node, int]:
    """For each node that follows from a tangent, a bit for each tangent that it follows from."""
    bits = {tangent: 1 << i for i, tangent in enumerate(tangents)}
    reached: dict[Node, int] = {}
    for node in graph.nodes:
        mask = bits.get(node, 0)
        for source in node.all_input_nodes:
            mask |= reached.get(source, 0)
        if mask and node.op != "output":
            reached[node] = mask
    return reached
