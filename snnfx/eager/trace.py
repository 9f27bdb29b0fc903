"""Record one eager training step of a model, with each allocation, without running it.

The step runs on a twin of the model with fake tensors, so it takes no memory and its time does not
depend on sizes. What it records is exact for the model as it trains eagerly: the operators that
autograd calls, every storage from its first tensor to the release of its last, what each module is
passed, and what autograd saves. `snnfx.eager.replay` predicts from it.

What is not seen: memory that operators take without an `snnfx.passes.cost.workspace` rule, and
memory of garbage that only Python's cycle collector finds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from snnfx._torch_compat import FakeTensorMode
from snnfx.eager.recorder import NOT_ALLOCATED, Operator, Recorder
from snnfx.eager.replay import predict
from snnfx.eager.step import RUN, EagerStep, Event, ModuleCall
from snnfx.eager.storages import tensors_in
from snnfx.eager.twin import fake_arguments, fake_twin, kept_as_it_is
from snnfx.errors import CaptureError
from snnfx.passes.analysis.liveness import storage_bytes
from snnfx.passes.cost.roofline import device_of, node_seconds
from snnfx.passes.cost.workspace import workspace_phases

__all__ = ["EagerStep", "ModuleCall", "record_step", "total_of"]

Loss = Callable[[Any], Tensor]


def record_step(
    net: nn.Module, args: Sequence[Any], loss: Loss | None = None, *, keep_saved: bool = False
) -> EagerStep:
    """Record a forward and a backward of `net`; neither it, its state nor random states change.

    Args:
        net: recorded in training mode; a module of it that is in evaluation mode while the model
            is in training mode stays so. Tensors on the meta device are taken to be on the CPU.
        args: positional arguments, with tensors that are real, fake or on the meta device.
        loss: takes what `net` returns and gives the scalar to differentiate; None for the sum of
            all floating-point results that require a gradient.
        keep_saved: saved tensors are kept as autograd, or hooks of containers in the model, keep
            them. The record then tells the peak of just this model; no others can be predicted.

    Raises:
        CaptureError: the model cannot be copied, cannot run on fake tensors, or has nothing to
            train.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with kept_as_it_is(net), torch.enable_grad():
        twin = fake_twin(net, mode)
        recorder = Recorder(mode)
        inputs = fake_arguments(args, mode)
        with mode, recorder:
            _prepare(recorder, twin, inputs)
            _run(recorder, twin, inputs, loss, keep_saved)
            # What dies from here on belongs to the caller.
            events = tuple(recorder.events)
    return _finished(recorder, events, not keep_saved)


def _prepare(recorder: Recorder, twin: nn.Module, inputs: tuple[Any, ...]) -> None:
    with recorder.pause():
        for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
            recorder.name(tensor, name)
        for index, tensor in enumerate(tensors_in(inputs)):
            recorder.name(tensor, f"input {index}", followed=True)
    for parameter in twin.parameters():
        parameter.grad = None
        if parameter.requires_grad:
            recorder.watch_gradient(parameter)
    recorder.watch_modules(twin)


def _run(
    recorder: Recorder, twin: nn.Module, inputs: Any, loss: Loss | None, keep_saved: bool
) -> None:
    hooks = nullcontext() if keep_saved else saved_tensors_hooks(recorder.pack, recorder.unpack)
    try:
        with hooks:
            total = (loss or total_of)(twin(*inputs))
        recorder.begin_backward()
        total.backward()
    except CaptureError:
        raise
    except RuntimeError as error:
        raise not_recordable(_place(recorder, twin), error) from error


def total_of(outputs: Any) -> Tensor:
    """The sum of all floating-point tensors in `outputs` that require a gradient.

    Raises:
        CaptureError: there are none.
    """
    found = [t for t in tensors_in(outputs) if t.requires_grad and t.is_floating_point()]
    if not found:
        raise CaptureError(
            "the model has nothing to train: no output depends on a parameter or an input that "
            "requires a gradient. Set requires_grad, and do not compute the outputs under no_grad."
        )
    total = found[0].sum()
    for tensor in found[1:]:
        total = total + tensor.sum()
    return total


def _place(recorder: Recorder, twin: nn.Module) -> str:
    """Where the twin stopped."""
    if recorder.backward >= 0:
        return "in its backward"
    if not recorder.stack:
        return "in its loss"
    path = recorder.calls[recorder.stack[-1]].path
    kind = type(twin.get_submodule(path)).__name__
    return f"in module '{path}' ({kind})" if path else f"in the model's own code ({kind})"


def not_recordable(place: str, error: RuntimeError) -> CaptureError:
    """The error of a model that stopped at a place, with what to do about it."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return CaptureError(
        f"the model's step could not be recorded on fake tensors, which have sizes but no values; "
        f"it stopped {place}: {type(error).__name__}: {reason}. If the model runs by itself, write "
        "this part without decisions on the values of tensors (torch.where selects without them)."
    )


def _finished(recorder: Recorder, events: tuple[Event, ...], replayable: bool) -> EagerStep:
    sizes = _sizes(recorder)
    device = device_of(recorder.forward)
    seconds = tuple(node_seconds(operator.node, device) for operator in recorder.operators)
    transient = [_workspace_bytes(operator, sizes) for operator in recorder.operators]
    events = tuple((k, key, transient[key] if k == RUN else value) for k, key, value in events)
    step = EagerStep(
        events=events,
        graph=recorder.forward,
        calls=_calls(recorder, events, seconds),
        storage_bytes=tuple(sizes),
        operator_seconds=seconds,
        backward=recorder.backward,
        holder_calls=tuple(recorder.holder_calls),
        peak_bytes=0,
        replayable=replayable,
    )
    return replace(step, peak_bytes=predict(step, {}).peak_bytes)


def _sizes(recorder: Recorder) -> list[int]:
    """The bytes of all storages that count: gradients of parameters do not.

    Some operators take larger memory than their result needs.
    """
    sizes = list(recorder.storage_bytes)
    for operator in recorder.operators:
        first = operator.results[0] if operator.results else NOT_ALLOCATED
        if first != NOT_ALLOCATED:
            sizes[first] = max(sizes[first], storage_bytes(operator.node))
    for gradient in recorder.gradients:
        sizes[gradient] = 0
    return sizes


def _workspace_bytes(operator: Operator, sizes: Sequence[int]) -> int:
    """What an operator needs at its worst moment, beyond its results."""
    results = [0 if n == NOT_ALLOCATED else sizes[n] for n in operator.results]
    inside = (
        phase.temporary_bytes + sum(results[i] for i in phase.results)
        for phase in workspace_phases(operator.node)
    )
    return max(0, *(held - sum(results) for held in inside), 0)


def _calls(
    recorder: Recorder, events: tuple[Event, ...], seconds: Sequence[float]
) -> tuple[ModuleCall, ...]:
    spent = [0.0, *accumulate(seconds[key] if k == RUN else 0.0 for k, key, _ in events)]
    return tuple(
        ModuleCall(
            call.path,
            call.index,
            call.inputs,
            call.arguments,
            call.outputs,
            call.enter,
            call.exit,
            spent[call.exit] - spent[call.enter],
        )
        for call in recorder.calls
    )
