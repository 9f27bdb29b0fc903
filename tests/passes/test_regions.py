"""Regions and the outer graph: random graphs equal eager, in a valid order, however they group."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from snnfx.kernels.region_ir import Program
from snnfx.lowering import outer
from snnfx.passes.fxgraph import is_getitem
from snnfx.passes.rewrite.regions import find_regions

from tests.passes.region_graphs import (
    HandMade,
    T,
    evaluated_by_torch,
    lowered,
    regions_of,
    run_both,
    targets_inside,
)

aten = torch.ops.aten
FEATURES = 16
BATCH = 24


@pytest.fixture(autouse=True)
def programs() -> Iterator[list[Program]]:
    with evaluated_by_torch() as asked:
        yield asked


class Growing:
    """A random graph of pointwise work, slices, sums and products of matrices, in float64."""

    def __init__(self, choices: random.Random) -> None:
        self.net = HandMade()
        self.choose = choices
        sizes = [T, BATCH, FEATURES]
        self.wholes = [self._input(*sizes), self._input(*sizes)]
        self.steps = [self.net.call(aten.select.int, self.wholes[0], 0, t) for t in range(T)]
        self.vectors = [self._input(FEATURES)]
        self.weight = self._input(FEATURES, FEATURES)
        self.tangents = self.net.graph.find_nodes(op="placeholder")[:1]

    def _input(self, *shape: int) -> Node:
        generator = torch.Generator().manual_seed(self.choose.randrange(1 << 30))
        tensor = torch.randn(shape, dtype=torch.float64, generator=generator)
        return self.net.input(tensor / 2)

    def grow(self) -> None:
        kinds = (self._pointwise, self._pointwise, self._by_step, self._by_step, self._stack,
                 self._take, self._product, self._sum, self._channels, self._random,
                 self._apart)  # fmt: skip
        self.choose.choice(kinds)()

    def _pointwise(self) -> None:
        left, right = self.choose.choices(self.wholes, k=2)
        self.wholes.append(self._combine(left, right))

    def _by_step(self) -> None:
        left, right = self.choose.choices(self.steps, k=2)
        self.steps.append(self._combine(left, right))

    def _combine(self, left: Node, right: Node) -> Node:
        call = self.net.call
        kind = self.choose.randrange(4)
        if kind == 0:
            return call(aten.where.self, call(aten.ge.Scalar, left, 0.2), right, left)
        if kind == 1:
            return call(aten.mul.Tensor, call(aten.clamp.default, left, -1, 1), 0.5)
        return call((aten.add if kind == 2 else aten.sub).Tensor, left, right)

    def _stack(self) -> None:
        parts = self.choose.choices(self.steps, k=T)
        self.wholes.append(self.net.call(aten.stack.default, parts))

    def _take(self) -> None:
        whole, step = self.choose.choice(self.wholes), self.choose.randrange(T)
        self.steps.append(self.net.call(aten.select.int, whole, 0, step))

    def _apart(self) -> None:
        items = self.net.call(aten.unbind.int, self.choose.choice(self.wholes))
        picked = self.choose.sample(range(T), 2)
        self.steps += [self.net.call(operator.getitem, items, t) for t in picked]

    def _product(self) -> None:
        call = self.net.call
        flat = call(aten.view.default, self.choose.choice(self.wholes), [T * BATCH, FEATURES])
        result = call(aten.tanh.default, call(aten.mm.default, flat, self.weight))
        self.wholes.append(call(aten.view.default, result, [T, BATCH, FEATURES]))

    def _sum(self) -> None:
        total = self.net.call(aten.sum.dim_IntList, self.choose.choice(self.wholes), [0, 1])
        self.vectors.append(self.net.call(aten.mul.Tensor, total, 1 / 64))

    def _channels(self) -> None:
        vector, whole = self.choose.choice(self.vectors), self.choose.choice(self.wholes)
        self.wholes.append(self.net.call(aten.sub.Tensor, whole, vector))

    def _random(self) -> None:
        call = self.net.call
        if self.choose.random() < 0.5:
            drawn = call(aten.rand.default, [BATCH, FEATURES], dtype=torch.float64)
            mask = call(aten.ge.Scalar, drawn, 0.5)
        else:
            mask = call(aten.bernoulli.p, self.choose.choice(self.steps), 0.5)
        step = self.choose.choice(self.steps)
        self.steps.append(call(aten.mul.Tensor, step, mask))

    def finish(self) -> GraphModule:
        sources = [*self.wholes, *self.steps, *self.vectors]
        unused = [n for n in sources if not n.users]
        return self.net.finish(*unused, self.choose.choice(sources))


def grown(seed: int, operators: int, kind: type[Growing] = Growing) -> Growing:
    growing = kind(random.Random(seed))
    for _ in range(operators):
        growing.grow()
    return growing


graphs = given(seed=st.integers(0, 10**6), operators=st.integers(4, 40))


@graphs
@settings(max_examples=60)
def test_random_graphs_equal_eager(seed: int, operators: int) -> None:
    growing = grown(seed, operators)
    module = growing.finish()
    with evaluated_by_torch():
        for expected, found in zip(*run_both(module, growing.net.inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@graphs
@settings(max_examples=40)
def test_it_does_not_matter_what_drives_a_graph(seed: int, operators: int) -> None:
    growing = grown(seed, operators)
    module = growing.finish()
    with evaluated_by_torch():
        torch.manual_seed(0)
        expected = module(*growing.net.inputs)
        torch.manual_seed(0)
        found = lowered(module, growing.tangents)(*growing.net.inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@graphs
@settings(max_examples=40)
def test_nothing_leaves_a_region_and_comes_back(seed: int, operators: int) -> None:
    growing = grown(seed, operators)
    module = growing.finish()
    for driving in (module.graph.find_nodes(op="placeholder"), growing.tangents):
        for region in find_regions(module.graph, driving).regions:
            inside = set(region.nodes)
            below: set[Node] = set()
            for node in module.graph.nodes:
                if node not in inside and any(s in inside | below for s in node.all_input_nodes):
                    below.add(node)
            for node in inside:
                assert below.isdisjoint(node.all_input_nodes)


@graphs
@settings(max_examples=30)
def test_grouping_again_gives_the_same_and_changes_nothing(seed: int, operators: int) -> None:
    module = grown(seed, operators).finish()
    before = str(module.graph)
    first, second = regions_of(module), regions_of(module)
    assert [r.nodes for r in first] == [r.nodes for r in second]
    assert [r.program.program for r in first] == [r.program.program for r in second]
    assert str(module.graph) == before


@graphs
@settings(max_examples=30)
def test_donated_memory_changes_no_result(seed: int, operators: int) -> None:
    growing = grown(seed, operators)
    module = growing.finish()
    results = []
    with evaluated_by_torch(), pytest.MonkeyPatch.context() as patch:
        for donate in (True, False):
            if not donate:
                patch.setattr(outer, "_donations", lambda *_: {})
            torch.manual_seed(0)
            results.append(lowered(module)(*[x.clone() for x in growing.net.inputs]))
    for with_, without in zip(*results, strict=True):
        assert torch.equal(with_, without)


def test_random_graphs_exercise_what_they_are_for() -> None:
    """Regions form, memory is donated, operators stay outside, and random numbers are drawn."""
    found = {"regions": 0, "donations": 0, "outside": 0, "random": 0}
    for seed in range(20):
        module = grown(seed, 30).finish()
        found["random"] += sum("bernoulli" in str(n.target) for n in module.graph.nodes)
        graph = lowered(module)
        for node in graph.graph.nodes:
            if node.op == "call_module":
                found["regions"] += 1
                found["donations"] += len(graph.get_submodule(node.target).donated)
            found["outside"] += node.op == "call_function" and not is_getitem(node)
    assert all(count > 10 for count in found.values()), found


def norm_and_neuron(steps: int, batch: int, features: int) -> tuple[GraphModule, list[Tensor]]:
    """A linear layer and a leaky neuron with a hard reset."""

    def run(x: Tensor, weight: Tensor) -> Tensor:
        current = (x.flatten(0, 1) @ weight).unflatten(0, (steps, batch))
        v = torch.zeros_like(current[0])
        spikes = []
        for t in range(steps):
            v = v + (current[t] - v) * 0.5
            spikes.append((v >= 0.5).to(v.dtype))
            v = torch.where(v >= 0.5, 0.0, v)
        return torch.stack(spikes)

    inputs = [torch.randn(steps, batch, 8), torch.randn(8, features)]
    return make_fx(run, tracing_mode="fake")(*inputs), inputs


def test_a_neuron_is_one_region_with_one_result() -> None:
    module, inputs = norm_and_neuron(4, 32, 64)
    (region,) = regions_of(module)
    assert len(region.program.inputs) == 1
    assert [spec.node.target for spec in region.program.outputs] == [aten.stack.default]
    expected, found = run_both(module, inputs)
    assert torch.equal(found[0], expected[0])
    assert 0.05 < found[0].mean() < 0.95


def test_layers_that_differ_in_size_share_one_program(programs: list[Program]) -> None:
    for batch, features in ((32, 64), (8, 200), (32, 64)):
        module, inputs = norm_and_neuron(4, batch, features)
        expected, found = run_both(module, inputs)
        assert torch.equal(found[0], expected[0])
    assert len(programs) == 1
    module, inputs = norm_and_neuron(5, 32, 64)
    run_both(module, inputs)
    assert len(programs) == 2


def test_small_work_is_left_as_it_is() -> None:
    assert regions_of(norm_and_neuron(4, 2, 3)[0]) == ()


def test_results_of_several_outputs_do_not_set_the_base_space() -> None:
    """The statistics of a norm are vectors over channels; the region is that of its images."""
    net = HandMade()
    x = net.input(torch.randn(6, 8, 5, 5))
    statistics = net.call(torch.ops.snnfx.batch_norm_statistics.default, x, None, None, 0.1, 1e-5)
    mean = net.call(aten.view.default, net.call(operator.getitem, statistics, 0), [1, 8, 1, 1])
    scaled = net.call(aten.mul.Tensor, net.call(aten.sub.Tensor, x, mean), 2.0)
    module = net.finish(net.call(aten.relu.default, scaled))
    (region,) = regions_of(module)
    assert region.program.base == (6, 8, 5, 5)
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        assert torch.equal(found, expected)


def test_what_is_taken_apart_may_be_used_in_several_places() -> None:
    """Slices that are read before and after a product are in no region with what made them."""
    net = HandMade()
    tangent = net.input(torch.randn(BATCH, FEATURES))
    saved = net.call(aten.neg.default, net.input(torch.randn(T, BATCH, FEATURES)))
    weight = net.input(torch.randn(FEATURES, FEATURES))
    items = net.call(aten.unbind.int, net.call(aten.abs.default, saved))
    early, late = (net.call(operator.getitem, items, t) for t in (0, 1))
    first = net.call(aten.mul.Tensor, net.call(aten.neg.default, tangent), early)
    product = net.call(aten.mm.default, first, weight)
    second = net.call(aten.add.Tensor, net.call(aten.neg.default, product), late)
    module = net.finish(second)
    expected = module(*net.inputs)
    found = lowered(module, [tangent])(*net.inputs)
    assert torch.equal(found[0], expected[0])


def test_random_numbers_that_nothing_drives_keep_their_order() -> None:
    net = HandMade()
    x = net.input(torch.randn(2 * BATCH, FEATURES))
    drawn = [net.call(aten.rand.default, [2 * BATCH, FEATURES])]
    doubled = net.call(aten.mul.Tensor, x, 2.0)
    drawn.append(net.call(aten.bernoulli.default, net.call(aten.sigmoid.default, doubled)))
    drawn.append(net.call(aten.rand.default, [2 * BATCH, FEATURES]))
    kept = [net.call(aten.where.self, net.call(aten.ge.Scalar, d, 0.5), doubled, x) for d in drawn]
    module = net.finish(*kept)
    assert regions_of(module)
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        assert torch.equal(found, expected)


def traced_with_symbols(function: Callable[..., object], *inputs: Tensor) -> GraphModule:
    return make_fx(function, tracing_mode="symbolic")(*inputs)


@pytest.mark.parametrize("form", ["steps", "split", "merged"])
def test_a_symbolic_batch_runs_at_any_size(form: str) -> None:
    def run(*steps: Tensor) -> tuple[Tensor, ...]:
        v = torch.zeros_like(steps[0])
        spikes: list[Tensor] = []
        for step in steps[:3]:
            v = v * 0.5 + step + steps[3]
            spikes.append((v >= 0.5).to(v.dtype))
            v = v - spikes[-1]
        whole = torch.stack(spikes)
        if form == "steps":
            return (*spikes, v)
        if form == "split":
            return whole, whole.sum((0, 1))
        return (whole.flatten(0, 1) * 2.0,)

    def inputs(batch: int) -> list[Tensor]:
        return [*torch.randn(3, batch, 32).unbind(), torch.randn(32)]

    module = traced_with_symbols(run, *inputs(24))
    (region,) = regions_of(module)
    assert not any(isinstance(size, int) for size in region.program.base)
    assert aten.ge.Scalar in targets_inside(module)
    graph = lowered(module)
    for batch in (24, 7, 100):
        given_now = inputs(batch)
        for expected, found in zip(run(*given_now), graph(*given_now), strict=True):
            torch.testing.assert_close(found, expected)


def test_a_region_whose_size_nothing_shows_runs_op_by_op() -> None:
    def run(x: Tensor) -> Tensor:
        grid = torch.zeros(x.shape[0], x.shape[0])
        return ((grid + 1.0) * 2.0).exp() - 3.0

    module = traced_with_symbols(run, torch.randn(40, 2))
    assert regions_of(module) == ()
    reasons = find_regions(module.graph, module.graph.find_nodes(op="placeholder")).declined
    assert any("sizes" in why for _, why in reasons)
    x = torch.randn(64, 2)
    assert torch.equal(lowered(module)(x), run(x))
