"""A `MemoryPlan` as a picture: activation bytes over the schedule, without and with the plan.

Forward and backward have the same width, whatever the number of their steps, so that the same place
is the same part of the work in both curves. Segments that are computed again are bands in the
backward half.
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from typing import Any

from snnfx.errors import PlanError
from snnfx.passes.cost.units import format_bytes, unit_of
from snnfx.passes.plan.records import PlanRecord, Segment, Timeline
from snnfx.pictures import check_picture_path

COLOURS = {"baseline": "C0", "plan": "C1", "segment": "C2", "tiles": "C3"}
MAX_LABELS = 14
MIN_LABEL_GAP = 0.055  # of one half of the schedule, so that two labels do not touch
MAX_NAME = 22
TICKS = ("0", "25", "50\nforward", "75", "0", "25", "50\nbackward", "75", "100")
HEADROOM = 1.22  # room for the labels of the peaks above the curves


def draw_plan(plan: PlanRecord, path: str | PathLike[str]) -> None:
    """Draw to an image file; its suffix gives the format.

    Raises:
        PlanError: the suffix names no known format.
        ImportError: matplotlib is missing.
    """
    check_picture_path(path, PlanError)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.add_subplot()
    peak = max(plan.baseline_peak_bytes, plan.predicted_peak_bytes)
    unit, scale = unit_of(peak)
    _draw_segments(axes, plan)
    _draw_curve(axes, plan.baseline, scale, "baseline", "without a plan")
    if plan.applied:
        _draw_curve(axes, plan.predicted, scale, "plan", f"plan of level {plan.level}")
    _draw_frame(axes, unit, max(1.0, peak) / scale)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def _draw_curve(axes: Any, line: Timeline, scale: int, role: str, label: str) -> None:
    """One curve, with its peak marked."""
    if not line.points:
        return
    times = list(_times(line))
    values = [point / scale for point in line.points]
    colour = COLOURS[role]
    axes.plot(times, values, drawstyle="steps-mid", color=colour, label=label, linewidth=1.4)
    step = line.peak_step or 0
    name = f" in {_short(line.names[step])}" if line.names else ""
    axes.plot(times[step], values[step], marker="v", color=colour, markeredgecolor="black")
    right = times[step] > 1.0
    axes.annotate(
        f"{format_bytes(line.peak_bytes)}{name}",
        (times[step], values[step]),
        xytext=(-6 if right else 6, 9),
        textcoords="offset points",
        ha="right" if right else "left",
        va="bottom",
        fontsize=9,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "alpha": 0.9},
    )


def _draw_segments(axes: Any, plan: PlanRecord) -> None:
    """A band for each segment that is seen in the schedule, and names for as many as there fit."""
    steps = len(plan.predicted.backward)
    bands = sorted(_bands(plan, steps), key=lambda band: band[0])
    legend: set[str] = set()
    for index, (start, stop, segment) in enumerate(bands):
        tiled = segment.tiles > 1
        label = "computed again in tiles" if tiled else "segment computed again"
        shown = None if label in legend else label
        legend.add(label)
        colour = COLOURS["tiles" if tiled else "segment"]
        alpha = 0.28 if index % 2 else 0.16
        axes.axvspan(start, stop, color=colour, alpha=alpha, linewidth=0, label=shown)
    for place, segment in _labelled([((start + stop) / 2, s) for start, stop, s in bands]):
        axes.annotate(
            _band_label(segment),
            (place, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            rotation=40,
            ha="left",
            va="bottom",
            rotation_mode="anchor",
            fontsize=8,
        )


def _bands(plan: PlanRecord, steps: int) -> Iterator[tuple[float, float, Segment]]:
    """Start and end of each segment on the axis of time."""
    for segment in plan.segments:
        if segment.backward_points is not None and steps:
            first, last = segment.backward_points
            yield 1.0 + first / steps, 1.0 + min(steps, last + 1) / steps, segment


def _labelled(places: list[tuple[float, Segment]]) -> list[tuple[float, Segment]]:
    """The bands that get a name: those in tiles first, then the ones with most work, spread out."""
    ranked = sorted(places, key=lambda p: (p[1].tiles == 1, -p[1].flops, p[0]))
    chosen: list[tuple[float, Segment]] = []
    for place, segment in ranked:
        if all(abs(place - other) >= MIN_LABEL_GAP for other, _ in chosen):
            chosen.append((place, segment))
    return chosen[:MAX_LABELS]


def _band_label(segment: Segment) -> str:
    tiles = f" ×{segment.tiles} {segment.axis or ''}".rstrip() if segment.tiles > 1 else ""  # noqa: RUF001
    return _short(segment.name) + tiles


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def _draw_frame(axes: Any, unit: str, top: float) -> None:
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlim(0.0, 2.0)
    axes.set_ylim(0.0, top * HEADROOM)
    places = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    axes.set_xticks(places, TICKS)
    axes.set_xlabel("schedule [% of the steps of each half]")
    axes.set_ylabel(f"predicted activation memory [{unit}]")
    axes.grid(alpha=0.3)


def _times(line: Timeline) -> Iterator[float]:
    """The place of each step: the forward in 0 to 1, the backward in 1 to 2."""
    for start, points in ((0.0, line.forward), (1.0, line.backward)):
        yield from (start + (index + 0.5) / len(points) for index in range(len(points)))
