"""Counting operations, bytes and spikes of a model from its graph, without running it.

Nothing runs and no memory is taken: the step is recorded on fake tensors. The operators are those
that `snnfx.op_counter.DispatchCounterMode` sees in a run of the same step, in the same scopes, and
the same rules count them, so operations and bytes are equal to those of a run.

AC, MAC and SynOps depend on spikes. Which operands are spikes is *proven* from the graph, see
`snnfx.passes.analysis.value_range`; inputs and states that hold only zeros and ones when `count` is
called count as spikes, too. How many ones they hold is a matter of rates. With a rate r, a
convolution's spikes are used r times as often as its inputs are in all, and two operands of spikes
coincide in r1 * r2 of all products: spikes are taken to be spread evenly, and independently of one
another. A measured run counts them exactly; what it shows to be zeros and ones without proof, such
as neurons that were silent by accident, is counted as numbers, and a warning names it.

The model does not change: neither its parameters, gradients and buffers nor its state, nor random
states. It is counted in the modes (training, evaluation, autocast, and without `train` gradients
enabled or not) that it would run in at this moment, from the state that it is in; gradients of
parameters are taken to be None.

What `snnfx.capture` made of a model can be counted as well. Its graph is functional: a state that a
neuron writes is a new tensor, batch norm returns its statistics, what the tracer found to be dead
or an alias (`detach`, gradients that are handed on) is left out, the backward starts from given
gradients where there is no loss, and the modules of a backward's operators are those of the
forward's that they belong to. Heavy operators count the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from snnfx._torch_compat import FakeTensor
from snnfx.capture.offline import Capture
from snnfx.eager.storages import tensors_in
from snnfx.errors import OptionError
from snnfx.op_counter.captured import record_of_capture
from snnfx.op_counter.measured import ProvenMeasuredFacts, run_beside
from snnfx.op_counter.rates import MEASURED, GivenRates, RatedFacts, Rates
from snnfx.op_counter.record import (
    Loss,
    RecordedCall,
    Step,
    StepRecord,
    record_operators,
    state_tensors,
)
from snnfx.op_counter.report import CountReport, SpikeTensor
from snnfx.op_counter.resize import Dim, NamedDims
from snnfx.op_counter.spike_sources import BINARY, RateMap, SpikeSource, SpikeSources
from snnfx.op_counter.spikes import Count, number_of_spikes
from snnfx.op_counter.symbolic import Resizing
from snnfx.op_counter.tally import ExtraRules, RuleSets, Tally, plain
from snnfx.passes.analysis.grid import Grid
from snnfx.passes.fxgraph import numel, tensor_value


def count(
    model: nn.Module | Capture,
    example_inputs: Tensor | Sequence[Any] | None = None,
    *,
    loss: Loss | None = None,
    train: bool = False,
    rates: Rates = None,
    time_dim: Dim = None,
    batch_dim: Dim = None,
    strict: bool = False,
    extra_rules: ExtraRules | None = None,
) -> CountReport:
    """Count what a step of a model does, without running it; see the description of this module.

    Args:
        model: its tensors may be real, fake, or on the meta device; or a `Capture`.
        example_inputs: its positional arguments, of which only the sizes count, and whether they
            hold zeros and ones alone; one tensor stands for a sequence of one.
        loss: takes what `model` returns and gives a scalar; None for the sum of all floating-point
            results that require a gradient.
        train: count loss and backward, too.
        rates: None leaves a sympy symbol for the rate of each spike tensor; a number is the rate
            of all; a mapping names modules that fire, and gives their rates; ``"measured"`` runs
            the step once on real tensors, on a copy of the model, and counts spikes exactly.
        time_dim: the dimension of the inputs that is time, for `CountReport.symbolic`: one for all
            tensors, or a sequence with one or None for each. A model that holds its number of time
            steps as an attribute has none.
        batch_dim: the same for the batch; `loss` must then take any size of it.
        strict: an operator without a rule is an error, instead of being left out.
        extra_rules: ``{quantity: {operator: rule(args, kwargs, out)}}``, for the quantities of
            `snnfx.op_counter.report.QUANTITIES`; they win.

    Raises:
        CaptureError: the model cannot run on fake tensors, has nothing to train, or takes another
            way in the measured run.
        OptionError: rates, dimensions or quantities are none, or not for a Capture.
        UncountedError: an operator has no rule, with `strict`.
    """
    options = _Options(RuleSets.of(extra_rules or {}), strict, rates)
    if isinstance(model, Capture):
        if any(v is not None for v in (example_inputs, loss, time_dim, batch_dim)):
            raise OptionError(_NOT_FOR_A_CAPTURE)
        return _count_capture(model, train, options)
    if example_inputs is None:
        raise OptionError("count() of a model needs example_inputs: the arguments of its forward")
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    step = Step(model, args, loss, train, train or torch.is_grad_enabled())
    return _count_step(step, NamedDims.find(args, time_dim, batch_dim), options)


@dataclass(frozen=True)
class _Options:
    """How to count."""

    rules: RuleSets
    strict: bool
    rates: Rates

    @property
    def is_measured(self) -> bool:
        return isinstance(self.rates, str) and self.rates == MEASURED


_NOT_FOR_A_CAPTURE = (
    "a Capture has its inputs and its loss, and cannot run: give count() of it only train, rates "
    "(numbers or None), strict and extra_rules, or count its model"
)


def _count_capture(capture: Capture, train: bool, options: _Options) -> CountReport:
    if options.is_measured:
        raise OptionError(_NOT_FOR_A_CAPTURE)
    record = record_of_capture(capture, train)
    counting = _Counting(record, SpikeSources(record, {}), options.rules, options.strict)
    return counting.rated(GivenRates.of(options.rates), ())


def _count_step(step: Step, dims: NamedDims, options: _Options) -> CountReport:
    given = GivenRates.of(None if options.is_measured else options.rates)
    grids, warnings = _grids_of(step.args)

    def recorded(step: Step) -> _Counting:
        record = record_operators(step)
        sources = SpikeSources(record, _seeds(record, step.model, grids))
        return _Counting(record, sources, options.rules, options.strict)

    def at(sizes: Mapping[str, int]) -> CountReport:
        resized = replace(step, args=dims.resized(step.args, sizes))
        return recorded(resized).rated(GivenRates.of(None), ())

    counting = recorded(step)
    is_measured = options.is_measured
    report = counting.measured(step, warnings) if is_measured else counting.rated(given, warnings)
    return replace(report, resizing=Resizing(dims.sizes, at))


@dataclass(frozen=True)
class _Counting:
    """All that counting a recorded step needs."""

    record: StepRecord
    sources: SpikeSources
    rules: RuleSets
    strict: bool

    def rated(self, given: GivenRates, warnings: Iterable[str]) -> CountReport:
        """Count with rates."""
        tally, found = self._with_rates(given)
        given.check(source.name for source in found)
        spikes = [SpikeTensor(s.name, s.numel, plain(given(s.name)), True) for s in found]
        return _report(tally, spikes, warnings)

    def measured(self, step: Step, warnings: Iterable[str]) -> CountReport:
        """Count the spikes of a run."""
        _, found = self._with_rates(GivenRates(Fraction(0), {}))
        tally = Tally(self.rules, self.strict)
        unproven: dict[Node, int] = {}

        def add(call: RecordedCall, facts: ProvenMeasuredFacts) -> None:
            counted = tally.add(call, facts)
            if facts.unproven and tally.counts(call, facts.measured) != counted:
                unproven.update(facts.unproven)

        watched = {node for source in found for node in source.nodes}
        ones = run_beside(step, self.record, self.sources, watched, add)
        proven = [SpikeTensor(s.name, s.numel, _rate_seen(s, ones), True) for s in found]
        others = self._unproven(unproven)
        return _report(tally, [*proven, *others], [*warnings, *_of_unproven(others)])

    def _with_rates(self, rate: Callable[[str], Count]) -> tuple[Tally, tuple[SpikeSource, ...]]:
        rates = RateMap(self.sources, rate)
        tally = Tally(self.rules, self.strict)
        for call in self.record.calls:
            tally.add(call, RatedFacts(call.node.args, self.sources, rates))
        return tally, rates.found()

    def _unproven(self, seen: Mapping[Node, int]) -> list[SpikeTensor]:
        """What was binary in the run without proof, by name; from the ones in it."""
        found: dict[str, tuple[int, int]] = {}
        for node, ones in seen.items():
            value = tensor_value(node)
            before = found.get(self.sources.name(node), (0, 0))
            size = 0 if value is None else numel(value)
            found[self.sources.name(node)] = (before[0] + size, before[1] + ones)
        return [
            SpikeTensor(name, size, plain(Fraction(ones, max(size, 1))), False)
            for name, (size, ones) in found.items()
        ]


def _report(tally: Tally, spikes: Iterable[SpikeTensor], warnings: Iterable[str]) -> CountReport:
    unsupported = {q: dict(missed) for q, missed in tally.unsupported.items() if missed}
    return CountReport(tally.operators(), tuple(spikes), unsupported, tuple(warnings))


def _rate_seen(source: SpikeSource, ones: Mapping[Node, int]) -> Count:
    fired = sum(ones.get(node, 0) for node in source.nodes)
    return plain(Fraction(fired, max(source.numel, 1)))


def _of_unproven(unproven: Sequence[SpikeTensor]) -> list[str]:
    names = ", ".join(f"'{spikes.name}'" for spikes in unproven)
    if not names:
        return []
    return [
        f"operands from {names} held only zeros and ones in the run, but that is not proven, so "
        "they are counted as numbers; DispatchCounterMode counts them as spikes"
    ]


def _grids_of(args: Sequence[Any]) -> tuple[list[Grid | None], list[str]]:
    """What the values of inputs show, and what the user should know of that."""
    grids = [_grid_of(tensor) for tensor in tensors_in(args)]
    return grids, [
        f"input {index} holds only zeros and ones, so it is counted as spikes; give an input "
        "without values (on the meta device) to count it as numbers"
        for index, grid in enumerate(grids)
        if grid is not None
    ]


def _seeds(record: StepRecord, model: nn.Module, grids: Sequence[Grid | None]) -> dict[Node, Grid]:
    """What is known of the values of inputs and of the model's state."""
    states = (_grid_of(tensor) for tensor in state_tensors(model))
    pairs = (*zip(record.inputs, grids, strict=True), *zip(record.states, states, strict=True))
    return {node: grid for node, grid in pairs if grid is not None}


def _grid_of(tensor: Tensor) -> Grid | None:
    """The grid of a tensor that holds only zeros and ones; None for others, and without values."""
    if isinstance(tensor, FakeTensor) or tensor.device.type == "meta" or tensor.is_complex():
        return None
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return None
    ones = number_of_spikes(tensor)
    if ones is None:
        return None
    return Grid.constant(int(ones > 0)) if ones in (0, tensor.numel()) else BINARY
