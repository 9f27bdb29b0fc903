"""Runs a graph tile by tile, as its axis facts allow, and compares with the whole."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from snnfx.passes.analysis.axes import AxisFacts, tile_call
from snnfx.passes.analysis.placement import Along, Constant, Filled, Mixed, Partial, Placement

from tests.passes.axis_programs import slices

aten = torch.ops.aten

EXACT_TAGS = frozenset(
    {
        aten.neg, aten.relu, aten.add, aten.sub, aten.mul, aten.div, aten.maximum, aten.ge,
        aten.where, aten.clone, aten.alias, aten.detach, aten.view, aten.reshape,
        aten._unsafe_view, aten.permute, aten.transpose, aten.t, aten.flip, aten.unsqueeze,
        aten.expand, aten.squeeze, aten.repeat, aten.slice, aten.select, aten.split, aten.stack,
        aten.split_with_sizes, aten.unbind, aten.cat, aten.constant_pad_nd, aten._to_copy,
        aten.select_backward, aten.slice_backward, aten.max_pool2d_with_indices, aten.full_like,
        torch.ops.snnfx.pack_bits, torch.ops.snnfx.unpack_bits, operator.getitem,
        torch.ops.prims.convert_element_type,
    }
)  # fmt: skip
"""Operators that give each slice the very bits of the whole."""


def check_facts(
    graph: Graph,
    facts: AxisFacts,
    seeds: Mapping[Node, Placement],
    tile: int,
    complete_sums: bool = False,
) -> None:
    """Fail unless every claim holds for tiles of `tile` slices.

    Args:
        graph: with real tensors in its metadata.
        facts: what is claimed.
        seeds: where the axis lies in some of the tensors.
        tile: divides the size of the axis.
        complete_sums: whether what reads a sum sees the whole one.
    """
    exact = exact_nodes(graph)
    sums: dict[tuple[Node, int], Tensor] = {}
    for start in range(0, facts.size, tile):
        tiles: dict[Node, Any] = {}
        for node in graph.nodes:
            if node.op == "output":
                continue
            tiles[node] = run_tile(node, facts, seeds, start, tile, tiles)
            for index, whole, part, claim in results(node, tiles[node], facts):
                if isinstance(claim, Along):
                    expected = slices(whole, claim.placement, facts.size, start, tile)
                    check_equal(node, part, expected, exact[node])
                elif isinstance(claim, Filled):
                    assert len(whole.unique()) <= 1, f"{node} is not filled"
                elif isinstance(claim, Constant):
                    check_equal(node, part, whole, exact=True)
                elif isinstance(claim, Partial):
                    sums[node, index] = sums.get((node, index), torch.zeros(())) + part
            if complete_sums and isinstance(facts.of(node), Partial):
                tiles[node] = node.meta["val"]
    check_sums(sums)


def check_sums(sums: Mapping[tuple[Node, int], Tensor]) -> None:
    """Fail unless what the tiles add up to is the whole."""
    for (node, index), total in sums.items():
        whole = (
            node.meta["val"] if isinstance(node.meta["val"], Tensor) else node.meta["val"][index]
        )
        check_equal(node, total, whole, exact=False)


def results(node: Node, tile: Any, facts: AxisFacts) -> list[tuple[int, Tensor, Any, Any]]:
    """Each result: its position, the whole, the tile and the claim."""
    whole = node.meta["val"]
    if isinstance(whole, Tensor):
        return [(0, whole, tile, facts.of(node))]
    claims = [facts.of_result(node, i) for i in range(len(whole))]
    parts = [None] * len(whole) if tile is None else tile
    found = zip(range(len(whole)), whole, parts, claims, strict=True)
    return [each for each in found if isinstance(each[1], Tensor)]


def run_tile(
    node: Node,
    facts: AxisFacts,
    seeds: Mapping[Node, Placement],
    start: int,
    tile: int,
    tiles: Mapping[Node, Any],
) -> Any:
    """The tile of a node: cut out of a seed, computed, or None where nothing is claimed."""
    whole = node.meta["val"]
    if node in seeds:
        return slices(whole, seeds[node], facts.size, start, tile)
    claims = [each[-1] for each in results(node, None, facts)]
    if node.op == "placeholder" or any(isinstance(c, Filled) for c in claims):
        return whole
    if all(isinstance(claim, Mixed) for claim in claims):
        return None
    call = tile_call(node, facts, tile)

    def operand(source: Node) -> Any:
        found = tiles[source]
        assert found is not None, f"{node} reads {source}, of which there is no tile"
        if source in call.narrowed:
            dim, length = call.narrowed[source]
            return found.narrow(dim, 0, length)
        return found

    args, kwargs = map_arg((call.args, call.kwargs), operand)
    return node.target(*args, **kwargs)


def exact_nodes(graph: Graph) -> dict[Node, bool]:
    """Which nodes come by exact operators alone."""
    exact: dict[Node, bool] = {}
    for node in graph.nodes:
        target = getattr(node.target, "overloadpacket", node.target)
        known = node.op == "placeholder" or target in EXACT_TAGS
        exact[node] = known and all(exact[source] for source in node.all_input_nodes)
    return exact


def check_equal(node: Node, found: Tensor, expected: Tensor, exact: bool) -> None:
    # The text is made where it is needed: printing tensors takes longer than comparing them.
    assert found.shape == expected.shape, f"{node.format_node()}: {found.shape}, {expected.shape}"
    assert found.dtype == expected.dtype, f"{node.format_node()}: {found.dtype}, {expected.dtype}"
    if exact or not expected.is_floating_point():
        close = torch.equal(found, expected)
    else:
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        close = torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * max(1.0, largest))
    assert close, f"{node.format_node()}: {found} is not {expected}"
