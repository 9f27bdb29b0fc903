"""Energy of one training step, or one inference, in a single call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snnfx.errors import OptionError
from snnfx.op_counter.counter import Ignored
from snnfx.op_counter.model_call import call_model
from snnfx.op_counter.neuromc.config import MemoryHierarchyConfig
from snnfx.op_counter.neuromc.profiler import NeuroMCEnergyProfiler
from snnfx.op_counter.neuromc.report import NeuroMCRuntimeEnergyReport

IGNORED = ("op_cost_pj", "memory_cost_pj_per_bit", "memory_level_weights", "memory_model")
"""Arguments of earlier models of NeuroMC in SpikingJelly, which it ignores, too."""


def estimate_neuromc_runtime_energy(
    model: nn.Module,
    inputs: Any,
    *,
    target: Tensor | None = None,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    core_type: str = "fp_soma",
    op_cost_pj: dict[str, float] | None = None,
    memory_cost_pj_per_bit: dict[str, float] | None = None,
    memory_level_weights: dict[str, float] | None = None,
    memory_model: str | None = None,
    memory_config: MemoryHierarchyConfig | None = None,
    strict: bool = False,
    verbose: bool = False,
    extra_ignore_modules: Sequence[Ignored] | None = None,
) -> NeuroMCRuntimeEnergyReport:
    """Energy of one step of a model on NeuroMC: it runs the forward, and the backward with a loss.

    The optimizer's step is counted, not made: parameters stay as they are, and their gradients are
    put back as they were. What the forward changes (states of neurons, running statistics) changes.

    Args:
        model: to run.
        inputs: a tuple or list of positional arguments, a dict of named ones, or the only one.
        target: second argument of `loss_fn`.
        loss_fn: computes the loss from the output; the loss itself is not counted.
        optimizer: whose step is counted; needs a loss.
        core_type: see `NeuroMCEnergyProfiler`; so are `memory_config` and all that follows it.
        op_cost_pj: ignored, as are the next three: costs are in tables. A warning says so.
        memory_cost_pj_per_bit: ignored.
        memory_level_weights: ignored.
        memory_model: ignored.
        memory_config: the memories.
        strict: what is outside of the model is an error.
        verbose: print each piece of work.
        extra_ignore_modules: modules, or types, inside of which nothing is counted.

    Raises:
        OptionError: an argument is missing or wrong; with `strict`, an optimizer outside the model.
        UncountedError: with `strict`, operators outside of the model.
    """
    _check(loss_fn, target, optimizer)
    profiler = NeuroMCEnergyProfiler(
        core_type=core_type,
        memory_config=memory_config,
        strict=strict,
        verbose=verbose,
        extra_ignore_modules=extra_ignore_modules,
    )
    profiler.bind_model(model)
    profiler.bind_optimizer(optimizer)
    with _without_gradients(model, optimizer), profiler:
        _step(profiler, model, inputs, loss_fn, target, optimizer)
    report = profiler.get_report()
    ignored = (op_cost_pj, memory_cost_pj_per_bit, memory_level_weights, memory_model)
    names = [name for name, value in zip(IGNORED, ignored, strict=True) if value is not None]
    report.warnings += [f"{name} is ignored" for name in names]
    return report


def _check(loss_fn: object, target: object, optimizer: object) -> None:
    if loss_fn is not None and target is None:
        raise OptionError("loss_fn needs a target: pass target=")
    if loss_fn is None and optimizer is not None:
        raise OptionError("an optimizer's step needs gradients: pass loss_fn= and target=")


def _step(
    profiler: NeuroMCEnergyProfiler,
    model: nn.Module,
    inputs: Any,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    target: Tensor | None,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    with profiler.stage("forward"):
        output = call_model(model, inputs)
    if loss_fn is None:
        return
    with profiler.suspend():
        loss = loss_fn(output, target)
    with profiler.stage("backward", phase="backward"):
        loss.backward()
    if optimizer is not None:
        with profiler.stage("optimizer", phase="optimizer"):
            profiler.record_optimizer_step()


@contextmanager
def _without_gradients(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Generator[None]:
    """Run with no gradients on the parameters, and put back those that there were."""
    groups = optimizer.param_groups if optimizer is not None else ()
    parameters = {*model.parameters(), *(p for group in groups for p in group["params"])}
    before = {parameter: parameter.grad for parameter in parameters}
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before.items():
            parameter.grad = gradient
