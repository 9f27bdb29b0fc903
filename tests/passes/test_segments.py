"""Level 1: the cut is a valid save set and, of all those, one of the fewest packed bytes."""

from __future__ import annotations

import itertools
from dataclasses import asdict, replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfx.passes.analysis.opkinds import OpKind
from snnfx.passes.cost.graph import CostGraph, ValueCost
from snnfx.passes.plan.segments import Checkpoints, choose_checkpoints

ALWAYS_KEPT = (OpKind.RANDOM, OpKind.OPAQUE)


def value(kind: OpKind, size: int = 1, *, bits: int | None = None, **other: bool) -> ValueCost:
    plain = ValueCost(
        op=kind.value,
        kind=kind,
        bytes=size,
        packed_bytes=size if bits is None else max(1, size * bits // 32),
        bits=bits,
        flops=size,
        demanded=False,
        feeds_forward=True,
        is_view=False,
        is_tensor=True,
    )
    return replace(plain, **other)


def cost_graph(values: dict[str, ValueCost], edges: list[tuple[str, str]]) -> CostGraph:
    graph: CostGraph = nx.DiGraph()
    for name, cost in values.items():
        graph.add_node(name, **asdict(cost))
    graph.add_edges_from(edges)
    return graph


@st.composite
def cost_graphs(draw: st.DrawFn) -> CostGraph:
    count = draw(st.integers(2, 9))
    values: dict[str, ValueCost] = {"v0": value(OpKind.FREE)}
    edges: list[tuple[str, str]] = []
    kinds = st.sampled_from([k for k in OpKind if k is not OpKind.FREE])
    for index in range(1, count):
        name, kind = f"v{index}", draw(kinds)
        values[name] = value(
            kind,
            draw(st.integers(1, 40)),
            bits=draw(st.sampled_from([None, 1])),
            demanded=draw(st.booleans()),
            feeds_forward=draw(st.booleans()),
        )
        sources = draw(st.sets(st.integers(0, index - 1), min_size=1, max_size=3))
        edges += [(f"v{source}", name) for source in sorted(sources)]
    return cost_graph(values, edges)


def is_weight(cost: CostGraph, name: str) -> bool:
    return cost.nodes[name]["kind"] is OpKind.HEAVY


def is_anchor(cost: CostGraph, name: str) -> bool:
    attrs = cost.nodes[name]
    jumps = attrs["kind"] is OpKind.THRESHOLD
    return bool(jumps and attrs["feeds_forward"] and attrs["is_tensor"])


def forced(cost: CostGraph, name: str) -> bool:
    """Whether the value is kept wherever the backward comes by it."""
    kind = cost.nodes[name]["kind"]
    return kind in ALWAYS_KEPT or kind is OpKind.STATISTIC or is_anchor(cost, name)


def weights_behind(cost: CostGraph, name: str, kept: frozenset[str]) -> int:
    """The most weights on a way from kept values to `name`, itself included; inf if impossible.

    Written as a recursion on purpose: the planner works with sets and a flow.
    """
    if name in kept or cost.nodes[name]["kind"] is OpKind.FREE:
        return 0
    if cost.nodes[name]["kind"] in ALWAYS_KEPT:
        return 10**6
    own = 1 if is_weight(cost, name) else 0
    return own + max((weights_behind(cost, p, kept) for p in cost.predecessors(name)), default=0)


def demanded(cost: CostGraph) -> list[str]:
    return [name for name in cost if cost.nodes[name]["demanded"]]


def needed(cost: CostGraph, kept: frozenset[str]) -> set[str]:
    """All that is looked at when the demanded values are computed from `kept`."""
    found: set[str] = set()

    def look(name: str) -> None:
        if name not in found:
            found.add(name)
            if name not in kept:
                for source in cost.predecessors(name):
                    look(source)

    for name in demanded(cost):
        look(name)
    return found


def relevant(cost: CostGraph) -> set[str]:
    return needed(cost, frozenset())


def is_valid(cost: CostGraph, kept: frozenset[str]) -> bool:
    """Whether every weight's input comes from kept values without another weight."""
    weights = [name for name in relevant(cost) if is_weight(cost, name)]
    sources = {source for weight in weights for source in cost.predecessors(weight)}
    return all(weights_behind(cost, source, kept) == 0 for source in sources)


def packed_bytes(cost: CostGraph, names: frozenset[str]) -> int:
    return sum(cost.nodes[name]["packed_bytes"] for name in names)


def fewest_bytes(cost: CostGraph, always: frozenset[str]) -> int:
    """The fewest bytes that must be kept besides `always`, over all subsets."""
    free = {name for name in cost if cost.nodes[name]["kind"] is OpKind.FREE}
    others = sorted(relevant(cost) - always - free)
    subsets = itertools.chain.from_iterable(
        itertools.combinations(others, size) for size in range(len(others) + 1)
    )
    return min(
        packed_bytes(cost, frozenset(subset))
        for subset in subsets
        if is_valid(cost, always | frozenset(subset))
    )


@given(cost_graphs())
@settings(max_examples=150)
def test_the_backward_gets_all_it_demands_without_crossing_two_weights(cost: CostGraph) -> None:
    kept = frozenset(choose_checkpoints(cost).kept)
    assert all(weights_behind(cost, name, kept) <= 1 for name in demanded(cost))


@given(cost_graphs())
@settings(max_examples=150)
def test_what_each_needed_weight_reads_comes_from_kept_values(cost: CostGraph) -> None:
    kept = frozenset(choose_checkpoints(cost).kept)
    for weight in needed(cost, kept) - kept:
        if is_weight(cost, weight):
            assert all(weights_behind(cost, s, kept) == 0 for s in cost.predecessors(weight))


@given(cost_graphs())
@settings(max_examples=100)
def test_the_cut_keeps_the_fewest_bytes_of_all_valid_sets(cost: CostGraph) -> None:
    always = frozenset(name for name in relevant(cost) if forced(cost, name))
    kept = frozenset(choose_checkpoints(cost).kept)
    assert packed_bytes(cost, kept - always) <= fewest_bytes(cost, always)


@given(cost_graphs())
@settings(max_examples=100)
def test_kept_and_recomputed_are_just_what_is_needed(cost: CostGraph) -> None:
    found = choose_checkpoints(cost)
    kept, recomputed = frozenset(found.kept), frozenset(found.recomputed)
    free = {name for name in cost if cost.nodes[name]["kind"] is OpKind.FREE}
    assert not kept & recomputed
    assert kept | recomputed == needed(cost, kept) - (free - kept)
    assert not {n for n in recomputed if forced(cost, n)}
    assert found.anchors == {n for n in kept if is_anchor(cost, n)}
    order = list(cost)
    for names in (found.kept, found.recomputed):
        assert list(names) == sorted(names, key=order.index)


@given(cost_graphs())
@settings(max_examples=50)
def test_the_choice_is_the_same_each_time(cost: CostGraph) -> None:
    shuffled: CostGraph = nx.DiGraph()
    shuffled.add_nodes_from(cost.nodes(data=True))
    shuffled.add_edges_from(reversed(list(cost.edges)))
    assert choose_checkpoints(cost) == choose_checkpoints(cost)
    assert set(choose_checkpoints(shuffled).kept) == set(choose_checkpoints(cost).kept)


def layers(count: int) -> CostGraph:
    """`count` times a weight, a norm with statistics, and a neuron whose spikes are demanded."""
    values, edges = {"x": value(OpKind.FREE, 64)}, []
    source = "x"
    for i in range(count):
        values[f"conv{i}"] = value(OpKind.HEAVY, 64, demanded=True)
        values[f"mean{i}"] = value(OpKind.STATISTIC, 1, demanded=True)
        values[f"norm{i}"] = value(OpKind.LIGHT, 64, demanded=True)
        values[f"ge{i}"] = value(OpKind.THRESHOLD, 64, bits=1)
        values[f"spike{i}"] = value(OpKind.LIGHT, 64, bits=1, demanded=True)
        edges += [(source, f"conv{i}"), (f"conv{i}", f"mean{i}"), (f"conv{i}", f"norm{i}")]
        edges += [(f"mean{i}", f"norm{i}"), (f"norm{i}", f"ge{i}"), (f"ge{i}", f"spike{i}")]
        source = f"spike{i}"
    return cost_graph(values, edges)


def test_every_layer_is_kept_as_its_packed_spikes_and_its_statistics() -> None:
    found = choose_checkpoints(layers(3))
    assert found.kept == ("mean0", "ge0", "mean1", "ge1", "mean2", "ge2")
    assert found.anchors == {"ge0", "ge1", "ge2"}
    assert "x" not in found.recomputed


def test_a_jump_is_an_anchor_whether_it_can_be_packed_or_not() -> None:
    jump = value(OpKind.THRESHOLD, 64)
    values = {"x": value(OpKind.FREE), "round": jump, "y": value(OpKind.LIGHT, demanded=True)}
    edges = [("x", "round"), ("round", "y")]
    assert choose_checkpoints(cost_graph(values, edges)).anchors == {"round"}
    values["round"] = replace(jump, feeds_forward=False)
    assert choose_checkpoints(cost_graph(values, edges)).anchors == set()


def test_a_layer_without_spikes_is_kept_at_its_narrowest_value() -> None:
    cost = cost_graph(
        {
            "x": value(OpKind.FREE),
            "a": value(OpKind.HEAVY, 64, demanded=True),
            "wide": value(OpKind.LIGHT, 128, demanded=True),
            "narrow": value(OpKind.LIGHT, 16),
            "b": value(OpKind.HEAVY, 64, demanded=True),
        },
        [("x", "a"), ("a", "wide"), ("wide", "narrow"), ("narrow", "b")],
    )
    assert choose_checkpoints(cost).kept == ("narrow",)


def test_shapes_and_tuples_are_never_part_of_the_cut() -> None:
    cost = cost_graph(
        {
            "x": value(OpKind.FREE),
            "a": value(OpKind.HEAVY, 64),
            "pair": value(OpKind.LIGHT, 1, is_tensor=False),
            "first": value(OpKind.LIGHT, 64),
            "b": value(OpKind.HEAVY, 64, demanded=True),
        },
        [("x", "a"), ("a", "pair"), ("pair", "first"), ("first", "b")],
    )
    assert "pair" not in choose_checkpoints(cost).kept


@pytest.mark.parametrize("kind", ALWAYS_KEPT)
def test_random_and_unknown_values_are_kept_as_they_are(kind: OpKind) -> None:
    cost = cost_graph(
        {
            "x": value(OpKind.FREE),
            "noise": value(kind, 64),
            "y": value(OpKind.LIGHT, 1, demanded=True),
        },
        [("x", "noise"), ("noise", "y")],
    )
    assert choose_checkpoints(cost) == Checkpoints(("noise",), ("y",), frozenset())


def test_nothing_is_kept_for_a_backward_that_needs_nothing() -> None:
    cost = cost_graph({"x": value(OpKind.FREE), "y": value(OpKind.HEAVY)}, [("x", "y")])
    assert choose_checkpoints(cost) == Checkpoints((), (), frozenset())
