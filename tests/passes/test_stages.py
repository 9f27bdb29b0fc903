"""Values between two regions: computed again where their inputs are smaller, with the same bits.

Copies of one value: written once where one region would write the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node

from snnfx.kernels.bitpack_reference import pack_bits_reference
from snnfx.passes.fxgraph import is_late
from snnfx.passes.rewrite.regions import find_regions
from snnfx.passes.rewrite.stages import (
    MIN_BYTES,
    StagesResult,
    recompute_between_stages,
    share_copies,
)

from tests.passes.region_graphs import HandMade, evaluated_by_torch, lowered, spikes
from tests.passes.test_regions import grown

aten, snn = torch.ops.aten, torch.ops.snnfx
T, BATCH, FEATURES = 8, 32, 16
SHAPE = [T, BATCH, FEATURES]


@dataclass
class Net:
    """A gradient whose sum over steps and batch is needed before the rest of its work."""

    net: HandMade = field(default_factory=HandMade)

    def __post_init__(self) -> None:
        self.tangent = self.net.input(torch.randn(BATCH, FEATURES))

    def bits(self) -> Node:
        """Spikes `SHAPE` from one byte for eight of them."""
        packed = self.net.input(pack_bits_reference(spikes(*SHAPE), 1, "time"))
        return self.net.call(snn.unpack_bits.default, packed, SHAPE, torch.float32, 1, "time")

    def floats(self) -> Node:
        return self.net.input(torch.randn(SHAPE))

    def times_tangent(self, factor: Node) -> Node:
        return self.net.call(aten.mul.Tensor, factor, self.tangent)

    def centred(self, value: Node, *others: Node) -> Node:
        """The value less its sum, and with something else: in a later region than the value."""
        total = self.net.call(aten.sum.dim_IntList, value, [0, 1])
        result = self.net.call(aten.sub.Tensor, value, total)
        for other in others:
            result = self.net.call(aten.mul.Tensor, result, other)
        return result


def recompute(net: Net, *results: Node) -> tuple[GraphModule, StagesResult]:
    """Run the pass, which must change no bit, neither op by op nor in regions."""
    module = net.net.finish(*results)
    expected = module(*net.net.inputs)
    result = recompute_between_stages(module.graph, [net.tangent])
    module.graph.lint()
    module.recompile()
    assert all(torch.equal(a, b) for a, b in zip(module(*net.net.inputs), expected, strict=True))
    again = recompute_between_stages(module.graph, [net.tangent])
    assert again == StagesResult(0)
    return module, result


def stored(module: GraphModule, driving: Sequence[Node]) -> list[Node]:
    """What regions leave in memory."""
    regions = find_regions(module.graph, driving).regions
    assert regions
    return [spec.node for region in regions for spec in region.program.outputs]


def test_a_value_that_is_made_of_bits_is_not_stored_between_two_regions() -> None:
    def build() -> tuple[Net, Node, Node]:
        net = Net()
        value = net.times_tangent(net.bits())
        return net, value, net.centred(value)

    net, value, result = build()
    before = net.net.finish(result)
    assert value in stored(before, [net.tangent])
    net, value, result = build()
    module, changes = recompute(net, result)
    assert changes == StagesResult(1)
    kept = stored(module, [net.tangent])
    assert [list(node.meta["val"].shape) for node in kept] == [[FEATURES], SHAPE]
    assert value not in kept
    assert kept[-1] is result


def test_the_compiled_regions_compute_what_the_graph_does() -> None:
    net = Net()
    module, changes = recompute(net, net.centred(net.times_tangent(net.bits())))
    assert changes.changed == 1
    expected = module(*net.net.inputs)
    with evaluated_by_torch():
        found = lowered(module, [net.tangent])(*net.net.inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)


def test_what_is_computed_again_runs_late() -> None:
    net = Net()
    value = net.times_tangent(net.bits())
    result = net.centred(value)
    recompute(net, result)
    clone = result.all_input_nodes[0]
    assert clone is not value
    assert clone.target is value.target
    assert is_late(clone)
    assert not is_late(value)


def test_a_value_that_is_made_of_larger_things_is_stored() -> None:
    net = Net()
    product = net.net.call(aten.mul.Tensor, net.floats(), net.floats())
    value = net.times_tangent(product)
    module, changes = recompute(net, net.centred(value))
    assert changes == StagesResult(0)
    assert value in stored(module, [net.tangent])


def test_what_the_later_region_reads_anyway_counts_for_nothing() -> None:
    net = Net()
    factors = net.floats(), net.floats()
    value = net.times_tangent(net.net.call(aten.mul.Tensor, *factors))
    module, changes = recompute(net, net.centred(value, *factors))
    assert changes == StagesResult(1)
    assert value not in stored(module, [net.tangent])


def test_a_small_value_is_stored() -> None:
    net = Net()
    net.tangent = net.net.input(torch.randn(2, 4))
    packed = net.net.input(pack_bits_reference(spikes(T, 2, 4), 1, "time"))
    sizes = [T, 2, 4]
    bits = net.net.call(snn.unpack_bits.default, packed, sizes, torch.float32, 1, "time")
    assert 4 * T * 2 * 4 < MIN_BYTES
    assert recompute(net, net.centred(net.times_tangent(bits)))[1] == StagesResult(0)


def test_a_value_that_is_read_in_two_later_stages_is_stored() -> None:
    net = Net()
    value = net.times_tangent(net.bits())
    first = net.centred(value)
    total = net.net.call(aten.sum.dim_IntList, first, [0, 1])
    second = net.net.call(aten.sub.Tensor, value, total)
    assert recompute(net, first, second)[1] == StagesResult(0)


@pytest.mark.parametrize("seed", range(3))
def test_random_numbers_are_drawn_once(seed: int) -> None:
    net = Net()
    drawn = net.net.call(aten.bernoulli.p, net.bits(), 0.5)
    module = net.net.finish(net.centred(net.times_tangent(drawn), drawn))
    torch.manual_seed(seed)
    (expected,) = module(*net.net.inputs)
    assert recompute_between_stages(module.graph, [net.tangent]) == StagesResult(1)
    module.recompile()
    torch.manual_seed(seed)
    assert torch.equal(module(*net.net.inputs)[0], expected)
    assert len(module.graph.find_nodes(op="call_function", target=aten.bernoulli.p)) == 1


@given(seed=st.integers(0, 10**6), operators=st.integers(15, 40))
@settings(max_examples=100)
def test_random_graphs_keep_their_bits(seed: int, operators: int) -> None:
    growing = grown(seed, operators)
    module = growing.finish()
    before = run(module, growing.net.inputs)
    recompute_between_stages(module.graph, growing.tangents)
    module.graph.lint()
    module.recompile()
    for one, other in zip(run(module, growing.net.inputs), before, strict=True):
        assert torch.equal(one, other)


def test_random_graphs_have_such_values() -> None:
    changed = 0
    for seed in range(80):
        growing = grown(seed, 30)
        changed += recompute_between_stages(growing.finish().graph, growing.tangents).changed
    assert changed >= 5


IMAGE = [2, 16, 4, 4]
ROWS, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


@dataclass
class Copies:
    """A value of images that follows from a gradient, and copies of it."""

    net: HandMade = field(default_factory=HandMade)

    def __post_init__(self) -> None:
        self.tangent = self.net.input(torch.randn(IMAGE))
        self.weight = self.net.input(torch.randn(16, 16, 1, 1))

    def value(self) -> Node:
        return self.net.call(aten.mul.Tensor, self.tangent, 2.0)

    def copy(self, source: Node, memory_format: torch.memory_format = CHANNELS_LAST) -> Node:
        return self.net.call(aten.clone.default, source, memory_format=memory_format)

    def weighed(self, source: Node) -> Node:
        """A convolution, which runs between regions."""
        args = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        return self.net.call(aten.convolution.default, source, self.weight, *args)


def share(copies: Copies, *results: Node) -> tuple[list[Node], StagesResult]:
    """Run the pass, which must change no bit and no stride; gives the copies that are left."""
    module = copies.net.finish(*results)
    expected = module(*copies.net.inputs)
    result = share_copies(module.graph, [copies.tangent])
    module.graph.lint()
    module.recompile()
    for one, other in zip(module(*copies.net.inputs), expected, strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    assert share_copies(module.graph, [copies.tangent]) == StagesResult(0)
    return module.graph.find_nodes(op="call_function", target=aten.clone.default), result


@pytest.mark.parametrize("readers", [2, 4])
def test_one_copy_is_left_of_those_in_one_layout(readers: int) -> None:
    copies = Copies()
    value = copies.value()
    made = [copies.copy(value) for _ in range(readers)]
    results = [copies.weighed(copy) for copy in made]
    left, result = share(copies, *results)
    assert result == StagesResult(readers - 1)
    assert left == made[:1]
    assert [convolution.args[0] for convolution in results] == left * readers


def test_what_reads_a_copy_later_reads_the_first_one() -> None:
    copies = Copies()
    value = copies.value()
    one = copies.weighed(copies.copy(value))
    other = copies.copy(value)
    total = copies.net.call(aten.add.Tensor, copies.net.call(aten.mul.Tensor, other, 3.0), one)
    left, result = share(copies, copies.weighed(total), copies.weighed(other))
    assert result == StagesResult(1)
    assert [copy.args for copy in left] == [(value,)]


def test_copies_in_different_layouts_stay_apart() -> None:
    copies = Copies()
    value = copies.value()
    formats = [CHANNELS_LAST, ROWS, CHANNELS_LAST, ROWS]
    made = [copies.copy(value, memory_format) for memory_format in formats]
    left, result = share(copies, *(copies.weighed(copy) for copy in made))
    assert result == StagesResult(2)
    assert left == made[:2]


def test_copies_of_different_values_stay_apart() -> None:
    copies = Copies()
    made = [copies.copy(copies.value()) for _ in range(2)]
    left, result = share(copies, *(copies.weighed(copy) for copy in made))
    assert result == StagesResult(0)
    assert left == made


def test_copies_of_what_no_region_computes_stay() -> None:
    copies = Copies()
    product = copies.weighed(copies.value())
    made = [copies.copy(source) for source in (copies.tangent, product) for _ in range(2)]
    left, result = share(copies, *(copies.weighed(copy) for copy in made))
    assert result == StagesResult(0)
    assert left == made


def test_copies_in_a_later_region_than_their_value_stay() -> None:
    copies = Copies()
    total = copies.net.call(aten.sum.dim_IntList, copies.value(), [0, 2, 3], True)
    again = copies.net.call(aten.expand.default, total, IMAGE)
    made = [copies.copy(total) for _ in range(2)]
    left, result = share(copies, *(copies.net.call(aten.mul.Tensor, again, m) for m in made))
    assert result == StagesResult(0)
    assert left == made


def test_copies_that_are_results_stay_apart() -> None:
    """Whoever gets both may write into one of them."""
    copies = Copies()
    value = copies.value()
    module = copies.net.finish(copies.copy(value), copies.copy(value))
    assert share_copies(module.graph, [copies.tangent]) == StagesResult(0)
    module.recompile()
    one, other = module(*copies.net.inputs)
    assert one.data_ptr() != other.data_ptr()


def test_copies_in_two_regions_stay_apart() -> None:
    """What does not follow from the gradient runs next to its reader, value and copy alike."""
    copies = Copies()
    value = copies.net.call(aten.mul.Tensor, copies.net.input(torch.randn(IMAGE)), 2.0)
    made = [copies.copy(value) for _ in range(2)]
    first = copies.weighed(copies.net.call(aten.mul.Tensor, copies.tangent, made[0]))
    second = copies.weighed(copies.net.call(aten.mul.Tensor, first, made[1]))
    left, result = share(copies, second)
    assert result == StagesResult(0)
    assert left == made


@given(seed=st.integers(0, 10**6), operators=st.integers(5, 30))
@settings(max_examples=20)
def test_random_graphs_share_copies_with_the_same_bits(seed: int, operators: int) -> None:
    growing = grown(seed, operators)
    choices, values = random.Random(seed), [*growing.wholes]
    for _ in range(6):
        value = choices.choice(values)
        growing.wholes.append(growing.net.call(aten.clone.default, value))
    for _ in range(5):
        growing.grow()
    module = growing.finish()
    before = run(module, growing.net.inputs)
    result = share_copies(module.graph, growing.tangents)
    module.graph.lint()
    module.recompile()
    for one, other in zip(run(module, growing.net.inputs), before, strict=True):
        assert torch.equal(one, other)
    left = module.graph.find_nodes(op="call_function", target=aten.clone.default)
    assert len(left) == 6 - result.changed


def run(module: GraphModule, inputs: Sequence[Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    return list(module(*inputs))
