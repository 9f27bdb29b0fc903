"""A `CountReport` as a table with a row for each module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from snnfx.op_counter.report import CountReport
from snnfx.op_counter.report_tree import ModuleRow, module_rows, quantities_of, stages_of
from snnfx.op_counter.report_values import format_count, format_rate, is_number
from snnfx.op_counter.spikes import Count

TITLES = {"flops": "FLOPs", "bytes": "bytes", "mac": "MACs", "ac": "ACs", "synops": "SynOps"}
INDENT = "  "
MAX_OPERATORS = 6
"""Operators without a rule that are named for each quantity."""


def report_table(report: CountReport, depth: int | None = 3, title: str | None = None) -> Table:
    """A row for each module, below everything.

    Where the report holds a forward and a backward, a cell holds both, divided by a slash.

    Args:
        report: to show.
        depth: modules down to that one, where the model is 1; None for all.
        title: above the table.
    """
    quantities, stages = quantities_of(report), stages_of(report)
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("module", no_wrap=True)
    for name in ("operators", *(TITLES[quantity] for quantity in quantities)):
        table.add_column(name, justify="right", no_wrap=True)
    rates = [tensor.rate for tensor in report.spike_tensors if not is_number(tensor.rate)]
    if report.spike_tensors:
        table.add_column("rate", justify="right", no_wrap=True)
    for row in module_rows(report, depth):
        cells = [_calls(row)]
        cells += [_cell(row, quantity, rates) for quantity in quantities]
        cells += [format_rate(row.rate)] if report.spike_tensors else []
        table.add_row(f"{INDENT * row.depth}{row.label}", *cells)
    table.caption = "\n".join(_notes(report, len(stages) > 1)) or None
    return table


def _calls(row: ModuleRow) -> str:
    return " / ".join(str(calls) for calls in row.calls.values())


def _cell(row: ModuleRow, quantity: str, rates: Sequence[Any]) -> str:
    counts: list[Count] = [counts[quantity] for counts in row.counts.values()]
    return " / ".join(format_count(c, rates, in_bytes=quantity == "bytes") for c in counts)


def _notes(report: CountReport, two_stages: bool) -> list[str]:
    """What a reader of the table has to know."""
    notes = ["forward / backward"] if two_stages else []
    for quantity, missed in report.unsupported.items():
        if missed:
            names = [f"{name} ({calls})" for name, calls in missed.items()]
            more = f", {len(names) - MAX_OPERATORS} more" if len(names) > MAX_OPERATORS else ""
            listed = ", ".join(names[:MAX_OPERATORS])
            notes.append(f"without a rule for {TITLES.get(quantity, quantity)}: {listed}{more}")
    return [*notes, *report.warnings]
