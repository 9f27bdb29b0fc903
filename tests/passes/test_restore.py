"""Restored values against every subset of the candidates: feasible, never better than the best."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfx.passes.plan.restore import UNITS, Restorable, Restoration, choose_restored

POINTS = 12


def candidate(index: int, size: int, first: int, last: int, halves_of_a_second: int) -> Restorable:
    return Restorable(f"v{index}", size, first, last, halves_of_a_second / 2)


@st.composite
def schedules(
    draw: st.DrawFn, *, nested: bool, most: int = 10
) -> tuple[list[int], list[Restorable]]:
    """A timeline of bytes and up to `most` candidates, in the order in which they are made."""
    timeline = draw(st.lists(st.integers(0, 50), min_size=POINTS, max_size=POINTS))
    found: list[Restorable] = []
    for index in range(draw(st.integers(0, most))):
        first = draw(st.integers(0, POINTS // 2 - 1))
        last = POINTS - 1 - first if nested else draw(st.integers(first, POINTS - 1))
        numbers = draw(st.integers(1, 30)), first, last, draw(st.integers(0, 9))
        found.append(candidate(index, *numbers))
    return timeline, found


budgets = st.integers(20, 140)


def added(candidates: Sequence[Restorable]) -> np.ndarray:
    """The bytes that each candidate adds to each point, `[candidates, points]`."""
    rows = np.zeros((len(candidates), POINTS), dtype=np.int64)
    for row, c in zip(rows, candidates, strict=True):
        row[c.first : c.last + 1] = c.bytes
    return rows


def is_feasible(timeline: Sequence[int], chosen: Sequence[Restorable], budget: int) -> bool:
    """Whether no point at which something is kept exceeds the budget."""
    extra = added(chosen).sum(axis=0)
    return bool(np.all((extra == 0) | (timeline + extra <= budget)))


def most_seconds(timeline: Sequence[int], candidates: Sequence[Restorable], budget: int) -> float:
    """The most time that any feasible subset saves."""
    positions = np.arange(len(candidates))
    subsets = (np.arange(2 ** len(candidates))[:, None] >> positions) & 1
    extra = subsets @ added(candidates)
    feasible = np.all((extra == 0) | (np.asarray(timeline) + extra <= budget), axis=1)
    seconds = subsets @ np.array([c.seconds for c in candidates])
    return float(seconds[feasible].max())


def kept(result: Restoration, candidates: Sequence[Restorable]) -> list[Restorable]:
    return [c for c in candidates if c.name in result.names]


@settings(max_examples=120)
@given(schedules(nested=False), budgets)
def test_what_is_kept_fits_and_saves_no_more_than_the_best_subset(
    schedule: tuple[list[int], list[Restorable]], budget: int
) -> None:
    timeline, candidates = schedule
    result = choose_restored(timeline, candidates, budget)
    chosen = kept(result, candidates)
    assert result.names == tuple(c.name for c in chosen)
    assert is_feasible(timeline, chosen, budget)
    assert result.peak_bytes == max(timeline + added(chosen).sum(axis=0))
    assert result.seconds == sum(c.seconds for c in chosen)
    assert result.seconds <= most_seconds(timeline, candidates, budget)


@settings(max_examples=120)
@given(schedules(nested=True), budgets)
def test_of_nested_intervals_the_best_subset_is_kept(
    schedule: tuple[list[int], list[Restorable]], budget: int
) -> None:
    timeline, candidates = schedule
    result = choose_restored(timeline, candidates, budget)
    assert result.seconds == most_seconds(timeline, candidates, budget)


@settings(max_examples=60)
@given(schedules(nested=True, most=8), budgets, st.sampled_from([2, 3, 1000]))
def test_sizes_that_are_multiples_of_the_unit_are_counted_exactly(
    schedule: tuple[list[int], list[Restorable]], budget: int, unit: int
) -> None:
    timeline, candidates = schedule
    timeline[0] = UNITS  # the peak, so that a unit is `unit` bytes
    later = [replace(c, first=max(c.first, 1)) for c in candidates]
    scaled = [replace(c, bytes=c.bytes * unit) for c in later]
    result = choose_restored([n * unit for n in timeline], scaled, budget * unit)
    assert result.seconds == most_seconds(timeline, later, budget)


@settings(max_examples=60)
@given(schedules(nested=True), budgets, st.integers(0, 60))
def test_a_larger_budget_saves_no_less_time_of_nested_intervals(
    schedule: tuple[list[int], list[Restorable]], budget: int, more: int
) -> None:
    small = choose_restored(*schedule, budget)
    large = choose_restored(*schedule, budget + more)
    assert large.seconds >= small.seconds


@settings(max_examples=60)
@given(schedules(nested=False), budgets, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_decides_no_tie(
    schedule: tuple[list[int], list[Restorable]], budget: int, order: random.Random
) -> None:
    timeline, candidates = schedule
    shuffled = list(candidates)
    order.shuffle(shuffled)
    first = choose_restored(timeline, candidates, budget)
    second = choose_restored(timeline, shuffled, budget)
    assert set(second.names) == set(first.names)


def test_of_equal_values_the_same_one_is_kept_every_time() -> None:
    twins = [candidate(i, 10, 2, 9, 4) for i in range(4)]
    found = {choose_restored([0] * POINTS, twins, 25).names for _ in range(5)}
    assert found == {("v0", "v1")}


def test_of_equal_times_the_fewest_bytes_are_kept() -> None:
    choices = [candidate(0, 20, 2, 9, 4), candidate(1, 10, 3, 8, 4)]
    assert choose_restored([0] * POINTS, choices, 20).names == ("v1",)


def test_where_the_budget_is_exceeded_already_only_what_lies_elsewhere_is_kept() -> None:
    timeline = [10] * POINTS
    timeline[5] = 100
    around, before = candidate(0, 1, 2, 9, 9), candidate(1, 30, 0, 4, 1)
    assert choose_restored(timeline, [around, before], 50) == Restoration(("v1",), 0.5, 100)


def test_what_saves_no_time_is_not_kept() -> None:
    assert choose_restored([0] * POINTS, [candidate(0, 1, 0, 11, 0)], 50).names == ()


def test_no_candidates_and_no_points_are_no_restoration() -> None:
    assert choose_restored([3, 7], [], 50) == Restoration((), 0, 7)
    assert choose_restored([], [candidate(0, 1, 0, 0, 1)], 50) == Restoration((), 0, 0)
