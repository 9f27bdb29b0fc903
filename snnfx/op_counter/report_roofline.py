"""The layers of a model on the roofline of a device.

A layer's arithmetic intensity is its FLOPs over its bytes, and what it attains is the lower of the
device's arithmetic and of what its memory feeds at that intensity. Bytes are counted for each
operator by itself, as an eager run moves them: a compiler that fuses operators moves fewer. Source
of the model: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model
for multicore architectures", CACM 2009.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from snnfx.errors import OptionError
from snnfx.op_counter.report import CountReport, OperatorCount, Stage
from snnfx.op_counter.report_values import format_count, is_number, sum_of
from snnfx.op_counter.tracker import GLOBAL
from snnfx.passes.cost.roofline import DEVICES, Device
from snnfx.pictures import check_picture_path

COLOURS: dict[Stage, str] = {"forward": "C0", "backward": "C1"}
MAX_LABELS = 8
LABEL_DECADES = 0.12
"""Labels closer to each other than that on both axes would overlap."""


@dataclass(frozen=True)
class LayerPoint:
    """One layer in one half of the step.

    Attributes:
        module: the innermost module that was running; ``"Global"`` outside of all.
        stage: which half.
        flops: of its operators.
        bytes: that they read and write.
        attainable_flops_per_second: the roof over its intensity.
        seconds: that it takes at that speed.
        bound: what limits it.
    """

    module: str
    stage: Stage
    flops: int
    bytes: int
    attainable_flops_per_second: float
    seconds: float
    bound: Literal["memory", "compute"]

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.bytes


def device_named(name: str) -> Device:
    """The device of a name.

    Raises:
        OptionError: there is none; the text lists those that there are.
    """
    if name not in DEVICES:
        listed = ", ".join(f"'{known}'" for known in DEVICES)
        raise OptionError(f"there is no roofline of a device '{name}'; there are {listed}")
    return DEVICES[name]


def roofline_points(report: CountReport, device: str) -> tuple[LayerPoint, ...]:
    """Where each layer that computes stands, the one that takes longest first.

    Raises:
        OptionError: there is no such device, the report has no FLOPs or no bytes, or they depend
            on symbols.
    """
    speeds = device_named(device)
    layers: dict[tuple[str, Stage], list[OperatorCount]] = defaultdict(list)
    for entry in report.operators:
        layers[entry.path[-1] if entry.path else GLOBAL, entry.stage].append(entry)
    points = [
        _point(module, stage, entries, speeds)
        for (module, stage), entries in layers.items()
        if _sum(entries, "flops") and _sum(entries, "bytes")
    ]
    if not points:
        raise OptionError("the report holds no FLOPs and bytes to draw a roofline of: count both")
    return tuple(sorted(points, key=lambda point: -point.seconds))


def _point(
    module: str, stage: Stage, entries: Sequence[OperatorCount], device: Device
) -> LayerPoint:
    flops, moved = _sum(entries, "flops"), _sum(entries, "bytes")
    compute, memory = flops / device.flops_per_second, moved / device.bytes_per_second
    seconds = max(compute, memory)
    bound = "memory" if memory > compute else "compute"
    return LayerPoint(module, stage, flops, moved, flops / seconds, seconds, bound)


def _sum(entries: Sequence[OperatorCount], quantity: str) -> int:
    total = sum_of(entry.counts.get(quantity, 0) for entry in entries)
    if not is_number(total):
        raise OptionError(f"a roofline needs {quantity} that are numbers, not {total}")
    return int(total)


def draw_roofline(report: CountReport, path: str | PathLike[str], device: str) -> None:
    """Draw the roof of a device and the layers below it; the suffix gives the format.

    Raises:
        OptionError: as of `roofline_points`, or the suffix names no known format.
        ImportError: matplotlib is missing.
    """
    check_picture_path(path)
    points = roofline_points(report, device)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    _draw_roof(axes, points, device_named(device))
    longest = points[0].seconds
    for stage, colour in COLOURS.items():
        drawn = [point for point in points if point.stage == stage]
        axes.scatter(
            [point.intensity for point in drawn],
            [point.attainable_flops_per_second for point in drawn],
            [12 + 150 * point.seconds / longest for point in drawn],
            color=colour, alpha=0.6, label=stage if drawn else None, zorder=3,
        )  # fmt: skip
    _draw_labels(axes, points)
    axes.set_xlabel("arithmetic intensity [FLOP/byte]")
    axes.set_ylabel("attainable [FLOP/s]")
    speeds = device_named(device)
    peak, stream = format_count(speeds.flops_per_second), format_count(speeds.bytes_per_second)
    title = f"{device} ({peak}FLOP/s, {stream}B/s): layers, sized by their share of the time"
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def _draw_roof(axes: Any, points: Sequence[LayerPoint], device: Device) -> None:
    ridge = device.flops_per_second / device.bytes_per_second
    places = [point.intensity for point in points]
    start, stop = min(*places, ridge) / 3, max(*places, ridge) * 3
    roof = [start * device.bytes_per_second, device.flops_per_second, device.flops_per_second]
    axes.loglog([start, ridge, stop], roof, color="black", linewidth=1.2)
    axes.set_xlim(start, stop)


def _draw_labels(axes: Any, points: Sequence[LayerPoint]) -> None:
    """Names of the layers that take longest, where they do not hide each other."""
    from math import log10

    drawn: list[tuple[float, float]] = []
    for point in points:
        place = log10(point.intensity), log10(point.attainable_flops_per_second)
        near = [max(abs(place[0] - x), abs(place[1] - y)) < LABEL_DECADES for x, y in drawn]
        if len(drawn) == MAX_LABELS or any(near):
            continue
        drawn.append(place)
        axes.annotate(
            point.module.partition(".")[2] or point.module,
            (point.intensity, point.attainable_flops_per_second),
            xytext=(3, -7), textcoords="offset points", fontsize=8,
            rotation=-40, rotation_mode="anchor", va="top",
        )  # fmt: skip
