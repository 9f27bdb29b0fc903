"""The other counters that `bench_counting.py` measures, each behind one function.

A function takes a network and returns `Counts`; `PeerMissingError` says what to install. All of
them count one forward in evaluation mode, without gradients, as syops and NeuroBench do.

syops 0.0.5 imports neurons of a SpikingJelly before 2.0, and `progress`, which it does not ask for.
With SpikingJelly 2.0 the names are made to mean its present neurons, which the same hooks fit.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

COUNTERS = {
    "flops": "FlopCounter",
    "bytes": "MemoryAccessCounter",
    "mac": "MACCounter",
    "ac": "ACCounter",
    "synops": "SynOpCounter",
}
"""The counter of each quantity; SpikingJelly's and ours have the same names."""


class PeerMissingError(RuntimeError):
    """A package is not installed; the text says how to install it."""


@dataclass(frozen=True)
class Net:
    """A network in evaluation mode, and how to run it.

    Attributes:
        model: as is.
        inputs: its positional arguments.
        reset: what its user calls before each run.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    reset: Callable[[], None]

    def forward(self) -> Any:
        """One forward without gradients, from a fresh state."""
        self.reset()
        with torch.no_grad():
            return self.model(*self.inputs)


@dataclass(frozen=True)
class Counts:
    """What one method found.

    Attributes:
        totals: by quantity, a key of `COUNTERS`; what the method does not count is left out.
        operators: ``operators[quantity][name]``, where it counts operators.
        unknown: names of operators that it has no rule for, by quantity.
    """

    totals: Mapping[str, Any]
    operators: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unknown: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def dispatch(net: Net) -> Counts:
    """Our counters over a run."""
    return _dispatched(net, importlib.import_module("snnfx.op_counter"))


def spikingjelly(net: Net) -> Counts:
    """SpikingJelly's counters over a run."""
    try:
        library = importlib.import_module("spikingjelly.activation_based.op_counter")
    except ImportError as error:
        raise PeerMissingError("pip install spikingjelly==2.0.0") from error
    return _dispatched(net, library)


def _dispatched(net: Net, library: ModuleType) -> Counts:
    counters = {quantity: getattr(library, name)() for quantity, name in COUNTERS.items()}
    mode = library.DispatchCounterMode(list(counters.values()))
    with mode:
        net.forward()
    return Counts(
        {quantity: counter.get_total() for quantity, counter in counters.items()},
        {quantity: _by_name(counter.records["Global"]) for quantity, counter in counters.items()},
        {quantity: _missed(mode, counter) for quantity, counter in counters.items()},
    )


def _by_name(records: Mapping[Any, int]) -> dict[str, int]:
    return {str(operator): value for operator, value in records.items()}


def _missed(mode: Any, counter: Any) -> tuple[str, ...]:
    """The operators without a rule, where the library tells."""
    ask = getattr(mode, "get_unsupported", None)
    return tuple(ask(counter)) if ask is not None else ()


def static(net: Net) -> Counts:
    """Ours from the graph, with rates as symbols; nothing runs."""
    return _static(net, None)


def static_measured(net: Net) -> Counts:
    """Ours from the graph, with the number of spikes of one run."""
    return _static(net, "measured")


def _static(net: Net, rates: str | None) -> Counts:
    from snnfx.op_counter import count

    net.reset()
    with torch.no_grad():
        report = count(net.model, net.inputs, rates=rates)
    records = {quantity: report.records(quantity) for quantity in COUNTERS}
    return Counts(
        {quantity: report.total(quantity) for quantity in COUNTERS},
        {quantity: _by_name(found.get("Global", {})) for quantity, found in records.items()},
        {quantity: tuple(missed) for quantity, missed in report.unsupported.items()},
    )


def syops(net: Net) -> Counts:
    """syops-counter: a formula for each call of a module of a known type."""
    try:
        with _neurons_of_old():
            library = importlib.import_module("syops")
    except ImportError as error:
        raise PeerMissingError("pip install --no-deps syops==0.0.5 progress") from error
    name = next(iter(inspect.signature(net.model.forward).parameters))
    net.reset()
    # It leaves attributes in the modules. With keyword arguments it takes the batch for one sample,
    # so the result is a sum and no mean.
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        (_, acs, macs, _), _ = library.get_model_complexity_info(
            copy.deepcopy(net.model),
            (1,),
            input_constructor=lambda _: {name: net.inputs[0]},
            as_strings=False,
            print_per_layer_stat=False,
        )
    return Counts({"mac": round(macs), "ac": round(acs)})


@contextlib.contextmanager
def _neurons_of_old() -> Iterator[None]:
    """Let imports find the neurons of SpikingJelly 2.0 under the names that they had before."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    names = ("IFNode", "LIFNode", "ParametricLIFNode")
    old = ModuleType("spikingjelly.clock_driven.neuron")
    for name in names:
        old.__dict__[name] = old.__dict__[f"MultiStep{name}"] = getattr(neuron, name)
    package = ModuleType("spikingjelly.clock_driven")
    package.__dict__.update(functional=functional, surrogate=surrogate, neuron=old)
    added = {module.__name__: module for module in (package, old)}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def neurobench(net: Net) -> Counts:
    """NeuroBench's metric of synaptic operations: each layer runs again with weights of one."""
    try:
        from neurobench.metrics.workload.synaptic_operations import SynapticOperations
        from neurobench.models.torch_model import TorchModel
    except ImportError as error:
        raise PeerMissingError("pip install neurobench==2.3.0") from error
    wrapped = TorchModel(net.model)
    wrapped.register_hooks()
    metric = SynapticOperations()
    net.reset()
    try:
        with torch.no_grad():
            output = wrapped(net.inputs[0])
            metric(wrapped, output, (net.inputs[0], None))
    finally:
        wrapped.cleanup_hooks()
    return Counts({"mac": metric.MAC, "ac": metric.AC})
