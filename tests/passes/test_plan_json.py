"""Plans as JSON: everything is there, and comes back."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from snnfx.errors import PlanError
from snnfx.passes.plan.memory_plan import MemoryPlan

from tests.passes.plans import EMPTY, FULL, LINES, PLAN


@pytest.mark.parametrize("plan", [FULL, PLAN, EMPTY], ids=["full", "plain", "empty"])
def test_a_plan_comes_back_from_its_json(plan: MemoryPlan) -> None:
    back = MemoryPlan.from_json(plan.to_json())
    assert back == plan
    assert back.to_json() == plan.to_json()


def test_source_lines_come_back_too() -> None:
    back = MemoryPlan.from_json(FULL.to_json())
    assert [a.stack for a in back.predicted.allocations][:2] == [LINES, LINES]


def test_json_holds_every_field_the_peaks_and_the_version() -> None:
    data = json.loads(FULL.to_json())
    assert {field.name for field in fields(FULL)} <= data.keys()
    assert data["version"] == 1
    assert data["predicted_peak_bytes"] == FULL.predicted_peak_bytes
    assert data["baseline_peak_bytes"] == FULL.baseline_peak_bytes
    assert data["segments"][1]["backward_points"] == [0, 2]
    assert data["decisions"][0]["reason"] == "its input takes 1 bit"


def without(*names: str) -> str:
    data = json.loads(FULL.to_json())
    return json.dumps({name: value for name, value in data.items() if name not in names})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "'version' is None"),
        (FULL.to_json().replace('"version": 1', '"version": 99'), "'version' is 99"),
        (without("segments"), "segments"),
        (without("level", "prefer"), "too few of level, prefer"),
        (
            FULL.to_json().replace('"tiles"', '"tails"'),
            "Segment with too many or too few of tails, tiles",
        ),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        MemoryPlan.from_json(text)
