"""Predicted peaks with containers, against the same containers run on real tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnfx.eager.replay import Segment, predict
from snnfx.eager.trace import record_step
from snnfx.errors import PlanError

from tests.eager.steps import (
    LARGE,
    Wrap,
    binary_segments,
    hand_written,
    in_container,
    in_torch_checkpoint,
    is_near,
    layer_paths,
    measured_bytes,
    record,
    vgg,
    wrap_segments,
)
from tests.models import Workload


@pytest.mark.parametrize("make", LARGE)
def test_containers_with_packed_inputs_need_what_is_predicted(make: Callable[[], Workload]) -> None:
    workload = make()
    step = record(workload)
    segments = binary_segments(step, layer_paths(workload))
    packed = {segment.packed_bits for segment in segments.values()}
    predicted = predict(step, segments)
    wrap_segments(workload.model, segments, in_container)
    measured = measured_bytes(workload)
    assert is_near(predicted.peak_bytes, measured, 0.02)
    if make is not hand_written:  # its neurons alone are wrapped, and they are fed with floats
        assert 1 in packed
        assert measured < 0.8 * step.peak_bytes


@pytest.mark.parametrize(("wrap", "error"), [(in_container, 0.01), (in_torch_checkpoint, 0.05)])
@pytest.mark.parametrize("make", [vgg, hand_written])
def test_containers_that_keep_inputs_need_what_is_predicted(
    make: Callable[[], Workload], wrap: Wrap, error: float
) -> None:
    workload = make()
    step = record(workload)
    segments = {path: Segment(path) for path in layer_paths(workload)}
    predicted = predict(step, segments)
    wrap_segments(workload.model, segments, wrap)
    assert is_near(predicted.peak_bytes, measured_bytes(workload), error)


@pytest.mark.parametrize("make", LARGE)
def test_a_record_of_the_containers_agrees_with_the_replay(make: Callable[[], Workload]) -> None:
    workload = make()
    step = record(workload)
    segments = binary_segments(step, layer_paths(workload)[::2])
    predicted = predict(step, segments)
    wrap_segments(workload.model, segments, in_container)
    recorded = record(workload, keep_saved=True)
    assert is_near(predicted.peak_bytes, recorded.peak_bytes, 0.02)
    # The record has packing and unpacking in it, which take their time.
    ratio = predict(recorded, {}).seconds / predicted.seconds
    assert 0.99 < ratio < 1.1


class Gate(nn.Module):
    """Saves something that it drops at once, saves its input, and works in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        torch.exp(x)
        gate = self.inner(x)
        gate.add_(1.0)
        return x * torch.sigmoid(gate)


WIDTH = 64
KINDS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(WIDTH, WIDTH),
    nn.Tanh,
    lambda: nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH)),
    lambda: nn.BatchNorm1d(WIDTH),
    lambda: nn.Dropout(0.3),
    lambda: Gate(WIDTH),
    nn.Identity,
]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, len(KINDS) - 1), st.booleans()), min_size=1, max_size=6))
def test_any_set_of_containers_needs_what_is_predicted(layers: list[tuple[int, bool]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), *(KINDS[kind]() for kind, _ in layers))
    segments = {str(i + 1): Segment(str(i + 1)) for i, (_, chosen) in enumerate(layers) if chosen}
    x = torch.randn(1024, WIDTH)
    workload = Workload(model, (x,), lambda output: output.square().mean(), (), lambda: None)
    predicted = predict(record(workload), segments)
    wrap_segments(model, segments, in_container)
    # Small tensors that containers make: random states, statistics, tokens.
    measured = measured_bytes(workload)
    assert is_near(predicted.peak_bytes, measured, 0.01, 32 * 1024)


def test_recomputation_takes_the_time_of_the_layers_forward_at_most() -> None:
    workload = vgg()
    step = record(workload)
    plain = predict(step, {})
    for path in layer_paths(workload):
        (call,) = step.calls_of(path)
        extra = predict(step, {path: Segment(path)}).seconds - plain.seconds
        assert 0.5 * call.seconds < extra <= call.seconds * (1 + 1e-9)


def test_the_place_of_the_peak_is_told() -> None:
    workload = vgg()
    step = record(workload)
    paths = layer_paths(workload)
    plain = predict(step, {})
    assert max(plain.timeline) == plain.peak_bytes == step.peak_bytes
    assert plain.phase in ("forward", "backward")
    assert plain.path.startswith(paths[-1])
    wrapped = predict(step, {path: Segment(path) for path in paths})
    assert wrapped.phase == "recompute"
    assert wrapped.path in paths[:3]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x) + x)


def test_a_module_that_is_called_twice_is_computed_again_twice() -> None:
    model, x = Twice(), torch.randn(2048, WIDTH)
    workload = Workload(model, (x,), lambda output: output.square().mean(), (), lambda: None)
    step = record(workload)
    predicted = predict(step, {"layer": Segment("layer")})
    both = sum(call.seconds for call in step.calls_of("layer"))
    assert 0.5 * both < predicted.seconds - predict(step, {}).seconds <= both
    wrap_segments(model, {"layer": Segment("layer")}, in_container)
    assert is_near(predicted.peak_bytes, measured_bytes(workload), 0.01, 32 * 1024)


def test_a_segment_that_saves_nothing_keeps_nothing() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Identity(), nn.Linear(WIDTH, WIDTH))
    step = record_step(model, (torch.randn(512, WIDTH),))
    assert predict(step, {"1": Segment("1", 8)}) == predict(step, {})


def test_what_a_frozen_layer_saves_lies_in_no_activation_but_wants_the_layer_again() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())
    model[1].requires_grad_(False)
    x = torch.randn(2048, WIDTH)
    workload = Workload(model, (x,), lambda output: output.square().mean(), (), lambda: None)
    step = record(workload)
    predicted = predict(step, {"1": Segment("1")})
    wrap_segments(model, {"1": Segment("1")}, in_container)
    assert is_near(predicted.peak_bytes, measured_bytes(workload), 0.01, 32 * 1024)
    assert predicted.peak_bytes > step.peak_bytes


def test_segments_that_cannot_be_are_refused() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    step = record_step(model, (torch.randn(3, 4),))
    with pytest.raises(PlanError, match=r"'0\.1' runs inside of segment '0'"):
        predict(step, {"0": Segment("0"), "0.1": Segment("0.1")})
    with pytest.raises(PlanError, match="calls no module '2'; a segment is one of '', '0'"):
        predict(step, {"2": Segment("2")})
    kept = record_step(model, (torch.randn(3, 4),), keep_saved=True)
    with pytest.raises(PlanError, match="recorded with keep_saved=True"):
        predict(kept, {"0": Segment("0")})


class Source(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self) -> Tensor:
        return self.weight.exp()


def test_a_module_without_inputs_has_nothing_to_pack() -> None:
    step = record_step(Source(), ())
    with pytest.raises(PlanError, match="is passed no tensor that could be packed"):
        predict(step, {"": Segment("", 1)})
