"""`MemoryPlan`: what was decided for one graph, and what it is predicted to cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Storage = Literal["kept", "packed", "dropped"]
DecisionKind = Literal["checkpoint", "split", "tile", "restore", "schedule", "baseline"]
TileAxis = Literal["time", "batch"]


@dataclass(frozen=True)
class SavedTensor:
    """What becomes of one value of the forward that the backward needs.

    Attributes:
        name: of the value in the joint graph.
        storage: kept as it is, packed, or dropped and computed again.
        bits: bits an element if packed.
        original_bytes: of the value.
        stored_bytes: of what is kept for it from forward to backward.
        reason: why, in words.
    """

    name: str
    storage: Storage
    bits: int | None
    original_bytes: int
    stored_bytes: int
    reason: str


@dataclass(frozen=True)
class Segment:
    """The work between one weight and the next, computed again as one piece.

    Attributes:
        name: of the weight's result.
        inputs: the kept values that it is computed from.
        values: how many values are computed again.
        flops: of computing them again.
        tiles: in how many tiles its backward runs.
        axis: along which; None for one tile.
        backward_points: first and last point of the backward schedule at which it is computed
            again; None where it is not seen in the schedule.
    """

    name: str
    inputs: tuple[str, ...]
    values: int
    flops: int
    tiles: int = 1
    axis: TileAxis | None = None
    backward_points: tuple[int, int] | None = None


@dataclass(frozen=True)
class Decision:
    """One thing that the planner decided, and why.

    Attributes:
        kind: checkpoint a layer, split a segment at a further value, run it in tiles, give a saved
            tensor back, order the schedule, or use the baseline.
        target: the value or segment that it is about.
        peak_before_bytes: predicted peak before it.
        peak_after_bytes: predicted peak after it.
        seconds: predicted time that it adds to a step; negative where it saves time.
        reason: why, in words.
    """

    kind: DecisionKind
    target: str
    peak_before_bytes: int
    peak_after_bytes: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class Timeline:
    """Predicted activation bytes at each point of a schedule: one forward, then one backward.

    Parameters, gradients of parameters and inputs of the model are not counted.

    Attributes:
        forward: bytes while each step of the forward runs.
        backward: bytes while each step of the backward runs.
        forward_names: the steps of the forward, one for each of `forward`.
        backward_names: the steps of the backward, one for each of `backward`.
    """

    forward: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()
    forward_names: tuple[str, ...] = ()
    backward_names: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The largest point of both halves."""
        return max((*self.forward, *self.backward), default=0)


@dataclass(frozen=True)
class MemoryPlan:
    """The plan that was applied to one graph.

    Attributes:
        level: the level that was asked for.
        applied: False if the graph was left as it is; `notes` says why.
        lowering: how the graph runs.
        segments: the checkpointed segments, in forward order.
        saved: every value of the forward that the backward needs.
        predicted: the timeline under this plan.
        baseline: the timeline of the graph without it.
        extra_flops: predicted work of computing again (a multiply-add counts 2).
        baseline_flops: predicted work of the graph without the plan.
        predicted_seconds: predicted time of a step under the plan, from the device table: to be
            compared with `baseline_seconds` and with other plans, not with a clock.
        baseline_seconds: the same of the graph without the plan.
        decisions: what was decided, in order, and why.
        memory_budget: bytes that were asked for; None where there is no limit.
        prefer: ``"speed"``, ``"balanced"`` or ``"memory"``.
        notes: what the user should know.
    """

    level: int
    applied: bool
    lowering: str
    segments: tuple[Segment, ...] = ()
    saved: tuple[SavedTensor, ...] = ()
    predicted: Timeline = field(default_factory=Timeline)
    baseline: Timeline = field(default_factory=Timeline)
    extra_flops: int = 0
    baseline_flops: int = 0
    predicted_seconds: float = 0.0
    baseline_seconds: float = 0.0
    decisions: tuple[Decision, ...] = ()
    memory_budget: int | None = None
    prefer: str = "balanced"
    notes: tuple[str, ...] = ()

    @property
    def predicted_peak_bytes(self) -> int:
        """Predicted peak of activation memory under the plan."""
        return self.predicted.peak_bytes

    @property
    def baseline_peak_bytes(self) -> int:
        """Predicted peak of activation memory without the plan."""
        return self.baseline.peak_bytes

    @property
    def packed(self) -> tuple[SavedTensor, ...]:
        """The values that are kept packed."""
        return tuple(s for s in self.saved if s.storage == "packed")

    def summary(self) -> str:
        """A few lines for people."""
        if not self.applied:
            return "\n".join(("snnmem: graph left as it is", *(f"  {n}" for n in self.notes)))
        mib = 1024.0 * 1024.0
        before, after = self.baseline_peak_bytes / mib, self.predicted_peak_bytes / mib
        extra = 100.0 * self.extra_flops / max(1, self.baseline_flops)
        stored = sum(s.stored_bytes for s in self.saved)
        original = sum(s.original_bytes for s in self.saved)
        lines = [
            f"snnmem level {self.level}, {self.lowering} lowering: predicted activation peak "
            f"{before:.1f} MiB -> {after:.1f} MiB",
            f"  {len(self.segments)} segments; {len(self.packed)} values packed, "
            f"{sum(s.storage == 'kept' for s in self.saved)} kept, "
            f"{sum(s.storage == 'dropped' for s in self.saved)} computed again",
            f"  from forward to backward: {original / mib:.1f} MiB -> {stored / mib:.1f} MiB; "
            f"recomputation {extra:+.1f}% FLOPs",
        ]
        return "\n".join((*lines, *(f"  note: {n}" for n in self.notes)))

    def to_json(self) -> str:
        """All fields, and the two peaks, as JSON."""
        data: dict[str, Any] = asdict(self)
        data["predicted_peak_bytes"] = self.predicted_peak_bytes
        data["baseline_peak_bytes"] = self.baseline_peak_bytes
        return json.dumps(data, indent=2)

    def plot(self, path: str) -> None:
        """Draw both timelines, activation bytes over the schedule, to an image file.

        Raises:
            ImportError: matplotlib is missing (``pip install snnfx[plot]``).
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
        mib = 1024.0 * 1024.0
        for label, line in (("without snnmem", self.baseline), ("snnmem", self.predicted)):
            times = (*_spread(line.forward, 0.0), *_spread(line.backward, 1.0))
            points = (*line.forward, *line.backward)
            axes.plot(times, [point / mib for point in points], label=label)
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set_xlim(0.0, 2.0)
        axes.set_xticks([0.5, 1.5], ["forward", "backward"])
        axes.set_ylabel("predicted activation memory [MiB]")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside upper right", ncols=2)
        figure.savefig(path, dpi=120)


def _spread(points: Sequence[int], start: float) -> list[float]:
    """A time for each of `points`, evenly over one unit from `start`."""
    return [start + (i + 0.5) / len(points) for i in range(len(points))]
