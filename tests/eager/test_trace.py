"""The record of a step: exact allocations, a model left alone, and claims that hold."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnfx.eager.step import EagerStep
from snnfx.eager.trace import record_step
from snnfx.errors import CaptureError
from snnfx.neurons import LIFNode
from snnfx.passes.analysis.value_range import ValueRanges, analyse_value_ranges

from tests.eager.steps import (
    LARGE,
    hand_written,
    is_near,
    layer_paths,
    measured_bytes,
    record,
    sew,
)
from tests.models import SpikingMLP, Workload


@pytest.mark.parametrize("make", LARGE)
def test_the_peak_of_the_plain_step_is_the_measured_one(make: Callable[[], Workload]) -> None:
    workload = make()
    step = record(workload)
    assert is_near(step.peak_bytes, measured_bytes(workload), 0.005)
    assert is_near(record(workload, keep_saved=True).peak_bytes, step.peak_bytes, 0.001)


def mean_square(output: Tensor) -> Tensor:
    return output.square().mean()


def measured(model: nn.Module, *inputs: Tensor, loss: Any = mean_square) -> int:
    return measured_bytes(Workload(model, inputs, loss, (), lambda: None))


class Positions(nn.Module):
    """A parameter as large as an activation, whose gradient is an activation's, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.position = nn.Parameter(torch.randn(512, 64))
        self.shift = nn.Parameter(torch.randn(512, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x) + self.position + self.shift))


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(256, 256), nn.Linear(256, 256)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu_(self.first(x)))


@pytest.mark.parametrize(
    ("make", "rows"),
    [(lambda: nn.Linear(64, 64), 1), (Positions, 512), (Tied, 128), (Tied, 2048)],
    ids=["gradients", "shared-gradient", "tied-weights", "tied-activations"],
)
def test_gradients_of_parameters_count_nothing(make: Callable[[], nn.Module], rows: int) -> None:
    model = make()
    x = torch.randn(rows, next(model.parameters()).shape[1])
    step = record_step(model, (x,), mean_square)
    assert is_near(step.peak_bytes, measured(model, x), 0.005, 64)


def test_lower_precision_under_autocast_is_recorded() -> None:
    workload = hand_written()
    with torch.autocast("cpu", torch.bfloat16):
        step = record(workload)
        found = measured_bytes(workload)
    assert is_near(step.peak_bytes, found, 0.02)
    assert found < 0.9 * record(workload).peak_bytes


def test_a_model_on_the_meta_device_is_recorded_as_on_the_cpu() -> None:
    real = hand_written()
    outside = copy.deepcopy(real.model).to("meta")
    step = record_step(outside, (real.inputs[0].to("meta"),))
    expected = record_step(real.model, real.inputs)
    assert step.peak_bytes == expected.peak_bytes
    assert step.events == expected.events


class Counting(nn.Module):
    """Counts its calls, draws random numbers in three ways, and reaches itself in a function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.node = LIFNode(step_mode="s")
        self.calls: list[int] = []
        self.register_buffer("steps", torch.zeros(()))
        self.last: Tensor | None = None
        self.hidden = lambda x: self.remember(x)

    def remember(self, x: Tensor) -> Tensor:
        self.last = x
        return x * self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        scale = 0.5 if random.random() < 2 else torch.rand(())
        return self.hidden(self.node(self.dropout(self.norm(self.layer(x))))) * scale


def test_the_model_its_state_and_random_numbers_are_left_alone() -> None:
    model = Counting().eval()
    x = torch.randn(6, 8)
    model(x).sum().backward()
    before = copy.deepcopy(model.state_dict())
    objects = dict(vars(model))
    state, gradient = model.node.v, model.layer.weight.grad
    seeds = torch.get_rng_state(), random.getstate()
    record_step(model, (x,))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(vars(model)[name] is value for name, value in objects.items())
    assert model.node.v is state
    assert model.layer.weight.grad is gradient
    assert not any(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), seeds[0])
    assert random.getstate() == seeds[1]
    assert x.grad is None


def test_a_model_in_evaluation_mode_is_recorded_in_training_mode() -> None:
    model = SpikingMLP(dropout=0.3)
    x = torch.randn(4, 64, 24)
    trained = record_step(model.train(), (x,)).peak_bytes
    assert record_step(model.eval(), (x,)).peak_bytes == trained


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Bilinear(4, 6, 3)
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mixed = self.out(self.mix(x, input2=y))
        return mixed, self.out(mixed)


def test_calls_of_modules_are_told_with_what_they_are_passed() -> None:
    step = record_step(TwoInputs(), (torch.randn(5, 4), torch.randn(5, 6)))
    assert [(call.path, call.index) for call in step.calls] == [
        ("", 0),
        ("mix", 0),
        ("out", 0),
        ("out", 1),
    ]
    root, mix, first, second = step.calls
    assert [tensor.shape for tensor in mix.inputs] == [(5, 4), (5, 6)]
    assert [tensor.node.meta["name"] for tensor in mix.inputs] == ["input 0", "input 1"]
    assert (mix.inputs[0].bytes, mix.inputs[0].numel) == (80, 20)
    assert first.outputs[0] is second.inputs[0].node
    assert mix.outputs[0] is first.inputs[0].node
    assert root.outputs == (*first.outputs, *second.outputs)
    assert root.seconds == pytest.approx(sum(c.seconds for c in step.calls[1:]))
    assert step.calls_of("out") == (first, second)
    step.graph.lint()


def input_grids(step: EagerStep, paths: list[str]) -> Iterator[Any]:
    ranges: ValueRanges = analyse_value_ranges(step.graph)
    return (ranges.grid(call.inputs[0].node) for path in paths for call in step.calls_of(path))


@pytest.mark.parametrize("make", [LARGE[0], LARGE[-1]])
def test_inputs_of_the_layers_of_a_vgg_are_proven_binary(make: Callable[[], Workload]) -> None:
    workload = make()
    first, *others = input_grids(record(workload), layer_paths(workload))
    assert first is None
    assert {(grid.scale, grid.lo, grid.hi) for grid in others} == {(1, 0, 1)}
    assert len(others) == 7


def test_sums_of_spikes_are_proven_to_be_small_numbers() -> None:
    workload = sew()
    paths = layer_paths(workload)
    grids = dict(zip(paths, input_grids(record(workload), paths), strict=True))
    assert (grids["stages.0.second"].scale, grids["stages.0.second"].hi) == (1, 1)
    assert (grids["stages.1.first"].scale, grids["stages.1.first"].hi) == (1, 2)


class Probed(nn.Module):
    """Passes what `program` makes of the input to modules that do nothing."""

    def __init__(self, program: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.program = program
        self.weight = nn.Parameter(torch.ones(()))
        self.probes = nn.ModuleList(nn.Identity() for _ in range(40))

    def forward(self, x: Tensor) -> Tensor:
        values = self.program(x)
        for probe, value in zip(self.probes, values, strict=False):
            probe(value)
        return self.weight * x


def probed(program: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[tuple[Any, Tensor]]:
    """What is claimed of each value that the program returns, and what it is."""
    model = Probed(program)
    step = record_step(model, (x,))
    values: list[Tensor] = []
    for probe in model.probes:
        probe.register_forward_pre_hook(lambda _, args: values.append(args[0].detach().clone()))
    model(x)
    paths = [f"probes.{index}" for index in range(len(values))]
    return list(zip(input_grids(step, paths), values, strict=True))


def spikes_of(x: Tensor) -> Tensor:
    return (x >= 0).to(x.dtype)


def in_place(x: Tensor) -> list[Tensor]:
    spikes = spikes_of(x)
    return [spikes, spikes.mul_(0.3)]


def in_place_through_data(x: Tensor) -> list[Tensor]:
    spikes = spikes_of(x)
    spikes.data.add_(0.25)
    return [spikes]


def in_place_through_a_view(x: Tensor) -> list[Tensor]:
    spikes = spikes_of(x)
    spikes[1:].view(-1)[0] = 7.0
    return [spikes, spikes.t()]


def another_memory(x: Tensor) -> list[Tensor]:
    spikes = spikes_of(x)
    spikes.data = x * 2
    return [spikes]


def running_statistics(x: Tensor) -> list[Tensor]:
    mean, variance = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    F.batch_norm(x, mean, variance, training=True)
    return [mean, mean[1:], variance]


@pytest.mark.parametrize(
    "program",
    [in_place, in_place_through_data, in_place_through_a_view, another_memory, running_statistics],
)
def test_nothing_is_claimed_of_what_was_written(
    program: Callable[[Tensor], list[Tensor]],
) -> None:
    for grid, value in probed(program, torch.randn(4, 5)):
        assert not is_within(Claim(1, 0, 1), value)
        assert grid is None


class Claim:
    def __init__(self, scale: float, lo: int, hi: int) -> None:
        self.scale, self.lo, self.hi = scale, lo, hi


def is_within(claim: Any, value: Tensor) -> bool:
    codes = value.double() / float(claim.scale)
    return bool(((codes == codes.round()) & (codes >= claim.lo) & (codes <= claim.hi)).all())


def copy_rows(a: Tensor, b: Tensor) -> None:
    a.data[1:].copy_(b[1:])


ACTIONS: dict[str, Callable[[Tensor, Tensor], Tensor | None]] = {
    "spike": lambda a, b: spikes_of(a - 0.5),
    "sum": lambda a, b: a + b,
    "product": lambda a, b: a * b,
    "view": lambda a, b: a.t().t(),
    "row": lambda a, b: a[:1].expand(4, 4),
    "half": lambda a, b: torch.cat([a[:2], b[2:]]),
    "detach": lambda a, b: a.detach(),
    "data": lambda a, b: a.data,
    "add_": lambda a, b: None if a._is_view() else a.add_(b),
    "fill_": lambda a, b: a.detach().fill_(0.5),
    "copy_": lambda a, b: copy_rows(a, b),
    "zero_": lambda a, b: a.data.zero_(),
}
STEP = st.tuples(st.sampled_from(sorted(ACTIONS)), st.integers(0, 20), st.integers(0, 20))


@settings(max_examples=60)
@given(st.lists(STEP, min_size=1, max_size=12))
def test_claims_hold_whatever_is_written(steps: list[tuple[str, int, int]]) -> None:
    def program(x: Tensor) -> list[Tensor]:
        values = [x.clone(), spikes_of(x), torch.zeros(4, 4)]
        for name, first, second in steps:
            a, b = values[first % len(values)], values[second % len(values)]
            # In place on memory that overlaps itself is an error.
            a = a.clone() if name.endswith("_") and 0 in a.stride() else a
            made = ACTIONS[name](a, b.clone() if name.endswith("_") else b)
            values += [] if made is None else [made]
        return values

    for grid, value in probed(program, torch.randn(4, 4)):
        assert grid is None or is_within(grid, value)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Exporting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.detach().numpy().mean())


@pytest.mark.parametrize("part", [Branch, Exporting])
def test_a_decision_on_values_is_refused_with_its_module(part: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), part()))
    with pytest.raises(CaptureError, match=rf"stopped in module '1\.1' \({part.__name__}\)") as e:
        record_step(model, (torch.randn(2, 4),))
    assert e.value.__cause__ is not None
    assert "torch.where" in str(e.value)


def test_a_wrong_shape_is_reported_with_its_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4))
    with pytest.raises(CaptureError, match=r"in module '1' \(Linear\).*must have same reduction"):
        record_step(model, (torch.randn(2, 4),))


def test_a_model_with_nothing_to_train_is_refused() -> None:
    model = nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(CaptureError, match="nothing to train"):
        record_step(model, (torch.randn(2, 3),))


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(3, 3)
    model.lock = threading.Lock()
    with pytest.raises(CaptureError, match=r"cannot be copied.*cannot pickle.*deepcopy"):
        record_step(model, (torch.randn(2, 3),))


def test_state_from_an_earlier_step_is_taken_along() -> None:
    model = nn.Sequential(nn.Linear(64, 64), LIFNode(step_mode="m"), nn.Linear(64, 8))
    x = torch.randn(4, 256, 64)
    model(x)
    expected = record_step(model, (x,), mean_square)
    model[1].v = model[1].v.detach()
    assert record_step(model, (x,), mean_square).peak_bytes == expected.peak_bytes
