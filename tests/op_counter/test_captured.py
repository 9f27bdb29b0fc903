"""A captured joint graph is counted with the rules of a run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from snnfx.capture.offline import capture
from snnfx.errors import OptionError
from snnfx.op_counter import count

from tests.op_counter import nets

# What Dynamo does to its own warnings' dismay, in torch 2.13.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

aten = torch.ops.aten

HEAVY = (aten.convolution.default, aten.convolution_backward.default, aten.mm.default)


def test_a_capture_counts_heavy_operators_as_its_model() -> None:
    net = nets.build("ours_sew")
    captured = count(capture(net.model, net.inputs, nets.loss_of), train=True, rates=0.5)
    recorded = count(net.model, net.inputs, loss=nets.loss_of, train=True, rates=0.5)
    scope = "SEWResNet.stages.0.first.weight"
    for quantity in ("flops", "bytes", "mac", "synops"):
        for operator, stage in itertools.product(HEAVY, ("forward", "backward")):
            ours = captured.records(quantity, stage)["Global"].get(operator)
            assert ours == recorded.records(quantity, stage)["Global"].get(operator)
        assert captured.total(quantity, scope=scope) == recorded.total(quantity, scope=scope)
    names = {spikes.name for spikes in recorded.spike_tensors}
    assert names == {spikes.name for spikes in captured.spike_tensors}


def test_a_capture_counts_its_forward_alone() -> None:
    net = nets.build("ours_plain_mlp")
    report = count(capture(net.model, net.inputs))
    assert report.total("mac", "backward") == 0
    assert report.total("mac") == count(net.model, net.inputs).total("mac")


@pytest.mark.parametrize("options", [{"rates": "measured"}, {"time_dim": 0}, {"loss": F.mse_loss}])
def test_a_capture_does_not_run(options: dict[str, Any]) -> None:
    net = nets.build("ours_plain_mlp")
    with pytest.raises(OptionError, match="a Capture has its inputs and its loss"):
        count(capture(net.model, net.inputs), **options)
