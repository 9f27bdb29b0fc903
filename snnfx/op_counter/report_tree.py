"""The modules of a report as a tree, with what each counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import sympy

from snnfx.op_counter.report import QUANTITIES, CountReport, OperatorCount, SpikeTensor, Stage
from snnfx.op_counter.report_values import is_number, sum_of
from snnfx.op_counter.spikes import Count
from snnfx.op_counter.tracker import GLOBAL

STAGES: tuple[Stage, ...] = ("forward", "backward")


@dataclass(frozen=True)
class ModuleRow:
    """What a module counts, with all that it calls.

    Attributes:
        scope: its name, as in `OperatorCount.path`; ``"Global"`` for everything.
        label: the end of the name, below the row that it belongs to.
        depth: 0 for everything, 1 for the model, and so on.
        calls: of operators, by stage.
        counts: ``counts[stage][quantity]``.
        rate: the share of ones among the spikes that it fires, with all modules inside; None if it
            fires none, or if symbols of several modules would have to be added up.
    """

    scope: str
    label: str
    depth: int
    calls: Mapping[Stage, int]
    counts: Mapping[Stage, Mapping[str, Count]]
    rate: Count | None


def stages_of(report: CountReport) -> tuple[Stage, ...]:
    """The halves of the step that the report knows of."""
    found = {entry.stage for entry in report.operators}
    return tuple(stage for stage in STAGES if stage in found)


def quantities_of(report: CountReport) -> tuple[str, ...]:
    """The quantities that the report holds, in the order of `QUANTITIES`."""
    found = {quantity for entry in report.operators for quantity in entry.counts}
    return tuple(quantity for quantity in QUANTITIES if quantity in found)


def module_rows(report: CountReport, depth: int | None = None) -> tuple[ModuleRow, ...]:
    """A row for everything, followed by the modules, each below the one that it is part of.

    A module's row is that of its name: a container that is not called itself has none, and its
    parts follow at its place.

    Args:
        report: to show.
        depth: rows down to that one; None for all.
    """
    parents = _parents(report)
    collected = _collect(report)
    rows = [_row(collected, GLOBAL, None, 0)]
    rows += [
        _row(collected, scope, parents[scope], level)
        for scope, level in _walk(parents, None, 1)
        if depth is None or level <= depth
    ]
    return tuple(rows)


@dataclass(frozen=True)
class _Collected:
    """What rows are made from: the operators of each module and stage, looked up once."""

    entries: Mapping[tuple[str, Stage], Sequence[OperatorCount]]
    stages: tuple[Stage, ...]
    quantities: tuple[str, ...]
    tensors: tuple[SpikeTensor, ...]


def _collect(report: CountReport) -> _Collected:
    found: dict[tuple[str, Stage], list[OperatorCount]] = defaultdict(list)
    for entry in report.operators:
        for scope in (GLOBAL, *entry.path):
            found[scope, entry.stage].append(entry)
    return _Collected(found, stages_of(report), quantities_of(report), report.spike_tensors)


def _parents(report: CountReport) -> dict[str, str | None]:
    """Each module that ran, in the order of first calls, and the one that it is part of."""
    scopes = dict.fromkeys(name for entry in report.operators for name in entry.path)
    return {scope: _enclosing(scope, scopes) for scope in scopes}


def _enclosing(scope: str, scopes: Mapping[str, None]) -> str | None:
    """The longest name of a module that is a beginning of `scope`."""
    while "." in scope:
        scope = scope.rpartition(".")[0]
        if scope in scopes:
            return scope
    return None


def _walk(
    parents: Mapping[str, str | None], parent: str | None, level: int
) -> Iterator[tuple[str, int]]:
    for scope, enclosing in parents.items():
        if enclosing == parent:
            yield scope, level
            yield from _walk(parents, scope, level + 1)


def _row(collected: _Collected, scope: str, parent: str | None, depth: int) -> ModuleRow:
    calls: dict[Stage, int] = {}
    counts: dict[Stage, Mapping[str, Count]] = {}
    for stage in collected.stages:
        found = collected.entries.get((scope, stage), ())
        calls[stage] = sum(entry.calls for entry in found)
        counts[stage] = _sums(found, collected.quantities)
    return ModuleRow(
        scope,
        scope if parent is None else scope.removeprefix(f"{parent}."),
        depth,
        calls,
        counts,
        _rate([tensor for tensor in collected.tensors if _is_inside(tensor.name, scope)]),
    )


def _sums(entries: Sequence[OperatorCount], quantities: Sequence[str]) -> dict[str, Count]:
    return {q: sum_of(entry.counts.get(q, 0) for entry in entries) for q in quantities}


def _is_inside(name: str, scope: str) -> bool:
    """Whether a spike tensor's module, named from the model down, is `scope` or a part of it."""
    inner = scope.partition(".")[2]
    return scope == GLOBAL or inner == "" or name == inner or name.startswith(f"{inner}.")


def _rate(tensors: Sequence[SpikeTensor]) -> Count | None:
    """The mean of the rates, weighted with the elements."""
    numel = sum(tensor.numel for tensor in tensors)
    if numel == 0:
        return None
    if len(tensors) == 1:
        return tensors[0].rate
    if not all(is_number(tensor.rate) for tensor in tensors):
        return None
    return sum(tensor.numel * _exact(tensor.rate) for tensor in tensors) / numel


def _exact(rate: Count) -> Count:
    return Fraction(str(rate)) if isinstance(rate, sympy.Basic) else rate
