"""Graphs as data: the same graph again, and nothing that is not a graph of known operators."""

from __future__ import annotations

import json
import operator
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule, symbolic_trace

from snnfx.errors import ExportError
from snnfx.exporting.graph_data import data_to_graph, find_target, graph_to_data

aten = torch.ops.aten


def example() -> GraphModule:
    graph = Graph()
    x = graph.placeholder("x")
    constant = graph.get_attr("table")
    total = graph.call_function(aten.add.Tensor, (x, constant), {"alpha": -2})
    full = graph.call_function(
        aten.full.default,
        ([2, 3], float("-inf")),
        {"dtype": torch.float64, "device": torch.device("cpu"), "layout": torch.strided},
    )
    copied = graph.call_function(
        aten.clone.default, (total,), {"memory_format": torch.contiguous_format}
    )
    halves = graph.call_function(aten.split.Tensor, (copied, 1))
    first = graph.call_function(operator.getitem, (halves, 0))
    packed = graph.call_function(torch.ops.snnfx.pack_bits.default, (first, 1, "flat", 1.0, 0))
    graph.output((full, first, packed, None))
    return GraphModule({"table": torch.ones(2, 3)}, graph)


def through_json(module: GraphModule) -> GraphModule:
    return data_to_graph(json.loads(json.dumps(graph_to_data(module))), {"table": module.table})


def test_a_graph_from_data_is_the_same_and_gives_the_same() -> None:
    module = example()
    again = through_json(module)
    assert graph_to_data(again) == graph_to_data(module)
    assert [n.name for n in again.graph.nodes] == [n.name for n in module.graph.nodes]
    x = torch.tensor([[2.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    for given, expected in zip(again(x), module(x), strict=True):
        assert given is expected is None or torch.equal(given, expected)


@pytest.mark.parametrize(
    "target",
    [
        "builtins.eval",
        "os.system",
        "operator.attrgetter",
        "torch.load",
        "aten.add",
        "aten.__class__.mro",
        "aten.nothing.default",
        "aten.add.Tensor.__call__",
        "profiler._record_function_enter_new.default",
        "quantized.linear.default",
        None,
        ["aten.add.Tensor"],
    ],
)
def test_a_target_that_is_no_known_operator_is_refused(target: Any) -> None:
    with pytest.raises(ExportError, match="refused: it may call only operators of aten, prims"):
        find_target(target)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("aten.from_file.default", "its argument filename is a text"),
        ("aten._print.default", "its argument s is a text"),
        ("aten.copy_.default", "it writes to its arguments"),
        ("aten.add.out", "it writes to its arguments"),
    ],
)
def test_an_operator_that_reaches_outside_is_refused(target: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        find_target(target)


def malicious() -> dict[str, list[Any]]:
    x = {"op": "placeholder", "name": "x"}
    end = {"op": "output", "args": [{"node": "x"}]}

    def call(**changes: Any) -> dict[str, Any]:
        plain = {"op": "call_function", "name": "y", "target": "aten.neg.default",
                 "args": [{"node": "x"}]}  # fmt: skip
        return {**plain, **changes}

    code = "x): __import__('os').system('true') #"
    return {
        "name of an input": [{"op": "placeholder", "name": code}, end],
        "keyword": [{"op": "placeholder", "name": "class"}, end],
        "name of a node": [x, call(name=code), end],
        "name twice": [x, call(name="x"), end],
        "name of an argument": [x, call(kwargs={code: 1}), end],
        "attribute": [x, {"op": "get_attr", "name": "y", "target": code}, end],
        "attribute of the module": [x, {"op": "get_attr", "name": "y", "target": "__class__"}, end],
        "method": [x, {"op": "call_method", "name": "y", "target": "numpy", "args": []}, end],
        "module": [x, {"op": "call_module", "name": "y", "target": "x", "args": []}, end],
        "device": [x, call(args=[{"device": code}]), end],
        "dtype": [x, call(args=[{"dtype": code}]), end],
        "constant": [x, call(args=[{"code": "exit()"}]), end],
        "later node": [x, call(args=[{"node": "z"}]), call(name="z"), end],
        "no output": [x, call()],
        "no list": [x, call(args="x"), end],
        "no node": [x, "exit()", end],
    }


@pytest.mark.parametrize("case", malicious())
def test_data_that_is_not_a_plain_graph_is_refused(case: str) -> None:
    with pytest.raises(ExportError, match=r"exported file|arguments with names"):
        data_to_graph(malicious()[case], {})


def test_what_a_file_cannot_hold_is_named() -> None:
    with pytest.raises(ExportError, match=r"node 'sin'.*cannot be exported; allowed are operators"):
        graph_to_data(symbolic_trace(lambda x: torch.sin(x)))
    graph = Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(aten.mul.Tensor, (x, 1j)),))
    with pytest.raises(ExportError, match="argument that cannot be exported: 1j"):
        graph_to_data(GraphModule({}, graph))
