"""Levels 2 to 4 and the budget: improving the halves of level 1, measured on their schedule.

Each level tries a change on a copy of the halves, predicts the schedule that would run, and keeps
the change where it does what it is for:

- level 2 *splits* the segment that runs at the peak: one more value of it is kept, packed if its
  bits are known, where that lowers the peak;
- level 3 runs the part of the backward at the peak in *tiles*;
- level 4 *restores* values: it keeps what need not be computed again, within a limit.

What the limit is, and how much time a lower peak may cost, follows from `prefer` and
`memory_budget`: see `plan_levels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from snnfx.capture.halves import Halves, Schedule, keep_packed, keep_values, schedule_halves
from snnfx.capture.restorable import find_restorable
from snnfx.capture.tiling import (
    Axis,
    Part,
    find_batch,
    parts_at_peak,
    tile_counts,
    tile_part,
)
from snnfx.config import Options
from snnfx.errors import BudgetError
from snnfx.passes.analysis.value_range import Encoding
from snnfx.passes.plan.memory_plan import Decision, DecisionKind
from snnfx.passes.plan.restore import Restorable, choose_restored
from snnfx.passes.rewrite.layer_order import order_by_layer

SPLIT_LEVEL, TILE_LEVEL, RESTORE_LEVEL = 2, 3, 4
MAX_ROUNDS = 4
MAX_SPLITS = 3
MAX_TILINGS = 6


@dataclass(frozen=True)
class Terms:
    """What a lower peak may cost.

    Attributes:
        gain: the least fraction by which one change must lower the peak.
        price: by how many times that fraction it may lengthen the predicted step, at most.
    """

    gain: float
    price: float


TERMS = {"speed": Terms(1.0, 0.0), "balanced": Terms(0.05, 1 / 3), "memory": Terms(0.01, 100.0)}
"""By `prefer`. A budget that is not met by the balanced terms is tried with those of memory."""


@dataclass(frozen=True)
class Planned:
    """Halves, how they run, and what was decided on the way.

    Attributes:
        halves: the graphs.
        schedule: how they run.
        decisions: in order.
    """

    halves: Halves
    schedule: Schedule
    decisions: tuple[Decision, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Predicted peak."""
        return self.schedule.timeline.peak_bytes

    @property
    def given(self) -> Mapping[str, bool]:
        """The values that are saved after all, and whether packed."""
        return {
            d.target: d.kind == "split" and d.target in self.halves.encodings
            for d in self.decisions
            if d.kind in ("split", "restore")
        }

    def changed(
        self, kind: DecisionKind, target: str, halves: Halves, schedule: Schedule, reason: str
    ) -> Planned:
        """The plan after one more decision."""
        decision = Decision(
            kind, target, self.peak_bytes, schedule.timeline.peak_bytes,
            schedule.seconds - self.schedule.seconds, reason,
        )  # fmt: skip
        return Planned(halves, schedule, (*self.decisions, decision))


def plan_levels(halves: Halves, options: Options, baseline_bytes: int) -> Planned:
    """Improve the halves of level 1 as far as the options say.

    Without a budget, ``prefer="speed"`` restores all that stays below the baseline's peak and tiles
    nothing; ``"balanced"`` splits and tiles where that lowers the peak by a twentieth and lengthens
    the step by at most a third of the fraction gained, and restores what does not raise the peak;
    ``"memory"`` splits and tiles whatever lowers the peak, and restores likewise. With a budget,
    the fastest of these plans that fits is taken, after restoring up to the budget.

    Args:
        halves: of level 1.
        options: of the user.
        baseline_bytes: predicted peak of the graph as it was.

    Raises:
        BudgetError: no plan fits the budget; the text names the smallest peak.
    """
    first = _in_layer_order(Planned(halves, schedule_halves(halves)))
    if options.memory_budget is not None:
        return _within(first, options, options.memory_budget, baseline_bytes)
    if options.prefer == "speed":
        return restore(first, baseline_bytes - 1) if options.level >= RESTORE_LEVEL else first
    *_, last = _smaller(first, options.level, TERMS[options.prefer])
    return restore(last, last.peak_bytes) if options.level >= RESTORE_LEVEL else last


def _within(first: Planned, options: Options, budget_bytes: int, baseline_bytes: int) -> Planned:
    """The fastest plan that was found within the budget; any if only the graph as it was fits."""
    fitting: list[Planned] = []
    smallest = first
    for planned in _smaller(first, options.level, TERMS["memory"]):
        smallest = min(smallest, planned, key=lambda p: p.peak_bytes)
        if planned.peak_bytes <= budget_bytes:
            restores = options.level >= RESTORE_LEVEL
            fitting.append(restore(planned, budget_bytes) if restores else planned)
            if len(fitting) > 1:
                break
    if not fitting and baseline_bytes <= budget_bytes:
        return smallest
    if not fitting:
        raise BudgetError(
            f"no plan of level {options.level} fits memory_budget={budget_bytes:,} bytes: the "
            f"smallest peak of activations that was found is {smallest.peak_bytes:,} bytes. "
            "Raise the budget, the level, or lower the batch size."
        )
    return min(fitting, key=lambda p: (p.schedule.seconds, p.peak_bytes))


def _smaller(first: Planned, level: int, terms: Terms) -> Iterator[Planned]:
    """Plans of ever lower peak, the given one first."""
    planned = first
    yield planned
    if level >= SPLIT_LEVEL and not first.halves.is_static:
        return  # to compare symbolic sizes would fix them, and every new one would compile again
    for _ in range(MAX_SPLITS if level >= SPLIT_LEVEL else 0):
        split = _split(planned, terms)
        if split is None:
            break
        planned = split
        yield planned
    if level < TILE_LEVEL:
        return
    axes: list[Axis | None] = []
    for _ in range(MAX_TILINGS):
        tiled = _tile(planned, axes, terms)
        if tiled is None:
            break
        planned = tiled
        yield planned


def _in_layer_order(planned: Planned) -> Planned:
    """The backward layer by layer, where that lowers the peak."""
    halves = planned.halves.copy(forward=False)
    tangents = halves.driving(halves.backward)
    if not halves.is_static or not order_by_layer(halves.backward.graph, tangents):
        return planned
    schedule = schedule_halves(halves, planned.schedule)
    if schedule.timeline.peak_bytes >= planned.peak_bytes:
        return planned
    reason = "layer by layer, not time step by time step"
    return planned.changed("schedule", "backward", halves, schedule, reason)


def _is_better(before: Planned, after: Schedule, terms: Terms) -> bool:
    gained = 1 - after.timeline.peak_bytes / before.peak_bytes
    slowdown = after.seconds / before.schedule.seconds - 1
    if slowdown <= 0:
        return gained >= TERMS["memory"].gain
    return gained >= terms.gain and slowdown <= terms.price * gained


def _split(planned: Planned, terms: Terms) -> Planned | None:
    """Keep the one more value at the peak that lowers it most."""
    timeline = planned.schedule.timeline
    points = (*timeline.forward, *timeline.backward)
    peak = points.index(timeline.peak_bytes)
    best: Planned | None = None
    for candidate in find_restorable(planned.halves, planned.schedule):
        if not candidate.made <= peak <= candidate.last:
            continue
        encoding = planned.halves.encodings.get(candidate.name)
        if not _may_lower(points, candidate, encoding):
            continue
        halves = planned.halves.copy()
        if encoding is None:
            keep_values(halves, (candidate.name,))
        else:
            keep_packed(halves, candidate.name, encoding)
        schedule = schedule_halves(halves, planned.schedule)
        low = best.peak_bytes if best is not None else planned.peak_bytes
        if _is_better(planned, schedule, terms) and schedule.timeline.peak_bytes < low:
            kept = "as it is" if encoding is None else f"in {encoding.bits} bits an element"
            reason = f"kept {kept}, so that the segment at the peak starts from it"
            best = planned.changed("split", candidate.name, halves, schedule, reason)
    return best


def _may_lower(points: Sequence[int], candidate: Restorable, encoding: Encoding | None) -> bool:
    """Whether keeping a value can lower the peak: not if another point then reaches it."""
    stored = candidate.bytes
    if encoding is not None:
        stored = -(-stored * encoding.bits // 32)
    before = max(points[candidate.first : candidate.made], default=0)
    return before + stored < max(points)


def _tile(planned: Planned, axes: list[Axis | None], terms: Terms) -> Planned | None:
    """Run a part at the peak in as few tiles as lower the peak.

    Args:
        planned: so far.
        axes: the batch axis, once it was looked for; the search takes time.
        terms: of a lower peak.
    """
    for part in parts_at_peak(planned.halves, planned.schedule):
        if part.extra_seconds > terms.price * planned.schedule.seconds:  # no gain exceeds 1
            continue
        axes[:] = axes or [find_batch(planned.halves)]
        if axes[0] is None:
            return None
        best = _tiled(planned, part, axes[0], terms)
        if best is not None:
            return best
    return None


def _tiled(planned: Planned, part: Part, axis: Axis, terms: Terms) -> Planned | None:
    best: Planned | None = None
    for tiles in tile_counts(axis.size):
        halves = planned.halves.copy(forward=False)
        if tile_part(halves, part, axis, tiles).tiles == 1:
            break
        schedule = schedule_halves(halves, planned.schedule)
        low = best.peak_bytes if best is not None else planned.peak_bytes
        if not _is_better(planned, schedule, terms) or schedule.timeline.peak_bytes >= low:
            break
        target = planned.halves.origins[part.name]
        reason = f"its backward runs in {tiles} tiles along the batch of {axis.size}"
        best = planned.changed("tile", target, halves, schedule, reason)
    return best


def restore(planned: Planned, budget_bytes: int) -> Planned:
    """Give back values, most saved time first, while no point exceeds the budget."""
    budget = budget_bytes
    for _ in range(MAX_ROUNDS):
        found = find_restorable(planned.halves, planned.schedule)
        # What comes from a few bits an element is soon had again, and large beside them.
        candidates = tuple(c for c in found if c.name not in planned.halves.encodings)
        timeline = planned.schedule.timeline
        points = (*timeline.forward, *timeline.backward)
        choice = choose_restored(points, candidates, budget)
        if not choice.names:
            break
        halves = planned.halves.copy()
        keep_values(halves, choice.names)
        schedule = schedule_halves(halves, planned.schedule)
        excess = schedule.timeline.peak_bytes - budget_bytes
        if excess > 0:
            budget -= excess  # intervals are not seen with all that a region does in place
            continue
        planned = _restored(planned, halves, schedule, choice.names, candidates)
    return planned


def _restored(
    before: Planned,
    halves: Halves,
    schedule: Schedule,
    names: tuple[str, ...],
    candidates: tuple[Restorable, ...],
) -> Planned:
    known = {c.name: c for c in candidates}
    decisions = tuple(
        Decision(
            "restore",
            name,
            before.peak_bytes,
            schedule.timeline.peak_bytes,
            -known[name].seconds,
            f"there is room for its {known[name].bytes:,} bytes; kept, it is not computed again",
        )
        for name in names
    )
    return Planned(halves, schedule, (*before.decisions, *decisions))
