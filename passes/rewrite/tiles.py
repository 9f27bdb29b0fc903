"""Level 3: a part of a graph run in tiles along an axis, such as the batch.

Inside the part every value is one of three things (see `snnfx.passes.analysis.axes`): sliced along
the axis, a sum over slices, or the same for all. A *round* runs all tiles, one after the other;
each tile slices what it reads, and clones the nodes that it needs. What is read outside of the part
is written tile by tile into one tensor, sums are added up in place, over all tiles, before anything
reads them. What needs a complete sum, as the backward of a batch norm needs its two channel sums,
runs in the next round, whose tiles compute again what they share with the round before. So the
result is that of the whole batch: nothing is normalised by the statistics of a tile.

Sums of tiles are taken in another order than sums over the whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_arg

import snnfx.kernels.tiles  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers
from snnfx.passes.analysis.axes import AxisFacts, tile_call
from snnfx.passes.analysis.placement import Along, Mixed, Partial, Placement, tile_shape
from snnfx.passes.fxgraph import (
    is_getitem,
    is_view,
    set_tile,
    set_value,
    stride_order,
    tensor_value,
)
from snnfx.passes.rewrite.builder import GraphBuilder, Known
from snnfx.passes.rewrite.layout import LAID_OUT, with_order

aten = torch.ops.aten


@dataclass(frozen=True)
class TilesResult:
    """What was done, or why nothing was.

    Attributes:
        tiles: how many tiles the part runs in; 1 if it was left as it is.
        rounds: how often all tiles run.
        declined: why not, in words that name the node.
    """

    tiles: int
    rounds: int = 0
    declined: str | None = None


def run_in_tiles(graph: Graph, part: Iterable[Node], facts: AxisFacts, tiles: int) -> TilesResult:
    """Rewrite a part of a graph so that it runs in tiles; leaves it alone where that is not exact.

    Args:
        graph: functional, with fake tensors.
        part: nodes that compute; what lies on a way from one of them to another belongs to it, too.
        facts: of the part, with complete sums.
        tiles: how many; divides the size of the axis.
    """
    inside = frozenset(part)
    order = [node for node in graph.nodes if node in inside]
    reason = _why_not(graph, order, inside, facts)
    if reason is not None:
        return TilesResult(1, declined=reason)
    work = _Tiling(graph, order, inside, facts, tiles)
    work.run()
    _sort(graph, work.place)
    names = {node.name: made for node, made in work.done.items()}
    graph.eliminate_dead_code()
    _rename(graph, names)
    return TilesResult(tiles, len(work.rounds))


def _rename(graph: Graph, names: Mapping[str, Node]) -> None:
    """Give what takes a node's place its name, by which other parts of the plan know it."""
    taken = {node.name: node for node in graph.nodes}
    for name, made in names.items():
        if name not in taken and taken.get(made.name) is made:
            made.name = name


def _why_not(
    graph: Graph, order: list[Node], inside: frozenset[Node], facts: AxisFacts
) -> str | None:
    for node in order:
        value = facts.of(node)
        several = tensor_value(node) is None and all(is_getitem(user) for user in node.users)
        if isinstance(value, Mixed) and not (several and inside.issuperset(node.users)):
            return f"'{node.name}' ({node.target}) is not independent along the axis"
    reached: set[Node] = set()
    for node in graph.nodes:
        if node not in inside and any(s in inside or s in reached for s in node.all_input_nodes):
            reached.add(node)
        elif node in inside and any(s in reached for s in node.all_input_nodes):
            return f"'{node.name}' needs the part's own results from outside of it"
    if not any(isinstance(facts.of(node), Along) for node in order):
        return "nothing in the part has the axis"
    return None


@dataclass
class _Tiling:
    """The state of one rewrite.

    Attributes:
        rounds: for each round the nodes whose values are wanted from it, in graph order.
        done: what takes the place of a wanted node: the whole tensor or the complete sum.
        place: for each new node, where it belongs in the order of the graph.
    """

    graph: Graph
    order: list[Node]
    inside: frozenset[Node]
    facts: AxisFacts
    tiles: int
    rounds: list[list[Node]] = field(default_factory=list)
    level: dict[Node, int] = field(default_factory=dict)
    done: dict[Node, Node] = field(default_factory=dict)
    place: dict[Node, tuple[int, int]] = field(default_factory=dict)
    known: Known = field(default_factory=dict)

    def run(self) -> None:
        self._find_rounds()
        position = {node: i for i, node in enumerate(self.graph.nodes)}
        anchor = position[self.order[-1]]
        before = set(self.graph.nodes)
        with self.graph.inserting_before(self.graph.output_node()):
            for number in range(len(self.rounds)):
                self._run_round(number)
        self.place = {node: (i, 0) for node, i in position.items()}
        made = (node for node in self.graph.nodes if node not in before)
        self.place |= {node: (anchor, i + 1) for i, node in enumerate(made)}
        for node, replacement in self.done.items():
            node.replace_all_uses_with(replacement, delete_user_cb=self._is_outside)

    def _is_outside(self, user: Node) -> bool:
        return user not in self.inside or not self._is_tiled(user)

    def _is_tiled(self, node: Node) -> bool:
        value = self.facts.of(node)
        return isinstance(value, Along | Partial) or tensor_value(node) is None

    def _find_rounds(self) -> None:
        """The round of each node: one more than that of the sums that it needs complete."""
        for node in self.order:
            level = 0
            for source in node.all_input_nodes:
                if source in self.inside:
                    partial = isinstance(self.facts.of(source), Partial) and not is_getitem(node)
                    level = max(level, self.level[source] + partial)
            self.level[node] = level
        count = max(self.level.values()) + 1
        rounds: list[list[Node]] = [[] for _ in range(count)]
        for node in self.order:
            value = self.facts.of(node)
            read = any(self._is_outside(user) for user in node.users)
            if isinstance(value, Partial) or (isinstance(value, Along) and read):
                rounds[self.level[node]].append(node)
        self.rounds = [wanted for wanted in rounds if wanted]

    def _run_round(self, number: int) -> None:
        wanted = self.rounds[number]
        needed = self._closure(wanted)
        step = self.facts.size // self.tiles
        for tile in range(self.tiles):
            clones: dict[Node, Node] = {}
            for node in self.order:
                if node in needed:
                    clones[node] = self._clone(node, clones, tile * step, step)
            for node in wanted:
                self._collect(node, clones[node], tile * step, step)

    def _closure(self, wanted: Iterable[Node]) -> set[Node]:
        """What a tile has to compute for the values that are wanted of it."""
        needed: set[Node] = set()
        stack = list(wanted)
        while stack:
            node = stack.pop()
            if node not in needed and node in self.inside and self._is_tiled(node):
                if isinstance(self.facts.of(node), Partial) and node in self.done:
                    continue
                needed.add(node)
                stack.extend(node.all_input_nodes)
        return needed

    def _clone(self, node: Node, clones: dict[Node, Node], start: int, count: int) -> Node:
        call = tile_call(node, self.facts, count)

        def source(given: Node) -> Node:
            if given in clones:
                return clones[given]
            if given in call.narrowed:
                dim, length = call.narrowed[given]
                return self._build(given).call(aten.slice.Tensor, given, dim, 0, length)
            key = self.done.get(given, given)
            placement = self.facts.placement(given)
            if placement is None:
                return key
            clones[given] = self._slice(given, key, placement, start, count)
            return clones[given]

        clone = self.graph.call_function(
            node.target,  # type: ignore[arg-type]
            map_arg(call.args, source),
            map_arg(call.kwargs, source),
        )
        clone.meta = dict(node.meta)
        set_tile(clone, node.name, start)
        value, whole = self._build(node).value_of(clone), tensor_value(node)
        if node.target in LAID_OUT and whole is not None:
            value = with_order(value, stride_order(whole))
        set_value(clone, value)
        return clone

    def _build(self, like: Node) -> GraphBuilder:
        return GraphBuilder(self.graph, like, self.known)

    def _is_viewed(self, given: Node) -> bool:
        """Whether the part looks at the tensor in other shapes, which takes a dense one."""
        return any(user in self.inside and is_view(user) for user in given.users)

    def _slice(self, given: Node, node: Node, placement: Placement, start: int, count: int) -> Node:
        """A tile of a whole tensor: a view, and a dense copy where slices are not in one piece."""
        build, value = self._build(node), tensor_value(node)
        assert value is not None
        size, inner = self.facts.size, placement.inner
        if placement.outer == 1:
            ends = (start * inner, (start + count) * inner)
            part = build.call(aten.slice.Tensor, node, placement.dim, *ends)
            return build.call(aten.clone.default, part) if self._is_viewed(given) else part
        parts = placement.split_shape([int(s) for s in value.shape], size)
        axis = placement.dim + 1
        if inner == 1:
            del parts[axis + 1]
        split = build.call(aten.view.default, node, parts)
        cut = build.call(aten.slice.Tensor, split, axis, start, start + count)
        dense = build.call(aten.clone.default, cut)
        shape = tile_shape([int(s) for s in value.shape], placement, count)
        return build.call(aten.view.default, dense, shape)

    def _collect(self, node: Node, part: Node, start: int, count: int) -> None:
        """Put a tile's result into the whole, or add it to the sum."""
        build = self._build(node)
        if isinstance(self.facts.of(node), Partial):
            total = self.done.get(node)
            self.done[node] = part if total is None else build.call(aten.add_.Tensor, total, part)
            return
        placement = self.facts.placement(node)
        value = tensor_value(node)
        assert placement is not None
        assert value is not None
        if node not in self.done:
            if 0 in value.stride():  # an expanded value has no place of its own for each tile
                value = with_order(value, stride_order(value))
            self.done[node] = build.call(
                aten.empty_strided.default, list(value.shape), list(value.stride()),
                dtype=value.dtype, device=value.device,
            )  # fmt: skip
        self.done[node] = build.call(
            torch.ops.snnfx.write_tile.default, self.done[node], part, placement.dim,
            placement.outer, count, start,
        )  # fmt: skip


def _sort(graph: Graph, place: Mapping[Node, tuple[int, int]]) -> None:
    """Put the nodes into an order in which each comes after its inputs, as near to `place`."""
    waiting = {node: len(node.all_input_nodes) for node in graph.nodes}
    numbers = {node: i for i, node in enumerate(waiting)}
    heap = [(place[node], numbers[node], node) for node, count in waiting.items() if not count]
    heapq.heapify(heap)
    end = graph.output_node()
    while heap:
        node = heapq.heappop(heap)[2]
        if node is not end:
            end.prepend(node)
        for user in node.users:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(heap, (place[user], numbers[user], user))
