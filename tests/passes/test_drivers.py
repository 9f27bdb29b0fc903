"""Which gradients drive a backward: as sets say it, and in shapes that networks give rise to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Graph, Node

from snnfx.passes.analysis.drivers import find_drivers

aten = torch.ops.aten
Pick = tuple[bool, int, int]
"""Whether an operator does matrix work, and which two of the values so far it reads."""


class Backward:
    """A graph under construction; nothing asks for the values of its nodes."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.weight = self.graph.placeholder("weight")
        self.tangents: list[Node] = []

    def tangent(self) -> Node:
        self.tangents.append(self.graph.placeholder(f"tangent{len(self.tangents)}"))
        return self.tangents[-1]

    def add(self, *sources: Node) -> Node:
        return self.graph.call_function(aten.add.Tensor, (sources[0], sources[-1]))

    def weigh(self, source: Node) -> Node:
        return self.graph.call_function(aten.mm.default, (source, self.weight))

    def drivers(self, *results: Node) -> list[Node]:
        self.graph.output(results)
        self.graph.lint()
        return find_drivers(self.graph, self.tangents)


def reached(tangent: Node) -> set[Node]:
    """The tangent and all that follows from it."""
    found, waiting = set[Node](), [tangent]
    while waiting:
        node = waiting.pop()
        if node.op != "output" and node not in found:
            found.add(node)
            waiting.extend(node.users)
    return found


def expected_drivers(tangents: Sequence[Node]) -> list[Node]:
    """By the definition, on sets."""
    all_reached = [reached(tangent) for tangent in tangents]

    def is_tributary(one: int, other: int) -> bool:
        meet = not all_reached[one].isdisjoint(all_reached[other])
        work = {node for node in all_reached[one] if node.target is aten.mm.default}
        return meet and work <= all_reached[other]

    def gives_way(one: int, other: int) -> bool:
        ranks = [(-len(all_reached[i]), i) for i in (one, other)]
        mutual = is_tributary(other, one)
        return one != other and is_tributary(one, other) and not (mutual and ranks[0] < ranks[1])

    @cache
    def drives(one: int) -> bool:
        return not any(gives_way(one, other) and drives(other) for other in range(len(tangents)))

    return [tangent for i, tangent in enumerate(tangents) if drives(i)]


@st.composite
def backwards(draw: st.DrawFn) -> Backward:
    net = Backward()
    values = [net.weight, *(net.tangent() for _ in range(draw(st.integers(1, 5))))]
    pick = st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 30))
    picks: list[Pick] = draw(st.lists(pick, max_size=14))
    for is_heavy, first, second in picks:
        one, other = values[first % len(values)], values[second % len(values)]
        values.append(net.weigh(one) if is_heavy else net.add(one, other))
    net.graph.output(tuple(draw(st.lists(st.sampled_from(values), max_size=3))))
    return net


@given(backwards())
@settings(max_examples=300)
def test_the_drivers_are_those_of_the_definition(net: Backward) -> None:
    assert find_drivers(net.graph, net.tangents) == expected_drivers(net.tangents)


@given(backwards())
def test_whatever_does_not_drive_has_its_matrix_work_done_for_a_driver(net: Backward) -> None:
    drivers = find_drivers(net.graph, net.tangents)
    driven = set[Node]().union(*(reached(driver) for driver in drivers))
    for tangent in net.tangents:
        work = {n for n in reached(tangent) if n.target is aten.mm.default}
        assert tangent in drivers or (work <= driven and not driven.isdisjoint(reached(tangent)))


def test_the_gradient_of_a_last_state_is_a_tributary_of_the_loss() -> None:
    net = Backward()
    loss, state = net.tangent(), net.tangent()
    neuron = net.add(net.weigh(loss), net.add(state))
    assert net.drivers(net.weigh(neuron)) == [loss]


def test_the_order_of_the_gradients_does_not_matter_to_a_tributary() -> None:
    net = Backward()
    state, loss = net.tangent(), net.tangent()
    neuron = net.add(net.weigh(loss), net.add(state))
    assert net.drivers(net.weigh(neuron)) == [loss]


def test_the_states_of_all_layers_are_tributaries() -> None:
    net = Backward()
    first, second, loss = net.tangent(), net.tangent(), net.tangent()
    upper = net.add(net.weigh(loss), second)
    lower = net.add(net.weigh(upper), first)
    assert net.drivers(lower, net.weigh(lower)) == [loss]


def test_two_heads_with_weights_of_their_own_both_drive() -> None:
    net = Backward()
    one, other = net.tangent(), net.tangent()
    trunk = net.add(net.weigh(one), net.weigh(other))
    assert net.drivers(net.weigh(trunk)) == [one, other]


def test_a_head_without_weights_is_a_tributary_of_one_with_weights() -> None:
    net = Backward()
    bare, head = net.tangent(), net.tangent()
    trunk = net.add(net.add(bare), net.weigh(head))
    assert net.drivers(net.weigh(trunk)) == [head]


def test_of_two_tributaries_of_each_other_the_one_that_reaches_more_drives() -> None:
    net = Backward()
    short, long = net.tangent(), net.tangent()
    assert net.drivers(net.weigh(net.add(short, net.add(net.add(long))))) == [long]


def test_the_gradient_that_reaches_more_matrix_work_drives_though_it_reaches_fewer_nodes() -> None:
    net = Backward()
    long, loss = net.tangent(), net.tangent()
    state = net.add(net.add(net.add(net.add(long))))
    assert net.drivers(net.weigh(net.add(net.weigh(loss), state))) == [loss]


def test_of_equal_tributaries_of_each_other_the_first_drives() -> None:
    net = Backward()
    first, second = net.tangent(), net.tangent()
    assert net.drivers(net.weigh(net.add(first, second))) == [first]


def test_gradients_that_never_meet_both_drive() -> None:
    net = Backward()
    heavy, light = net.tangent(), net.tangent()
    assert net.drivers(net.weigh(heavy), net.add(light)) == [heavy, light]


def test_a_gradient_that_nothing_reads_slows_none_down() -> None:
    net = Backward()
    unread, loss = net.tangent(), net.tangent()
    assert net.drivers(net.weigh(loss)) == [unread, loss]


def test_gradients_that_meet_only_in_the_results_do_not_meet() -> None:
    net = Backward()
    one, other = net.tangent(), net.tangent()
    assert net.drivers(one, other) == [one, other]


def test_a_backward_without_gradients_has_no_driver() -> None:
    assert Backward().drivers() == []
