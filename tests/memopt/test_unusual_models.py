"""Models that cannot be recorded, that share or nest modules, or that have containers already."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.checkpointing import GCContainer, TCGCContainer
from snnfx.compressors import BitSpikeCompressor, NullSpikeCompressor
from snnfx.errors import SnnfxWarning
from snnfx.memopt import MemOptSummary, memory_optimization
from snnfx.neurons import LIFNode

from tests.memopt.nets import LinearLayer


def layer(channels: int = 8) -> LinearLayer:
    return LinearLayer(channels, channels, LIFNode(step_mode="m"))


def images(steps: int = 4, batch: int = 8, channels: int = 8) -> Tensor:
    return torch.rand(steps, batch, channels)


def optimised(
    model: nn.Module, *inputs: Any, types: Any = LinearLayer, **options: Any
) -> MemOptSummary:
    result = memory_optimization(model, types, inputs, return_summary=True, **options)
    assert isinstance(result, tuple)
    return result[1]


def wrapped(model: nn.Module) -> list[nn.Module]:
    return [m[0] for m in model.modules() if isinstance(m, GCContainer)]


def assert_same_training(model: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Hold that one step of both gives the same output and gradients.

    A weight's gradient is a sum over time, which chunks add up in another order.
    """
    chunked = any(isinstance(module, TCGCContainer) for module in model.modules())
    outputs = [net.double()(x.double()) for net in (model, plain)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs)
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        if expected.grad is None:
            assert found.grad is None
        elif chunked and found.grad is not None:
            assert (found.grad - expected.grad).norm() <= 1e-12 * expected.grad.norm()
        else:
            assert found.grad is not None
            assert torch.equal(found.grad, expected.grad)


class Named(nn.Module):
    """Calls one layer with a keyword, one never, one with a number, one as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.keyword, self.idle, self.usual = layer(), layer(), layer()
        self.number = Scaled()

    def forward(self, x: Tensor) -> Tensor:
        return self.number(2.0, self.usual(self.keyword(x=x)))


class Scaled(LinearLayer):
    def __init__(self) -> None:
        super().__init__(8, 8, nn.Identity())

    def forward(self, factor: float, x: Tensor) -> Tensor:
        return super().forward(factor * x)


@pytest.mark.parametrize("level", [1, 4])
def test_modules_that_no_container_can_call_are_left_with_a_note(level: int) -> None:
    model = Named()
    plain, x = copy.deepcopy(model), images()
    summary = optimised(model, x, level=level)
    assert all(module not in wrapped(model) for module in (model.keyword, model.idle, model.number))
    notes = [note for note in summary.notes if note.startswith("not_wrapped:")]
    assert [note.split(":")[1] for note in notes] == ["keyword", "idle", "number"]
    assert "keyword arguments" in notes[0]
    assert "does not call" in notes[1]
    assert "not a tensor" in notes[2]
    assert summary.gc_wrap_count == 1
    assert_same_training(model, plain, x)


class Deciding(nn.Module):
    """Takes another path where its input is large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = layer(), layer()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.first(x)
        return self.second(spikes) if spikes.sum() >= 0 else self.first(spikes)


@pytest.mark.parametrize("level", [1, 2, 4])
def test_a_model_that_cannot_be_recorded_gets_level_1_and_one_warning(level: int) -> None:
    model = Deciding()
    plain, x = copy.deepcopy(model), images()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        summary = optimised(model, x, level=level)
    assert [w.category for w in seen] == [SnnfxWarning]
    assert "level 1 without compression is applied" in str(seen[0].message)
    assert "could not be recorded" in str(seen[0].message)
    assert seen[0].filename == __file__
    kinds = [type(m.x_compressor) for m in model.modules() if isinstance(m, GCContainer)]
    assert kinds == [NullSpikeCompressor] * 2
    assert (summary.requested_level, summary.applied_level) == (level, 1)
    assert "fallback:not_recorded" in summary.notes
    assert summary.skipped_steps == [f"level{n}:not_recorded" for n in range(2, level + 1)]
    assert_same_training(model, plain, x)


class Typed(nn.Module):
    """Asks for the type of its layer, and does without the weight of any other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = layer()

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.layer, LinearLayer):
            raise TypeError("a LinearLayer is what this works with")
        return self.layer(x)


class Secret(nn.Module):
    """Reads an attribute that containers do not hand on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Resettable()

    def forward(self, x: Tensor) -> Tensor:
        self.layer.reset()
        return self.layer(x)


class Resettable(LinearLayer):
    def __init__(self) -> None:
        super().__init__(8, 8, LIFNode(step_mode="m"))

    def reset(self) -> None:
        self.neuron.reset()


class Checked(nn.Module):
    """Raises what no part of torch raises where its layer is not the one that it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = layer()
        self.known = {"LinearLayer": 1.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.known[type(self.layer).__name__]


@pytest.mark.parametrize(
    ("make", "level"),
    # Beyond level 1 it is parts of the layer in `Checked` that are in containers.
    [(Checked, 1), *((make, level) for make in (Typed, Secret) for level in (1, 2, 3, 4))],
)
def test_a_model_that_does_not_run_with_containers_is_left_as_it_was(
    make: Callable[[], nn.Module], level: int
) -> None:
    model = make()
    plain, x = copy.deepcopy(model), images()
    with pytest.warns(SnnfxWarning, match="the model is left as it was") as seen:
        summary = optimised(model, x, level=level)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert not wrapped(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert summary.applied_level == 0
    counts = {name: value for name, value in vars(summary).items() if name.endswith("_count")}
    assert set(counts) - {name for name, value in counts.items() if not value} == {
        "gc_candidate_count",
        "gc_selected_count",
    }
    assert not summary.applied_steps
    assert any("does_not_run_with_containers" in note for note in summary.notes)
    assert_same_training(model, plain, x)


class Shared(nn.Module):
    """One layer under two names, called under both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = layer()
        self.again = self.first
        self.group = nn.ModuleList([self.first, layer()])

    def forward(self, x: Tensor) -> Tensor:
        return self.group[1](self.again(self.first(x)))


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_shared_module_has_one_container_under_all_its_names(level: int) -> None:
    model = Shared()
    plain, x = copy.deepcopy(model), images()
    summary = optimised(model, x, level=level)
    assert summary.gc_candidate_count == 2
    assert model.first is model.again is model.group[0]
    assert list(model.state_dict()) == list(plain.state_dict())
    if level == 1:
        assert isinstance(model.first, GCContainer)
        assert isinstance(model.first.x_compressor, NullSpikeCompressor)
        assert isinstance(model.group[1].x_compressor, BitSpikeCompressor)
    assert_same_training(model, plain, x)


def test_a_module_that_is_called_with_spikes_and_with_others_packs_neither() -> None:
    model = nn.Sequential(layer(), layer())
    optimised(model, images(), level=1)
    assert isinstance(model[1].x_compressor, BitSpikeCompressor)
    shared = Shared()
    optimised(shared, images(), level=1)
    assert isinstance(shared.first.x_compressor, NullSpikeCompressor)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = layer()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def test_of_nested_types_the_outer_modules_are_wrapped() -> None:
    model = nn.Sequential(layer(), Block(), layer())
    plain, x = copy.deepcopy(model), images()
    summary = optimised(model, x, types=(LinearLayer, Block), level=1)
    assert summary.gc_selected_modules == ["0", "1", "2"]
    assert [type(m) for m in wrapped(model)] == [LinearLayer, Block, LinearLayer]
    assert_same_training(model, plain, x)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_containers_that_are_there_stay_and_nothing_in_them_is_wrapped(level: int) -> None:
    own = TCGCContainer(NullSpikeCompressor(), layer(), layer(), n_chunk=2)
    model = nn.Sequential(layer(), own, GCContainer(None, layer()), layer())
    plain, x = copy.deepcopy(model), images()
    summary = optimised(model, x, level=level)
    assert summary.gc_selected_modules == ["0", "3"]
    assert model[1] is own
    assert own.n_chunk == 2
    assert not any(isinstance(m, GCContainer) for m in own[0].modules())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_same_training(model, plain, x)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_second_run_finds_nothing_to_do(level: int) -> None:
    model = nn.Sequential(layer(), layer(), layer())
    plain, x = copy.deepcopy(model), images(steps=6, batch=32)
    optimised(model, x, level=level)
    first = [repr(module) for module in model.modules()]
    summary = optimised(model, x, level=level)
    assert [repr(module) for module in model.modules()] == first
    assert (summary.gc_candidate_count, summary.gc_wrap_count) == (0, 0)
    assert summary.gc_container_count + summary.tcgc_container_count > 0
    assert summary.gc_selection_policy == "no_candidates"
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_same_training(model, plain, x)


class Declaring(nn.Module):
    """Says itself what it can be split into."""

    def __init__(self, foreign: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = layer(32), layer(32), layer(32)
        self.foreign = foreign

    def __spatial_split__(self) -> tuple[nn.Module, ...]:
        return (self.first, layer(32) if self.foreign else self.third)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


def test_a_declared_split_is_the_one_that_is_made() -> None:
    model, x = nn.Sequential(Declaring(False), nn.Linear(32, 2)), images(4, 64, 32)
    plain = copy.deepcopy(model)
    summary = optimised(model, x, types=Declaring, level=2, max_split_rounds=1)
    assert summary.spatial_split_count == 1
    assert wrapped(model) == [plain_first(model, "first"), plain_first(model, "third")]
    assert_same_training(model, plain, x)


def plain_first(model: nn.Module, name: str) -> nn.Module:
    return getattr(model[0], name)[0]


def test_a_declared_split_into_modules_of_others_is_not_made() -> None:
    model, x = nn.Sequential(Declaring(True), Declaring(True)), images(4, 64, 32)
    plain = copy.deepcopy(model)
    with pytest.warns(SnnfxWarning, match="is not split, since its __spatial_split__") as seen:
        summary = optimised(model, x, types=Declaring, level=2)
    assert [str(w.message).split("'")[1] for w in seen] == ["0", "1"]
    assert {w.filename for w in seen} == {__file__}
    assert summary.spatial_split_count == 0
    assert "level2:no_spatial_candidates" in summary.skipped_steps
    assert [type(m) for m in wrapped(model)] == [Declaring] * 2
    assert_same_training(model, plain, x)


def test_each_wrong_declaration_is_told_once() -> None:
    model, x = nn.Sequential(Declaring(False), Declaring(True)), images(4, 64, 32)
    with pytest.warns(SnnfxWarning, match="'1' is not split") as seen:
        optimised(model, x, types=Declaring, level=2)
    assert len(seen) == 1


def test_a_model_without_such_modules_is_left_with_each_level_noted() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    summary = optimised(model, images(), level=4)
    assert not wrapped(model)
    assert summary.skipped_steps == [f"level{n}:no_gccontainers" for n in (2, 3, 4)]
    assert summary.gc_selection_policy == "no_candidates"


@pytest.mark.parametrize("level", [1, 3])
def test_a_model_in_evaluation_mode_stays_in_it(level: int) -> None:
    model = nn.Sequential(layer(), nn.Dropout(0.5), layer()).eval()
    optimised(model, images(), level=level)
    assert wrapped(model)
    assert not any(module.training for module in model.modules())
