"""The operators of a model's step, recorded on fake tensors as `DispatchCounterMode` sees them.

Nothing is computed and no memory is taken. The step runs on a twin of the model, under a
`FakeTensorMode`; a mode above it adds each operator to one graph over forward and backward. A value
that is written in place is another value from then on (see `snnfx.eager.graph_recorder`), so what
is proven about the graph holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from snnfx._torch_compat import FakeTensorMode, TorchDispatchMode
from snnfx.eager.graph_recorder import GraphRecorder, Metas
from snnfx.eager.storages import Storages, tensors_in
from snnfx.eager.trace import not_recordable, total_of
from snnfx.eager.twin import (
    MAKES_LITERALS,
    fake_arguments,
    fake_twin,
    kept_as_it_is,
    with_fakes,
)
from snnfx.errors import CaptureError
from snnfx.op_counter.neuron_types import is_neuron
from snnfx.op_counter.quick_fakes import QuickFakes
from snnfx.op_counter.report import Stage
from snnfx.op_counter.tracker import ActiveModuleTracker

Loss = Callable[[Any], Tensor]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One operator that ran.

    Attributes:
        node: its call in the graph; values of tensors are fake.
        path: the modules that were running, as `ActiveModuleTracker.path`.
        stage: which half of the step.
        result_is_argument: the position of the argument that it returned, as operators in place
            do; None for a new tensor.
    """

    node: Node
    path: tuple[str, ...]
    stage: Stage
    result_is_argument: int | None


@dataclass(frozen=True)
class StepRecord:
    """All operators of a step.

    Attributes:
        graph: over forward and backward; placeholders stand for what existed before, and for what
            is unknown since it was written in place.
        calls: what ran, in order.
        inputs: the placeholders of the tensors among the arguments, by their place there.
        states: those of the model's buffers and of the tensors among its attributes, by the
            position of `state_tensors`.
        names: of placeholders that stand for inputs.
        neurons: which names in `RecordedCall.path` are neurons.
        read_before_written: whether no node is read after its storage was written.
    """

    graph: Graph = field(repr=False)
    calls: tuple[RecordedCall, ...] = field(repr=False)
    inputs: tuple[Node, ...]
    states: tuple[Node, ...] = field(repr=False)
    names: Mapping[Node, str] = field(repr=False)
    neurons: frozenset[str] = field(repr=False)
    read_before_written: bool


@dataclass(frozen=True)
class Step:
    """A step of a model.

    Attributes:
        model: in the modes that it is to run in.
        args: its positional arguments; tensors real, fake or on the meta device.
        loss: takes what `model` returns and gives the scalar to differentiate; None for the sum of
            all floating-point results that require a gradient.
        train: whether there is a loss and a backward.
        with_gradients: whether autograd records the forward.
    """

    model: nn.Module
    args: tuple[Any, ...]
    loss: Loss | None
    train: bool
    with_gradients: bool

    def run(self, model: nn.Module, args: Sequence[Any]) -> None:
        """Run the step of a copy of the model."""
        output = model(*args)
        if self.train:
            (self.loss or total_of)(output).backward()


def record_operators(step: Step) -> StepRecord:
    """Record a step; nothing of its model changes. Gradients of parameters start as None.

    Raises:
        CaptureError: the model cannot be copied, cannot run on fake tensors, or has nothing to
            train.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with kept_as_it_is(step.model), torch.set_grad_enabled(step.with_gradients):
        twin = fake_twin(step.model, mode, train=False)
        without_gradients(twin)
        recorder = OperatorRecorder(mode)
        inputs = fake_arguments(step.args, mode)
        with mode, recorder:
            given = recorder.nodes_of(inputs)
            states = recorder.nodes_of(state_tensors(twin))
            try:
                step.run(twin, inputs)
            except CaptureError:
                raise
            except RuntimeError as error:
                raise not_recordable(recorder.place(), error) from error
    modules = twin.named_modules(prefix=type(twin).__name__)
    neurons = frozenset(name for name, module in modules if is_neuron(module))
    names = {node: f"input {index}" for index, node in enumerate(given)}
    return StepRecord(recorder.graph, tuple(recorder.calls), given, states, names, neurons, True)


def without_gradients(net: nn.Module) -> None:
    """Let the parameters of a twin have no gradient yet."""
    for parameter in net.parameters():
        parameter.grad = None


def state_tensors(net: nn.Module) -> list[Tensor]:
    """The buffers of a model and the tensors among its modules' attributes, in a fixed order."""
    found: list[Tensor] = []
    for module in net.modules():
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_modules")}
        found += [t for t in tensors_in(list(own.values())) if not isinstance(t, nn.Parameter)]
    return found


class OperatorRecorder(TorchDispatchMode):
    """Records what runs while it is the innermost mode, above a `FakeTensorMode`.

    Attributes:
        calls: what ran.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode
        self._quick = QuickFakes(mode)
        self._graph = GraphRecorder(Storages(), Metas(mode))
        self._tracker = ActiveModuleTracker()
        self._is_quiet = False
        self._last: tuple[tuple[str, ...], bool] = ((), False)
        self.calls: list[RecordedCall] = []

    @property
    def graph(self) -> Graph:
        """What has been recorded."""
        return self._graph.graph

    def __enter__(self) -> OperatorRecorder:
        self._tracker.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._tracker.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        self._last = self._tracker.path, self._tracker.is_backward
        if self._is_quiet or func.namespace == "prim":
            return self._quick.call(func, args, kwargs)
        if func not in MAKES_LITERALS:
            make = self._mode.from_tensor  # of what is real, and belongs to the user
            args, kwargs = with_fakes(args, make), with_fakes(kwargs, make)
        result = self._quick.call(func, args, kwargs)
        node = self._graph.add(func, args, kwargs, result)
        stage: Stage = "backward" if self._tracker.is_backward else "forward"
        returned = _place_of(result, args) if func._schema.is_mutable else None
        self.calls.append(RecordedCall(node, self._tracker.path, stage, returned))
        return result

    def nodes_of(self, values: Any) -> tuple[Node, ...]:
        """The placeholders of tensors that exist before the step."""
        self._is_quiet = True
        try:
            return tuple(self._graph.node_of(tensor) for tensor in tensors_in(values))
        finally:
            self._is_quiet = False

    def place(self) -> str:
        """Where the last operator was called, for an error: modules have ended by then."""
        path, is_backward = self._last
        if is_backward:
            return "in its backward"
        return f"in {path[-1]}" if path else "outside of its modules"


def _place_of(result: Any, args: Sequence[Any]) -> int | None:
    return next((i for i, value in enumerate(args) if value is result), None)
