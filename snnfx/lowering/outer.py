"""The outer graph: operators between regions, one call a region, in an order of low memory."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import Graph, GraphModule, Node

from snnfx.kernels.region_build import RegionKernel, compile_many
from snnfx.kernels.region_ir import Program
from snnfx.lowering.region_call import OutputLayout, RegionCall
from snnfx.passes.analysis.liveness import last_readers, storage_roots
from snnfx.passes.fxgraph import (
    donations_of,
    has_static_shape,
    in_order_of_need,
    node_bytes,
    set_donations,
    set_value,
    tensor_value,
)
from snnfx.passes.rewrite.regions import Region, RegionsResult, find_regions, ordering

Unit = Region | Node
_kernels: dict[Program, RegionKernel] = {}


@dataclass(frozen=True)
class Outline:
    """An outer graph whose regions are not compiled yet.

    Attributes:
        graph: operators, and one `call_module` node for each region; it tells all memory that a run
            of it needs.
        calls: the region behind each `call_module` node, by its target.
        found: the regions, and what was kept out of them.
        source: the graph that was outlined.
    """

    graph: Graph
    calls: Mapping[str, tuple[Node, Region]]
    found: RegionsResult
    source: Graph


def outline(graph: Graph, driving: Iterable[Node], like: Outline | None = None) -> Outline:
    """Group a graph into regions, put it in an order of low memory, and compile nothing.

    Args:
        graph: a forward or a backward, functional; it is not changed.
        driving: see `snnfx.passes.rewrite.regions.find_regions`.
        like: the outline of a graph that this one was copied from; see there, too.
    """
    driving = tuple(driving)
    found = find_regions(graph, driving, like.found if like is not None else None)
    outer, calls = _outer_graph(graph, found.regions, driving)
    roots = storage_roots(outer)
    last = last_readers(outer, roots)
    for node, region in calls.values():
        set_donations(node, _donations(node, region, roots, last))
    outer.lint()
    return Outline(outer, calls, found, graph)


def compile_outline(module: GraphModule, outlined: Outline) -> GraphModule:
    """Compile the regions of an outline, each distinct program once.

    Args:
        module: what was outlined; it holds the constants that the graph gets.
        outlined: its outer graph.

    Raises:
        KernelError: there is no C++ compiler, or it refuses a kernel.
    """
    programs = [region.program.program for _, region in outlined.calls.values()]
    _compile(programs)
    root: dict[str, nn.Module] = {}
    for name, (node, region) in outlined.calls.items():
        kernel = _kernels[region.program.program]
        root[name] = RegionCall(region.program, kernel, donations_of(node))
    for node in outlined.graph.find_nodes(op="get_attr"):
        root[str(node.target)] = getattr(module, str(node.target))
    return GraphModule(root, outlined.graph)


def _compile(programs: list[Program]) -> None:
    missing = [p for p in dict.fromkeys(programs) if p not in _kernels]
    _kernels.update(zip(missing, compile_many(missing), strict=True))


def schedule(graph: Graph, regions: Sequence[Region], driving: Iterable[Node]) -> list[Unit]:
    """Units in the order in which they run: driven ones in graph order, all else on demand."""
    unit_of: dict[Node, Unit] = {node: region for region in regions for node in region.nodes}
    leads, before = ordering(graph, driving)

    def needs(unit: Unit) -> list[Unit]:
        nodes = unit.nodes if isinstance(unit, Region) else (unit,)
        needed = (s for n in nodes for s in (*n.all_input_nodes, *before.get(n, ())))
        return [other for s in needed if (other := unit_of.get(s, s)) is not unit]

    roots = (*leads, *graph.output_node().all_input_nodes)
    return in_order_of_need((unit_of.get(node, node) for node in roots), needs)


def _outer_graph(
    graph: Graph, regions: Sequence[Region], driving: Iterable[Node]
) -> tuple[Graph, dict[str, tuple[Node, Region]]]:
    outer = Graph()
    made: dict[Node, Node] = {}
    calls: dict[str, tuple[Node, Region]] = {}
    for node in graph.find_nodes(op="placeholder"):
        made[node] = outer.node_copy(node)
    for unit in schedule(graph, regions, driving):
        if isinstance(unit, Node):
            if unit not in made:
                made[unit] = outer.node_copy(unit, lambda n: made[n])
            continue
        name = f"region_{len(calls)}"
        args = tuple(made[spec.node] for spec in unit.program.inputs)
        call = outer.call_module(name, args)
        results = [spec.node for spec in unit.program.outputs]
        set_value(call, tuple(tensor_value(node) for node in results))
        for position, node in enumerate(results):
            # Named apart: all other nodes keep their names, by which the plan knows them.
            made[node] = outer.create_node(
                "call_function", operator.getitem, (call, position), name=f"{name}_{position}"
            )
            made[node].meta = dict(node.meta)
        calls[name] = (call, unit)
    outer.node_copy(graph.output_node(), lambda n: made[n])
    return outer, calls


def _donations(
    call: Node,
    region: Region,
    roots: dict[Node, tuple[Node, ...]],
    last: Mapping[Node, list[Node]],
) -> dict[int, int]:
    """For each output of a region, an input of the same layout that dies with the call."""
    dying = last.get(call, ())
    args = [arg for arg in call.args if isinstance(arg, Node)]
    base = region.program.base
    if not all(isinstance(size, int) for size in base):
        return {}
    donated: dict[int, int] = {}
    for position, spec in enumerate(region.program.outputs):
        if spec.form is None or not has_static_shape(spec.node):
            continue
        output = OutputLayout(spec)
        strides = output.strides(output.shape(base))  # type: ignore[arg-type]
        for index, arg in enumerate(args):
            value = tensor_value(arg)
            free = index not in donated.values() and _is_only_user(index, args, roots, dying)
            # A windowed input is read at other places than the one that is being written.
            free = free and not region.program.inputs[index].windowed
            if value is None or not free or node_bytes(arg) != node_bytes(spec.node):
                continue
            kind = region.program.inputs[index].kind
            if output.is_layout_of(value, kind, base, strides):  # type: ignore[arg-type]
                donated[position] = index
                break
    return donated


def _is_only_user(
    index: int, args: list[Node], roots: dict[Node, tuple[Node, ...]], dying: Iterable[Node]
) -> bool:
    """Whether the input's storage dies here, is all its own, and is read through it alone."""
    own = roots[args[index]]
    if len(own) != 1 or own[0] not in dying or own[0].op == "placeholder":
        return False
    if node_bytes(own[0]) != node_bytes(args[index]):
        return False
    return sum(own[0] in roots[arg] for arg in args) == 1
