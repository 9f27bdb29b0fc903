"""Activation memory of a training step, measured: far below the plain model's, and as predicted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from snnfx.passes.plan.memory_plan import MemoryPlan

from examples.models import Workload, build
from tests.backend.harness import ignore_dynamo_warnings
from tests.oracles import measured_activation_bytes

pytestmark = ignore_dynamo_warnings

# How many times less activation memory; channels and images are small, but T is as published.
CASES: dict[str, tuple[Callable[[], Workload], float]] = {
    "vgg8": (lambda: build("vgg8", width=1 / 8, batch=2, steps=10, size=32), 2.0),
    "spikformer": (
        lambda: build("spikformer", width=1 / 4, batch=2, steps=4, size=16, depth=1, heads=2), 2.0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_activation_memory_falls_in_the_eager_lowering_as_predicted(name: str) -> None:
    make, factor = CASES[name]
    workload = make()
    plain = measured_activation_bytes(workload)
    plans: list[MemoryPlan] = []
    options = {"lowering": "eager", "plan_callback": plans.append}
    compiled = torch.compile(workload.model, backend="snnmem", options=options)
    planned = measured_activation_bytes(workload, compiled)
    (plan,) = plans
    assert plan.applied
    assert plain > factor * planned, f"{plain:,} -> {planned:,} bytes"
    assert plan.predicted_peak_bytes == pytest.approx(planned, rel=0.05)
