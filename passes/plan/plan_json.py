"""A `MemoryPlan` as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from snnfx.errors import PlanError
from snnfx.passes.plan.records import (
    Allocation,
    Decision,
    PlanRecord,
    SavedTensor,
    Segment,
    Timeline,
)

FORMAT_VERSION = 1
_DERIVED = ("version", "predicted_peak_bytes", "baseline_peak_bytes")


def plan_to_json(plan: PlanRecord) -> str:
    """All fields of a plan, its two peaks, and the version of the format."""
    data: dict[str, Any] = {"version": FORMAT_VERSION, **asdict(plan)}
    data["predicted_peak_bytes"] = plan.predicted_peak_bytes
    data["baseline_peak_bytes"] = plan.baseline_peak_bytes
    return json.dumps(data, indent=2)


def plan_fields(text: str) -> dict[str, Any]:
    """The fields of the plan that `plan_to_json` wrote.

    Raises:
        PlanError: the text is no plan, or one of another version of the format.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(f"this is no plan: it is not JSON ({error})") from None
    version = data.get("version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise PlanError(
            f"this is no plan of format {FORMAT_VERSION}: its 'version' is {version!r}; "
            "write it again with MemoryPlan.to_json() of this release"
        )
    try:
        return _fields({name: value for name, value in data.items() if name not in _DERIVED})
    except (TypeError, KeyError, AttributeError) as error:
        raise PlanError(f"this is no plan: {error}") from error


def _fields(data: Mapping[str, Any]) -> dict[str, Any]:
    parts = {
        "segments": _records(Segment, data["segments"]),
        "saved": _records(SavedTensor, data["saved"]),
        "decisions": _records(Decision, data["decisions"]),
        "predicted": _timeline(data["predicted"]),
        "baseline": _timeline(data["baseline"]),
    }
    return _frozen(PlanRecord, {**data, **parts})


def _timeline(data: Mapping[str, Any]) -> Timeline:
    allocations = _records(Allocation, data["allocations"])
    return Timeline(**_frozen(Timeline, {**data, "allocations": allocations}))


def _records(kind: type[Any], rows: list[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(kind(**_frozen(kind, row)) for row in rows)


def _frozen(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one record, all of them, with tuples where JSON has lists."""
    names = {field.name for field in fields(kind)}
    wrong = sorted(names ^ data.keys())
    if wrong:
        raise KeyError(f"{kind.__name__} with too many or too few of {', '.join(wrong)}")
    return {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
