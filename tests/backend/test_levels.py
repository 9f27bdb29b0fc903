"""Training with values split, tiled and restored gives what the plain model gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from snnfx.passes.plan.memory_plan import MemoryPlan

from tests.backend import nets
from tests.backend.harness import Results, Training, ignore_dynamo_warnings
from tests.capture.planned import build

pytestmark = ignore_dynamo_warnings

TOLERANCE = 1e-12


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Of the norm; of 1 where that is less: what is zero but for rounding has no digits."""
    assert found.dtype == expected.dtype
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1.0))


def errors(found: Results, expected: Results) -> dict[str, float]:
    assert list(found) == list(expected)
    return {name: relative_error(found[name], expected[name]) for name in expected}


def train(name: str, lowering: str, **options: object) -> tuple[dict[str, float], MemoryPlan]:
    """Errors of outputs, gradients and running statistics over two steps, and the plan."""
    model, x = build(name)
    other = copy.deepcopy(model)
    session = Training([(x,), (x.flip(0),)], nets.weighted)
    expected = session(model, model)
    plans: list[MemoryPlan] = []
    options = {"lowering": lowering, "plan_callback": plans.append, **options}
    found = session(other, torch.compile(other, backend="snnmem", options=options))
    (plan,) = plans
    assert plan.applied
    assert sum("gradient" in key for key in expected) > 6
    return errors(found, expected), plan


@pytest.mark.parametrize(
    ("name", "lowering"),
    [("attention", "eager"), ("vgg8", "inductor"), ("a loop over time", "inductor")],
)
def test_training_in_tiles_gives_the_plain_models_gradients_and_statistics(
    name: str, lowering: str
) -> None:
    found, plan = train(name, lowering, level=3, prefer="memory")
    assert any(d.kind == "tile" for d in plan.decisions)
    assert all(value <= TOLERANCE for value in found.values()), found
    assert any("running_var" in key for key in found) == (name == "vgg8")


@pytest.mark.parametrize("level", [2, 4])
@pytest.mark.parametrize("name", ["batch norm", "two weights in a row"])
def test_the_eager_lowering_has_the_bits_of_the_plain_model(name: str, level: int) -> None:
    found, plan = train(name, "eager", level=level, prefer="speed" if level == 4 else "memory")
    assert not any(d.kind == "tile" for d in plan.decisions)
    assert any(d.kind == "restore" for d in plan.decisions) == (level == 4)
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize(("prefer", "kind"), [("memory", "split"), ("speed", "restore")])
def test_a_split_and_what_is_restored_are_exact_where_regions_are_compiled(
    prefer: str, kind: str
) -> None:
    found, plan = train("two weights in a row", "inductor", level=4, prefer=prefer)
    assert {d.kind for d in plan.decisions} == {kind}
    assert all(value <= TOLERANCE for value in found.values()), found


def layer_gradients(layers: nn.Sequential, chunks: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Spikes of `[T, N, C, H, W]` chunks, and the gradient of the weight over all of them."""
    layers.zero_grad()
    spikes = torch.cat([layers(chunk) for chunk in chunks], dim=1)
    nets.weighted(spikes).backward()
    weight = next(layers.parameters())
    assert weight.grad is not None
    return spikes.detach(), weight.grad.clone()


def test_statistics_of_each_chunks_own_would_not_pass() -> None:
    """Chunks that are normalised by themselves give another layer: errors far above rounding."""
    _, x = build("batch norm")
    layers = nn.Sequential(nets.conv(3), nets.lif()).double().train()
    spikes, gradient = layer_gradients(layers, (x,))
    again, same = layer_gradients(layers, (x,))
    assert torch.equal(again, spikes)
    assert relative_error(same, gradient) <= TOLERANCE
    other_spikes, other = layer_gradients(layers, x.chunk(2, dim=1))
    assert bool((other_spikes != spikes).any())
    assert relative_error(other, gradient) > 1e-3
