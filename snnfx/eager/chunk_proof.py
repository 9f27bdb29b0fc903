"""Prove that a module can run its sequence in chunks of time: trace it both ways, and compare.

The module runs on fake tensors, once over all steps and once chunk by chunk with its state carried
over; `snnfx.passes.analysis.time_chunks` compares the two records term by term.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnfx._torch_compat import FakeTensorMode
from snnfx.eager.graph_recorder import NAME_KEY
from snnfx.eager.recorder import Recorder
from snnfx.eager.step import ModuleCall
from snnfx.eager.storages import tensors_in
from snnfx.eager.twin import fake_of, fake_twin, kept_as_it_is
from snnfx.errors import CaptureError
from snnfx.passes.analysis.time_chunks import NotChunkable, StepRun, check_chunks

_MODULE_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AssertionError)
"""What a module raises for another number of time steps than it is made for."""

Names = dict[int, tuple[Tensor, str]]
"""By the identity of a tensor that every run finds: the tensor itself, and its name."""


def prove_chunks(
    module: nn.Module,
    sequences: Sequence[Tensor],
    others: Sequence[Any],
    sizes: Sequence[int],
    forward: str = "forward",
) -> NotChunkable | None:
    """Why `module` is not proven to give chunk by chunk what it gives for the whole; None if it is.

    Args:
        module: stays as it is, with its state; it is traced in the modes that it is in.
        sequences: its first arguments, ``[T, *]`` each, real or fake.
        others: its further arguments, the same for each chunk.
        sizes: time steps of each chunk; they add up to T.
        forward: the name of the method to trace.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    steps = sum(sizes)
    try:
        with kept_as_it_is(module), mode, torch.enable_grad():
            whole = _Runner(module, mode, forward)
            xs = [fake_of(x, mode) for x in sequences]
            rest = [fake_of(x, mode) if isinstance(x, Tensor) else x for x in others]
            whole_run = whole.run(xs, rest, steps)
            parts = zip(*(x.split(list(sizes)) for x in xs), strict=True)
            chunked = _Runner(module, mode, forward)
            runs = [chunked.run(p, rest, size) for p, size in zip(parts, sizes, strict=True)]
    except CaptureError as error:
        return NotChunkable(str(error), "")
    except _MODULE_ERRORS as error:
        return NotChunkable(f"it does not run on chunks of {list(sizes)} time steps: {error}", "")
    return check_chunks(whole_run, runs)


def prove_chunks_of_call(
    module: nn.Module, call: ModuleCall, sizes: Sequence[int]
) -> NotChunkable | None:
    """The same for a recorded call of `module`."""
    if not call.arguments.only_tensors:
        return NotChunkable("it is called with arguments that are not tensors", "")
    tensors = [tensor.node.meta["val"] for tensor in call.inputs]
    sequences = getattr(module, "n_seq_inputs", 1)
    return prove_chunks(module, tensors[:sequences], tensors[sequences:], sizes)


def run_key(
    module: nn.Module, sequences: Sequence[Tensor], others: Sequence[Any], sizes: Sequence[int]
) -> Hashable:
    """What a proof depends on: two runs with the same key need one proof."""
    modes = tuple(m.training for m in module.modules())
    autocast = tuple(
        (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        for kind in dict.fromkeys((sequences[0].device.type, "cpu"))
    )
    values = (*sequences, *others, *_states(module))
    return (tuple(sizes), modes, autocast, tuple(_kind(value) for value in values))


def _kind(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, str(value.device))
    return value if isinstance(value, Hashable) else repr(value)


class _Runner:
    """A twin of a module that runs again and again, each run recorded."""

    def __init__(self, module: nn.Module, mode: FakeTensorMode, forward: str) -> None:
        self._mode = mode
        self._twin = fake_twin(module, mode, train=False)
        self._forward: Callable[..., Any] = getattr(self._twin, forward)
        self._names = _names(self._twin)

    def run(self, sequences: Sequence[Tensor], others: Sequence[Any], steps: int) -> StepRun:
        recorder = Recorder(self._mode)
        with recorder.pause():
            for tensor in self._known(others):
                recorder.name(tensor, self._names[id(tensor)][1])
            given = tuple(recorder.results(x)[0] for x in sequences)
            states_in = tuple(_node(recorder, value) for value in _states(self._twin))
        with recorder:
            result = self._forward(*sequences, *others)
        with recorder.pause():
            outputs = recorder.results(result)
            states_out = tuple(_node(recorder, value) for value in _states(self._twin))
        recorder.forward.output(outputs)
        placeholders = recorder.forward.find_nodes(op="placeholder")
        constants = {n: n.meta[NAME_KEY] for n in placeholders if NAME_KEY in n.meta}
        return StepRun(recorder.forward, steps, given, states_in, outputs, states_out, constants)

    def _known(self, others: Sequence[Any]) -> list[Tensor]:
        """The tensors that have a name, because they are the same ones as in the first run."""
        for index, value in enumerate(others):
            if isinstance(value, Tensor):
                self._names.setdefault(id(value), (value, f"argument {index}"))
        found = [*_held(self._twin), *tensors_in(tuple(others))]
        return [tensor for tensor in found if id(tensor) in self._names]


def _states(module: nn.Module) -> list[Any]:
    """The state variables in a tree of modules of any framework that keeps them as we do."""
    return [v for m in module.modules() for v in getattr(m, "_memories", {}).values()]


def _node(recorder: Recorder, value: Any) -> Any:
    return recorder.results(value)[0] if isinstance(value, Tensor) else None


def _names(twin: nn.Module) -> Names:
    """Names of the tensors of a module that a run finds there: all but its state."""
    names: Names = {}
    for path, module in twin.named_modules():
        for attribute, value in (*vars(module).items(), *module._buffers.items()):
            if isinstance(value, Tensor):
                names[id(value)] = (value, f"{path}.{attribute}")
    names.update({id(p): (p, name) for name, p in twin.named_parameters()})
    return names


def _held(twin: nn.Module) -> list[Tensor]:
    values = [v for m in twin.modules() for v in (*vars(m).values(), *m._buffers.values())]
    return [*(v for v in values if isinstance(v, Tensor)), *twin.parameters()]
