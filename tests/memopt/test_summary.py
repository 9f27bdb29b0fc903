"""The summary of a run: its presets, and fields that summaries do not share."""

from __future__ import annotations

import dataclasses

from snnfx.memopt.summary import (
    MEMOPT_CHECKPOINT_BUDGETS,
    MEMOPT_PREFERENCES,
    MEMOPT_PROFILES,
    MemOptSummary,
)


def summary() -> MemOptSummary:
    return MemOptSummary(None, None, None, "cpu", 0, 0, True, True)


def test_the_names_of_the_presets_are_the_documented_ones() -> None:
    assert MEMOPT_PROFILES == ("safe", "balanced", "memory", "exhaustive")
    assert MEMOPT_CHECKPOINT_BUDGETS == MEMOPT_PREFERENCES == ("speed", "balanced", "memory")


def test_two_summaries_share_no_list_and_no_dictionary() -> None:
    first, second = summary(), summary()
    for field in dataclasses.fields(MemOptSummary):
        value = getattr(first, field.name)
        if isinstance(value, list | dict):
            assert not value
            assert value is not getattr(second, field.name)


def test_every_field_is_documented() -> None:
    documented = MemOptSummary.__doc__ or ""
    missing = [f.name for f in dataclasses.fields(MemOptSummary) if f"{f.name}: " not in documented]
    assert missing == []
