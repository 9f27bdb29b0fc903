"""Static counts equal those of a run, and cost the model nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.errors import CaptureError, OptionError, UncountedError
from snnfx.neurons import LIFNode
from snnfx.op_counter import count

from examples.models import build as build_example
from tests.op_counter import nets
from tests.op_counter.counted import counted, totals

aten = torch.ops.aten

EXAMPLES: dict[str, dict[str, Any]] = {
    "vgg8": {"width": 0.06, "size": 16, "steps": 3, "batch": 2},
    "sew_resnet18": {"width": 0.06, "size": 32, "steps": 2, "batch": 2},
    "sew_resnet50": {"width": 0.06, "size": 32, "steps": 2, "batch": 2},
    "spikformer": {"width": 0.25, "size": 8, "steps": 2, "batch": 2},
}


def loss_of(output: Any) -> Tensor:
    return nets.loss_of(output[0] if isinstance(output, tuple) else output)


def static(net: nets.Net, **options: Any) -> Any:
    net.reset()
    torch.manual_seed(7)
    return count(net.model, net.inputs, loss=loss_of, strict=True, **options)


@pytest.mark.parametrize("name", nets.BUILDERS)
def test_a_step_counts_as_in_a_run_in_every_scope(name: str) -> None:
    net = nets.build(name)
    report = static(net, train=True, rates="measured")
    run = counted(net.step)
    for quantity in ("flops", "bytes", "mac", "synops"):
        assert report.records(quantity) == run[quantity]
    # What is silent by accident, such as the first potentials of a neuron, is not proven to be.
    assert (report.records("ac") == run["ac"]) == (not report.warnings)
    assert report.unsupported == {}


@pytest.mark.parametrize("name", ["spikingjelly_vgg", "ours_sew", "snntorch", "norse"])
def test_accumulations_count_as_in_a_run_where_spikes_are_proven(name: str) -> None:
    net = nets.build(name)
    report = static(net, train=True, rates="measured")
    assert report.warnings == ()
    assert report.records("ac") == counted(net.step)["ac"]
    assert report.total("synops") > 0


@pytest.mark.parametrize("name", EXAMPLES)
def test_benchmark_models_count_as_in_a_run(name: str) -> None:
    work = build_example(name, **EXAMPLES[name])
    report = count(work.model, work.inputs, loss=work.loss_fn, train=True, strict=True)

    def step() -> None:
        work.before_step()
        work.loss_fn(work.model(*work.inputs)).backward()

    run = counted(step, ("flops", "bytes"))
    assert report.records("flops") == run["flops"]
    assert report.records("bytes") == run["bytes"]


@pytest.mark.parametrize("mode", ["gradients", "no gradients", "evaluation"])
def test_a_forward_alone_counts_as_in_a_run(mode: str) -> None:
    net = nets.build("spikingjelly_vgg")
    net.model.train(mode != "evaluation")
    with torch.set_grad_enabled(mode == "gradients"):
        report = static(net, rates="measured")
        run = counted(net.forward)
    assert bool(report.warnings) == (mode == "evaluation")  # it is silent at its end: no proof
    for quantity, counts in run.items():
        if quantity != "mac" or not report.warnings:
            assert report.records(quantity) == counts
        assert report.total(quantity, "backward") == 0


@pytest.mark.parametrize("rates", [None, "measured"])
def test_counting_leaves_the_model_as_it_is(rates: str | None) -> None:
    net = nets.build("spikingjelly_vgg")
    net.step()
    net.forward()
    before = copy.deepcopy(net.model.state_dict())
    gradients = {name: p.grad for name, p in net.model.named_parameters()}
    copies = {name: g.clone() for name, g in gradients.items() if g is not None}
    potential = net.model.features[2].v
    random = torch.get_rng_state()
    count(net.model, net.inputs, loss=loss_of, train=True, rates=rates)
    assert all(torch.equal(v, before[k]) for k, v in net.model.state_dict().items())
    assert all(p.grad is gradients[name] for name, p in net.model.named_parameters())
    assert all(torch.equal(gradients[name], g) for name, g in copies.items())
    assert net.model.features[2].v is potential
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_without_memory_is_counted() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**6, 10**6, bias=False), nn.ReLU())
        x = torch.empty(100, 10**6)
    assert count(model, x).total("mac") == 10**14


class Perceptron(nn.Module):
    """A linear layer, a neuron on `[T, N, C]`, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.neuron = LIFNode(step_mode="m")
        self.second = nn.Linear(8, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.neuron.reset()
        return self.second(self.neuron(self.first(x)))


def test_one_rate_counts_for_all_spikes() -> None:
    report = count(Perceptron(), torch.rand(4, 3, 6), rates=0.1)
    (spikes,) = report.spike_tensors
    assert (spikes.name, spikes.numel, spikes.rate) == ("neuron", 4 * 3 * 8, Fraction(1, 10))
    assert report.total("synops") == Fraction(4 * 3 * 8 * 5, 10)
    assert report.total("mac") == 4 * 3 * 6 * 8
    assert isinstance(count(Perceptron(), torch.rand(4, 3, 6), rates=0.5).total("synops"), int)


def test_rates_are_named_by_the_module_that_fires() -> None:
    report = count(Perceptron(), torch.rand(4, 3, 6), rates={"neuron": Fraction(1, 3)})
    assert report.total("synops") == 4 * 3 * 8 * 5 // 3
    with pytest.raises(
        OptionError, match=r"rates names 'first', but the counts depend on .*neuron"
    ):
        count(Perceptron(), torch.rand(4, 3, 6), rates={"first": 0.5})


@pytest.mark.parametrize("rates", [1.5, -0.1, float("nan"), True, "often", {"neuron": "half"}])
def test_what_is_no_rate_is_refused(rates: Any) -> None:
    with pytest.raises(OptionError, match="a firing rate is a number from 0 to 1"):
        count(Perceptron(), torch.rand(4, 3, 6), rates=rates)


def test_inputs_of_zeros_and_ones_count_as_spikes() -> None:
    x = (torch.rand(4, 3, 6) < 0.3).float()
    net = Perceptron()
    report = count(net, x, rates="measured")
    assert report.records("synops") == counted(lambda: net(x))["synops"]
    assert report.spike_tensors[0].name == "input 0"
    assert report.spike_tensors[0].rate == Fraction(int(x.sum()), x.numel())
    assert "input 0 holds only zeros and ones" in report.warnings[0]
    assert count(Perceptron(), x.to("meta")).warnings == ()


def test_a_rate_counts_each_use_of_an_input_of_a_padded_convolution() -> None:
    x = torch.ones(2, 3, 5, 5)
    x[0] = 0
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    dense = totals(counted(lambda: conv(torch.ones(2, 3, 5, 5))))["synops"]
    assert count(conv, x, rates=0.25).total("synops") == Fraction(dense, 4)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool((x > 0).any()) else x


def test_a_model_that_decides_by_values_is_refused_with_the_place() -> None:
    net = nn.Sequential(nn.Identity(), Decides())
    with pytest.raises(CaptureError, match=r"stopped in Sequential\.1: .*torch\.where"):
        count(net, torch.rand(3))


class Wavers(nn.Module):
    """Does something else in each call."""

    def forward(self, x: Tensor) -> Tensor:
        _CALLS.append(1)
        return x.exp() if len(_CALLS) % 2 else x.log()


_CALLS: list[int] = []


def test_a_run_that_goes_another_way_than_the_record_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"called aten.*log.* as operator 0.*exp.*in Wavers"):
        count(Wavers(), torch.rand(3), rates="measured")


def test_a_measured_count_needs_values() -> None:
    with pytest.raises(OptionError, match="must have values"):
        count(nn.Linear(3, 3), torch.empty(2, 3, device="meta"), rates="measured")


def test_a_model_that_has_nothing_to_train_is_refused() -> None:
    with pytest.raises(CaptureError, match="nothing to train"):
        count(nn.Identity(), torch.rand(3), train=True)


def test_rules_of_the_user_win() -> None:
    def rule(args: Any, kwargs: Any, out: Tensor) -> int:
        del args, kwargs
        return 7 * out.numel()

    extra = {"flops": {aten.relu.default: rule}, "ac": {aten.relu.default: rule}}
    report = count(nn.ReLU(), torch.rand(3), extra_rules=extra)
    assert report.total("flops") == report.total("ac") == 21
    with pytest.raises(OptionError, match="rules for 'joules'; quantities are flops"):
        count(nn.ReLU(), torch.rand(3), extra_rules={"joules": {}})


@torch.library.custom_op("snnfx_tests::unheard_of", mutates_args=())
def unheard_of(x: Tensor) -> Tensor:
    return x.clone()


@unheard_of.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Unheard(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return unheard_of(x) + unheard_of(x)


def test_operators_without_a_rule_are_said_or_refused() -> None:
    report = count(Unheard(), torch.rand(3))
    assert {tuple(missed.values()) for missed in report.unsupported.values()} == {(2,)}
    assert set(report.unsupported) == {"flops", "bytes", "mac", "ac", "synops"}
    with pytest.raises(UncountedError, match=r"no rule for snnfx_tests\.unheard_of"):
        count(Unheard(), torch.rand(3), strict=True)


def test_a_model_needs_inputs() -> None:
    with pytest.raises(OptionError, match="needs example_inputs"):
        count(nn.ReLU())


OVERWRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "the tensor": lambda spikes: spikes.mul_(3),
    "a view": lambda spikes: spikes.view(-1).add_(1),
    "a slice": lambda spikes: spikes[0].fill_(0.5),
}


class Overwrites(nn.Module):
    """Spikes that are overwritten before they reach a linear layer."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.linear = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        spikes = (x > 0.5).float()
        self.write(spikes)
        return self.linear(spikes)


@pytest.mark.parametrize("how", OVERWRITES)
def test_what_is_overwritten_is_not_taken_for_spikes(how: str) -> None:
    report = count(Overwrites(OVERWRITES[how]), torch.rand(5, 6))
    assert (report.total("synops"), report.total("mac")) == (0, 5 * 6 * 4)
    spiking = count(Overwrites(lambda spikes: spikes), torch.rand(5, 6), rates=1)
    assert (spiking.total("synops"), spiking.total("mac")) == (5 * 6 * 4, 0)
