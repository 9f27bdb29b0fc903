"""MACs and ACs are priced as Horowitz's table says, of a run and of a graph."""

from __future__ import annotations

import math
from typing import Any

import pytest
import sympy
import torch
from spikingjelly.activation_based import op_counter as peer
from torch import Tensor, nn

from snnfx.errors import OptionError, UncountedError
from snnfx.op_counter import count
from snnfx.op_counter.compute_energy import (
    HOROWITZ_45NM_PJ,
    ComputeEnergyConfig,
    ComputeEnergyCostConfig,
    ComputeEnergyProfiler,
    compute_energy_of,
    estimate_compute_energy,
)
from snnfx.op_counter.report import CountReport, OperatorCount

from tests.op_counter.nets import BUILDERS, Net, build

aten = torch.ops.aten


CORRECTED_ACS = {
    # 3 x 3 places averaged to 2 x 2: 3 additions for each of T * N * C * 4 results; no rule there.
    "spikingjelly_vgg": 3 * (6 * 16 * 4),
    # In the first step, potentials and a threshold of 1 are binary. That one is subtracted from
    # each of them (2 x 6 x 8 x 8, and 2 x 5); the peer counts it once.
    "snntorch": (2 * 6 * 8 * 8 - 1) + (2 * 5 - 1),
    # 1 + erf(...) of each element of a hidden layer, 4 x 64; no rule there.
    "ours_plain_mlp": 4 * 64,
}
"""ACs that the peer leaves out, see the rules of `snnfx.op_counter.ac`, by network."""


def spikes() -> Tensor:
    """12 of 20 elements are ones."""
    x = torch.zeros(2, 10)
    x.view(-1)[:12] = 1
    return x


def peer_report(net: Net, preset: str) -> tuple[Any, int]:
    """The peer's report, and the ACs in it that are its own.

    Its model adds memory to the same arithmetic, and to count memory it adds up a tensor of its own
    while it counts operators. None of the nets sums up a whole tensor.
    """
    cost = getattr(peer.SimpleEnergyCostConfig, preset)()
    profiler = peer.SimpleEnergyProfiler(config=peer.SimpleEnergyConfig(cost_config=cost))
    profiler.bind_model(net.model)
    net.reset()
    with profiler, torch.no_grad():
        net.model(*net.inputs)
    own = profiler.ac_counter.get_counts()["Global"].get(aten.sum.default, 0)
    return profiler.get_report(), own


def assert_equal_energies(name: str, preset: str) -> None:
    net = build(name)
    net.model.eval()
    theirs, own = peer_report(net, preset)
    corrected = CORRECTED_ACS.get(name, 0) - own
    net.reset()
    cost = getattr(ComputeEnergyCostConfig, preset)()
    ours = estimate_compute_energy(
        net.model, net.inputs, config=ComputeEnergyConfig(cost_config=cost)
    )
    expected = {**theirs.counts, "ac": theirs.counts["ac"] + corrected}
    assert {k: ours.counts[k] for k in ("mac", "ac", "synop")} == {
        k: expected[k] for k in ("mac", "ac", "synop")
    }
    assert ours.energy_mac_pj == theirs.energy_mac_pj
    assert ours.energy_ac_pj == pytest.approx(theirs.energy_ac_pj + corrected * cost.e_ac_pj)
    assert ours.energy_total_pj == ours.energy_mac_pj + ours.energy_ac_pj > 0
    assert ours.breakdown_pj == {"mac_pj": ours.energy_mac_pj, "ac_pj": ours.energy_ac_pj}


@pytest.mark.parametrize("name", BUILDERS)
def test_energies_equal_those_of_the_peer(name: str) -> None:
    assert_equal_energies(name, "fp32")


@pytest.mark.parametrize("preset", ["fp16", "int8"])
def test_energies_at_other_costs_equal_those_of_the_peer(preset: str) -> None:
    assert_equal_energies("spikingjelly_vgg", preset)


def test_a_layer_of_spikes_costs_an_accumulate_for_each_spike_and_output() -> None:
    report = estimate_compute_energy(nn.Linear(10, 5, bias=False), spikes())
    assert report.counts["ac"] == report.counts["synop"] == 12 * 5
    assert report.counts["mac"] == 0
    assert report.energy_total_pj == report.energy_ac_pj == 12 * 5 * 0.9


def test_a_layer_of_reals_costs_a_multiply_accumulate_for_each_weight() -> None:
    report = estimate_compute_energy(nn.Linear(10, 5, bias=False), torch.rand(2, 10) + 2)
    assert report.counts["mac"] == 2 * 10 * 5
    assert report.energy_mac_pj == 2 * 10 * 5 * 4.6


@pytest.mark.parametrize(
    ("preset", "mac_pj", "ac_pj"), [("fp32", 4.6, 0.9), ("fp16", 1.5, 0.4), ("int8", 0.23, 0.03)]
)
def test_presets_are_a_multiplication_and_an_addition(
    preset: str, mac_pj: float, ac_pj: float
) -> None:
    cost = getattr(ComputeEnergyCostConfig, preset)()
    assert (cost.e_mac_pj, cost.e_ac_pj) == (mac_pj, ac_pj)
    multiply, add = (HOROWITZ_45NM_PJ[f"{preset}_{what}"] for what in ("multiply", "add"))
    assert cost.e_mac_pj == pytest.approx(multiply + add, rel=1e-12)


def test_the_default_is_fp32() -> None:
    assert ComputeEnergyCostConfig() == ComputeEnergyCostConfig.fp32()
    assert ComputeEnergyConfig().cost_config == ComputeEnergyCostConfig.fp32()


@pytest.mark.parametrize("field", ["e_mac_pj", "e_ac_pj"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "1", None, True])
def test_costs_that_are_no_energies_are_refused(field: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{field} must be a finite number of pJ, 0 or more"):
        ComputeEnergyCostConfig(**{field: value})
    config = ComputeEnergyConfig()
    setattr(config.cost_config, field, value)
    with pytest.raises(ValueError, match=field):
        ComputeEnergyProfiler(config=config)


def test_free_operations_are_allowed() -> None:
    config = ComputeEnergyConfig(cost_config=ComputeEnergyCostConfig(e_mac_pj=0, e_ac_pj=0))
    report = estimate_compute_energy(nn.Linear(10, 5), spikes(), config=config)
    assert report.energy_total_pj == 0
    assert report.counts["ac"] > 0


def test_each_entry_starts_anew() -> None:
    model, profiler = nn.Linear(10, 5, bias=False), ComputeEnergyProfiler()
    totals: list[float] = []
    for _ in range(2):
        with profiler, torch.no_grad():
            model(spikes())
        totals.append(profiler.get_total())
    assert totals == [12 * 5 * 0.9] * 2
    assert profiler.get_counts() == profiler.get_report().counts


def test_a_profiler_keeps_the_costs_that_it_was_given() -> None:
    config = ComputeEnergyConfig()
    profiler = ComputeEnergyProfiler(config=config)
    config.cost_config.e_ac_pj = 100.0
    with profiler, torch.no_grad():
        nn.Linear(10, 5, bias=False)(spikes())
    assert profiler.get_total() == 12 * 5 * 0.9


def test_after_an_exception_inside_nothing_more_is_counted() -> None:
    model, profiler = nn.Linear(10, 5, bias=False), ComputeEnergyProfiler()
    with pytest.raises(RuntimeError, match="shapes cannot"), profiler, torch.no_grad():
        nn.Sequential(model, nn.Linear(4, 4))(spikes())
    with torch.no_grad():
        model(spikes())
    assert profiler.get_counts()["ac"] == 12 * 5


def test_ignored_modules_cost_nothing() -> None:
    model = nn.Sequential(nn.Linear(10, 5, bias=False), nn.BatchNorm1d(5)).eval()
    config = ComputeEnergyConfig(extra_ignore_modules=[nn.BatchNorm1d])
    assert estimate_compute_energy(model, spikes(), config=config).energy_mac_pj == 0
    assert estimate_compute_energy(model, spikes()).energy_mac_pj > 0
    one = ComputeEnergyConfig(extra_ignore_modules=[model[1]])
    assert estimate_compute_energy(model, spikes(), config=one).energy_mac_pj == 0


def test_no_operator_is_warned_of_or_raised() -> None:
    assert "of no operator were counted" in estimate_compute_energy(nn.Identity(), 1).warnings[0]
    with pytest.raises(UncountedError, match="of no operator were counted"):
        estimate_compute_energy(nn.Identity(), 1, config=ComputeEnergyConfig(strict=True))


class OddOperator(nn.Module):
    """Runs an operator that no table has a rule for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x)


def test_operators_that_are_not_priced_are_warned_of_or_raised() -> None:
    model = nn.Sequential(nn.Linear(4, 4), OddOperator())
    warnings = estimate_compute_energy(model, torch.rand(4, 4)).warnings
    assert any("no rule of mac for " in w and "matrix_exp" in w for w in warnings)
    with pytest.raises(UncountedError, match="matrix_exp"):
        estimate_compute_energy(model, torch.rand(4, 4), config=ComputeEnergyConfig(strict=True))


@pytest.mark.parametrize("name", BUILDERS)
def test_all_operators_of_the_covered_nets_are_priced(name: str) -> None:
    net = build(name)
    net.model.eval()
    net.reset()
    report = estimate_compute_energy(net.model, net.inputs, config=ComputeEnergyConfig(strict=True))
    assert report.warnings == []


@pytest.mark.parametrize("name", ["snntorch", "norse", "ours_vgg", "ours_spikformer"])
def test_inference_mode_costs_what_a_forward_without_gradients_costs(name: str) -> None:
    """There, ``aten.linear`` and the like are seen whole; some counters have a rule for it."""
    net = build(name)
    net.model.eval()
    net.reset()
    expected = estimate_compute_energy(net.model, net.inputs)
    net.reset()
    with torch.inference_mode():
        assert estimate_compute_energy(net.model, net.inputs) == expected


def test_neurons_that_run_as_one_operator_are_warned_of() -> None:
    """So SpikingJelly's do in inference mode."""
    net = build("spikingjelly_vgg")
    net.model.eval()
    net.reset()
    with torch.inference_mode():
        warnings = estimate_compute_energy(net.model, net.inputs).warnings
    assert any("sj_lif.forward.default (3x): the energy leaves them out" in w for w in warnings)


def test_verbose_prints_what_operators_count(capsys: pytest.CaptureFixture[str]) -> None:
    config = ComputeEnergyConfig(verbose=True)
    estimate_compute_energy(nn.Linear(10, 5, bias=False), spikes(), config=config)
    assert "ACCounter: " in capsys.readouterr().out


def report_of(**unsupported: dict[str, int]) -> CountReport:
    """A graph's counts: a forward with a symbolic rate, and a backward."""
    rate = sympy.Symbol("r")
    forward = {"mac": 7, "ac": 100 * rate, "synops": 90 * rate, "flops": 200}
    return CountReport(
        operators=(
            OperatorCount(("Net",), "forward", aten.mm.default, 1, forward),
            OperatorCount(("Net",), "backward", aten.mm.default, 2, {"mac": 50, "flops": 100}),
        ),
        spike_tensors=(),
        unsupported=unsupported,
        warnings=(),
    )


def test_counts_of_a_graph_are_priced_without_a_run_and_may_be_symbolic() -> None:
    report = compute_energy_of(report_of())
    assert report.energy_mac_pj == pytest.approx(57 * 4.6)
    assert report.counts["flop"] == 300
    at_a_tenth = report.energy_total_pj.subs({"r": 0.1})
    assert float(at_a_tenth) == pytest.approx(57 * 4.6 + 10 * 0.9)
    forward = compute_energy_of(report_of(), stage="forward")
    assert forward.counts["mac"] == 7
    assert forward.breakdown_pj["ac_pj"] == forward.energy_ac_pj


def test_costs_apply_to_counts_of_a_graph() -> None:
    config = ComputeEnergyConfig(cost_config=ComputeEnergyCostConfig.int8())
    assert compute_energy_of(report_of(), config).energy_mac_pj == pytest.approx(57 * 0.23)


def test_graphs_with_operators_that_are_not_priced_are_warned_of_or_raised() -> None:
    report = report_of(mac={"aten.odd.default": 2}, flops={"aten.odd.default": 2})
    assert compute_energy_of(report).warnings == [
        "no rule of mac for aten.odd.default (2x): the energy leaves them out",
        "no rule of flop for aten.odd.default (2x): counts['flop'] leaves them out",
    ]
    strict = ComputeEnergyConfig(strict=True)
    with pytest.raises(UncountedError, match=r"aten\.odd\.default \(2x\)"):
        compute_energy_of(report, strict)
    only_flops = report_of(flops={"aten.odd.default": 2})
    assert len(compute_energy_of(only_flops, strict).warnings) == 1


@pytest.mark.parametrize("name", ["spikingjelly_vgg", "norse", "ours_vgg"])
def test_a_graph_with_measured_rates_costs_at_least_what_a_run_does(name: str) -> None:
    """Operands that only happen to be zeros and ones in the run are multiplied in the graph."""
    net = build(name)
    net.model.eval()
    net.reset()
    with torch.no_grad():
        counted = count(net.model, net.inputs, rates="measured")
    priced = compute_energy_of(counted, ComputeEnergyConfig(strict=True))
    net.reset()
    run = estimate_compute_energy(net.model, net.inputs)
    assert priced.counts["flop"] == run.counts["flop"]
    assert float(priced.energy_mac_pj) >= run.energy_mac_pj > 0
    assert float(priced.energy_ac_pj) >= run.energy_ac_pj > 0
    assert priced.warnings == list(counted.warnings)
    if name == "norse":  # where all spikes are proven
        assert priced == run


def test_a_graph_without_counts_of_macs_and_acs_is_warned_of() -> None:
    for counts in ([], [{"flops": 3, "bytes": 4}]):
        operators = tuple(OperatorCount((), "forward", aten.mm.default, 1, c) for c in counts)
        report = compute_energy_of(CountReport(operators, (), {}, ()))
        assert "MACs and ACs of no operator were counted" in report.warnings[0]


def test_counts_that_are_made_cannot_leave_out_modules() -> None:
    config = ComputeEnergyConfig(extra_ignore_modules=[nn.BatchNorm2d])
    with pytest.raises(OptionError, match="leave it out, or measure a run"):
        compute_energy_of(report_of(), config)
