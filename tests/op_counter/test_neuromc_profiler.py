"""NeuroMC's profiler: what it refuses, what it warns of, and what it leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import layer as peer_layer
from spikingjelly.activation_based import neuron as peer_neuron
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snnfx.errors import OptionError, ProfilerError, UncountedError
from snnfx.neurons import IFNode, LIFNode, reset_net
from snnfx.op_counter.neuromc import (
    MemoryHierarchyConfig,
    NeuroMCEnergyProfiler,
    NeuroMCRuntimeEnergyReport,
    estimate_neuromc_runtime_energy,
)

from tests.op_counter.neuromc_cases import differing

VECTORS = torch.rand(4, 6, generator=torch.Generator().manual_seed(2))
TARGET = torch.zeros(4, 3)


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), LIFNode(v_threshold=0.1), nn.Linear(5, 3))


def trained(model: nn.Module, **options: Any) -> NeuroMCRuntimeEnergyReport:
    return estimate_neuromc_runtime_energy(
        model, VECTORS, loss_fn=F.mse_loss, target=TARGET, **options
    )


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_our_neurons_cost_what_those_of_spikingjelly_cost(step_mode: str) -> None:
    reports = []
    for kinds in ((LIFNode, IFNode), (peer_neuron.LIFNode, peer_neuron.IFNode)):
        torch.manual_seed(0)
        model = nn.Sequential(
            peer_layer.Linear(6, 5, step_mode=step_mode),
            kinds[0](v_threshold=0.1, step_mode=step_mode),
            peer_layer.Linear(5, 4, step_mode=step_mode),
            kinds[1](v_threshold=0.1, step_mode=step_mode),
        )
        x = VECTORS if step_mode == "s" else VECTORS.view(2, 2, 6)
        target = torch.zeros(*x.shape[:-1], 4)
        reports.append(
            estimate_neuromc_runtime_energy(
                model, x, loss_fn=F.mse_loss, target=target, strict=True
            )
        )
    assert [d for d in differing(*reports) if "core_type" not in d] == []
    assert reports[0].counts_by_process_key["with_sg"]["fragments"] == 4


def test_neurons_of_snntorch_are_somas() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.leaky = nn.Linear(6, 3), snntorch.Leaky(beta=0.9, threshold=0.1)

        def forward(self, x: Tensor) -> Tensor:
            state, outputs = self.leaky.init_leaky(), []
            for _ in range(3):
                spikes, state = self.leaky(self.linear(x), state)
                outputs.append(spikes)
            return torch.stack(outputs).mean(0)

    report = trained(Net())
    assert report.counts_by_process_key["with_sg"]["fragments"] == 6
    assert report.primitive_counts["by_op"]["soma.forward"]["mux"] == 3 * 4 * 3
    assert report.counts_by_process_key["with_nothing"]["mac"] == 3 * 2 * (4 * 6 * 3)


def test_a_layer_that_is_called_again_has_a_backward_for_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            spikes = (x > 0.5).float()
            return self.linear(spikes) + self.linear(x)

    model = Twice()
    report = estimate_neuromc_runtime_energy(
        model, VECTORS, loss_fn=F.mse_loss, target=VECTORS, strict=True
    )
    assert {core: counts["fragments"] for core, counts in report.counts_by_core_type.items()} == {
        "fp_soma": 1,
        "ann_fe": 1,
        "wg": 1,
        "ann_we": 1,
    }


def test_recomputation_of_a_forward_is_not_counted() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: Tensor) -> Any:
            return checkpoint(self.inner, x, use_reentrant=False)

    model = Checkpointed()
    report = trained(model)
    reset_net(model)
    plain = trained(model.inner)
    assert report.energy_by_op == pytest.approx(plain.energy_by_op)


def test_operations_in_place_after_a_layer_run() -> None:
    model = nn.Sequential(nn.Linear(6, 3), nn.ReLU(inplace=True))
    assert trained(model).counts_by_process_key["with_nothing"]["fragments"] == 2


def test_a_model_without_neurons_is_counted() -> None:
    report = estimate_neuromc_runtime_energy(nn.Sequential(nn.Linear(6, 3)), VECTORS)
    assert set(report.energy_by_process_key) == {"with_nothing"}
    assert report.warnings == []


def test_operators_outside_of_the_model_are_named_or_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.GELU(), nn.Linear(8, 3))
    report = trained(model)
    rest = trained(nn.Sequential(model[0], model[3]))
    (warning,) = report.warnings
    assert "aten.gelu.default (calls=2)" in warning
    assert "aten.gelu_backward.default (calls=2)" in warning
    assert report.energy_total_pj == pytest.approx(rest.energy_total_pj)
    with pytest.raises(UncountedError, match=r"aten\.gelu\.default \(calls=2\)"):
        trained(model, strict=True)


def test_pools_between_layers_are_outside_of_the_model_forward_and_backward() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), IFNode(v_threshold=0.1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 3)
    )
    x = torch.rand(4, 1, 4, 4)
    report = estimate_neuromc_runtime_energy(model, x, loss_fn=F.cross_entropy, target=TARGET)
    assert report.warnings == [
        "outside of the NeuroMC model and left out: aten.max_pool2d_with_indices.default (calls=1)"
        ", aten.max_pool2d_with_indices_backward.default (calls=1)"
    ]


def test_convolutions_in_3d_are_outside_of_the_model() -> None:
    model = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Conv3d(2, 1, 1))
    x = torch.rand(1, 1, 3, 3, 3)
    report = estimate_neuromc_runtime_energy(model, x)
    assert report.energy_total_pj == 0
    assert "aten.convolution.default (calls=2)" in report.warnings[0]
    with pytest.raises(UncountedError, match="convolution"):
        estimate_neuromc_runtime_energy(model, x, strict=True)


@pytest.mark.parametrize(
    ("make", "named", "kind"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True), "nesterov", "sgd"),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5), "dampening", "sgd"),
        (lambda p: torch.optim.SGD(p, 0.1, maximize=True), "maximize", "sgd"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad", "adam"),
        (lambda p: torch.optim.RMSprop(p), "RMSprop", None),
    ],
)
def test_optimizers_outside_of_the_model_are_named_or_refused(
    make: Any, named: str, kind: str | None
) -> None:
    model = small()
    report = trained(model, optimizer=make(model.parameters()))
    assert any(named in warning for warning in report.warnings)
    assert ("optimizer" in report.energy_by_stage) == (kind is not None)
    assert {"sgd", "adam"} & set(report.energy_by_op) == ({kind} if kind else set())
    with pytest.raises(OptionError, match=named):
        trained(small(), optimizer=make(model.parameters()), strict=True)


def test_a_step_is_counted_and_not_made() -> None:
    model = small()
    before = [parameter.clone() for parameter in model.parameters()]
    gradients = [torch.ones_like(parameter) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    report = trained(model, optimizer=optimizer)
    assert report.energy_by_stage["optimizer"] > 0
    assert not optimizer.state
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is gradient


def test_an_exception_inside_leaves_nothing_behind() -> None:
    model, profiler = small(), NeuroMCEnergyProfiler()
    profiler.bind_model(model)
    model.register_forward_hook(lambda *_: 1 // 0)
    before = hooks(model)
    with pytest.raises(ZeroDivisionError), profiler, profiler.stage("forward"), profiler.suspend():
        model(VECTORS)
    model._forward_hooks.clear()
    assert hooks(model) == before - 1 == 0
    with pytest.raises(ProfilerError, match="enter the profiler first"):
        profiler.stage("forward").__enter__()
    profiler.bind_model(model)
    with profiler, profiler.stage("again"):
        model(VECTORS)
    assert set(profiler.get_report().energy_by_stage) == {"again"}


def test_each_run_begins_from_nothing() -> None:
    model, profiler, totals = small(), NeuroMCEnergyProfiler(), []
    for _ in range(2):
        profiler.bind_model(model)
        with profiler, torch.no_grad():
            model[0](VECTORS)
        totals.append(profiler.get_total())
    assert totals[0] == totals[1] > 0


def test_a_backward_after_the_run_is_not_counted() -> None:
    model, profiler = small(), NeuroMCEnergyProfiler()
    profiler.bind_model(model)
    with profiler:
        output = model(VECTORS)
    before = profiler.get_total()
    output.sum().backward()
    assert profiler.get_total() == before


def test_the_order_of_use_is_held() -> None:
    model, profiler = small(), NeuroMCEnergyProfiler()
    with pytest.raises(ProfilerError, match="bind_model"):
        profiler.__enter__()
    with pytest.raises(ProfilerError, match="bind_optimizer"):
        profiler.record_optimizer_step()
    profiler.bind_model(model)
    profiler.bind_model(model)
    with pytest.raises(ProfilerError, match="another model"):
        profiler.bind_model(small())
    with profiler:
        with pytest.raises(ProfilerError, match="entered already"):
            profiler.__enter__()
        with profiler.stage("a"), pytest.raises(ProfilerError, match="do not nest"):
            profiler.stage("b").__enter__()
        with pytest.raises(OptionError, match="phase"):
            profiler.stage("c", phase="sideways").__enter__()
        with pytest.raises(OptionError, match="used before"):
            profiler.stage("a", reuse_weights=True).__enter__()


def test_ignored_modules_are_left_out() -> None:
    model = small()
    everything = estimate_neuromc_runtime_energy(model, VECTORS)
    one = estimate_neuromc_runtime_energy(model, VECTORS, extra_ignore_modules=[model[0]])
    none = estimate_neuromc_runtime_energy(model, VECTORS, extra_ignore_modules=[nn.Linear])
    counted = [r.counts_by_process_key.get("with_nothing", {}) for r in (everything, one, none)]
    assert [counts.get("fragments", 0) for counts in counted] == [2, 1, 0]


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(OptionError, match="core_type"):
        NeuroMCEnergyProfiler(core_type="gpu")
    with pytest.raises(OptionError, match="target"):
        estimate_neuromc_runtime_energy(small(), VECTORS, loss_fn=F.mse_loss)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(OptionError, match="loss_fn"):
        estimate_neuromc_runtime_energy(model, VECTORS, optimizer=optimizer)
    with pytest.raises(OptionError, match="lacks"):
        NeuroMCEnergyProfiler(memory_config=MemoryHierarchyConfig(memory_instances={}))


def test_arguments_that_are_ignored_are_named() -> None:
    report = estimate_neuromc_runtime_energy(small(), VECTORS, memory_model="weighted")
    assert report.warnings == ["memory_model is ignored"]


def test_nothing_that_is_known_is_said() -> None:
    report = estimate_neuromc_runtime_energy(nn.Flatten(), VECTORS)
    assert report.energy_total_pj == 0
    assert report.warnings == ["nothing ran that the NeuroMC model knows"]


def test_inputs_may_be_positional_or_named() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.linear(x + y)

    model = Sum()
    named = estimate_neuromc_runtime_energy(model, {"x": VECTORS, "y": VECTORS})
    assert named == estimate_neuromc_runtime_energy(model, (VECTORS, VECTORS))


def test_the_summary_and_the_counts_say_what_the_report_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, profiler = small(), NeuroMCEnergyProfiler(core_type="wg", verbose=True)
    profiler.bind_model(model)
    with profiler, profiler.stage("inference"):
        model(VECTORS)
    report, printed = profiler.get_report(), capsys.readouterr().out
    assert printed.count("inference") == 3
    assert f"{report.energy_total_pj:.6g} pJ" in report.summary()
    assert "inference" in report.summary()
    assert report.primitive_counts["core_type"] == "wg"
    assert profiler.get_counts()["primitive_counts"] == report.primitive_counts
    assert sum(report.energy_by_op.values()) == pytest.approx(report.energy_total_pj)
    assert sum(report.energy_by_process_key.values()) == pytest.approx(profiler.get_total())
