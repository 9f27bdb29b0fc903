"""`MemoryPlan`: what was decided for one graph, and what it is predicted to cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import Literal

from snnfx.passes.plan.memory_snapshot import write_snapshot
from snnfx.passes.plan.plan_json import plan_from_json, plan_to_json
from snnfx.passes.plan.plan_plot import draw_plan
from snnfx.passes.plan.plan_summary import summarise

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
        name: the value in the forward or backward graph that allocated it.
        bytes: of the storage.
        first: the step during which it is allocated. Steps of the backward are counted on from
            those of the forward.
        last: the step after which it is released.
        stack: the user's lines that called for it, innermost first, each as `file:line:function`.
            Two plans that differ in them alone are equal.
    """

    name: str
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
        backward_names: the steps of the backward, one for each of `backward`.
        allocations: what the bytes are made of, as far as it is known: workspace inside of
            operators has no name.
    """

    forward: tuple[int, ...] = ()
    backward: tuple[int, ...] = ()
    forward_names: tuple[str, ...] = ()
    backward_names: tuple[str, ...] = ()
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

    @property
    def tiled(self) -> tuple[Segment, ...]:
        """The segments that run in tiles."""
        return tuple(s for s in self.segments if s.tiles > 1)

    def summary(self, decisions: int = 8) -> str:
        """The plan in words, for people.

        Args:
            decisions: how many decisions are told in full; of the rest there is a count.
        """
        return summarise(self, decisions)

    def to_json(self) -> str:
        """All fields, the two peaks, and the version of the format, as JSON."""
        return plan_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> MemoryPlan:
        """The plan that `to_json` wrote.

        Raises:
            PlanError: the text is no plan, or one of another version of the format.
        """
        return plan_from_json(text)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw both timelines, activation bytes over the schedule, to an image file.

        Args:
            path: its suffix says in which format: .png, .svg or .pdf.

        Raises:
            PlanError: another suffix.
            ImportError: matplotlib is missing (``pip install snnfx[plot]``).
        """
        draw_plan(self, path)

    def to_memory_snapshot(
        self, path: str | PathLike[str], which: Literal["plan", "baseline"] = "plan"
    ) -> None:
        """Write a predicted timeline for PyTorch's memory visualiser.

        The file can be dropped on https://pytorch.org/memory_viz ("Active Memory Timeline"), or be
        given to ``python -m torch.cuda._memory_viz trace_plot FILE``.

        Args:
            path: where to write the pickle.
            which: the timeline under the plan, or the one without it.
        """
        write_snapshot(self.predicted if which == "plan" else self.baseline, path)
