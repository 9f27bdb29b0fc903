"""Parts of graphs run in tiles, and compared with the graphs as they were."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from snnfx.passes.analysis.axes import AxisFacts, analyse_axis
from snnfx.passes.analysis.opkinds import is_random
from snnfx.passes.analysis.placement import Mixed, Partial, Placement
from snnfx.passes.fxgraph import dependents, is_getitem, tensor_value
from snnfx.passes.rewrite.tiles import TilesResult, run_in_tiles

from tests.passes.axis_programs import STEPS, Program, some_dims
from tests.passes.axis_tiles import exact_nodes

aten = torch.ops.aten
TOLERANCE = 1e-12
Seeds = Mapping[Node, Placement]


def run(graph: Graph, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a graph computes from copies of the inputs."""
    graph.lint()
    return GraphModule(nn.Module(), graph)(*(x.clone() for x in inputs))


def tile_all(
    graph: Graph, inputs: Sequence[Tensor], seeds: Seeds, tiles: int, size: int = 6
) -> tuple[TilesResult, list[tuple[Tensor, Tensor]]]:
    """Run all calls of a graph in tiles.

    Returns:
        what was done, and each result of the tiled graph with that of the graph before.
    """
    expected = run(graph, inputs)
    facts = analyse_axis(calls(graph), size, seeds, complete_sums=True)
    done = run_in_tiles(graph, calls(graph), facts, tiles)
    return done, list(zip(run(graph, inputs), expected, strict=True))


def calls(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number, or to 1 if that is less."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if not expected.numel():
        return 0.0
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def layered_program(source: random.Random, size: int, steps: int) -> Program:
    """A random program in which some tensors have a sum over samples taken off, as norms do."""
    program = Program(source, size)
    for _ in range(source.randint(1, 2)):
        program.data(source.randint(2, 4))
    program.constant([program.pick(1, 2, 3)])
    for _ in range(steps):
        step = centred if source.random() < 0.3 else source.choice(STEPS)
        step(program)
    program.graph.output(())
    return program


def centred(program: Program) -> None:
    node = program.floats()
    total = program.call(aten.sum.dim_IntList, node, some_dims(program, node), True)
    mean = None if total is None else program.call(aten.div.Tensor, total, 8.0)
    program.call(aten.sub.Tensor, node, mean)


def part_of(source: random.Random, program: Program) -> tuple[list[Node], AxisFacts]:
    """A random run of a program's calls without those that are not independent along the axis."""
    nodes = calls(program.graph)
    first = source.randrange(1 + len(nodes) // 3)
    chosen = nodes[first : source.randint(first + 1, len(nodes))]
    whole = analyse_axis(program.graph, program.size, program.seeds, complete_sums=True)
    while True:
        facts = analyse_axis(chosen, program.size, _seeds(chosen, whole), complete_sums=True)
        kept = [node for node in chosen if _is_whole(node, set(chosen), facts)]
        if len(kept) == len(chosen):
            return chosen, facts
        chosen = kept


def _seeds(part: Iterable[Node], facts: AxisFacts) -> dict[Node, Placement]:
    """Where the axis lies in what a part reads from outside."""
    inside = set(part)
    read = (source for node in part for source in node.all_input_nodes if source not in inside)
    placed = ((s, facts.placement(s)) for s in read if tensor_value(s) is not None)
    return {source: placement for source, placement in placed if placement is not None}


def _is_whole(node: Node, inside: set[Node], facts: AxisFacts) -> bool:
    """Whether a node can be in a part: operators with several results with all that pick one."""
    if is_getitem(node) and node.all_input_nodes[0] not in inside:
        return False
    if tensor_value(node) is not None:
        return not isinstance(facts.of(node), Mixed)
    return inside.issuperset(node.users)


def finished(program: Program) -> tuple[list[Node], list[Tensor]]:
    """Make every tensor that a program computes without random numbers a result of it.

    Returns:
        these nodes, and the program's inputs, which are fake in its metadata from here on.
    """
    graph, mode = program.graph, FakeTensorMode()
    inputs = [node.meta["val"] for node in graph.find_nodes(op="placeholder")]
    drawn = dependents(graph, [node for node in calls(graph) if is_random(node)])
    results = [n for n in calls(graph) if isinstance(n.meta["val"], Tensor) and n not in drawn]
    graph.output_node().args = (tuple(results),)
    for node in graph.nodes:
        if node.op != "output":
            node.meta["val"] = pytree.tree_map_only(Tensor, mode.from_tensor, node.meta["val"])
    return results, inputs


def exact_results(results: Sequence[Node], facts: AxisFacts) -> list[bool]:
    """Which results come by exact operators alone, none of them from sums over tiles."""
    if not results:
        return []
    exact = exact_nodes(results[0].graph)
    summed: set[Node] = set()
    for node in results[0].graph.nodes:
        partial = isinstance(facts.of(node), Partial)
        if partial or not summed.isdisjoint(node.all_input_nodes):
            summed.add(node)
    return [exact[node] and node not in summed for node in results]


def most_slices(graph: Graph, target: object, dim: int = 0) -> int:
    """The most that any call of an operator computes at once along a dimension."""
    found = graph.find_nodes(op="call_function", target=target)
    return max(int(value.shape[dim]) for n in found if (value := tensor_value(n)) is not None)
