"""The answers of the command line, as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from snnfx.fit import Fit, Need
from snnfx.passes.cost.units import format_bytes

FORMAT_VERSION = 1


def fit_table(fits: Sequence[Fit], memory_bytes: int, title: str) -> Table:
    """The largest batch of each method, and what it needs."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for column in ("largest batch", "in all", "parameters", "gradients", "optimizer"):
        table.add_column(column, justify="right")
    table.add_column("buffers, inputs", justify="right")
    table.add_column("activations", justify="right")
    for fit in fits:
        table.add_row(fit.method, _batch_cell(fit), *map(format_bytes, _parts(fit.need)))
    notes = fit_notes(fits, memory_bytes)
    table.caption = "\n".join(notes) if notes else None
    return table


def fit_notes(fits: Sequence[Fit], memory_bytes: int) -> list[str]:
    """What a reader of the table has to know."""
    notes: list[str] = []
    for fit in fits:
        if fit.batch == 0:
            over = format_bytes(fit.need.total - memory_bytes)
            notes.append(f"{fit.method}: not even batch 1 fits: it needs {over} more")
        elif fit.limited:
            notes.append(f"{fit.method}: batch {fit.batch} is the limit (--max-batch), and fits")
    return notes


def fit_json(fits: Sequence[Fit], memory_bytes: int, settings: dict[str, Any]) -> str:
    """The same as JSON; bytes throughout."""
    results = [{**asdict(fit), "total_bytes": fit.need.total} for fit in fits]
    document = {"version": FORMAT_VERSION, "memory_bytes": memory_bytes, **settings}
    return json.dumps({**document, "fits": results}, indent=2)


def _batch_cell(fit: Fit) -> str:
    if fit.batch == 0:
        return "none (1 needs:)"
    return f"{fit.batch} or more" if fit.limited else str(fit.batch)


def _parts(need: Need) -> tuple[int, ...]:
    rest = need.buffers + need.inputs
    return (
        need.total,
        need.parameters,
        need.gradients,
        need.optimizer,
        rest,
        need.activations,
    )
