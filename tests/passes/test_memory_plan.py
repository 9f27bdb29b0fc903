"""What a `MemoryPlan` says about itself: figures, text, JSON and picture."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from snnfx.passes.plan.memory_plan import MemoryPlan, SavedTensor, Segment, Timeline

MIB = 1024 * 1024

PLAN = MemoryPlan(
    level=1,
    applied=True,
    lowering="eager",
    segments=(Segment("conv", ("x",), 3, 500), Segment("conv_1", ("ge", "ge_1"), 4, 700)),
    saved=(
        SavedTensor("ge", "packed", 1, 32 * MIB, 1 * MIB, "threshold"),
        SavedTensor("ge_1", "packed", 2, 32 * MIB, 2 * MIB, "threshold"),
        SavedTensor("mean", "kept", None, 1 * MIB, 1 * MIB, "statistic"),
        SavedTensor("norm", "dropped", None, 63 * MIB, 0, "computed again"),
    ),
    predicted=Timeline((0, 10 * MIB, 4 * MIB), (4 * MIB, 40 * MIB, 0)),
    baseline=Timeline((0, 90 * MIB, 128 * MIB), (100 * MIB, 160 * MIB, 0)),
    extra_flops=1200,
    baseline_flops=4800,
    notes=("something to know",),
)


def restored(text: str) -> MemoryPlan:
    """A plan from its JSON, written without the library."""
    data: dict[str, Any] = json.loads(text)
    assert data.pop("predicted_peak_bytes") == max(
        *data["predicted"]["forward"], *data["predicted"]["backward"]
    )
    assert data.pop("baseline_peak_bytes") == max(
        *data["baseline"]["forward"], *data["baseline"]["backward"]
    )
    data["segments"] = tuple(
        Segment(**{**segment, "inputs": tuple(segment["inputs"])}) for segment in data["segments"]
    )
    data["saved"] = tuple(SavedTensor(**saved) for saved in data["saved"])
    for name in ("predicted", "baseline"):
        data[name] = Timeline(*(tuple(data[name][half]) for half in ("forward", "backward")))
    data["notes"] = tuple(data["notes"])
    return MemoryPlan(**data)


def test_the_peaks_are_the_largest_points_of_both_halves() -> None:
    assert PLAN.predicted_peak_bytes == 40 * MIB
    assert PLAN.baseline_peak_bytes == 160 * MIB
    assert Timeline((3, 5), (4,)).peak_bytes == 5
    assert Timeline().peak_bytes == 0


def test_packed_are_the_values_that_are_kept_packed() -> None:
    assert [saved.name for saved in PLAN.packed] == ["ge", "ge_1"]


def test_the_summary_of_an_applied_plan_has_every_figure() -> None:
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


def test_the_summary_of_a_plan_that_is_not_applied_says_why() -> None:
    summary = replace(PLAN, applied=False).summary()
    assert summary.splitlines() == ["snnmem: graph left as it is", "  something to know"]


def test_an_empty_plan_has_a_summary() -> None:
    assert "+0.0% FLOPs" in MemoryPlan(1, True, "eager").summary()


def test_json_holds_every_field() -> None:
    assert restored(PLAN.to_json()) == PLAN
    assert {field.name for field in fields(PLAN)} <= json.loads(PLAN.to_json()).keys()


def test_a_plan_cannot_be_changed_and_can_be_compared() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.level = 2  # type: ignore[misc]
    assert replace(PLAN) == PLAN
    assert hash(replace(PLAN)) == hash(PLAN)
    assert replace(PLAN, extra_flops=1) != PLAN


@pytest.mark.parametrize("plan", [PLAN, MemoryPlan(0, False, "eager")], ids=["full", "empty"])
def test_the_plot_is_a_picture(plan: MemoryPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    plan.plot(str(path))
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[:2] == (540, 1080)
    assert pixels[..., :3].std() > 0.01


def test_the_plot_draws_both_timelines(tmp_path: Path) -> None:
    def colours(plan: MemoryPlan) -> set[tuple[float, ...]]:
        path = tmp_path / "plan.png"
        plan.plot(str(path))
        pixels = matplotlib.image.imread(path)[..., :3]
        saturated = pixels[(pixels.max(-1) - pixels.min(-1)) > 0.4]
        return {tuple(round(float(c), 1) for c in pixel) for pixel in saturated}

    blue, orange = (0.1, 0.5, 0.7), (1.0, 0.5, 0.1)
    assert {blue, orange} <= colours(PLAN)
