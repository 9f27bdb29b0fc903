"""Backwards in the order of layers: the same operators with the same bits, and a lower peak."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn
from torch.fx import Graph, Node

from snnfx.capture.halves import schedule_halves
from snnfx.capture.offline import Capture, capture
from snnfx.neurons import LIFNode
from snnfx.passes.fxgraph import ancestors, dependents, set_late
from snnfx.passes.rewrite.layer_order import order_by_layer

from tests.backend.harness import Training, compare, ignore_dynamo_warnings
from tests.capture.planned import halves_of, run_halves
from tests.passes.region_graphs import HandMade
from tests.passes.test_regions import Growing, graphs, grown

pytestmark = ignore_dynamo_warnings

aten = torch.ops.aten
CHANNELS = 8


class Determined(Growing):
    """A random graph that draws no random numbers when it is run."""

    def _random(self) -> None:
        self._product()


def computing(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


def driven_by(graph: Graph, driving: Sequence[Node]) -> list[Node]:
    """What follows from the driving inputs, in the graph's order."""
    following = dependents(graph, driving)
    return [node for node in computing(graph) if node in following]


def layers(nodes: Sequence[Node]) -> list[int]:
    """For each node, the most matrix work on a way to it through the nodes."""
    inside = frozenset(nodes)

    @cache
    def layer(node: Node) -> int:
        sources = inside.intersection(node.all_input_nodes)
        return max((layer(s) + (s.target is aten.mm.default) for s in sources), default=0)

    return [layer(node) for node in nodes]


@graphs
@settings(max_examples=60)
def test_the_same_nodes_run_in_another_order_with_the_same_bits(seed: int, operators: int) -> None:
    growing = grown(seed, operators, Determined)
    module = growing.finish()
    late = random.Random(seed)
    for node in computing(module.graph):
        if late.random() < 0.1:
            set_late(node)
    before, expected = list(module.graph.nodes), module(*growing.net.inputs)
    changed = order_by_layer(module.graph, growing.tangents)
    after = list(module.graph.nodes)
    assert len(after) == len(before)
    assert set(after) == set(before)
    assert changed or after == before
    module.graph.lint()
    module.recompile()
    found = module(*growing.net.inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@graphs
@settings(max_examples=60)
def test_no_layer_runs_before_a_lower_one(seed: int, operators: int) -> None:
    growing = grown(seed, operators, Determined)
    graph = growing.finish().graph
    before = driven_by(graph, growing.tangents)
    changed = order_by_layer(graph, growing.tangents)
    after = driven_by(graph, growing.tangents)
    ranks = layers(after)
    assert ranks == sorted(ranks)
    # In each layer, the order is the old one.
    place = {node: i for i, node in enumerate(before)}
    pairs = pairwise(zip(ranks, (place[node] for node in after), strict=True))
    assert all(one < other for one, other in pairs)
    assert changed == (before != after)
    assert not order_by_layer(graph, growing.tangents)


@graphs
@settings(max_examples=60)
def test_all_else_runs_right_before_its_first_reader(seed: int, operators: int) -> None:
    growing = grown(seed, operators, Determined)
    graph = growing.finish().graph
    if not order_by_layer(graph, growing.tangents):
        return
    driven = set(driven_by(graph, growing.tangents))
    nodes = computing(graph)
    for i, node in enumerate(nodes):
        reader = next((n for n in nodes[i:] if n in driven), None)
        if node not in driven and reader is not None:
            assert node in ancestors([reader])


def test_random_graphs_do_change() -> None:
    changed = 0
    for seed in range(40):
        growing = grown(seed, 30, Determined)
        changed += order_by_layer(growing.finish().graph, growing.tangents)
    assert 10 < changed < 40


def two_steps(net: HandMade, *between: object) -> tuple[Node, list[Node]]:
    """Two layers at one time step and then at another, from one gradient."""
    tangent, weight = net.input(torch.rand(4, 4)), net.input(torch.rand(4, 4))
    results: list[Node] = []
    for step in range(2):
        node = net.call(aten.mul.Tensor, tangent, step + 0.5)
        for target in between:
            node = net.call(target, node, 0.5)
        node = net.call(aten.mm.default, node, weight)
        results.append(net.call(aten.tanh.default, node))
    return tangent, results


def test_layers_run_one_after_the_other() -> None:
    net = HandMade()
    tangent, results = two_steps(net)
    graph = net.finish(*results).graph
    assert order_by_layer(graph, [tangent])
    names = [str(node.target).split(".")[1] for node in computing(graph)]
    assert names == ["mul", "mm", "mul", "mm", "tanh", "tanh"]


def test_a_graph_that_draws_random_numbers_keeps_its_order() -> None:
    net = HandMade()
    tangent, results = two_steps(net, aten.bernoulli.p)
    graph = net.finish(*results).graph
    before = list(graph.nodes)
    assert not order_by_layer(graph, [tangent])
    assert list(graph.nodes) == before


class Stepped(nn.Module):
    """Three convolutions with neurons, called one time step after another on `[T, N, 3, H, W]`.

    Args:
        recurrent: whether the first layer also reads the second one's spikes of the step before.
    """

    def __init__(self, *, recurrent: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(c, CHANNELS, 3, padding=1) for c in (3, CHANNELS, CHANNELS)
        )
        self.nodes = nn.ModuleList(
            LIFNode(tau=2.0, decay_input=False, v_threshold=0.5) for _ in self.convs
        )
        self.back = nn.Conv2d(CHANNELS, CHANNELS, 1) if recurrent else None

    def forward(self, x: Tensor) -> Tensor:
        spikes: list[Tensor] = []
        total = torch.zeros(())
        for step in x:
            current = self.convs[0](step)
            if self.back is not None and spikes:
                current = current + self.back(spikes[1])
            spikes = [self.nodes[0](current)]
            for conv, node in zip(self.convs[1:], self.nodes[1:], strict=True):
                spikes.append(node(conv(spikes[-1])))
            total = total + spikes[-1]
        for node in self.nodes:
            node.reset()
        return total / len(x)


@cache
def captured() -> Capture:
    torch.manual_seed(0)
    model, x = Stepped(recurrent=False).double(), torch.randn(6, 2, 3, 12, 12).double()
    return capture(model, x)


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_the_backward_of_a_loop_over_time_has_a_lower_peak_in_this_order(lowering: str) -> None:
    halves = halves_of(captured(), lowering)
    before, expected = schedule_halves(halves), run_halves(halves)
    assert order_by_layer(halves.backward.graph, halves.driving(halves.backward))
    after, found = schedule_halves(halves), run_halves(halves)
    assert after.timeline.peak_bytes < 0.8 * before.timeline.peak_bytes
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("recurrent", [False, True])
def test_loops_over_time_train_bit_for_bit_in_this_order(recurrent: bool) -> None:
    torch.manual_seed(0)
    model = Stepped(recurrent=recurrent)
    (plan,) = compare(model, Training([(torch.randn(4, 2, 3, 10, 10),)]), "eager").plans
    (order,) = [decision for decision in plan.decisions if decision.kind == "schedule"]
    assert order.target == "backward"
    assert order.peak_after_bytes < order.peak_before_bytes


def test_dead_nodes_do_not_get_in_the_way() -> None:
    net = HandMade()
    tangent, weight = net.input(torch.rand(4, 4)), net.input(torch.rand(4, 4))
    scale = net.call(aten.neg.default, weight)
    net.call(aten.neg.default, scale)  # nobody reads it
    results: list[Node] = []
    for _ in range(2):
        scaled = net.call(aten.mul.Tensor, tangent, scale)
        results.append(net.call(aten.tanh.default, net.call(aten.mm.default, scaled, weight)))
    graph = net.finish(*results).graph
    before = [node.name for node in graph.nodes]
    assert order_by_layer(graph, [tangent])
    assert sorted(node.name for node in graph.nodes) == sorted(before)
