"""Which kept values are packed together: only what decodes to the very member."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from snnfx.passes.analysis.packs import find_packs
from snnfx.passes.analysis.value_range import analyse_value_ranges

aten = torch.ops.aten


def traced(function: object, *inputs: Tensor) -> Graph:
    return make_fx(function, tracing_mode="fake")(*inputs).graph  # type: ignore[arg-type]


def calls(graph: Graph, target: object) -> list[Node]:
    return graph.find_nodes(op="call_function", target=target)


def levels(x: Tensor) -> Tensor:
    """0, 1 or 2."""
    return (x > 0).to(x.dtype) + (x > 1).to(x.dtype)


def test_steps_of_a_stack_are_packed_as_one_along_time() -> None:
    graph = traced(lambda x: torch.stack([(step > 0).to(x.dtype) for step in x]), torch.randn(3, 5))
    kept = calls(graph, aten.gt.Scalar)
    (pack,) = find_packs(kept, analyse_value_ranges(graph))
    assert (pack.layout, pack.encoding.bits, pack.members) == ("time", 1, tuple(kept))


def test_a_stack_of_lossy_conversions_does_not_stand_for_its_members() -> None:
    """Whether a sum is zero says nothing of the sum: each sum is packed by itself, in two bits."""
    graph = traced(lambda x: torch.stack([levels(step).bool() for step in x]), torch.randn(3, 64))
    kept = calls(graph, aten.add.Tensor)
    packs = find_packs(kept, analyse_value_ranges(graph))
    assert [pack.members for pack in packs] == [(node,) for node in kept]
    assert {(pack.layout, pack.encoding.bits) for pack in packs} == {("flat", 2)}


def test_a_stack_of_lossless_conversions_stands_for_its_members() -> None:
    graph = traced(
        lambda x: torch.stack([levels(s).to(torch.uint8) for s in x]), torch.randn(3, 64)
    )
    kept = calls(graph, aten.add.Tensor)
    (pack,) = find_packs(kept, analyse_value_ranges(graph))
    assert (pack.layout, pack.encoding.bits, pack.members) == ("time", 2, tuple(kept))


def test_a_value_that_is_two_steps_of_a_stack_is_packed_once() -> None:
    graph = traced(lambda x: torch.stack([levels(x)] * 2), torch.randn(64))
    kept = calls(graph, aten.add.Tensor)
    (pack,) = find_packs(kept, analyse_value_ranges(graph))
    assert (pack.layout, pack.members) == ("flat", tuple(kept))
