"""Along which slices of an axis (batch, time) each node of a graph can be computed by itself.

A forward dataflow analysis. What it says of a node is meant for a tiling: run a part of the graph
k times, each time on a tile of the seeded tensors, and put the results together. `Along` results
are concatenated, `Partial` ones added up, `Constant` ones are the same in every tile, and `Mixed`
ones cannot be had that way. Equalities are those of exact arithmetic: kernels may add up in another
order on a tile.

The claims hold for tiles of any size that divides the axis. A tile has the same dense order of
dimensions as the whole, so that views of it stay views.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch.fx import Graph, Node

import snnfx.passes.analysis.axes_rules_compute  # noqa: F401  # pyright: ignore[reportUnusedImport]
from snnfx.errors import RuleError
from snnfx.passes.analysis.axes_linear import stays_partial
from snnfx.passes.analysis.axes_rules import (
    FILLS,
    MOVES,
    OPERAND_SIZES,
    SIZE_ARGUMENTS,
    arguments_of,
    relation_of,
    result_shapes,
    shape_of,
    tensor_operands,
)
from snnfx.passes.analysis.dataflow import solve_forward, written_nodes
from snnfx.passes.analysis.opkinds import is_random, packet
from snnfx.passes.analysis.placement import (
    CONSTANT,
    FILLED,
    MIXED,
    PARTIAL,
    Along,
    AxisValue,
    Constant,
    Filled,
    Mixed,
    Partial,
    Placement,
    Relation,
    Spot,
    tile_shape,
)
from snnfx.passes.fxgraph import is_getitem, schema_of, tensor_value

Outcome = AxisValue | tuple[AxisValue, ...]


@dataclass(frozen=True)
class AxisFacts:
    """What is known of each node.

    Attributes:
        size: number of slices.
        outcomes: of the nodes that were analysed; a tuple where a node has several results.
    """

    size: int
    outcomes: Mapping[Node, Outcome]

    def of(self, node: Node) -> AxisValue:
        """The fact of a node; of one with several results what they have in common.

        A node that was not analysed is `Constant`, as it was for those that were.
        """
        outcome = self.outcomes.get(node, CONSTANT)
        if not isinstance(outcome, tuple):
            return outcome
        return outcome[0] if outcome and len(set(outcome)) == 1 else MIXED

    def of_result(self, node: Node, index: int) -> AxisValue:
        """The fact of one of several results."""
        return _item(self.outcomes.get(node, CONSTANT), index)

    def placement(self, node: Node) -> Placement | None:
        """Where the slices of a node lie, if it has any."""
        value = self.of(node)
        return value.placement if isinstance(value, Along) else None

    def is_independent(self, node: Node) -> bool:
        """Whether each slice of the node comes from the same slice of the inputs alone."""
        return isinstance(self.of(node), Along)


def analyse_axis(
    nodes: Graph | Iterable[Node],
    size: int,
    seeds: Mapping[Node, Placement],
    *,
    complete_sums: bool = False,
) -> AxisFacts:
    """Find which nodes are independent along an axis.

    Args:
        nodes: a graph of functional ATen operators with fake tensors in their metadata, or some
            nodes of one in its order: everything outside counts as constant unless it is seeded.
        size: of the axis.
        seeds: where the axis lies in tensors that are given; for a node that is computed this
            takes the place of its rule.
        complete_sums: what reads a `Partial` sees the whole sum, a constant, because a tiling adds
            up all tiles before it goes on.

    Raises:
        RuleError: a seeded tensor has no such dimension.
    """
    for node, placement in seeds.items():
        if not placement.fits(shape_of(node), size):
            raise RuleError(
                f"seed {placement} of '{node.name}' does not fit: an axis of {size} needs a "
                f"dimension of {placement.outer * size * placement.inner}, and its shape is "
                f"{list(shape_of(node))}"
            )
    part = nodes if isinstance(nodes, Graph) else tuple(nodes)
    written = _written(part)
    given: dict[Node, Outcome] = {node: Along(placement) for node, placement in seeds.items()}

    def solve(node: Node, facts: Mapping[Node, Outcome]) -> Outcome:
        if node in given:
            return given[node]
        if node in written:
            return MIXED
        inputs = {n: facts.get(n, given.get(n, CONSTANT)) for n in node.all_input_nodes}
        if complete_sums:
            inputs = {n: CONSTANT if v == PARTIAL else v for n, v in inputs.items()}
        return transfer(node, inputs, size)

    solved = solve_forward(part, solve)
    return AxisFacts(size, MappingProxyType({**given, **solved}))


def _written(part: Graph | Sequence[Node]) -> frozenset[Node]:
    if isinstance(part, Graph):
        return written_nodes(part)
    return written_nodes(part[0].graph) if part else frozenset()


def transfer(node: Node, inputs: Mapping[Node, Outcome], size: int) -> Outcome:
    """What the rules say of a node, from the facts of its inputs."""
    if node.op in ("placeholder", "get_attr"):
        return CONSTANT
    if node.op != "call_function" or is_random(node):
        return MIXED
    if is_getitem(node):
        return _picked(node, inputs)
    values = {n: v for n, v in inputs.items() if not isinstance(v, tuple)}
    if packet(node) in FILLS and _fills_with_constant(node, values):
        return _filled(node, values)
    if len(values) < len(inputs) or any(isinstance(v, Mixed) for v in values.values()):
        return MIXED
    if all(isinstance(v, Constant) for v in values.values()):
        return _constant(node, values)
    if any(isinstance(v, Partial) for v in values.values()):
        along = any(isinstance(v, Along) for v in values.values())
        return PARTIAL if not along and stays_partial(node, values) else MIXED
    return _along(node, values, size)


def _picked(node: Node, inputs: Mapping[Node, Outcome]) -> AxisValue:
    source, index = node.args
    if not isinstance(source, Node) or not isinstance(index, int):
        return MIXED
    return _item(inputs[source], index)


def _item(outcome: Outcome, index: int) -> AxisValue:
    if not isinstance(outcome, tuple):
        return outcome
    return outcome[index] if -len(outcome) <= index < len(outcome) else MIXED


def _fills_with_constant(node: Node, values: Mapping[Node, AxisValue]) -> bool:
    """Whether all that the node reads, except for the sizes of a tensor, is constant."""
    like = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    sized = like if like is not None and tensor_value(like) is not None else None
    return all(isinstance(values.get(n), Constant) for n in node.all_input_nodes if n is not sized)


def _filled(node: Node, values: Mapping[Node, AxisValue]) -> AxisValue:
    """A filled tensor; one of the size of a sliced tensor is sliced as that one."""
    like = node.args[0] if node.args else None
    same_size = packet(node) not in (torch.ops.aten.new_full, torch.ops.aten.new_zeros,
                                     torch.ops.aten.new_ones)  # fmt: skip
    value = values.get(like) if isinstance(like, Node) and same_size else None
    return value if isinstance(value, Along) else FILLED


def _constant(node: Node, values: Mapping[Node, AxisValue]) -> AxisValue:
    """From constants alone; memory that is not written may be anything."""
    if str(packet(node)).split(".")[-1] in _UNINITIALISED:
        return MIXED
    filled = bool(values) and all(isinstance(v, Filled) for v in values.values())
    target = node.target
    pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return FILLED if filled and (target in MOVES or pointwise) else CONSTANT


_UNINITIALISED = frozenset(
    {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"}
)


def _along(node: Node, values: Mapping[Node, AxisValue], size: int) -> Outcome:
    """From slices and constants."""
    relation = relation_of(node)
    spot = None if relation is None else _spot(relation, values)
    if relation is None or spot is None or relation.mixing:
        return MIXED
    others = set(values) - set(relation.operands)
    if any(not isinstance(values[n], Constant) for n in others):
        return MIXED
    if _narrowed(relation, spot, values, size) is None:
        return MIXED
    results = tuple(
        _result(relation, index, shape, spot, size)
        for index, shape in enumerate(result_shapes(node))
    )
    return results if tensor_value(node) is None else results[0]


def _spot(relation: Relation, values: Mapping[Node, AxisValue]) -> Spot | None:
    """Where the axis lies in the operator's terms, if all operands that hold it agree."""
    spots = {
        port.lift(value.placement)
        for node, port in zip(relation.operands, relation.inputs, strict=True)
        if isinstance(value := values[node], Along)
    }
    return spots.pop() if len(spots) == 1 else None


def _narrowed(
    relation: Relation, spot: Spot, values: Mapping[Node, AxisValue], size: int
) -> dict[Node, Placement] | None:
    """The filled operands of which a tile needs a part; None if a tile cannot be had.

    A constant of which the operator would read slice s for slice s of the result is no constant
    for it, unless any part of it will do.
    """
    found: dict[Node, Placement | None] = {}
    for node, port in zip(relation.operands, relation.inputs, strict=True):
        if isinstance(values[node], Along):
            continue
        placement = port.lower(spot, size)
        if placement is not None and not isinstance(values[node], Filled):
            return None
        if found.setdefault(node, placement) != placement:
            return None
    return {node: placement for node, placement in found.items() if placement is not None}


def _result(
    relation: Relation, index: int, shape: tuple[int, ...], spot: Spot, size: int
) -> AxisValue:
    if index in relation.fixed:
        return CONSTANT
    if index >= len(relation.results):
        return MIXED
    placement = relation.results[index].lower(spot, size)
    if placement is None:
        return PARTIAL if index in relation.sums else MIXED
    return Along(placement) if placement.fits(shape, size) else MIXED


@dataclass(frozen=True)
class TileCall:
    """The call that computes a tile of a node, or the part of a sum that the tile adds.

    Attributes:
        args: those of the node, with sizes recomputed; nodes in it stand for their tiles.
        kwargs: the same for keyword arguments.
        narrowed: filled inputs of which the call reads a part, each with the dimension and the
            length to cut it to; it does not matter where.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    narrowed: Mapping[Node, tuple[int, int]]


def tile_call(node: Node, facts: AxisFacts, tile: int) -> TileCall:
    """How to compute a tile of `tile` slices of a node that is `Along`, or its `Partial` sum.

    Args:
        node: a call that was analysed, none of the seeds.
        facts: of the graph.
        tile: how many slices; divides the size of the axis.
    """
    args, kwargs = node.args, dict(node.kwargs)
    found = _tile_sizes(node, facts, tile)
    if found is not None:
        name, sizes = found
        position = [a.name for a in schema_of(node).arguments].index(name)
        if name in kwargs:
            kwargs[name] = sizes
        else:
            args = (*args[:position], sizes, *args[position + 1 :])
    return TileCall(args, kwargs, MappingProxyType(_cuts(node, facts, tile)))


def _tile_sizes(node: Node, facts: AxisFacts, tile: int) -> tuple[str, list[int]] | None:
    """The argument of the call that holds sizes, and what they are of a tile."""
    if node.target in OPERAND_SIZES:
        name, source = OPERAND_SIZES[node.target]
        arguments = arguments_of(node)
        placement = facts.placement(arguments[source])
        return None if placement is None else (
            name, tile_shape(arguments[name], placement, tile)
        )  # fmt: skip
    name, placement = SIZE_ARGUMENTS.get(node.target), facts.placement(node)
    if name is None or placement is None:
        return None
    return name, tile_shape(shape_of(node), placement, tile)


def _cuts(node: Node, facts: AxisFacts, tile: int) -> dict[Node, tuple[int, int]]:
    """Filled inputs to cut, with dimension and length."""
    relation = None if is_getitem(node) or packet(node) in FILLS else relation_of(node)
    if relation is None:
        return {}
    values = {operand: facts.of(operand) for operand in tensor_operands(node)}
    spot = _spot(relation, values)
    narrowed = None if spot is None else _narrowed(relation, spot, values, facts.size)
    return {
        operand: (placement.dim, tile_shape(shape_of(operand), placement, tile)[placement.dim])
        for operand, placement in (narrowed or {}).items()
    }
