"""Reports equal the peer's; what is outside of the model is warned of, or with `strict` raised."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter import spikesim as peer
from torch import Tensor, nn

from snnfx import neurons
from snnfx.errors import OptionError, UncountedError
from snnfx.op_counter import (
    SpikeSimEnergyConfig,
    SpikeSimEnergyProfiler,
    SpikeSimEventEnergyProfiler,
    estimate_spikesim_event_energy,
)

from tests.op_counter.nets import Net, build


def conv_net(make_neuron: Any, step_mode: str) -> nn.Module:
    """Strides, dilation and uneven kernels, with layers that run step by step or all at once."""
    model = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False),
        make_neuron(),
        layer.Conv2d(6, 9, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        make_neuron(),
        layer.Conv2d(9, 5, 1),
        make_neuron(),
    )
    functional.set_step_mode(model, step_mode)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


def lif() -> nn.Module:
    return neuron.LIFNode(tau=1.5, v_threshold=0.5)


def both(net: Net, **options: Any) -> tuple[Any, Any]:
    """The peer's report and ours, of forwards from the same state."""
    net.reset()
    theirs = peer.estimate_spikesim_energy(
        net.model, net.inputs, config=peer.SpikeSimEnergyConfig(**options), strict=False
    )
    net.reset()
    ours = estimate_spikesim_event_energy(
        net.model, net.inputs, config=SpikeSimEnergyConfig(**options)
    )
    return theirs, ours


def assert_equal(theirs: Any, ours: Any) -> None:
    """All fields that the documented report has; of warnings their number, as texts are ours."""
    expected = asdict(theirs)
    for name, value in asdict(ours).items():
        if name == "warnings":
            assert len(value) == len(expected[name])
        else:
            assert value == expected[name], name


@pytest.mark.parametrize("device", ["rram", "sram"])
@pytest.mark.parametrize("activity_mode", ["dense", "event"])
@pytest.mark.parametrize("xbar_size", [4, 7, 64])
@pytest.mark.parametrize(
    "name",
    ["spikingjelly_vgg", "spikingjelly_sew_resnet", "spikingjelly_spike_driven_transformer"],
)
def test_reports_equal_the_peer_s(
    name: str, xbar_size: int, activity_mode: str, device: str
) -> None:
    net = build(name)
    net.model.eval()
    theirs, ours = both(net, xbar_size=xbar_size, activity_mode=activity_mode, device=device)
    assert_equal(theirs, ours)
    assert ours.counts["stage_count"] > 2


@pytest.mark.parametrize("name", ["spikingjelly_spikformer", "spikingjelly_qkformer"])
def test_reports_of_nets_that_are_partly_outside_equal_the_peer_s(name: str) -> None:
    net = build(name)
    net.model.eval()
    theirs, ours = both(net, xbar_size=8, activity_mode="event")
    assert_equal(theirs, ours)
    assert ours.warnings


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("make_neuron", [neuron.IFNode, lif])
def test_reports_of_one_and_of_several_steps_equal_the_peer_s(
    make_neuron: Any, step_mode: str
) -> None:
    model = conv_net(make_neuron, step_mode)
    x = (torch.rand(2, 2, 9, 8) < 0.4).float()
    x = x if step_mode == "s" else torch.stack([x, 1 - x, x])
    net = Net(model, (x,), lambda: functional.reset_net(model))
    theirs, ours = both(net, xbar_size=4, activity_mode="event")
    assert_equal(theirs, ours)
    assert ours.stage_metadata["Sequential.0"]["event_driven_calls"] == 1
    active = ours.event_stats_by_stage["Sequential.2"]
    assert 0 < active["active_row_count"] < active["dense_row_count"]


def test_a_loop_over_steps_adds_up_as_one_call_with_all_steps_does() -> None:
    model = conv_net(lif, "m")
    x = (torch.rand(3, 2, 2, 9, 8) < 0.4).float()
    config = SpikeSimEnergyConfig(xbar_size=4, activity_mode="event")
    at_once = estimate_spikesim_event_energy(model, x, config=config)
    functional.reset_net(model)
    functional.set_step_mode(model, "s")
    with SpikeSimEnergyProfiler(config=config) as profiler, torch.no_grad():
        for frame in x:
            model(frame)
    step_by_step = profiler.get_report()
    assert step_by_step.energy_total_pj == pytest.approx(at_once.energy_total_pj, rel=1e-12)
    assert step_by_step.event_stats_by_stage == at_once.event_stats_by_stage
    assert step_by_step.stage_metadata["Sequential.0"]["total_calls"] == 3


def test_inference_mode_costs_what_a_forward_without_gradients_costs() -> None:
    model, x = conv_net(lif, "m"), (torch.rand(3, 2, 2, 9, 8) < 0.4).float()
    config = SpikeSimEnergyConfig(activity_mode="event")
    expected = estimate_spikesim_event_energy(model, x, config=config)
    functional.reset_net(model)
    with torch.inference_mode():
        report = estimate_spikesim_event_energy(model, x, config=config)
    assert report == expected
    assert report.counts["stage_count"] == 3


def test_parts_add_up_to_the_total() -> None:
    model = conv_net(lif, "s")
    config = SpikeSimEnergyConfig(activity_mode="event")
    report = estimate_spikesim_event_energy(model, torch.ones(1, 2, 9, 8), config=config)
    assert sum(report.breakdown_pj.values()) == pytest.approx(report.energy_total_pj)
    assert sum(report.energy_by_stage.values()) == pytest.approx(report.energy_total_pj)
    totals = {**report.breakdown_pj, "total_pj": report.energy_total_pj}
    assert report.energy_by_component["totals"] == totals


def test_a_silent_input_costs_nothing_by_events() -> None:
    config = SpikeSimEnergyConfig(activity_mode="event")
    model = nn.Conv2d(2, 3, 3).eval()
    report = estimate_spikesim_event_energy(model, torch.zeros(1, 2, 5, 5), config=config)
    assert report.energy_total_pj == 0.0
    assert report.counts == {"dense_pe_cycle_count": 9, "stage_count": 1}


def test_inputs_that_are_no_spikes_are_dense() -> None:
    config = SpikeSimEnergyConfig(activity_mode="event")
    model = nn.Conv2d(2, 3, 3).eval()
    report = estimate_spikesim_event_energy(model, torch.rand(1, 2, 5, 5), config=config)
    assert report.stage_metadata["Conv2d"]["dense_fallback_calls"] == 1
    dense = estimate_spikesim_event_energy(model, torch.rand(1, 2, 5, 5))
    assert report.energy_total_pj == pytest.approx(dense.energy_total_pj, rel=1e-12)


def test_each_entry_starts_anew_and_reports_stay() -> None:
    model, profiler = nn.Conv2d(2, 3, 3).eval(), SpikeSimEventEnergyProfiler()
    reports: list[Any] = []
    for side in (5, 6, 5):
        with profiler, torch.no_grad():
            model(torch.ones(1, 2, side, side))
        reports.append(profiler.get_report())
    assert reports[0] == reports[2] != reports[1]
    assert profiler.get_total() == reports[2].energy_total_pj
    assert profiler.get_counts() == {
        "event_stats_by_stage": reports[2].event_stats_by_stage,
        "stage_metadata": reports[2].stage_metadata,
    }


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("the user's own")


def test_after_an_exception_inside_nothing_more_is_counted() -> None:
    model, profiler = nn.Conv2d(2, 3, 3).eval(), SpikeSimEnergyProfiler()
    x = torch.ones(1, 2, 5, 5)
    with pytest.raises(KeyError, match="the user's own"), profiler, torch.no_grad():
        nn.Sequential(model, Fails())(x)
    with torch.no_grad():
        model(x)
    assert profiler.get_report().counts["stage_count"] == 1
    with profiler, torch.no_grad():
        model(x)
    assert profiler.get_report().stage_metadata["Sequential.0"]["total_calls"] == 1


def test_a_profiler_keeps_the_configuration_that_it_was_given() -> None:
    config = SpikeSimEnergyConfig(xbar_size=4)
    profiler = SpikeSimEnergyProfiler(config=config)
    config.xbar_size = 8
    assert profiler.config.xbar_size == 4
    config.device = "dram"
    with pytest.raises(OptionError, match="device must be"):
        SpikeSimEnergyProfiler(config=config)


def test_nothing_profiled_is_warned_of_or_raised() -> None:
    report = estimate_spikesim_event_energy(nn.Linear(3, 2).eval(), torch.ones(1, 3))
    assert report.energy_total_pj == 0.0
    assert any("has counted no convolution" in warning for warning in report.warnings)
    with pytest.raises(OptionError, match="has counted no convolution"):
        estimate_spikesim_event_energy(nn.Linear(3, 2).eval(), torch.ones(1, 3), strict=True)


def test_training_mode_is_warned_of_or_raised() -> None:
    model, x = nn.Conv2d(2, 3, 3), torch.ones(1, 2, 5, 5)
    report = estimate_spikesim_event_energy(model, x)
    assert "training mode: call model.eval()" in report.warnings[0]
    with pytest.raises(OptionError, match=r"call model\.eval\(\)"):
        estimate_spikesim_event_energy(model, x, strict=True)


def test_strict_raises_inside_of_the_run() -> None:
    model = nn.Conv2d(2, 2, 3, groups=2).eval()
    with pytest.raises(NotImplementedError, match="it has 2 groups"):
        estimate_spikesim_event_energy(model, torch.ones(1, 2, 5, 5), strict=True)
    with (
        pytest.raises(UncountedError, match="use strict=False"),
        SpikeSimEnergyProfiler(strict=True),
        torch.no_grad(),
    ):
        model(torch.ones(1, 2, 5, 5))


ACCEPTED = {
    "spikingjelly IF": neuron.IFNode,
    "spikingjelly LIF": neuron.LIFNode,
    "spikingjelly simple LIF": lambda: neuron.SimpleLIFNode(2.0, True),
    "ours IF": neurons.IFNode,
    "ours LIF": neurons.LIFNode,
    "snntorch": lambda: snntorch.Leaky(beta=0.9, init_hidden=True),
}
REFUSED = {
    "spikingjelly PLIF": neuron.ParametricLIFNode,
    "ours PLIF": neurons.ParametricLIFNode,
    "snntorch": lambda: snntorch.Synaptic(alpha=0.9, beta=0.8, init_hidden=True),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_if_and_lif_neurons_are_accepted(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), ACCEPTED[kind]()).eval()
    report = estimate_spikesim_event_energy(model, torch.ones(1, 2, 5, 5), strict=True)
    assert report.warnings == []
    assert report.energy_total_pj > 0


@pytest.mark.parametrize("kind", REFUSED)
def test_other_neurons_are_refused_where_if_and_lif_are_required(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), REFUSED[kind]()).eval()
    x, anything = torch.ones(1, 2, 5, 5), SpikeSimEnergyConfig(require_if_lif_neurons=False)
    name = type(model[1]).__name__
    (warning,) = estimate_spikesim_event_energy(model, x).warnings
    assert f"1 ({name})" in warning
    with pytest.raises(OptionError, match="set require_if_lif_neurons=False"):
        estimate_spikesim_event_energy(model, x, strict=True)
    assert estimate_spikesim_event_energy(model, x, config=anything, strict=True).warnings == []


@pytest.mark.parametrize("inputs", [(1, 2), {"x": 1, "y": 2}])
def test_inputs_of_models_with_several_go_by_position_or_by_name(inputs: Any) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: int, y: int) -> Tensor:
            return self.conv(torch.full((1, 1, 2, 2), float(x - y)))

    report = estimate_spikesim_event_energy(Sum().eval(), inputs)
    assert report.counts["dense_pe_cycle_count"] == 4
