"""Results that get their old strides back keep their names, by which halves of a step know them."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from snnfx.passes.fxgraph import output_args
from snnfx.passes.rewrite.layout import prefer_channels_last

from tests.passes.region_graphs import HandMade, value_of

aten = torch.ops.aten
PLAIN = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def convolution(with_reader: bool) -> tuple[HandMade, GraphModule, Node]:
    """A convolution whose row-major result is returned, and read by another operator or not."""
    net = HandMade()
    x, weight = net.input(torch.randn(2, 3, 20, 20)), net.input(torch.randn(8, 3, 3, 3))
    image = net.call(aten.convolution.default, x, weight, None, *PLAIN)
    others = [net.call(aten.relu.default, image)] if with_reader else []
    return net, net.finish(image, *others), image


def test_a_result_keeps_its_name_and_its_strides() -> None:
    net, module, image = convolution(with_reader=True)
    names = [node.name for node in output_args(module.graph)]
    strides = [value_of(node).stride() for node in output_args(module.graph)]
    expected = module(*net.inputs)
    assert prefer_channels_last(module.graph).changed > 0
    module.recompile()
    results = output_args(module.graph)
    assert [node.name for node in results] == names
    assert [value_of(node).stride() for node in results] == strides
    assert results[0] is not image
    assert results[0].all_input_nodes == [image]
    for found, wanted in zip(module(*net.inputs), expected, strict=True):
        assert found.stride() == wanted.stride()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_names_stay_distinct_and_those_in_between_are_channels_last() -> None:
    _, module, image = convolution(with_reader=True)
    prefer_channels_last(module.graph)
    names = [node.name for node in module.graph.nodes]
    assert len(set(names)) == len(names)
    assert value_of(image).is_contiguous(memory_format=torch.channels_last)


def test_the_copy_stands_right_behind_what_it_copies() -> None:
    _, module, image = convolution(with_reader=True)
    prefer_channels_last(module.graph)
    assert image.next is output_args(module.graph)[0]


def test_doing_it_again_changes_no_name() -> None:
    _, module, _ = convolution(with_reader=False)
    prefer_channels_last(module.graph)
    before = [node.name for node in module.graph.nodes]
    assert prefer_channels_last(module.graph).changed == 0
    assert [node.name for node in module.graph.nodes] == before
