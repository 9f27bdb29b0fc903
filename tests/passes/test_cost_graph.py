"""The cost graph of joint graphs: bytes, packed bytes, FLOPs, kinds and who needs what."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from snnfx.capture.offline import Capture, capture
from snnfx.passes.analysis.opkinds import OpKind
from snnfx.passes.analysis.value_range import analyse_value_ranges
from snnfx.passes.cost.flops import node_flops
from snnfx.passes.cost.graph import CostGraph, backward_nodes, build_cost_graph
from snnfx.passes.fxgraph import tensor_value

from tests.models import HandWrittenNet, HandWrittenNode

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
]


class Layer(nn.Module):
    """A convolution, a batch norm and a neuron, on `[T, N, 3, H, W]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.node = HandWrittenNode()
        self.readout = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.readout(self.node(x).mean((3, 4))).mean(0)


def costs(captured: Capture, compress: bool = True) -> CostGraph:
    graph = captured.graph_module.graph
    return build_cost_graph(graph, captured.roles, analyse_value_ranges(graph), compress)


@pytest.fixture(scope="module")
def layer() -> Capture:
    return capture(Layer(), torch.randn(4, 2, 3, 6, 6))


def of_kind(cost: CostGraph, kind: OpKind) -> dict[str, str]:
    return {name: attrs["op"] for name, attrs in cost.nodes.items() if attrs["kind"] is kind}


def test_the_graph_holds_just_the_forward_with_its_edges(layer: Capture) -> None:
    cost = costs(layer)
    nodes = {node.name: node for node in layer.graph_module.graph.nodes}
    backward = backward_nodes(layer.graph_module.graph, layer.roles)
    outside = {node.name for node in backward} | {"output"}
    assert set(cost) == set(nodes) - outside
    assert {t.name for t in layer.roles.tangents} <= outside
    assert nx.is_directed_acyclic_graph(cost)
    mutated = {node.name for node in layer.roles.mutated}
    for name in cost:
        sources = {source.name for source in nodes[name].all_input_nodes}
        assert set(cost.predecessors(name)) <= sources
        assert sources - set(cost.predecessors(name)) <= mutated


def test_a_batch_norm_does_not_depend_on_the_statistics_it_updates(layer: Capture) -> None:
    cost = costs(layer)
    statistics = [layer.names.index(f"norm.running_{kind}") for kind in ("mean", "var")]
    for position in statistics:
        assert cost.out_degree(layer.roles.primals[position].name) == 0


def test_bytes_are_those_of_dense_tensors(layer: Capture) -> None:
    cost = costs(layer)
    for node in layer.graph_module.graph.nodes:
        value = tensor_value(node)
        if node.name in cost and value is not None:
            assert cost.nodes[node.name]["bytes"] == value.numel() * value.element_size()
            assert cost.nodes[node.name]["is_tensor"]


def test_spikes_are_packed_to_one_bit_and_nothing_else_is(layer: Capture) -> None:
    cost = costs(layer)
    spikes = {name for name, attrs in cost.nodes.items() if attrs["bits"] == 1}
    assert set(of_kind(cost, OpKind.THRESHOLD)) <= spikes
    for name, attrs in cost.nodes.items():
        if name in of_kind(cost, OpKind.THRESHOLD):
            assert attrs["packed_bytes"] * 8 == attrs["bytes"]  # bools are bytes
        if attrs["bits"] is None:
            assert attrs["packed_bytes"] == attrs["bytes"]
    convolution = next(n for n, op in of_kind(cost, OpKind.HEAVY).items() if "convolution" in op)
    assert cost.nodes[convolution]["bits"] is None


def test_without_compression_nothing_is_packed(layer: Capture) -> None:
    cost = costs(layer, compress=False)
    assert {attrs["bits"] for attrs in cost.nodes.values()} == {None}
    assert all(attrs["packed_bytes"] == attrs["bytes"] for attrs in cost.nodes.values())


def test_kinds_follow_what_the_operators_do(layer: Capture) -> None:
    cost = costs(layer)
    primals = {node.name for node in layer.roles.primals}
    mutated = {node.name for node in layer.roles.mutated}
    assert primals - mutated <= set(of_kind(cost, OpKind.FREE))
    assert mutated <= set(of_kind(cost, OpKind.OPAQUE))
    assert sorted(set(of_kind(cost, OpKind.HEAVY).values())) == [
        "aten.addmm.default",
        "aten.convolution.default",
    ]
    assert set(of_kind(cost, OpKind.THRESHOLD).values()) == {"aten.ge.Scalar"}
    assert len(of_kind(cost, OpKind.THRESHOLD)) == 4


def test_demanded_is_what_the_backward_reads(layer: Capture) -> None:
    cost = costs(layer)
    backward = backward_nodes(layer.graph_module.graph, layer.roles)
    read = {source.name for node in backward for source in node.all_input_nodes}
    assert {n for n, attrs in cost.nodes.items() if attrs["demanded"]} == read & set(cost)


def test_flops_are_those_that_torch_counts() -> None:
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    matrix = torch.randn(4 * 64, 5, requires_grad=True)

    def step(x: Tensor, weight: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
        y = F.conv2d(x, weight, padding=1).flatten(1) @ matrix
        return torch.autograd.grad(y.square().sum(), (x, weight, matrix))

    with FlopCounterMode(display=False) as counter:
        step(x, weight, matrix)
    graph = make_fx(step, tracing_mode="fake")(x, weight, matrix).graph
    heavy = ("convolution", "mm")
    counted = sum(node_flops(n) for n in graph.nodes if any(h in str(n.target) for h in heavy))
    assert counted == counter.get_total_flops() > 0


def test_elementwise_work_counts_one_flop_an_element_and_views_none() -> None:
    graph = make_fx(lambda x: (x.relu().t() + 1).sum(0), tracing_mode="fake")(
        torch.ones(3, 4)
    ).graph
    flops = {str(node.target): node_flops(node) for node in graph.nodes}
    assert flops["aten.relu.default"] == flops["aten.add.Tensor"] == 12
    assert flops["aten.t.default"] == flops["x_1"] == flops["output"] == 0
    assert flops["aten.sum.dim_IntList"] == 3


def test_the_cost_graph_is_the_same_for_the_same_network() -> None:
    def build() -> CostGraph:
        return costs(capture(HandWrittenNet(), torch.randn(4, 2, 3, 12, 12)))

    first, second = build(), build()
    assert list(first.nodes(data=True)) == list(second.nodes(data=True))
    assert list(first.edges) == list(second.edges)
