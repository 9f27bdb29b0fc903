"""Level 4: which values are given back, so that they are not computed again.

**Problem.** A schedule has a timeline of bytes. Keeping a value from the forward to where the
backward reads it adds its bytes to the points between, and saves the time of computing it again.
Choose values of the most saved time such that no point exceeds the budget: a knapsack whose
capacity depends on time (the *unsplittable flow on a path* problem, NP-hard for any intervals).

**Method.** What the forward makes first, the backward reads last, so intervals are nested, or
nearly: an interval that ends before one inside it is widened until it contains it, which can only
lose values, never overfill a point. Between the start of one interval and the next only the outer
ones count, so the capacities are bounds on prefix sums, from the outermost interval inwards, and
one pass of dynamic programming over (value, bytes so far) is exact. Bytes are counted in units of
1/`UNITS` of the timeline's peak, rounded up; time O(n * `UNITS`), n values.

A larger budget allows all that a smaller one does, in the same units: of nested intervals, saved
time is monotone in the budget. Of others it need not be: what fits only a larger budget may widen
the intervals around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNITS = 4096


@dataclass(frozen=True)
class Restorable:
    """A value that could be kept instead of being computed again.

    Attributes:
        name: of the value.
        bytes: of the value as it would be kept.
        first: the first schedule point at which keeping it costs memory.
        last: the last such point.
        seconds: of computing it again, which keeping it saves.
        made: the point at which it is computed again.
    """

    name: str
    bytes: int
    first: int
    last: int
    seconds: float
    made: int = 0


@dataclass(frozen=True)
class Restoration:
    """The values to keep.

    Attributes:
        names: in the order of the candidates.
        seconds: saved in all.
        peak_bytes: of the timeline with them.
    """

    names: tuple[str, ...]
    seconds: float
    peak_bytes: int


def choose_restored(
    timeline_bytes: Sequence[int], candidates: Sequence[Restorable], budget_bytes: int
) -> Restoration:
    """The candidates to keep within a budget, for the most saved time.

    Args:
        timeline_bytes: alive at each schedule point without any of them.
        candidates: values, each with its interval of schedule points.
        budget_bytes: no point may exceed it; where one does already, only values that are not
            alive there are kept.
    """
    room = budget_bytes - np.asarray(timeline_bytes, dtype=np.int64)
    fitting = [c for c in candidates if c.seconds > 0 and c.bytes <= _room_in(room, c)]
    nested = _nested(fitting)
    unit = max(1, -(-max(timeline_bytes, default=1) // UNITS))
    taken = _solve(nested, _capacities(room, nested), unit)
    chosen = tuple(c for c in candidates if c.name in {nested[i].name for i in taken})
    return Restoration(
        tuple(c.name for c in chosen),
        sum(c.seconds for c in chosen),
        int(_with(timeline_bytes, chosen).max(initial=0)),
    )


def _room_in(room: np.ndarray, candidate: Restorable) -> int:
    span = room[candidate.first : candidate.last + 1]
    return int(span.min()) if span.size else 0


def _with(timeline_bytes: Sequence[int], chosen: Sequence[Restorable]) -> np.ndarray:
    total = np.asarray(timeline_bytes, dtype=np.int64).copy()
    for candidate in chosen:
        total[candidate.first : candidate.last + 1] += candidate.bytes
    return total


def _nested(candidates: Sequence[Restorable]) -> list[Restorable]:
    """The candidates from the outermost to the innermost, widened so that they are nested."""
    ordered = sorted(candidates, key=lambda c: (c.first, -c.last, c.name))
    end = -1
    nested: list[Restorable] = []
    for c in reversed(ordered):
        end = max(end, c.last)
        nested.append(Restorable(c.name, c.bytes, c.first, end, c.seconds))
    return nested[::-1]


def _capacities(room: np.ndarray, nested: Sequence[Restorable]) -> list[int]:
    """For each candidate, the room where it and those outside of it are all that is kept."""
    capacities: list[int] = []
    for position, c in enumerate(nested):
        inner = nested[position + 1] if position + 1 < len(nested) else None
        if inner is None:
            parts = [room[c.first : c.last + 1]]
        else:
            parts = [room[c.first : inner.first], room[inner.last + 1 : c.last + 1]]
        points = np.concatenate(parts)
        capacities.append(int(points.min()) if points.size else int(room.max(initial=0)))
    return capacities


def _solve(nested: Sequence[Restorable], capacities: Sequence[int], unit: int) -> list[int]:
    """Positions of the best candidates such that each prefix fits its capacity."""
    sizes = [-(-c.bytes // unit) for c in nested]
    limits = [max(0, capacity) // unit for capacity in capacities]
    width = min(max(limits, default=0), sum(sizes)) + 1
    best = np.full(width, -np.inf)
    best[0] = 0.0
    takes = np.zeros((len(nested), width), dtype=bool)
    for i, c in enumerate(nested):
        shifted = np.full(width, -np.inf)
        if sizes[i] < width:
            shifted[sizes[i] :] = best[: width - sizes[i]] + c.seconds
        takes[i] = shifted > best
        best = np.where(takes[i], shifted, best)
        best[limits[i] + 1 :] = -np.inf
    return _traced(takes, sizes, int(np.argmax(best))) if nested else []


def _traced(takes: np.ndarray, sizes: Sequence[int], weight: int) -> list[int]:
    taken: list[int] = []
    for i in range(len(sizes) - 1, -1, -1):
        if takes[i, weight]:
            taken.append(i)
            weight -= sizes[i]
    return taken[::-1]
