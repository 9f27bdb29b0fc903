"""The reports of the energy models, shown alike: a total, and the ways in which it divides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from rich import box
from rich.table import Table

from snnfx.op_counter.report_json import encoded
from snnfx.op_counter.report_values import format_count, is_number
from snnfx.op_counter.spikes import Count

PARTS = {
    "energy_by_stage": "by stage",
    "energy_by_op": "by operator",
    "energy_by_component": "by component",
    "energy_by_core_type": "by type of core",
    "energy_by_process_key": "by process",
    "energy_by_memory_level_dir": "by memory level and direction",
    "breakdown_pj": "by kind",
}
"""Fields of the energy reports that divide the total, and how."""

FORMAT_VERSION = 1
UNITS = ("pJ", "nJ", "uJ", "mJ", "J")
MAX_ROWS = 12


@dataclass(frozen=True)
class EnergyPart:
    """One way to divide an energy.

    Attributes:
        title: by what.
        energies_pj: of each part; names of nested ones are joined by a slash.
    """

    title: str
    energies_pj: Mapping[str, Count]


def energy_parts(report: Any) -> tuple[EnergyPart, ...]:
    """The ways in which the energy report of any model divides its total."""
    found = ((title, getattr(report, field, None)) for field, title in PARTS.items())
    return tuple(EnergyPart(title, _flat(parts)) for title, parts in found if parts)


def energy_table(report: Any, title: str | None = None) -> Table:
    """The total of an energy report, and each way to divide it."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("energy", no_wrap=True)
    table.add_column("", justify="right")
    table.add_column("share", justify="right")
    total = report.energy_total_pj
    table.add_row("in all", format_pj(total), "")
    for part in energy_parts(report):
        table.add_row(part.title, "", "")
        ranked = sorted(part.energies_pj.items(), key=lambda item: -_rank(item[1]))
        for name, energy in ranked[:MAX_ROWS]:
            table.add_row(f"  {name}", format_pj(energy), _share(energy, total))
        if len(ranked) > MAX_ROWS:
            table.add_row(f"  {len(ranked) - MAX_ROWS} more", "", "")
    table.caption = "\n".join(report.warnings or ()) or None
    return table


def energy_json(report: Any) -> str:
    """All fields of an energy report; energies in pJ."""
    if not is_dataclass(report):
        raise TypeError(f"an energy report is a dataclass, not a {type(report).__name__}")
    document = {field.name: _plain(getattr(report, field.name)) for field in fields(report)}
    return json.dumps({"version": FORMAT_VERSION, **document}, indent=2)


def format_pj(energy: Count) -> str:
    """An energy in the unit in which it is at least 1."""
    if not is_number(energy):
        return f"{format_count(energy)} pJ"
    value, index = float(energy), 0
    while abs(value) >= 999.5 and index + 1 < len(UNITS):
        value, index = value / 1000, index + 1
    return f"{value:.3g} {UNITS[index]}"


def _flat(parts: Mapping[str, Any], prefix: str = "") -> dict[str, Count]:
    found: dict[str, Count] = {}
    for name, value in parts.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{name}/"))
        else:
            found[f"{prefix}{name}"] = value
    return found


def _rank(energy: Count) -> float:
    return float(energy) if is_number(energy) else float("inf")


def _share(energy: Count, total: Count) -> str:
    known = is_number(energy) and is_number(total) and total
    return f"{100 * float(energy) / float(total):.1f}%" if known else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return encoded(value)
