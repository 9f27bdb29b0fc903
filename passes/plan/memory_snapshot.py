"""A predicted `Timeline` as a snapshot of a caching allocator, for PyTorch's memory visualiser.

The format is that of ``torch.cuda.memory._dump_snapshot``: a pickled dictionary with ``segments``
and ``device_traces``. Each step of the schedule first releases what died in the step before, then
allocates; so the total after the last allocation of a step is the timeline's point, and the peak of
a replay is the timeline's peak to the byte. What the timeline counts without a record, such as
workspace, is one block more, which changes from step to step.

Addresses are made up: the lowest gap that is large enough. Time is the number of the step, in
microseconds.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

from snnfx.passes.plan.records import Allocation, Timeline

PROTOCOL = 4  # the newest that the visualiser's own reader knows
BASE_ADDRESS = 0x7F0000000000
REST = "workspace and values without a record"
Block = tuple[int, int, int, tuple[str, ...]]
"""First step, last step, bytes, lines of the stack."""


def write_snapshot(timeline: Timeline, path: str | PathLike[str]) -> None:
    """Write a timeline as a pickle that the visualiser opens."""
    Path(path).write_bytes(pickle.dumps(snapshot(timeline), PROTOCOL))


def snapshot(timeline: Timeline) -> dict[str, Any]:
    """The content of the pickle."""
    arena = _Arena()
    blocks = _blocks(timeline)
    starting = {step: list(group) for step, group in groupby(blocks, key=lambda b: b[0])}
    ending: dict[int, list[tuple[int, Block]]] = {}
    events: list[dict[str, Any]] = []
    for step in range(len(timeline.points) + 1):
        for address, block in ending.pop(step - 1, ()):
            arena.release(address, block[2])
            events += [
                _event(action, address, block, step)
                for action in ("free_requested", "free_completed")
            ]
        for block in starting.get(step, ()):
            address = arena.take(block[2])
            ending.setdefault(block[1], []).append((address, block))
            events.append(_event("alloc", address, block, step))
    segments = [_segment(arena.size)] if arena.size else []
    return {"segments": segments, "device_traces": [events]}


def _blocks(timeline: Timeline) -> list[Block]:
    """The blocks of a timeline, by their first step; their sum has the timeline's peak."""
    points = timeline.points
    records = [a for a in timeline.allocations if a.bytes > 0]
    known = _sums(records, len(points))
    rest = [max(0, point - sum_) for point, sum_ in zip(points, known, strict=True)]
    if max(known, default=0) > timeline.peak_bytes:  # then they are not this timeline's
        records, rest = [], list(points)
    stacks = [(a.first, a.last, a.bytes, (f"snnfx:0:{a.name}", *a.stack)) for a in records]
    return sorted((*stacks, *_constant_runs(rest)), key=lambda block: block[0])


def _sums(records: list[Allocation], steps: int) -> list[int]:
    """The bytes of the records alive at each step."""
    change = [0] * (steps + 1)
    for record in records:
        change[record.first] += record.bytes
        change[record.last + 1] -= record.bytes
    total, sums = 0, list[int]()
    for step in range(steps):
        total += change[step]
        sums.append(total)
    return sums


def _constant_runs(values: list[int]) -> Iterator[Block]:
    """One block for each run of equal values that are not 0."""
    start = 0
    for value, run in groupby(values):
        stop = start + len(list(run))
        if value:
            yield (start, stop - 1, value, (f"snnfx:0:{REST}",))
        start = stop


def _event(action: str, address: int, block: Block, step: int) -> dict[str, Any]:
    return {
        "action": action,
        "addr": address,
        "size": block[2],
        "stream": 0,
        "time_us": step,
        "frames": [_frame(line) for line in block[3]],
    }


def _frame(line: str) -> dict[str, Any]:
    filename, number, name = line.rsplit(":", 2)
    return {"filename": filename, "line": int(number), "name": name}


def _segment(size: int) -> dict[str, Any]:
    """The one piece of device memory in which all blocks lie; at the end all of it is free."""
    return {
        "device": 0,
        "address": BASE_ADDRESS,
        "total_size": size,
        "allocated_size": 0,
        "active_size": 0,
        "requested_size": 0,
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": [
            {
                "address": BASE_ADDRESS,
                "size": size,
                "requested_size": size,
                "state": "inactive",
                "frames": [],
            }
        ],
    }


class _Arena:
    """Addresses, first fit.

    Attributes:
        size: bytes up to the highest address that was ever taken.
    """

    def __init__(self) -> None:
        self.size = 0
        self._gaps: list[tuple[int, int]] = []  # (address, bytes), ascending, never adjacent
        self._end = BASE_ADDRESS

    def take(self, size: int) -> int:
        """The lowest free address with `size` free bytes behind it."""
        for index, (address, free) in enumerate(self._gaps):
            if free >= size:
                left = [(address + size, free - size)] if free > size else []
                self._gaps[index : index + 1] = left
                return address
        address = self._end
        self._end += size
        self.size = max(self.size, self._end - BASE_ADDRESS)
        return address

    def release(self, address: int, size: int) -> None:
        """Give `size` bytes from `address` back."""
        merged: list[tuple[int, int]] = []
        for start, length in sorted((*self._gaps, (address, size))):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        if merged and sum(merged[-1]) == self._end:
            self._end = merged.pop()[0]
        self._gaps = merged
