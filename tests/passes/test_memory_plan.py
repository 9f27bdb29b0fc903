"""What a `MemoryPlan` says about itself: figures and text."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest

from snnfx.passes.cost.units import counted, format_bytes, format_seconds
from snnfx.passes.plan.memory_plan import Allocation, Decision, MemoryPlan, Timeline

from tests.passes.plans import FULL, MIB, PLAN


def test_the_peaks_are_the_largest_points_of_both_halves() -> None:
    assert PLAN.predicted_peak_bytes == 40 * MIB
    assert PLAN.baseline_peak_bytes == 160 * MIB
    assert Timeline((3, 5), (4,)).peak_bytes == 5
    assert Timeline().peak_bytes == 0


def test_the_step_of_the_peak_counts_through_both_halves() -> None:
    assert Timeline((3, 5), (4, 5)).peak_step == 1
    assert Timeline((3, 5), (4, 6)).peak_step == 3
    assert Timeline().peak_step is None
    assert Timeline((3,), (4,), ("a",), ("b",)).names == ("a", "b")
    assert Timeline((3,), (4,), ("a",)).names == ()


def test_what_is_alive_at_a_step_comes_largest_first() -> None:
    line = Timeline(
        (1,) * 2, (1,) * 2, allocations=(Allocation("a", 4, 0, 2), Allocation("b", 9, 2, 3))
    )
    alive = [[a.name for a in line.alive_at(step)] for step in range(4)]
    assert alive == [["a"], ["a"], ["b", "a"], ["b"]]


def test_packed_are_the_values_that_are_kept_packed() -> None:
    assert [saved.name for saved in PLAN.packed] == ["ge", "ge_1"]


def test_the_summary_of_a_plan_without_details_has_every_figure() -> None:
    assert PLAN.summary().splitlines() == [
        "snnmem level 1, eager lowering: predicted activation peak 160.0 MiB -> 40.0 MiB "
        "(4.00x less)",
        "  peak at: backward step 2 of 3",
        "  segments: 2",
        "  values: 2 packed, 1 kept, 1 computed again; from forward to backward 128.0 MiB -> "
        "4.0 MiB",
        "  work: +25.0% FLOPs",
        "  note: something to know",
    ]


def test_the_summary_of_a_full_plan_tells_peak_tiles_time_and_decisions() -> None:
    assert FULL.summary(decisions=3).splitlines() == [
        "snnmem level 4, inductor lowering: predicted activation peak 160.0 MiB -> 40.0 MiB "
        "(4.00x less)",
        "  peak at: backward step 2 of 5, 'norm_again'",
        "  alive there: 'norm_again' 34.0 MiB, 'pack' 4.0 MiB, 'small' 1.0 MiB, 1 more of 1.0 KiB",
        "  segments: 2; 1 split; 1 value given back; 1 in tiles: 'conv_1' x4 batch",
        "  values: 2 packed, 1 kept, 1 computed again; from forward to backward 128.0 MiB -> "
        "4.0 MiB",
        "  work: +25.0% FLOPs; predicted step time x1.20",
        "  budget: 48.0 MiB, prefer speed",
        "  decisions:",
        "    1. checkpoint 'conv': its input takes 1 bit (peak 160.0 MiB -> 80.0 MiB, time +1 ms)",
        "    2. split 'conv_1': its output is the largest (peak 80.0 MiB -> 50.0 MiB, "
        "time +500 us)",
        "    3. tile 'conv_1': no statistic over the batch (peak 50.0 MiB -> 38.0 MiB, "
        "time +800 us)",
        "    and 1 more (1 restore)",
        "  note: something to know",
    ]
    assert "restore 'mean': no step has less room" in FULL.summary()


def test_the_summary_of_a_plan_that_is_not_applied_says_why_and_what_it_takes() -> None:
    lines = replace(FULL, applied=False).summary(decisions=0).splitlines()
    assert lines == [
        "snnmem: graph left as it is",
        "  level 4, inductor lowering: predicted activation peak 160.0 MiB",
        "  peak at: backward step 1 of 2, 'grad'",
        "  decisions:",
        "    and 4 more (1 checkpoint, 1 restore, 1 split, 1 tile)",
        "  note: something to know",
    ]


def test_an_empty_plan_has_a_summary() -> None:
    assert "+0.0% FLOPs" in MemoryPlan(1, True, "eager").summary()
    assert MemoryPlan(0, False, "eager").summary() == "snnmem: graph left as it is"


def test_a_decision_that_changes_no_figure_is_told_without_figures() -> None:
    decision = Decision("baseline", "", 5, 5, 0.0, "nothing is smaller")
    text = replace(PLAN, decisions=(decision,)).summary()
    assert "    1. baseline: nothing is smaller\n" in text


def test_a_plan_cannot_be_changed_and_can_be_compared() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.level = 2  # type: ignore[misc]
    assert replace(PLAN) == PLAN
    assert hash(replace(FULL)) == hash(FULL)
    assert replace(PLAN, extra_flops=1) != PLAN


def test_plans_of_the_same_decisions_are_equal_wherever_the_source_lies() -> None:
    here, there = (Allocation("a", 4, 0, 1, (f"{place}/net.py:3:f",)) for place in "xy")
    assert here == there
    assert here != replace(here, bytes=5)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * MIB // 2, "1.5 MiB"),
        (1024**3 - 1, "1024.0 MiB"),
        (80 * 1024**3, "80.0 GiB"),
        (2**60, "1024.0 PiB"),
    ],
)
def test_bytes_are_told_in_the_largest_unit_that_keeps_them_at_least_one(
    size: int, text: str
) -> None:
    assert format_bytes(size) == text


def test_seconds_and_counts_in_words() -> None:
    texts = [format_seconds(s) for s in (2.5, -0.0125, 3e-6, 0.0)]
    assert texts == ["+2.5 s", "-12.5 ms", "+3 us", "+0 us"]
    assert (counted(1, "step"), counted(0, "step")) == ("1 step", "0 steps")
