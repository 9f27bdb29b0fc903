"""What a memory plan is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
class Allocation:
    """One storage on a `Timeline`.

    Attributes:
        name: the value in the forward or backward graph that allocated it. Names that a rewrite
            gives depend on what else was in the graph, so equality does not look at them.
        bytes: of the storage.
        first: the step during which it is allocated. Steps of the backward are counted on from
            those of the forward.
        last: the step after which it is released.
        stack: the user's lines that called for it, innermost first, each as `file:line:function`;
            equality does not look at them either.
    """

    name: str = field(compare=False)
    bytes: int
    first: int
    last: int
    stack: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Timeline:
    """Predicted activation bytes at each point of a schedule: one forward, then one backward.

    Parameters, gradients of parameters and inputs of the model are not counted.

    Attributes:
        forward: bytes while each step of the forward runs.
        backward: bytes while each step of the backward runs.
        forward_names: the steps of the forward, one for each of `forward`.
        backward_names: the steps of the backward, one for each of `backward`. Equality does not
            look at names, as with those of an `Allocation`.
        allocations: what the bytes are made of, as far as it is known: workspace inside of
            operators has no name.
    """

    forward: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()
    forward_names: tuple[str, ...] = field(default=(), compare=False)
    backward_names: tuple[str, ...] = field(default=(), compare=False)
    allocations: tuple[Allocation, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The largest point of both halves."""
        return max(self.points, default=0)

    @property
    def points(self) -> tuple[int, ...]:
        """Both halves, one after the other."""
        return (*self.forward, *self.backward)

    @property
    def names(self) -> tuple[str, ...]:
        """The steps of both halves; empty where a half has no names."""
        known = len(self.forward_names) == len(self.forward)
        known = known and len(self.backward_names) == len(self.backward)
        return (*self.forward_names, *self.backward_names) if known else ()

    @property
    def peak_step(self) -> int | None:
        """The first step of both halves at which the peak is reached; None without steps."""
        return self.points.index(self.peak_bytes) if self.points else None

    def alive_at(self, step: int) -> tuple[Allocation, ...]:
        """What is known to be alive while a step of both halves runs, largest first."""
        alive = (a for a in self.allocations if a.first <= step <= a.last)
        return tuple(sorted(alive, key=lambda a: (-a.bytes, a.first, a.name)))


@dataclass(frozen=True)
class PlanRecord:
    """The figures of a `MemoryPlan`: all that is known about the plan of one graph.

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

    @property
    def tiled(self) -> tuple[Segment, ...]:
        """The segments that run in tiles."""
        return tuple(s for s in self.segments if s.tiles > 1)
