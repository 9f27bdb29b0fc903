"""Levels 2 to 4, preferences and budgets: what is predicted, decided and told."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from snnfx.capture.planning import TERMS, _is_better
from snnfx.errors import BudgetError

from tests.backend.harness import ignore_dynamo_warnings
from tests.capture.planned import BATCH, LOWERINGS, NAMES, build, captured, planned

pytestmark = ignore_dynamo_warnings

LEVELS = (1, 2, 3, 4)
ALLOWED = {
    1: {"schedule"},
    2: {"schedule", "split"},
    3: {"schedule", "split", "tile"},
    4: {"schedule", "split", "tile", "restore"},
}
every_net = pytest.mark.parametrize("name", NAMES)
both_lowerings = pytest.mark.parametrize("lowering", LOWERINGS)


@both_lowerings
@every_net
def test_each_level_needs_no_more_memory_than_the_one_below(name: str, lowering: str) -> None:
    plans = [planned(name, lowering, level=level, prefer="memory") for level in LEVELS]
    peaks = [plan.predicted_peak_bytes for plan in plans]
    assert peaks == sorted(peaks, reverse=True)
    assert all(plan.applied for plan in plans)
    assert peaks[0] < plans[0].baseline_peak_bytes
    for plan in plans:
        assert {d.kind for d in plan.decisions} <= ALLOWED[plan.level]


@both_lowerings
@every_net
def test_restoring_saves_time_and_never_raises_the_peak(name: str, lowering: str) -> None:
    before, after = (planned(name, lowering, level=level, prefer="memory") for level in (3, 4))
    restored = [d for d in after.decisions if d.kind == "restore"]
    assert after.predicted_peak_bytes <= before.predicted_peak_bytes
    if not restored:  # nothing has room at the smallest peak
        assert after.predicted_seconds == before.predicted_seconds
        return
    assert after.predicted_seconds < before.predicted_seconds
    assert after.extra_flops <= before.extra_flops
    assert all(d.seconds < 0 for d in restored)


@both_lowerings
@every_net
def test_restored_values_are_told_to_be_kept(name: str, lowering: str) -> None:
    plan = planned(name, lowering, level=4, prefer="memory")
    restored = {d.target for d in plan.decisions if d.kind == "restore"}
    saved = {s.name: s for s in plan.saved}
    for target in restored & set(saved):
        assert saved[target].storage == "kept"
        assert saved[target].stored_bytes == saved[target].original_bytes
    before = {s.name: s.storage for s in planned(name, lowering, level=1).saved}
    changed = {n for n, s in saved.items() if s.storage != before.get(n, "dropped")}
    assert changed <= {d.target for d in plan.decisions if d.kind != "tile"}


@both_lowerings
@every_net
def test_decisions_tell_how_the_peak_went_down(name: str, lowering: str) -> None:
    plan = planned(name, lowering, level=4, prefer="memory")
    peak = plan.decisions[0].peak_before_bytes if plan.decisions else plan.predicted_peak_bytes
    assert peak >= planned(name, lowering, level=1).predicted_peak_bytes
    for decision in plan.decisions:
        if decision.kind != "restore":
            assert decision.peak_before_bytes == peak
            assert decision.peak_after_bytes < peak
        peak = decision.peak_after_bytes
        assert decision.reason
        assert decision.target in plan.summary(decisions=len(plan.decisions))
    assert peak == plan.predicted_peak_bytes


def test_a_split_keeps_the_value_between_two_weights() -> None:
    plan = planned("two weights in a row", "inductor", level=2, prefer="memory")
    (split,) = plan.decisions
    assert (split.kind, split.target) == ("split", "convolution_2")
    assert "the segment at the peak starts from it" in split.reason
    assert {s.name: s.storage for s in plan.saved}["convolution_2"] == "kept"


@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        ("no norm", "eager"),
        ("attention", "eager"),
        ("vgg8", "inductor"),
        ("a loop over time", "inductor"),
    ],
)
def test_tiles_lower_the_peak_for_time(name: str, lowering: str) -> None:
    before, after = (planned(name, lowering, level=level, prefer="memory") for level in (2, 3))
    tiles = [d for d in after.decisions if d.kind == "tile"]
    assert tiles
    assert all("tiles along the batch of 4" in d.reason for d in tiles)
    assert after.predicted_peak_bytes < 0.96 * before.predicted_peak_bytes
    assert after.predicted_seconds > before.predicted_seconds


def test_a_layer_that_a_loop_calls_runs_in_tiles_with_all_its_time_steps_together() -> None:
    plan = planned("a loop over time", "inductor", level=3, prefer="memory")
    assert [d.kind for d in plan.decisions] == ["schedule", "tile"]
    assert [s.tiles for s in plan.segments if s.tiles > 1] == [BATCH] * 4  # a segment a step


@pytest.mark.parametrize(
    ("prefer", "peak", "seconds", "better"),
    [
        ("balanced", 70, 1.09, True),  # 30% less memory pays for 10% more time
        ("balanced", 70, 1.11, False),
        ("balanced", 96, 1.01, False),  # less than a twentieth
        ("balanced", 98, 1.0, True),  # for nothing
        ("balanced", 100, 0.5, False),
        ("memory", 98, 1.9, True),
        ("memory", 99.5, 1.01, False),
        ("speed", 10, 1.01, False),
    ],
)
def test_a_lower_peak_may_cost_what_the_preference_pays(
    prefer: str, peak: float, seconds: float, better: bool
) -> None:
    before = SimpleNamespace(peak_bytes=100, schedule=SimpleNamespace(seconds=1.0))
    after = SimpleNamespace(timeline=SimpleNamespace(peak_bytes=peak), seconds=seconds)
    assert _is_better(before, after, TERMS[prefer]) == better


@both_lowerings
@every_net
def test_preferences_trade_time_for_memory(name: str, lowering: str) -> None:
    plans = [planned(name, lowering, prefer=prefer) for prefer in ("memory", "balanced", "speed")]
    seconds = [plan.predicted_seconds for plan in plans]
    peaks = [plan.predicted_peak_bytes for plan in plans]
    assert seconds == sorted(seconds, reverse=True)
    assert peaks == sorted(peaks)
    assert peaks[-1] < plans[-1].baseline_peak_bytes
    assert (seconds[-1], peaks[-1]) != (seconds[0], peaks[0])


@pytest.mark.parametrize(
    ("name", "lowering"),
    [("no norm", "eager"), ("attention", "eager"), ("attention", "inductor"),
     ("two weights in a row", "inductor")],
)  # fmt: skip
def test_a_plan_is_within_its_budget_and_a_larger_one_is_never_slower(
    name: str, lowering: str
) -> None:
    smallest = planned(name, lowering, prefer="memory")
    low, high = smallest.predicted_peak_bytes, smallest.baseline_peak_bytes
    budgets = [low + (high - low) * quarter // 4 for quarter in range(5)]
    plans = [planned(name, lowering, memory_budget=budget) for budget in budgets]
    for plan, budget in zip(plans, budgets, strict=True):
        assert plan.memory_budget == budget
        assert plan.predicted_peak_bytes <= budget
        assert plan.applied == (plan.predicted_peak_bytes < plan.baseline_peak_bytes)
        if not plan.applied:  # only where there is room for the graph as it is, the fastest
            assert budget >= plan.baseline_peak_bytes
            assert "fits memory_budget as it is" in plan.notes[-1]
    seconds = [plan.predicted_seconds for plan in plans]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] < seconds[0]


@pytest.mark.parametrize("level", LEVELS)
def test_an_impossible_budget_is_an_error_that_names_the_smallest_peak(level: int) -> None:
    least = planned("no norm", "inductor", level=level, prefer="memory").predicted_peak_bytes
    with pytest.raises(BudgetError, match=f"no plan of level {level} fits") as caught:
        captured("no norm").plan(level=level, memory_budget=least - 1)
    assert f"{least - 1:,} bytes" in str(caught.value)
    assert f"is {least:,} bytes" in str(caught.value)
    fits = captured("no norm").plan(level=level, memory_budget=least)
    assert fits.predicted_peak_bytes <= least


def test_an_impossible_budget_is_told_by_the_compiler() -> None:
    model, x = build("no norm")
    options = {"memory_budget": "1KiB", "lowering": "eager"}
    compiled = torch.compile(model, backend="snnmem", options=options)
    with pytest.raises(Exception, match="fits memory_budget=1,024 bytes: the smallest peak"):
        compiled(x).sum().backward()


@both_lowerings
@pytest.mark.parametrize("prefer", ["speed", "balanced", "memory"])
def test_a_network_without_spikes_is_left_as_it_is(prefer: str, lowering: str) -> None:
    for level in LEVELS:
        plan = planned("plain_mlp", lowering, level=level, prefer=prefer)
        assert not plan.applied
        assert plan.decisions == ()
        assert plan.predicted_peak_bytes == plan.baseline_peak_bytes


def test_the_same_plan_comes_out_again() -> None:
    for lowering in LOWERINGS:
        again = captured("no norm").plan(lowering=lowering, prefer="memory")
        assert again == planned("no norm", lowering, prefer="memory")
        assert again.decisions


ELSEWHERE = """
from tests.capture.planned import planned
for name, lowering in (("no norm", "eager"), ("two weights in a row", "inductor")):
    print(planned(name, lowering, prefer="memory").to_json())
print(planned("attention", "eager", memory_budget=40_000).to_json())
"""


@pytest.mark.parametrize("seed", ["0", "77"])
def test_another_process_comes_to_the_same_plan(seed: str) -> None:
    own = [
        planned("no norm", "eager", prefer="memory"),
        planned("two weights in a row", "inductor", prefer="memory"),
        planned("attention", "eager", memory_budget=40_000),
    ]
    assert {d.kind for plan in own for d in plan.decisions} == {"split", "tile", "restore"}
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{ELSEWHERE}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.stdout.strip() == "\n".join(plan.to_json() for plan in own)
