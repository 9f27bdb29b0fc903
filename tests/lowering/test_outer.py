"""The outer graph on awkward ends: results that are inputs, views, integers; donated memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from snnfx._torch_compat import boxed
from snnfx.kernels.region_ir import Program
from snnfx.passes.fxgraph import tensor_value

from tests.passes.region_graphs import (
    HandMade,
    evaluated_by_torch,
    lowered,
    regions_of,
    run_both,
    targets_inside,
)

aten = torch.ops.aten
SHAPE = (3, 16, 40)


@pytest.fixture(autouse=True)
def programs() -> Iterator[list[Program]]:
    with evaluated_by_torch() as asked:
        yield asked


def check(net: HandMade, *results: Node) -> GraphModule:
    """The outer graph gives the bits of the graph, and leaves its inputs as they are."""
    module = net.finish(*results)
    assert regions_of(module)
    before = [x.clone() for x in net.inputs]
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    graph = lowered(module)
    graph(*net.inputs)
    assert all(torch.equal(x, y) for x, y in zip(net.inputs, before, strict=True))
    return graph


def test_a_result_of_the_graph_may_be_an_input_of_a_region() -> None:
    net = HandMade()
    x, weight = net.input(torch.randn(SHAPE)), net.input(torch.randn(40, 40))
    product = net.call(aten.matmul.default, x, weight)
    first = net.call(aten.relu.default, net.call(aten.mul.Tensor, product, 2.0))
    graph = check(net, product, x, first)
    assert not any(graph.get_submodule(n.target).donated for n in calls(graph))


def calls(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if node.op == "call_module"]


def test_memory_that_dies_in_a_region_is_written_again() -> None:
    net = HandMade()
    x, weight = net.input(torch.randn(SHAPE)), net.input(torch.randn(40, 40))
    product = net.call(aten.matmul.default, x, weight)
    result = net.call(aten.relu.default, net.call(aten.mul.Tensor, product, 2.0))
    graph = check(net, result)
    assert [graph.get_submodule(n.target).donated for n in calls(graph)] == [{0: 0}]
    kept = []
    graph.get_submodule(calls(graph)[0].target).register_forward_hook(
        lambda _module, args, results: kept.append((args[0], results[0]))
    )
    boxed(graph)(list(net.inputs))
    assert kept[0][0].data_ptr() == kept[0][1].data_ptr()


@pytest.mark.parametrize("reader", ["view", "result"])
def test_memory_that_is_read_later_is_not(reader: str) -> None:
    net = HandMade()
    x, weight = net.input(torch.randn(SHAPE)), net.input(torch.randn(40, 40))
    product = net.call(aten.matmul.default, x, weight)
    seen = net.call(aten.permute.default, product, [2, 0, 1])
    result = net.call(aten.relu.default, net.call(aten.mul.Tensor, product, 2.0))
    late = seen if reader == "result" else net.call(aten.sum.default, seen)
    graph = check(net, result, late)
    if reader == "result":
        assert not any(graph.get_submodule(n.target).donated for n in calls(graph))


def test_results_may_be_views_of_results_of_a_region() -> None:
    net = HandMade()
    x = net.input(torch.randn(SHAPE))
    whole = net.call(aten.relu.default, net.call(aten.mul.Tensor, x, 2.0))
    turned = net.call(aten.permute.default, whole, [1, 0, 2])
    flat = net.call(aten.view.default, whole, [3, 640])
    check(net, whole, turned, flat, net.call(aten.select.int, whole, 2, 1))


def test_results_keep_the_strides_of_the_plain_model() -> None:
    net = HandMade()
    x = net.input(torch.randn(4, 6, 9, 8).to(memory_format=torch.channels_last))
    result = net.call(aten.relu.default, net.call(aten.mul.Tensor, x, 2.0))
    graph = check(net, result)
    value = tensor_value(result)
    assert value is not None
    assert graph(*net.inputs)[0].stride() == value.stride()
    assert value.stride() == net.inputs[0].stride()


@pytest.mark.parametrize(
    "view", [lambda x: x.mT, lambda x: x[:, ::2], lambda x: x[1:2, :, 3:].expand(3, -1, -1)]
)
def test_inputs_may_have_gaps_and_other_orders(view: object) -> None:
    net = HandMade()
    x = net.input(view(torch.randn(SHAPE)))  # type: ignore[operator]
    check(net, net.call(aten.relu.default, net.call(aten.mul.Tensor, x, 2.0)))


def test_whole_numbers_are_compared_and_chosen_in_a_region() -> None:
    net = HandMade()
    labels, other = (net.input(torch.randint(-5, 5, SHAPE)) for _ in range(2))
    same = net.call(aten.eq.Tensor, labels, other)
    chosen = net.call(aten.where.self, same, labels, net.call(aten.clamp.default, other, 0, 3))
    weight = net.call(aten._to_copy.default, chosen, dtype=torch.float32)
    check(net, chosen, net.call(aten.mul.Tensor, weight, 0.3), same)
    wide = 2**62 + 1
    big = HandMade()
    x = big.input(torch.full(SHAPE, wide))
    limited = big.call(aten.clamp.default, x, None, wide - 1)
    check(big, big.call(aten.where.self, big.call(aten.gt.Tensor, x, limited), x, limited))


def test_the_same_tensor_twice_is_two_results() -> None:
    net = HandMade()
    x = net.input(torch.randn(SHAPE))
    result = net.call(aten.relu.default, net.call(aten.mul.Tensor, x, 2.0))
    check(net, result, result, net.call(aten.alias.default, result))


def test_statistics_of_a_region_feed_the_next(programs: list[Program]) -> None:
    net = HandMade()
    x = net.input(torch.randn(SHAPE, dtype=torch.float64))
    doubled = net.call(aten.mul.Tensor, x, 2.0)
    total = net.call(aten.sum.dim_IntList, doubled, [0, 1])
    centred = net.call(aten.sub.Tensor, doubled, net.call(aten.div.Tensor, total, 48))
    module = net.finish(net.call(aten.relu.default, centred))
    assert len(regions_of(module)) == 2
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(programs) == 2


def test_several_results_of_an_operator_are_read_by_a_region() -> None:
    net = HandMade()
    x = net.input(torch.randn(SHAPE))
    pair = net.call(aten.var_mean.correction, x, [2], correction=0, keepdim=True)
    var, mean = (net.call(operator.getitem, pair, i) for i in range(2))
    centred = net.call(aten.sub.Tensor, x, mean)
    result = net.call(aten.mul.Tensor, centred, net.call(aten.rsqrt.default, var))
    module = net.finish(result)
    assert aten.sub.Tensor in targets_inside(module)
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        torch.testing.assert_close(found, expected)


def test_constants_of_the_module_are_read_by_regions() -> None:
    net = HandMade()
    x = net.input(torch.randn(SHAPE))
    table = net.graph.get_attr("table")
    table.meta["val"] = net.mode.from_tensor(torch.zeros(SHAPE))
    result = net.call(aten.relu.default, net.call(aten.mul.Tensor, x, table))
    net.graph.output((result,))
    module = GraphModule({"table": torch.randn(SHAPE)}, net.graph)
    expected, found = run_both(module, net.inputs)
    assert torch.equal(found[0], expected[0])


def test_an_empty_batch_runs() -> None:
    def run(x: Tensor) -> Tensor:
        return (x * 2.0).relu() + 1.0

    module = make_fx(run, tracing_mode="symbolic")(torch.randn(30, 20))
    graph = lowered(module)
    assert calls(graph)
    assert graph(torch.randn(0, 20)).shape == (0, 20)
