"""Parts of graphs run in tiles: equal to the whole, or declined with the reason."""

from __future__ import annotations

import operator
import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx import Node

from snnfx.passes.analysis.axes import AxisFacts, analyse_axis
from snnfx.passes.analysis.placement import Placement
from snnfx.passes.rewrite.norms import BACKWARD, expand_batch_norms
from snnfx.passes.rewrite.tiles import run_in_tiles

from tests.passes.region_graphs import HandMade
from tests.passes.tile_runs import (
    TOLERANCE,
    calls,
    error,
    exact_results,
    finished,
    layered_program,
    most_slices,
    part_of,
    run,
    tile_all,
)

aten, snn = torch.ops.aten, torch.ops.snnfx
N = 6
FIRST = Placement(0, 1, 1)
"""Batch in `[N, ...]`."""


def tile_random_program(source: random.Random, size: int, tiles: int) -> int:
    """Tile a random part of a random program, and hold that nothing has changed.

    Returns:
        the number of rounds; 0 where it was declined.
    """
    program = layered_program(source, size, steps=8)
    results, inputs = finished(program)
    part, facts = part_of(source, program) if results else ([], AxisFacts(size, {}))
    if not part:
        return 0
    texts, exact = [n.format_node() for n in results], exact_results(results, facts)
    before, expected = str(program.graph), run(program.graph, inputs)
    done = run_in_tiles(program.graph, part, facts, tiles)
    if done.tiles == 1:
        assert done.declined
        assert str(program.graph) == before
        return 0
    assert done.tiles == tiles
    found = run(program.graph, inputs)
    for text, one, other, same in zip(texts, found, expected, exact, strict=True):
        assert torch.equal(one, other) if same else error(one, other) <= TOLERANCE, text
    return done.rounds


@settings(max_examples=60)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([(2, 2), (4, 2), (4, 4), (6, 2), (6, 3), (3, 3)]),
)
def test_a_random_part_in_tiles_gives_what_it_gave_as_a_whole(
    source: random.Random, sizes: tuple[int, int]
) -> None:
    tile_random_program(source, *sizes)


def test_random_parts_are_tiled_in_one_round_and_in_several() -> None:
    rounds = Counter(tile_random_program(random.Random(seed), 4, 2) for seed in range(60))
    assert rounds[1] >= 10
    assert rounds[2] >= 4


class Layer(HandMade):
    """The backward of convolution, batch norm and ReLU, with its weight computed again.

    `[N, 3, 8, 8]` inputs, `[N, 4, 8, 8]` results, statistics that were saved by the forward.
    """

    def __init__(self) -> None:
        super().__init__()
        x = torch.randn(N, 3, 8, 8, dtype=torch.float64)
        weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
        current = torch.conv2d(x, weight, padding=1)
        var, mean = torch.var_mean(current, (0, 2, 3), correction=0)
        self.x, self.weight = self.input(x), self.input(weight)
        self.mean, self.invstd = self.input(mean), self.input((var + 1e-5).rsqrt())
        self.gamma = self.input(torch.rand(4, dtype=torch.float64) + 0.5)
        self.grad = self.input(torch.randn_like(current))
        self.seeds = {self.x: FIRST, self.grad: FIRST}
        self.current = self.call(
            aten.convolution.default, self.x, self.weight, None, *self.geometry
        )

    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)

    def backward(self) -> list[Node]:
        """Gradients of input, weight, and of the norm's weight and bias."""
        positive = self.call(aten.gt.Scalar, self.current, 0.0)
        grad = self.call(aten.where.self, positive, self.grad, self.call(
            aten.full.default, [], 0.0, dtype=torch.float64))  # fmt: skip
        norm = self.call(
            BACKWARD, grad, self.current, self.gamma, None, None, self.mean, self.invstd, True,
            1e-5, [True, True, True],
        )  # fmt: skip
        through, gamma, beta = (self.call(operator.getitem, norm, i) for i in range(3))
        conv = self.call(aten.convolution_backward.default, through, self.x, self.weight, [0],
                         *self.geometry, [True, True, False])  # fmt: skip
        found = [self.call(operator.getitem, conv, i) for i in range(2)]
        return [*found, gamma, beta]


@pytest.mark.parametrize("tiles", [2, 3, 6])
def test_a_layer_with_batch_norm_takes_two_rounds_and_keeps_the_batchs_own_sums(tiles: int) -> None:
    net = Layer()
    graph = net.finish(*net.backward()).graph
    assert expand_batch_norms(graph).changed == 1
    done, results = tile_all(graph, net.inputs, net.seeds, tiles)
    assert (done.tiles, done.rounds, done.declined) == (tiles, 2, None)
    assert len(results) == 4
    assert all(found.any() and error(found, whole) <= TOLERANCE for found, whole in results)
    assert most_slices(graph, aten.convolution.default) == N // tiles
    # the channel sums of the gradient, its product, and the gradient of the weight
    assert len(graph.find_nodes(op="call_function", target=aten.add_.Tensor)) == 3 * (tiles - 1)


def test_sums_of_each_tiles_own_would_give_other_gradients() -> None:
    """So the comparison above does see what the second round is for."""
    net = Layer()
    module = net.finish(*net.backward())
    x, weight, mean, invstd, gamma, grad = net.inputs
    whole = module(*net.inputs)[0]
    parts = [
        module(x[rows], weight, mean, invstd, gamma, grad[rows])[0]
        for rows in (slice(0, N // 2), slice(N // 2, N))
    ]
    assert error(torch.cat(parts), whole) > 1e-3


def test_a_part_without_norm_takes_one_round() -> None:
    net = Layer()
    conv = net.call(aten.convolution_backward.default, net.grad, net.x, net.weight, [4],
                    *net.geometry, [True, True, True])  # fmt: skip
    graph = net.finish(*(net.call(operator.getitem, conv, i) for i in range(3))).graph
    done, results = tile_all(graph, net.inputs, net.seeds, 3)
    assert (done.tiles, done.rounds) == (3, 1)
    assert all(found.any() and error(found, whole) <= TOLERANCE for found, whole in results)


@pytest.mark.parametrize("tiles", [2, 3, 6])
@pytest.mark.parametrize("placement", [Placement(1, 1, 1), Placement(0, 4, 1), Placement(0, 1, 4)])
def test_pointwise_work_has_the_bits_of_the_whole(placement: Placement, tiles: int) -> None:
    """In the middle of a tensor, and in dimensions that were merged with time on either side."""
    shape = (4, N, 5) if placement.dim else (4 * N, 5)
    net = HandMade()
    x = net.input(torch.randn(shape))
    seeds = {x: placement}
    charge = net.call(aten.mul.Tensor, x, 3.0)
    spikes = net.call(
        aten._to_copy.default, net.call(aten.ge.Scalar, charge, 0.5), dtype=torch.float32
    )
    graph = net.finish(net.call(aten.sub.Tensor, charge, spikes), spikes).graph
    done, results = tile_all(graph, net.inputs, seeds, tiles)
    assert (done.tiles, done.rounds) == (tiles, 1)
    assert all(torch.equal(found, whole) for found, whole in results)
    assert most_slices(graph, aten.mul.Tensor, placement.dim) == shape[placement.dim] // tiles


@pytest.mark.parametrize("tiles", [2, 6])
def test_a_linear_layer_adds_up_the_gradient_of_its_weight(tiles: int) -> None:
    net = HandMade()
    x, grad = (net.input(torch.randn(4 * N, c, dtype=torch.float64)) for c in (5, 7))
    weight = net.input(torch.randn(5, 7, dtype=torch.float64))
    seeds = dict.fromkeys((x, grad), Placement(0, 4, 1))
    product = net.call(aten.mm.default, x, weight)
    grad = net.call(aten.mul.Tensor, grad, net.call(aten.tanh.default, product))
    turned = net.call(aten.transpose.int, x, 0, 1)
    of_weight = net.call(aten.mm.default, turned, grad)
    of_bias = net.call(aten.sum.dim_IntList, grad, [0])
    back = net.call(aten.mm.default, grad, net.call(aten.transpose.int, weight, 0, 1))
    halved = net.call(aten.mul.Tensor, of_weight, 0.5)
    graph = net.finish(back, halved, of_bias, product).graph
    done, results = tile_all(graph, net.inputs, seeds, tiles)
    assert (done.tiles, done.rounds) == (tiles, 1)
    assert all(found.any() and error(found, whole) <= TOLERANCE for found, whole in results)


def test_pooling_is_tiled_image_by_image() -> None:
    net = HandMade()
    x = net.input(torch.randn(N, 3, 8, 8, dtype=torch.float64))
    average = net.call(aten.avg_pool2d.default, x, [2, 2], [2, 2])
    back = net.call(
        aten.avg_pool2d_backward.default, average, x, [2, 2], [2, 2], [0, 0], False, True, None
    )
    pair = net.call(aten.max_pool2d_with_indices.default, back, [2, 2], [2, 2])
    largest, indices = (net.call(operator.getitem, pair, i) for i in range(2))
    again = net.call(aten.max_pool2d_with_indices_backward.default, largest, back, [2, 2], [2, 2],
                     [0, 0], [1, 1], False, indices)  # fmt: skip
    graph = net.finish(average, back, largest, indices, again).graph
    done, results = tile_all(graph, net.inputs, {x: FIRST}, 3)
    assert (done.tiles, done.rounds) == (3, 1)
    assert all(torch.equal(found, whole) for found, whole in results)


def test_a_value_that_is_expanded_is_written_out_tile_by_tile() -> None:
    net = HandMade()
    x = net.input(torch.randn(N, 3))
    wide = net.call(aten.expand.default, net.call(aten.unsqueeze.default, x, 2), [N, 3, 4])
    graph = net.finish(wide).graph
    done, ((found, whole),) = tile_all(graph, net.inputs, {x: FIRST}, 2)
    assert done.tiles == 2
    assert torch.equal(found, whole)


def test_a_value_that_is_laid_out_otherwise_keeps_its_strides() -> None:
    net = HandMade()
    x = net.input(torch.randn(N, 3, 4, 4).to(memory_format=torch.channels_last))
    graph = net.finish(net.call(aten.relu.default, x)).graph
    done, ((found, whole),) = tile_all(graph, net.inputs, {x: FIRST}, 2)
    assert done.tiles == 2
    assert found.stride() == whole.stride()
    assert torch.equal(found, whole)


def test_what_takes_a_nodes_place_has_its_name() -> None:
    net = Layer()
    graph = net.finish(*net.backward()).graph
    expand_batch_norms(graph)
    names = [node.name for node in graph.output_node().all_input_nodes]
    tile_all(graph, net.inputs, net.seeds, 2)
    assert [node.name for node in graph.output_node().all_input_nodes] == names


def test_every_new_node_knows_what_it_computes() -> None:
    net = Layer()
    graph = net.finish(*net.backward()).graph
    expand_batch_norms(graph)
    shapes = [node.meta["val"].shape for node in graph.output_node().all_input_nodes]
    tile_all(graph, net.inputs, net.seeds, 2)
    assert [node.meta["val"].shape for node in graph.output_node().all_input_nodes] == shapes
    assert all("val" in node.meta for node in calls(graph))


def assert_declined(part: list[Node], sliced: tuple[Node, ...], reason: str) -> None:
    graph = part[0].graph
    before = str(graph)
    facts = analyse_axis(part, N, dict.fromkeys(sliced, FIRST), complete_sums=True)
    done = run_in_tiles(graph, part, facts, 2)
    assert (done.tiles, done.rounds) == (1, 0)
    assert done.declined == reason
    assert str(graph) == before


def test_what_mixes_samples_is_declined_by_name() -> None:
    net = HandMade()
    x = net.input(torch.randn(N, 3))
    total = net.call(aten.cumsum.default, net.call(aten.neg.default, x), 0)
    graph = net.finish(total).graph
    name = "'cumsum_default' (aten.cumsum.default)"
    assert_declined(calls(graph), (x,), f"{name} is not independent along the axis")


def test_a_batch_norm_as_one_operator_is_declined() -> None:
    net = Layer()
    graph = net.finish(*net.backward()).graph
    before = str(graph)
    facts = analyse_axis(calls(graph), N, net.seeds, complete_sums=True)
    done = run_in_tiles(graph, calls(graph), facts, 2)
    assert done.tiles == 1
    assert done.declined is not None
    assert "is not independent along the axis" in done.declined
    assert str(graph) == before


def test_a_part_with_a_way_out_and_back_in_is_declined() -> None:
    net = HandMade()
    x = net.input(torch.randn(N, 3))
    first = net.call(aten.neg.default, x)
    outside = net.call(aten.exp.default, first)
    last = net.call(aten.add.Tensor, outside, first)
    net.finish(last)
    reason = "'add_tensor' needs the part's own results from outside of it"
    assert_declined([first, last], (x, outside), reason)


def test_a_part_without_the_axis_is_declined() -> None:
    net = HandMade()
    x, other = net.input(torch.randn(N, 3)), net.input(torch.randn(4))
    part = net.call(aten.neg.default, other)
    net.finish(part, net.call(aten.neg.default, x))
    assert_declined([part], (x,), "nothing in the part has the axis")
