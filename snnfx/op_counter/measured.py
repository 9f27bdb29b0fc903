"""One real run of a model, operator by operator beside its record, to count its spikes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import resolve_name

from snnfx._torch_compat import FakeTensor, TorchDispatchMode, pytree
from snnfx.eager.storages import tensors_in
from snnfx.eager.twin import kept_as_it_is
from snnfx.errors import CaptureError, OptionError
from snnfx.op_counter.record import (
    RecordedCall,
    Step,
    StepRecord,
    state_tensors,
    without_gradients,
)
from snnfx.op_counter.spike_sources import SpikeSources
from snnfx.op_counter.spikes import MeasuredFacts, MeasuredValues, number_of_spikes
from snnfx.passes.fxgraph import is_getitem

OnCall = Callable[[RecordedCall, "ProvenMeasuredFacts"], None]
"""What is done with each operator of the run."""


@dataclass(frozen=True)
class ProvenMeasuredFacts:
    """`SpikeFacts` of a call in a run: what is binary is proven, how many ones is measured.

    Attributes:
        measured: of the run.
        operands: the arguments of the call's node.
        sources: what is proven.
        unproven: the ones in operands that were asked about and are binary without proof.
    """

    measured: MeasuredFacts
    operands: Sequence[Any]
    sources: SpikeSources
    unproven: dict[Node, int] = field(default_factory=dict[Node, int])

    def is_binary(self, position: int) -> bool:
        if position >= len(self.operands) or not isinstance(self.operands[position], Node):
            return False
        if self.sources.is_binary(self.operands[position]):
            return True
        if self.measured.is_binary(position):
            self.unproven[self.operands[position]] = self.measured.spikes(position)
        return False

    def spikes(self, position: int) -> int:
        return self.measured.spikes(position)

    def weighted_spikes(self, position: int, weights: Sequence[Sequence[int]]) -> int:
        return self.measured.weighted_spikes(position, weights)

    def coincidences(self, contract: Callable[..., Tensor], *positions: int, dense: int) -> int:
        return self.measured.coincidences(contract, *positions, dense=dense)


def run_beside(
    step: Step,
    record: StepRecord,
    sources: SpikeSources,
    watched: Collection[Node],
    on_call: OnCall,
) -> dict[Node, int]:
    """Run a step for real and call back for each operator; the model stays as it is.

    The run is of a copy of the model whose parameters share their memory with the model's.

    Args:
        step: what to run.
        record: of the same step.
        sources: what is proven about it.
        watched: binary values of which the ones are counted.
        on_call: is called after each operator.

    Returns:
        The number of ones in each value to watch.

    Raises:
        OptionError: an input, a parameter or a state has no values.
        CaptureError: the run takes another way than the record.
    """
    _check_values(step.model, step.args)
    run = _RunBeside(record, sources, watched, on_call)
    with kept_as_it_is(step.model), torch.set_grad_enabled(step.with_gradients):
        twin = _real_twin(step.model)
        inputs = pytree.tree_map_only(Tensor, _own, step.args)
        run.note(record.inputs, list(tensors_in(inputs)))
        run.note(record.states, state_tensors(twin))
        with run:
            step.run(twin, inputs)
    run.finish()
    return run.ones


def _check_values(model: nn.Module, args: Sequence[Any]) -> None:
    tensors = [*tensors_in(args), *model.parameters(), *state_tensors(model)]
    if any(isinstance(t, FakeTensor) or t.device.type == "meta" for t in tensors):
        raise OptionError(
            "rates='measured' runs the model, so its inputs, parameters and buffers must have "
            "values; give rates as numbers, or None for symbols, to count without a run"
        )


def _real_twin(model: nn.Module) -> nn.Module:
    """A copy of a model with a state of its own; parameters share memory."""
    own: dict[int, Any] = {id(p): _own_parameter(p) for p in model.parameters()}
    for tensor in state_tensors(model):
        if id(tensor) not in own:
            own[id(tensor)] = _own(tensor)
    twin = copy.deepcopy(model, own)
    without_gradients(twin)
    return twin


def _own_parameter(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach(), parameter.requires_grad)


def _own(tensor: Tensor) -> Tensor:
    """A copy that is a leaf."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad and tensor.is_leaf)


class _RunBeside(TorchDispatchMode):
    """Follows a run along its record."""

    def __init__(
        self,
        record: StepRecord,
        sources: SpikeSources,
        watched: Collection[Node],
        on_call: OnCall,
    ) -> None:
        super().__init__()
        self._record = record
        self._sources = sources
        self._watched = watched
        self._on_call = on_call
        self._next = 0
        self._values = MeasuredValues()
        self.ones: dict[Node, int] = {}

    def note(self, nodes: Sequence[Node], tensors: Sequence[Any]) -> None:
        """Count the ones in tensors, as far as their nodes are watched."""
        for node, tensor in zip(nodes, tensors, strict=True):
            if node in self._watched:
                self.ones[node] = number_of_spikes(tensor) or 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        call = self._expected(func)
        if func._schema.is_mutable:
            self._values.look((*args, *kwargs.values()))
        try:
            out = func(*args, **kwargs)
            facts = MeasuredFacts(args, self._values)
            self._on_call(call, ProvenMeasuredFacts(facts, call.node.args, self._sources))
        finally:
            self._values.forget()
        self._note_results(call.node, out)
        return out

    def finish(self) -> None:
        """Hold that the run has come to the end of the record."""
        if self._next != len(self._record.calls):
            raise self._astray("ended")

    def _expected(self, func: Any) -> RecordedCall:
        calls = self._record.calls
        if self._next >= len(calls) or calls[self._next].node.target is not func:
            raise self._astray(f"called {resolve_name(func)}")
        self._next += 1
        return calls[self._next - 1]

    def _astray(self, what: str) -> CaptureError:
        calls = self._record.calls
        expected, place = "the end", "there"
        if self._next < len(calls):
            call = calls[self._next]
            expected = str(resolve_name(call.node.target))
            place = f"in {call.path[-1]}" if call.path else "outside of modules"
        return CaptureError(
            f"the run {what} as operator {self._next}, where the step on fake tensors has "
            f"{expected} ({place}): the model decides by the values of its tensors, or by what "
            "a run before left behind. Count such a model with DispatchCounterMode, or without "
            "a run: rates as numbers, or None for symbols"
        )

    def _note_results(self, node: Node, out: Any) -> None:
        if isinstance(out, Tensor):
            self.note([node], [out])
        elif isinstance(out, (list, tuple)):
            picked = [user for user in node.users if is_getitem(user)]
            places: list[Any] = [user.args[1] for user in picked]
            self.note(picked, [out[place] for place in places])
