"""NeuroMC: equal to SpikingJelly 2.0.0, or to it with one documented fault taken out."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter import neuromc as peer
from torch import Tensor, nn

from snnfx.op_counter import neuromc
from snnfx.op_counter.neuromc.config import INSTANCES

from tests.op_counter.neuromc_cases import (
    PEER_PROFILER,
    MakeOptimizer,
    Run,
    conv1d_net,
    conv_net,
    differing,
    images,
    linear_net,
    multi_step_net,
)

# The peer's hooks on modules whose input needs no gradient.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")

VECTORS = torch.rand(4, 6, generator=torch.Generator().manual_seed(2))
SIGNALS = torch.rand(3, 2, 7, generator=torch.Generator().manual_seed(3))

FORWARDS = {
    "values": Run(conv_net, images(2)),
    "spikes": Run(conv_net, images(2, spikes=True)),
    "linear": Run(linear_net, VECTORS),
    "conv1d": Run(conv1d_net, SIGNALS),
    "multi-step": Run(multi_step_net, images(3, 2)),
    "multi-step spikes": Run(multi_step_net, images(3, 2, spikes=True)),
}


@pytest.mark.parametrize("run", FORWARDS.values(), ids=FORWARDS.keys())
def test_a_forward_costs_what_it_costs_in_spikingjelly(run: Run) -> None:
    assert differing(run.ours(strict=True), run.theirs()) == []


@pytest.mark.parametrize(
    "run",
    [
        Run(conv_net, images(2), train=True),
        Run(conv_net, images(2, spikes=True), train=True),
        Run(conv1d_net, SIGNALS, train=True),
    ],
    ids=["values", "spikes", "conv1d"],
)
def test_a_backward_costs_what_it_costs_in_spikingjelly(run: Run) -> None:
    assert differing(run.ours(strict=True), run.theirs()) == []


def stepped(make: MakeOptimizer) -> MakeOptimizer:
    """An optimizer that has made one step already."""

    def build(parameters: Any) -> torch.optim.Optimizer:
        parameters = list(parameters)
        optimizer = make(parameters)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return optimizer

    return build


def mixed_groups(parameters: Any) -> torch.optim.Optimizer:
    first, *others = parameters
    groups = [{"params": [first], "momentum": 0.9}, {"params": others, "weight_decay": 0.1}]
    return torch.optim.SGD(groups, lr=0.1)


SGD = {
    "plain": lambda p: torch.optim.SGD(p, 0.1),
    "decay": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1),
    "first with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "momentum": stepped(lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1)),
    "groups": stepped(mixed_groups),
}


@pytest.mark.parametrize("make", SGD.values(), ids=SGD.keys())
def test_a_step_of_sgd_costs_what_it_costs_in_spikingjelly(make: MakeOptimizer) -> None:
    run = Run(conv_net, images(2), train=True, optimizer=make)
    assert differing(run.ours(strict=True), run.theirs()) == []


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_step_of_adam_over_weights_costs_what_it_costs_in_spikingjelly(kind: Any) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), neuron.IFNode(), nn.Flatten())

    run = Run(make, images(2), train=True, optimizer=kind)
    assert differing(run.ours(strict=True), run.theirs()) == []


def test_adam_counts_each_scale_and_shift_once() -> None:
    """The peer's formula for K scales and K shifts has K in it, not their sum of 2 K."""
    scales, weights = 4, 72
    theirs = PEER_PROFILER()
    work = theirs._make_optimizer_fragment(stage="s", op_name="adam", kt=scales, fyfxkc=weights)
    bits, energy = theirs._extra_memory_for_fragment(work)

    def make() -> nn.Module:
        conv = nn.Conv2d(2, scales, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(scales), neuron.IFNode(v_threshold=0.1))

    ours = Run(make, images(2), train=True, optimizer=torch.optim.Adam).ours()
    without = Run(make, images(2), train=True).ours()
    assert ours.primitive_counts["by_op"]["adam"] == theirs._extra_counts(work)
    for level, directions in bits.items():
        for direction, count in directions.items():
            counted = ours.memory_bits_by_level["by_level_dir"][level][direction]
            before = without.memory_bits_by_level["by_level_dir"][level].get(direction, 0)
            assert counted - before == count
    extra = ours.energy_extra_memory_pj - without.energy_extra_memory_pj
    assert extra == pytest.approx(sum(sum(row.values()) for row in energy.values()))


@pytest.mark.parametrize("zero", ["dram", "noc", "sram"])
def test_own_memories_and_flags_cost_what_they_cost_in_spikingjelly(zero: str) -> None:
    flags = {
        "zero_dram_in_paper_energy": zero == "dram",
        "zero_noc_in_paper_energy": zero == "noc",
        "zero_sram_high_directions": zero == "sram",
    }

    def config(module: ModuleType) -> Any:
        spec = module.MemoryInstanceSpec("sram_2MB", 1 << 24, 16, 128, 64, 30.0, 40.0)
        register = module.MemoryInstanceSpec("reg_16b", 16, 16, 8, 16, 0.25, 0.5)
        own = module.MemoryHierarchyConfig(**flags)
        own.memory_instances.update({"sram_2MB": spec, "reg_16b": register})
        return own

    run = Run(conv_net, images(2), train=True, optimizer=SGD["momentum"], config=config)
    assert differing(run.ours(), run.theirs()) == []
    assert run.ours().energy_total_pj != Run(conv_net, images(2), train=True).ours().energy_total_pj


def test_the_memories_are_those_of_spikingjelly() -> None:
    theirs = peer.MemoryHierarchyConfig().memory_instances
    assert list(INSTANCES) == list(theirs)
    for name, spec in INSTANCES.items():
        for quantity, value in vars(spec).items():
            other = getattr(theirs[name], quantity)
            assert value == (pytest.approx(other) if isinstance(value, float) else other)


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_stages_of_the_user_mean_what_they_mean_in_spikingjelly(reuse: bool, norms: bool) -> None:
    reports = []
    for module in (neuromc, peer):
        torch.manual_seed(0)
        model, profiler, x = conv_net(), module.NeuroMCEnergyProfiler(), images(2)
        profiler.bind_model(model)
        with profiler:
            with profiler.stage("first", reuse_weights=reuse):
                output = model(x)
            with profiler.suspend():
                loss = F.mse_loss(output, torch.zeros_like(output))
            with profiler.stage("back", phase="backward", batch_norm_backward=norms):
                loss.backward()
            functional.reset_net(model)
            with torch.no_grad():
                model(x)
        reports.append(profiler.get_report())
    assert set(reports[0].energy_by_stage) == {"first", "back", "unlabeled"}
    assert differing(*reports) == []


def without_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the operators that a layer has counted out of the peer's count."""
    monkeypatch.setattr(PEER_PROFILER, "_fallback_fragments_from_trace", lambda *_, **__: [])
    monkeypatch.setattr(PEER_PROFILER, "_unsupported_ops", lambda _: [])


@pytest.mark.parametrize(
    "run",
    [
        Run(linear_net, VECTORS, train=True),
        Run(linear_net, (VECTORS > 0.5).float(), train=True, optimizer=SGD["plain"]),
        Run(multi_step_net, images(3, 2), train=True),
        Run(multi_step_net, images(3, 2, spikes=True), train=True, optimizer=SGD["momentum"]),
    ],
    ids=["values", "spikes", "multi-step", "multi-step spikes"],
)
def test_products_of_linear_backwards_are_counted_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_operators(monkeypatch)
    assert differing(run.ours(strict=True), run.theirs()) == []


def test_spikingjelly_counts_products_of_linear_backwards_twice() -> None:
    run = Run(linear_net, VECTORS, train=True)
    ours, theirs = run.ours().primitive_counts, run.theirs().primitive_counts
    backward = 4 * (6 * 20 + 2 * 20 * 3)  # no gradient of the net's input
    assert ours["totals"]["mac"] == 4 * (6 * 20 + 20 * 3) + backward
    assert theirs["totals"]["mac"] == ours["totals"]["mac"] + backward


class Functional(nn.Module):
    """Products with parameters, outside of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 16))
        self.second = nn.Parameter(torch.randn(16, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first @ self.second


class FunctionalConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(F.conv2d(x, self.weight, padding=1), None, None, training=True)


@pytest.mark.parametrize(
    "run",
    [
        Run(Functional, VECTORS),
        Run(Functional, (VECTORS > 0.5).float()),
        Run(FunctionalConvolution, images(2)),
        Run(FunctionalConvolution, images(2, spikes=True)),
        Run(Functional, VECTORS, train=True),
    ],
)
def test_functional_operators_cost_what_they_cost_in_spikingjelly(run: Run) -> None:
    """Loops C and K of gradients of inputs, and who told of a normalisation, are labels here."""
    places = differing(run.ours(), run.theirs())
    assert [p for p in places if not p.startswith("mapping_summary")] == []
    labels = {"loop_dims/C", "loop_dims/K", "source"}
    assert {p.split("]/")[1].split(":")[0] for p in places} <= labels


def test_grouped_convolutions_multiply_within_their_group() -> None:
    def make(groups: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3, groups=groups, bias=False))

    grouped = Run(lambda: make(2), images(2), train=True)
    ours, theirs = grouped.ours(), grouped.theirs()
    assert theirs.primitive_counts["totals"]["mac"] == 2 * ours.primitive_counts["totals"]["mac"]
    whole = Run(lambda: make(1), images(2), train=True)
    assert differing(whole.ours(), whole.theirs()) == []


def test_an_operator_that_looks_like_a_layer_is_counted_beside_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer.Linear(6, 6, bias=False)
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.layer(x), self.weight)

    run, macs = Run(Twice, VECTORS, train=True), 4 * 6 * 6
    assert run.ours().primitive_counts["totals"]["mac"] == 5 * macs
    assert Run(Twice, VECTORS).theirs().primitive_counts["totals"]["mac"] == macs
