"""Counts and energies as pictures: bars for each operator, coloured by the half of the step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from snnfx.errors import OptionError
from snnfx.op_counter.report import CountReport
from snnfx.op_counter.report_energy import EnergyPart, energy_parts, format_pj
from snnfx.op_counter.report_table import TITLES
from snnfx.op_counter.report_tree import quantities_of
from snnfx.op_counter.report_values import format_count, is_number, number_of, sum_of
from snnfx.pictures import check_picture_path

MAX_BARS = 10
REST = "all others"
COLOURS = {"forward": "C0", "backward": "C1"}
PANEL_INCHES = (4.6, 0.9, 0.26)
"""Width of a panel, height without bars, height of a bar."""

Bars = Mapping[str, Mapping[str, float]]
"""``bars[label][series]`` is a length."""


def draw_counts(report: CountReport, path: str | PathLike[str]) -> None:
    """A panel for each quantity, with the operators that count most; the suffix gives the format.

    Raises:
        OptionError: the suffix names no known format, there is nothing to draw, or counts depend on
            rates that are symbols.
        ImportError: matplotlib is missing.
    """
    check_picture_path(path)
    panels = [
        (TITLES[quantity], _limited(operator_bars(report, quantity)))
        for quantity in quantities_of(report)
    ]
    _draw(panels, path, format_count)


def draw_energy(report: Any, path: str | PathLike[str], operators_pj: Bars | None = None) -> None:
    """A panel for each way in which an energy report divides its total.

    Args:
        report: of one of the energy models.
        path: of the image file.
        operators_pj: of each operator, by stage, for a report that does not tell; see `priced`.

    Raises:
        OptionError: as of `draw_counts`.
        ImportError: matplotlib is missing.
    """
    check_picture_path(path)
    panels = [
        (f"energy {part.title}", _limited(_one_series(part))) for part in energy_parts(report)
    ]
    if operators_pj:
        panels.insert(0, ("energy by operator", _limited(operators_pj)))
    _draw(panels, path, format_pj)


def priced(report: CountReport, prices_pj: Mapping[str, float]) -> Bars:
    """What each operator costs, by stage, in pJ.

    Args:
        report: of counts.
        prices_pj: of one operation of a quantity.

    Raises:
        OptionError: the counts depend on rates that are symbols.
    """
    energies: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for quantity, price_pj in prices_pj.items():
        for operator, stages in operator_bars(report, quantity).items():
            for stage, number in stages.items():
                energies[operator][stage] += price_pj * number
    return energies


def operator_bars(report: CountReport, quantity: str) -> Bars:
    """What each operator counts of a quantity, by stage.

    Raises:
        OptionError: it depends on rates that are symbols.
    """
    counts: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for entry in report.operators:
        if entry.counts.get(quantity, 0) != 0:
            counts[str(entry.operator)][entry.stage].append(entry.counts[quantity])
    bars: dict[str, dict[str, float]] = {}
    for operator, stages in counts.items():
        totals = {stage: sum_of(found) for stage, found in stages.items()}
        unknown = [total for total in totals.values() if not is_number(total)]
        if unknown:
            raise OptionError(
                f"{TITLES[quantity]} of {operator} depend on rates that are symbols, and cannot be "
                "drawn: count with rates=0.1, a rate for each module, or rates='measured'"
            )
        bars[operator] = {stage: number_of(total) for stage, total in totals.items()}
    return bars


def _one_series(part: EnergyPart) -> Bars:
    return {name: {"": energy} for name, energy in part.energies_pj.items() if energy}


def _limited(bars: Bars) -> Bars:
    """The longest bars, and one for all others."""
    ranked = sorted(bars.items(), key=lambda item: -sum(item[1].values()))
    shown = dict(ranked[:MAX_BARS])
    others: dict[str, float] = defaultdict(float)
    for _, series in ranked[MAX_BARS:]:
        for name, value in series.items():
            others[name] += value
    return {**shown, REST: others} if others else shown


def _draw(panels: Sequence[tuple[str, Bars]], path: str | PathLike[str], text: Any) -> None:
    drawn = [(title, bars) for title, bars in panels if bars]
    if not drawn:
        raise OptionError("there is nothing to draw: all counts are zero")
    from matplotlib.figure import Figure

    width, base, each = PANEL_INCHES
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    height = base + each * max(len(bars) for _, bars in drawn)
    figure = Figure(figsize=(width * columns, max(2.2, height) * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axes in all_axes[len(drawn) :]:
        axes.set_visible(False)
    for axes, (title, bars) in zip(all_axes, drawn, strict=False):
        _draw_bars(axes, title, bars, text)
        axes.set_ylim(max(len(bars) for _, bars in drawn) - 0.4, -0.6)
    names = {name for _, bars in drawn for series in bars.values() for name in series if name}
    if names:
        figure.legend(*_legend(names), loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=120)


def _draw_bars(axes: Any, title: str, bars: Bars, text: Any) -> None:
    labels = list(bars)
    longest = max(sum(series.values()) for series in bars.values())
    for place, label in enumerate(labels):
        left = 0.0
        for name in sorted(bars[label], reverse=True):  # forward before backward
            axes.barh(place, bars[label][name], left=left, color=COLOURS.get(name, "C2"))
            left += bars[label][name]
        axes.annotate(text(left), (left, place), xytext=(3, 0), textcoords="offset points",
                      va="center", fontsize=7)  # fmt: skip
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlim(0, 1.25 * longest)
    axes.set_xticks([])
    axes.set_title(title, fontsize=9)


def _legend(names: set[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    ordered = sorted(names, reverse=True)
    return [Patch(color=COLOURS.get(name, "C2")) for name in ordered], ordered
