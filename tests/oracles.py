"""Independent references for what the library computes or predicts."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from examples.measure import allocation_events, measure_memory, peak_bytes
from tests.models import Workload

__all__ = ["measured_activation_bytes", "measured_added_bytes", "training_step"]


def training_step(
    workload: Workload, model: Callable[..., object] | None = None
) -> Callable[[], None]:
    """One forward and backward pass of `workload`, through `model` where it is given."""
    run = workload.model if model is None else model

    def step() -> None:
        workload.before_step()
        workload.loss_fn(run(*workload.inputs)).backward()

    return step


def measured_added_bytes(step: Callable[[], object]) -> int:
    """The most memory that `step` holds at once beyond what existed before it, in bytes (CPU)."""
    return peak_bytes(allocation_events(step))


def measured_activation_bytes(workload: Workload, model: nn.Module | None = None) -> int:
    """Activation memory of a training step after one warm-up, in bytes (CPU)."""
    step = training_step(workload, model)
    step()
    return measure_memory(step, workload.model, workload.inputs).activation_bytes
