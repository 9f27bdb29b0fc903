"""Counting operations, bytes and spikes of a model from its graph, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from snnfx._torch_compat import FakeTensor
from snnfx.eager.storages import tensors_in
from snnfx.op_counter.rates import GivenRates, RatedFacts, Rates
from snnfx.op_counter.record import Loss, StepRecord, record_operators, state_tensors
from snnfx.op_counter.report import CountReport, SpikeTensor
from snnfx.op_counter.spike_sources import BINARY, RateMap, SpikeSources
from snnfx.op_counter.spikes import number_of_spikes
from snnfx.op_counter.tally import ExtraRules, RuleSets, Tally, plain
from snnfx.passes.analysis.grid import Grid


def count(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    *,
    loss: Loss | None = None,
    train: bool = False,
    rates: Rates = None,
    strict: bool = False,
    extra_rules: ExtraRules | None = None,
) -> CountReport:
    """Count."""
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    rules = RuleSets.of(extra_rules or {})
    given = GivenRates.of(rates)
    record = record_operators(model, args, loss, train)
    seeds, warnings = seeds_of(record, model, args)
    sources = SpikeSources(record, seeds)
    rate_map = RateMap(sources, given)
    tally = Tally(rules, lambda call: RatedFacts(call.node.args, sources, rate_map), strict)
    for call in record.calls:
        tally.add(call)
    found = rate_map.found()
    given.check(source.name for source in found)
    return CountReport(
        tally.operators(),
        tuple(SpikeTensor(s.name, s.numel, plain(given(s.name)), True) for s in found),
        {q: dict(missed) for q, missed in tally.unsupported.items() if missed},
        tuple(warnings),
    )


def seeds_of(
    record: StepRecord, model: nn.Module, args: Sequence[Any]
) -> tuple[dict[Node, Grid], list[str]]:
    """What is known of the values of inputs and state, and what the user should know of that."""
    seeds: dict[Node, Grid] = {}
    warnings: list[str] = []
    for index, (node, tensor) in enumerate(zip(record.inputs, tensors_in(args), strict=True)):
        grid = _grid_of(tensor)
        if grid is not None:
            seeds[node] = grid
            warnings.append(
                f"input {index} holds only zeros and ones, so it is counted as spikes; give "
                "an input without values (on the meta device) to count it as numbers"
            )
    for node, tensor in zip(record.states, state_tensors(model), strict=True):
        grid = _grid_of(tensor)
        if grid is not None:
            seeds[node] = grid
    return seeds, warnings


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
