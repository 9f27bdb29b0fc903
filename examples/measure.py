"""Peak memory, time and gradients of one training step, measured the same way for every method.

**Memory on a CPU** is read from the profiler: it reports each allocation and release of torch's
allocator with address and size, in compiled code too. What existed before the step (parameters,
buffers, inputs, an optimizer's state) makes no event, not even where the step releases it, so the
running sum of the events is what the step adds. Scratch space that a library takes from elsewhere
is not seen.

*Activation memory* is the largest value of that sum without the gradients of parameters. They
belong to training with any method; each is left out from the moment it is allocated, and so it is
never subtracted before it exists. `Memory.peak_less_all` is the cruder figure, peak less
parameters, gradients and inputs: the same where the peak comes last, and lower where it comes
before all gradients exist, which flatters small activations.

A step is measured after a warm-up, with gradients set to None before it, as in usual training.

**On CUDA** the peak is `torch.cuda.max_memory_allocated`, and activation memory is
`peak_less_all`, since that counter does not tell gradients apart.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


@dataclass(frozen=True)
class Memory:
    """What one training step needs, in bytes.

    Attributes:
        peak_bytes: parameters, buffers, inputs, and all that the step adds, at its worst moment.
        activation_bytes: see the module's description.
        parameter_bytes: parameters and buffers.
        gradient_bytes: gradients of parameters after the step.
        input_bytes: inputs of the model.
    """

    peak_bytes: int
    activation_bytes: int
    parameter_bytes: int
    gradient_bytes: int
    input_bytes: int

    @property
    def peak_less_all(self) -> int:
        """Peak less parameters, gradients and inputs, in bytes."""
        return self.peak_bytes - self.parameter_bytes - self.gradient_bytes - self.input_bytes


def measure_memory(step: Step, model: nn.Module, inputs: Sequence[Tensor]) -> Memory:
    """Measure one `step` that runs `model` forward and backward; warm up before.

    Args:
        step: runs the model on `inputs` and calls backward.
        model: its gradients are set to None first, and are left as the step makes them.
        inputs: the tensors the model is called with.
    """
    model.zero_grad(set_to_none=True)
    gc.collect()
    parameters = storage_bytes([*model.parameters(), *model.buffers()])
    if any(x.is_cuda for x in inputs):
        added, activation = _cuda_peak(step), None
    else:
        events = allocation_events(step)
        added = peak_bytes(events)
        activation = peak_bytes(without(events, gradients_of(model)))
    memory = Memory(
        peak_bytes=parameters + storage_bytes(inputs) + added,
        activation_bytes=0,
        parameter_bytes=parameters,
        gradient_bytes=storage_bytes(gradients_of(model)),
        input_bytes=storage_bytes(inputs),
    )
    activation = memory.peak_less_all if activation is None else activation
    return Memory(**{**vars(memory), "activation_bytes": activation})


def allocation_events(step: Step) -> list[tuple[int, int]]:
    """The (address, bytes) of each CPU allocation in `step`, in time; a release is negative."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    found: list[tuple[int, int, int]] = []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation and event.extra_fields.device.type == "cpu":
            fields = event.extra_fields
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return [(address, size) for _, address, size in sorted(found, key=lambda entry: entry[0])]


def peak_bytes(events: Iterable[tuple[int, int]]) -> int:
    """The largest running sum of `events`, at least 0."""
    held = peak = 0
    for _, size in events:
        held += size
        peak = max(peak, held)
    return peak


def without(
    events: Sequence[tuple[int, int]], survivors: Iterable[Tensor]
) -> list[tuple[int, int]]:
    """`events` less the allocations that hold `survivors`, tensors which are alive at the end."""
    last = {address: index for index, (address, size) in enumerate(events) if size > 0}
    kept_out = {last.get(_own_part(t).untyped_storage().data_ptr()) for t in survivors}
    return [event for index, event in enumerate(events) if index not in kept_out]


def _cuda_peak(step: Step) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients of the parameters that have one."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind `tensors`."""
    storages = [_own_part(tensor).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that is spread over several."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def time_step(step: Step) -> float:
    """Wall time of one `step` in milliseconds, with all its CUDA work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def largest_relative_error(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The largest norm of a gradient's error, over the norm of the gradient itself.

    A gradient whose norm is below a millionth of the largest is compared with that instead: it is
    rounding noise, such as that of a bias before batch norm.
    """
    norms = [float(tensor.double().norm()) for tensor in reference]
    floor = max(1e-6 * max(norms), torch.finfo(torch.float64).tiny)
    errors = [
        float((a.double() - b.double()).norm()) for a, b in zip(found, reference, strict=True)
    ]
    return max(error / max(norm, floor) for error, norm in zip(errors, norms, strict=True))
