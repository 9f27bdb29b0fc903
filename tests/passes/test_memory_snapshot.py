"""Snapshots for PyTorch's memory visualiser: accepted by it, and exact when replayed."""

from __future__ import annotations

import pickle
import pickletools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.cuda import _memory_viz

from snnfx.passes.plan.memory_plan import Allocation, MemoryPlan, Timeline
from snnfx.passes.plan.memory_snapshot import snapshot

from tests.passes.plans import EMPTY, FULL, LINES, PLAN

# The operations of Python's pickle that the visualiser's own reader (MemoryViz.js) understands.
READABLE = """
    APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINUNICODE DICT EMPTY_DICT
    EMPTY_LIST EMPTY_TUPLE FRAME LIST LONG1 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE
    NONE PROTO SETITEM SETITEMS SHORT_BINUNICODE STOP TUPLE TUPLE1 TUPLE2 TUPLE3
"""


def replayed(data: dict[str, Any]) -> tuple[dict[int, int], int]:
    """The total after the last event of each step, and the peak; no two blocks may overlap."""
    alive: dict[int, int] = {}
    totals: dict[int, int] = {}
    peak = 0
    (segment,) = data["segments"] or [{"address": 0, "total_size": 0}]
    for event in data["device_traces"][0]:
        start, size = event["addr"], event["size"]
        if event["action"] == "alloc":
            assert all(start + size <= a or a + s <= start for a, s in alive.items())
            assert segment["address"] <= start
            assert start + size <= segment["address"] + segment["total_size"]
            alive[start] = size
        elif event["action"] == "free_completed":
            assert alive.pop(start) == size
        totals[event["time_us"]] = sum(alive.values())
        peak = max(peak, sum(alive.values()))
    assert not alive
    return totals, peak


def written(plan: MemoryPlan, folder: Path, **options: Any) -> dict[str, Any]:
    path = folder / "snapshot.pickle"
    plan.to_memory_snapshot(path, **options)
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize("plan", [FULL, PLAN], ids=["records", "totals"])
def test_the_peak_of_a_replay_is_the_predicted_peak(plan: MemoryPlan, tmp_path: Path) -> None:
    assert replayed(written(plan, tmp_path))[1] == plan.predicted_peak_bytes
    assert replayed(written(plan, tmp_path, which="baseline"))[1] == plan.baseline_peak_bytes


def timelines() -> st.SearchStrategy[Timeline]:
    """Records at random, and totals that are theirs plus some workspace."""

    @st.composite
    def build(draw: st.DrawFn) -> Timeline:
        steps = draw(st.integers(1, 12))
        records: list[Allocation] = []
        for index in range(draw(st.integers(0, 10))):
            first = draw(st.integers(0, steps - 1))
            last = draw(st.integers(first, steps - 1))
            records.append(Allocation(f"v{index}", draw(st.integers(0, 50)), first, last))
        points = [
            sum(r.bytes for r in records if r.first <= step <= r.last)
            + draw(st.sampled_from([0, 0, 7, 20]))
            for step in range(steps)
        ]
        cut = draw(st.integers(0, steps))
        return Timeline(tuple(points[:cut]), tuple(points[cut:]), allocations=tuple(records))

    return build()


@given(timelines())
@settings(max_examples=200)
def test_a_replay_has_the_bytes_of_every_step(timeline: Timeline) -> None:
    totals, peak = replayed(snapshot(timeline))
    total = 0
    for step, point in enumerate(timeline.points):
        total = totals.get(step, total)  # a step that changes nothing has no event
        assert total == point
    assert peak == timeline.peak_bytes


def test_records_that_are_not_the_timelines_are_left_out() -> None:
    stray = replace(FULL.predicted, allocations=(Allocation("huge", 10**12, 0, 3),))
    data = snapshot(stray)
    assert replayed(data)[1] == FULL.predicted_peak_bytes
    assert "huge" not in {event["frames"][0]["name"] for event in data["device_traces"][0]}


def test_blocks_carry_their_name_and_the_users_lines(tmp_path: Path) -> None:
    events = written(FULL, tmp_path)["device_traces"][0]
    block = next(e for e in events if e["frames"][0]["name"] == "conv")
    assert [(f["filename"], f["line"], f["name"]) for f in block["frames"]] == [
        ("snnfx", 0, "conv"),
        *((file, int(line), name) for file, line, name in (x.split(":") for x in LINES)),
    ]


def test_workspace_has_a_block_of_its_own(tmp_path: Path) -> None:
    events = written(FULL, tmp_path)["device_traces"][0]
    rest = [e for e in events if e["frames"][0]["name"].startswith("workspace")]
    assert [(e["size"], e["time_us"]) for e in rest if e["action"] == "alloc"] == [
        (FULL.predicted.points[4] - (34 + 4 + 1) * 1024**2 - 1024, 4),
        (2 * 1024**2, 6),
        (3 * 1024**2, 7),
    ]


@pytest.mark.parametrize("plan", [FULL, PLAN, EMPTY], ids=["records", "totals", "empty"])
def test_torchs_own_tools_take_the_file(plan: MemoryPlan, tmp_path: Path) -> None:
    data = written(plan, tmp_path)
    count = len(data["device_traces"][0])
    assert "total_allocated: 0.0B" in _memory_viz.segsum(data)
    assert (f"{count} entries" in _memory_viz.trace(data)) == bool(count)
    assert "Active Memory Timeline" in _memory_viz.trace_plot(data)
    assert "Allocator State History" in _memory_viz.segment_plot(data)
    assert _memory_viz.filter_alloc_free_pairs(data)["device_traces"] == [[]]


def test_the_visualisers_reader_knows_every_operation_of_the_pickle(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.pickle"
    FULL.to_memory_snapshot(path)
    operations = list(pickletools.genops(path.read_bytes()))
    assert {operation.name for operation, _, _ in operations} <= set(READABLE.split())
    assert next(arg for operation, arg, _ in operations if operation.name == "PROTO") <= 4
