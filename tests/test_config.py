"""Options and environment variables: what is allowed, and that everything else is an error."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnfx.config import Options, parse_bytes
from snnfx.errors import OptionError, SnnfxError

NAMES = [field.name for field in fields(Options)]


def test_no_options_give_the_documented_defaults() -> None:
    expected = Options(4, None, "balanced", True, "inductor", False, None)
    assert Options.parse(None) == Options.parse({}) == expected


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        *(("level", level, level) for level in range(5)),
        ("memory_budget", None, None),
        ("memory_budget", 1, 1),
        ("memory_budget", "16GiB", 16 * 2**30),
        *(("prefer", value, value) for value in ("speed", "balanced", "memory")),
        ("compress", False, False),
        *(("lowering", value, value) for value in ("inductor", "eager")),
        ("verbose", True, True),
        ("plan_callback", print, print),
        ("plan_callback", None, None),
    ],
)
def test_every_allowed_value_is_taken(name: str, value: Any, parsed: Any) -> None:
    assert getattr(Options.parse({name: value}), name) == parsed


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("level", 5, "an integer from 0 to 4"),
        ("level", -1, "an integer from 0 to 4"),
        ("level", True, "an integer from 0 to 4"),
        ("level", 1.0, "an integer from 0 to 4"),
        ("level", "1", "an integer from 0 to 4"),
        ("memory_budget", 0, "positive integer"),
        ("memory_budget", -5, "positive integer"),
        ("memory_budget", 1.5, "positive integer"),
        ("memory_budget", True, "positive integer"),
        ("memory_budget", "16 apples", "GiB"),
        ("prefer", "fast", "'speed', 'balanced', 'memory'"),
        ("prefer", None, "'speed', 'balanced', 'memory'"),
        ("compress", 1, "True, False"),
        ("compress", None, "True, False"),
        ("lowering", "cuda", "'inductor', 'eager'"),
        ("verbose", "yes", "True, False"),
        ("plan_callback", 3, "a function of one MemoryPlan"),
    ],
)
def test_every_other_value_is_an_error_that_says_what_is_allowed(
    name: str, value: Any, allowed: str
) -> None:
    with pytest.raises(OptionError) as caught:
        Options.parse({name: value})
    assert f"{name}={value!r}" in str(caught.value)
    assert allowed in str(caught.value)


def test_an_unknown_name_is_an_error_that_lists_all_names_and_the_nearest() -> None:
    with pytest.raises(OptionError, match="unknown option 'levle'") as caught:
        Options.parse({"levle": 1})
    assert all(name in str(caught.value) for name in NAMES)
    assert "Did you mean 'level'?" in str(caught.value)
    with pytest.raises(OptionError, match="allowed: ") as caught:
        Options.parse({"xyz": 1})
    assert "Did you mean" not in str(caught.value)


def test_option_errors_are_value_errors_of_the_family() -> None:
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, SnnfxError)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_checked(name: str) -> None:
    with pytest.raises(OptionError):
        Options.parse({name: object()})


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7),
        ("7B", 7),
        ("1.5 kB", None),
        ("1.5 KB", 1500),
        (" 2MB ", 2_000_000),
        ("0.5GB", 500_000_000),
        ("1TB", 10**12),
        ("1KiB", 1024),
        ("3MiB", 3 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2TiB", 2**41),
        ("0GiB", None),
        ("-1GiB", None),
        ("0.1B", None),
        ("GiB", None),
        ("", None),
        ("1e9", None),
    ],
)
def test_amounts_of_memory(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(OptionError, match="is not an amount of memory"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == size


@given(st.integers(1, 2**60))
def test_a_whole_number_means_bytes(size: int) -> None:
    assert parse_bytes(size) == size


@given(st.integers(1, 10**400))
def test_a_text_without_a_unit_means_bytes(size: int) -> None:
    assert parse_bytes(str(size)) == size


@given(st.text(max_size=8))
def test_any_text_is_an_amount_or_an_error(text: str) -> None:
    with contextlib.suppress(OptionError):
        assert parse_bytes(text) > 0


class Recorder:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def summary(self) -> str:
        return "the summary"

    def __call__(self, plan: object) -> None:
        self.seen.append(plan)


def test_a_plan_is_printed_only_if_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Recorder()
    Options().report(plan)
    assert capsys.readouterr().out == ""
    Options(verbose=True).report(plan)
    assert capsys.readouterr().out == "the summary\n"


def test_a_plan_is_passed_to_the_callback() -> None:
    plan, callback = Recorder(), Recorder()
    Options.parse({"plan_callback": callback}).report(plan)
    assert callback.seen == [plan]
