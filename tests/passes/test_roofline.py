"""Predicted times: what is free, what grows with what, and which device they are for."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from snnfx.passes.cost.roofline import DEVICES, Device, device_of, graph_seconds, node_seconds
from snnfx.passes.fxgraph import set_value

aten = torch.ops.aten
SLOW = Device(flops_per_second=1e3, bytes_per_second=1e2, launch_seconds=0.5)


def called(target: Any, *shapes: tuple[int, ...], args: tuple[Any, ...] = ()) -> Node:
    """A call of `target` on tensors of these shapes, in a graph of its own."""
    graph = Graph()
    with FakeTensorMode():
        values = [torch.empty(shape) for shape in shapes]
        inputs = [graph.placeholder(f"x{i}") for i in range(len(shapes))]
        for node, value in zip(inputs, values, strict=True):
            set_value(node, value)
        result = graph.call_function(target, (*inputs, *args))
        set_value(result, target(*values, *args))
    return result


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.view.default, ([6, 4],)),
        (aten.permute.default, ([1, 0],)),
        (aten.select.int, (0, 1)),
        (aten.slice.Tensor, (0, 0, 2)),
        (aten.expand.default, ([5, 4, 6],)),
        (aten._unsafe_view.default, ([24],)),
        (aten.unbind.int, ()),
    ],
)
def test_views_cost_nothing(target: Any, args: tuple[Any, ...]) -> None:
    assert node_seconds(called(target, (4, 6), args=args), SLOW) == 0


def test_inputs_and_parts_of_a_result_cost_nothing() -> None:
    node = called(aten.var_mean.correction, (4, 6))
    item = node.graph.call_function(operator.getitem, (node, 0))
    set_value(item, node.meta["val"][0])
    output = node.graph.output((item,))
    assert [node_seconds(n, SLOW) for n in (*node.all_input_nodes, item, output)] == [0, 0, 0]
    assert graph_seconds(node.graph, SLOW) == node_seconds(node, SLOW) > 0


def test_a_small_operator_takes_a_launch_and_the_bytes_that_it_moves() -> None:
    node = called(aten.add.Tensor, (10,), (10,))
    assert node_seconds(node, SLOW) == pytest.approx(0.5 + 3 * 40 / 1e2)


def test_a_large_product_takes_a_launch_and_its_flops() -> None:
    fast_memory = replace(SLOW, bytes_per_second=1e9)
    node = called(aten.mm.default, (8, 16), (16, 32))
    assert node_seconds(node, fast_memory) == pytest.approx(0.5 + 2 * 8 * 16 * 32 / 1e3)


def test_a_region_takes_a_launch_and_the_bytes_that_it_moves() -> None:
    graph = called(aten.neg.default, (10,)).graph
    (x,) = graph.find_nodes(op="placeholder")
    region = graph.call_module("region", (x,))
    set_value(region, x.meta["val"])
    GraphModule({"region": nn.Identity()}, graph)
    assert node_seconds(region, SLOW) == pytest.approx(0.5 + 2 * 40 / 1e2)


sizes = st.integers(1, 64)
devices = st.builds(Device, *[st.floats(1, 1e15)] * 2, st.floats(0, 1))


@given(sizes, sizes, sizes, st.integers(0, 64), st.sampled_from(range(3)), devices)
def test_more_flops_never_take_less_time(
    m: int, k: int, n: int, more: int, which: int, device: Device
) -> None:
    grown = [size + more * (i == which) for i, size in enumerate((m, k, n))]
    small = node_seconds(called(aten.mm.default, (m, k), (k, n)), device)
    large = node_seconds(called(aten.mm.default, tuple(grown[:2]), tuple(grown[1:])), device)
    assert large >= small


@given(devices, st.floats(1, 1e3), st.floats(1, 1e3))
def test_a_faster_device_never_takes_longer(device: Device, work: float, memory: float) -> None:
    faster = Device(
        device.flops_per_second * work, device.bytes_per_second * memory, device.launch_seconds
    )
    node = called(aten.mm.default, (8, 16), (16, 32))
    assert node_seconds(node, faster) <= node_seconds(node, device)


def graph_on(device: str) -> Graph:
    graph = Graph()
    with FakeTensorMode():
        set_value(graph.placeholder("x"), torch.empty(2, device=device))
    return graph


def test_the_device_is_that_of_the_tensors() -> None:
    assert device_of(graph_on("cpu")) is DEVICES["cpu"]


def test_unknown_devices_and_graphs_without_tensors_count_as_a_cpu() -> None:
    assert device_of(graph_on("meta")) is DEVICES["cpu"]
    assert device_of(Graph()) is DEVICES["cpu"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100"),
        ("A card of next year", "cuda"),
    ],
)
def test_a_gpu_is_known_by_how_its_name_begins(
    monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    graph = graph_on("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert device_of(graph) is DEVICES[key]


def test_a_graph_for_a_gpu_that_is_not_here_counts_as_any_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = graph_on("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(graph) is DEVICES["cuda"]
