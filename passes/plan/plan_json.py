"""A `MemoryPlan` as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from snnfx.errors import PlanError

if TYPE_CHECKING:
    from snnfx.passes.plan.memory_plan import MemoryPlan, Timeline

FORMAT_VERSION = 1
_DERIVED = ("version", "predicted_peak_bytes", "baseline_peak_bytes")


def plan_to_json(plan: MemoryPlan) -> str:
    """All fields of a plan, its two peaks, and the version of the format."""
    data: dict[str, Any] = {"version": FORMAT_VERSION, **asdict(plan)}
    data["predicted_peak_bytes"] = plan.predicted_peak_bytes
    data["baseline_peak_bytes"] = plan.baseline_peak_bytes
    return json.dumps(data, indent=2)


def plan_from_json(text: str) -> MemoryPlan:
    """The plan that `plan_to_json` wrote.

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
        return _plan({name: value for name, value in data.items() if name not in _DERIVED})
    except (TypeError, KeyError, AttributeError) as error:
        raise PlanError(f"this is no plan: {error}") from error


def _plan(data: Mapping[str, Any]) -> MemoryPlan:
    from snnfx.passes.plan import memory_plan as records

    parts = {
        "segments": _records(records.Segment, data["segments"]),
        "saved": _records(records.SavedTensor, data["saved"]),
        "decisions": _records(records.Decision, data["decisions"]),
        "predicted": _timeline(data["predicted"]),
        "baseline": _timeline(data["baseline"]),
    }
    return _record(records.MemoryPlan, {**data, **parts})


def _timeline(data: Mapping[str, Any]) -> Timeline:
    from snnfx.passes.plan.memory_plan import Allocation, Timeline

    return _record(Timeline, {**data, "allocations": _records(Allocation, data["allocations"])})


def _records(kind: type[Any], rows: list[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(_record(kind, row) for row in rows)


def _record(kind: type[Any], data: Mapping[str, Any]) -> Any:
    """One frozen record, with tuples where JSON has lists."""
    missing = {field.name for field in fields(kind)} - data.keys()
    if missing:
        raise KeyError(f"{kind.__name__} without {', '.join(sorted(missing))}")
    frozen = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}
    return kind(**frozen)
