"""The small networks do what tests assume of them: they fire, and a step can be repeated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from examples.models import SEWBottleneck, build, sew_resnet
from tests.models import NETS, SPIKING, Workload, assert_fires, firing_rates, vgg_spikingjelly_small


def gradients(workload: Workload) -> list[Tensor]:
    torch.manual_seed(1)
    workload.before_step()
    workload.model.zero_grad()
    workload.loss_fn(workload.model(*workload.inputs)).backward()
    return [parameter.grad.clone() for parameter in workload.model.parameters()]


@pytest.mark.parametrize("name", SPIKING)
def test_every_neuron_fires(name: str) -> None:
    workload = SPIKING[name]()
    assert_fires(workload.model, *workload.inputs)


@pytest.mark.parametrize("name", NETS)
def test_a_step_can_be_repeated_and_every_parameter_learns(name: str) -> None:
    workload = NETS[name]()
    first, second = gradients(workload), gradients(workload)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    names = [name for name, _ in workload.model.named_parameters()]
    assert not [n for n, grad in zip(names, first, strict=True) if not grad.abs().sum() > 0]


@pytest.mark.parametrize(("name", "neurons"), [("sew_resnet50", 53), ("sew_resnet101", 104)])
def test_bottleneck_resnets_fire_everywhere_and_learn(name: str, neurons: int) -> None:
    workload = build(name, width=1 / 16, batch=2, size=32)
    assert_fires(workload.model, *workload.inputs)
    assert len(firing_rates(workload.model, *workload.inputs)) == neurons
    assert all(gradient.abs().sum() > 0 for gradient in gradients(workload))


def test_bottleneck_resnets_have_the_published_number_of_weights() -> None:
    # ResNet-50 for 1000 classes has 25,557,032 (He et al. 2016), in the same layers.
    with torch.device("meta"):
        model = sew_resnet((3, 4, 6, 3), SEWBottleneck)(1.0, 4, 64, 1000)
    assert sum(p.numel() for p in model.parameters()) == 25_557_032


def test_the_vgg_computes_the_same_in_spikingjelly_layers() -> None:
    ours = build("vgg8", width=1 / 16, batch=2, steps=4, size=16)
    theirs = vgg_spikingjelly_small()
    values = [value.clone() for value in ours.model.state_dict().values()]
    theirs.model.load_state_dict(dict(zip(theirs.model.state_dict(), values, strict=True)))
    torch.testing.assert_close(gradients(ours), gradients(theirs), rtol=1e-4, atol=1e-6)


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match="no model named 'vgg9'; there are vgg8, "):
        build("vgg9")


def test_a_silent_network_is_noticed() -> None:
    workload = SPIKING["vgg"]()
    for module in workload.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
    with pytest.raises(AssertionError, match="silent or always on"):
        assert_fires(workload.model, *workload.inputs)
