"""Time steps of channels-last images are channels-last too, however the steps come about."""

from __future__ import annotations

import pytest
import torch

from snnfx.passes.fxgraph import stride_order

from tests.passes.region_graphs import HandMade, evaluated_by_torch, run_both, value_of

aten = torch.ops.aten
T = 3


@pytest.mark.parametrize("counts", [[T, 1, 1, 1, 1], [T, 1, 1, 2, 1]], ids=["time", "height"])
def test_an_image_that_is_repeated_at_every_step_keeps_its_layout(counts: list[int]) -> None:
    net = HandMade()
    x, weight = net.input(torch.randn(2, 3, 20, 20)), net.input(torch.randn(16, 3, 3, 3))
    image = net.call(aten.convolution.default, x, weight, None, [1, 1], [1, 1], [1, 1], False,
                     [0, 0], 1)  # fmt: skip
    steps = net.call(aten.repeat.default, net.call(aten.unsqueeze.default, image, 0), counts)
    result = net.call(aten.relu.default, net.call(aten.mul.Tensor, steps, 2.0))
    module = net.finish(net.call(aten.sum.dim_IntList, result, [0]))
    with evaluated_by_torch():
        expected, found = run_both(module, net.inputs)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    is_along_time = counts[3] == 1
    assert (stride_order(value_of(steps)) == (0, 1, 3, 4, 2)) == is_along_time
