"""Networks of SpikingJelly's model files, snnTorch, Norse and Sinabs train as they do plainly."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from models_frameworks import FRAMEWORKS, build_framework
from snnfx.adapters import adapt
from snnfx.passes.plan.memory_plan import MemoryPlan

from tests.backend.harness import ignore_dynamo_warnings, same_bits

pytestmark = ignore_dynamo_warnings
STEPS = 3
RECOMPILED = ("sinabs", "snntorch")  # their states are tensors without, then with, a gradient
# Three make single-precision spikes or states, whatever the precision of their weights. In the
# fourth, the scratch space of double-precision convolutions is more than all activations.
SINGLE = ("norse", "sinabs", "snntorch", "spikingjelly_spike_driven_transformer")
# Where kernels round otherwise, only double precision keeps spikes from flipping; that of two
# networks tells what the others would, and takes minutes less.
COMPILED = ("spikingjelly_vgg", "spikingjelly_sew_resnet")
# In single precision 1e-5 a step; the steps of the optimizer carry it on, so twice that is allowed.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5}


@pytest.fixture(autouse=True)
def no_garbage() -> Iterator[None]:
    """Dynamo guards on what SpikingJelly has reset and snnTorch has made, while it is alive."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def trained(
    name: str, dtype: torch.dtype, options: dict[str, object] | None = None
) -> tuple[list[Tensor], list[MemoryPlan]]:
    """Losses, gradients and buffers of each of `STEPS` steps of SGD, and the plans."""
    work = build_framework(name, "tiny")
    model, run = work.model.to(dtype), work.model
    plans: list[MemoryPlan] = []
    if options is not None:
        adapt(model)
        options = {**options, "plan_callback": plans.append}
        run = torch.compile(model, backend="snnmem", fullgraph=True, options=options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found: list[Tensor] = []
    for step in range(STEPS):
        torch.manual_seed(step)  # for dropout
        work.before_step()
        optimizer.zero_grad()
        loss = work.loss_fn(run(*(x.to(dtype) for x in work.inputs)))
        loss.backward()
        found += [
            loss.detach(),
            *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        ]
        found += [buffer.detach().clone() for buffer in model.buffers()]
        optimizer.step()
    return found, plans


def assert_saves(plans: list[MemoryPlan], graphs: int) -> None:
    """Each graph is planned, packs spikes, and is predicted to need less than it did."""
    assert len(plans) == graphs
    for plan in plans:
        assert plan.applied, plan.notes
        assert plan.predicted_peak_bytes < plan.baseline_peak_bytes
        assert any(saved.bits == 1 for saved in plan.packed)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_three_steps_have_the_bits_of_the_plain_model(name: str) -> None:
    expected, _ = trained(name, torch.float32)
    found, plans = trained(name, torch.float32, {"level": 2, "lowering": "eager"})
    assert len(found) == len(expected)
    assert all(same_bits(name, a, b) for a, b in zip(found, expected, strict=True))
    assert_saves(plans, graphs=1 + (name in RECOMPILED))


@pytest.mark.parametrize(
    ("name", "lowering"),
    [*((name, "eager") for name in FRAMEWORKS), *((name, "inductor") for name in COMPILED)],
)
def test_three_steps_at_the_highest_level_agree_but_for_rounding(name: str, lowering: str) -> None:
    """In double precision, where no rounding moves a potential over its threshold, if there is."""
    dtype = torch.float32 if name in SINGLE else torch.float64
    expected, _ = trained(name, dtype)
    found, plans = trained(name, dtype, {"level": 4, "prefer": "memory", "lowering": lowering})
    assert_close(found, expected, TOLERANCES[dtype])
    assert_saves(plans, graphs=1 + (name in RECOMPILED))


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each within a tolerance of its norm; what is zero but for rounding has no digits."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        error, size = (a.double() - b.double()).norm(), b.double().norm()
        assert error <= tolerance * size or max(error, size) <= tolerance
