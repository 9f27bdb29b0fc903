"""Arguments of `memory_optimization`: presets, preferences, limits, and what is an error."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnfx.errors import OptionError
from snnfx.memopt.options import MemOptArguments, MemOptOptions, resolve_options
from snnfx.memopt.summary import MEMOPT_CHECKPOINT_BUDGETS, MEMOPT_PREFERENCES, MEMOPT_PROFILES

SEARCH = (
    "level",
    "max_split_rounds",
    "max_candidates_per_round",
    "warmup_in_main_process",
    "warmup_in_profile_workers",
    "allow_expensive_profiling",
)
PRESETS: dict[str, tuple[int, int | None, int | None, bool, bool, bool]] = {
    "safe": (1, 0, 0, False, False, False),
    "balanced": (2, 1, 1, False, False, False),
    "memory": (3, 2, 2, False, True, True),
    "exhaustive": (4, None, None, True, True, True),
}
LIMITED_TO = {
    "max_split_rounds": 1,
    "max_candidates_per_round": 1,
    "warmup_in_profile_workers": False,
}

limits = st.none() | st.integers(-2, 5)
switches = st.none() | st.booleans()
ratios = st.none() | st.floats(0, 1, exclude_min=True) | st.just(1)
arguments = st.fixed_dictionaries(
    {},
    optional={
        "compress_x": switches,
        "level": st.none() | st.integers(0, 4),
        "verbose": st.booleans(),
        "temporal_split_factor": st.integers(2, 9),
        "max_split_rounds": limits,
        "max_candidates_per_round": limits,
        "warmup_in_main_process": switches,
        "warmup_in_profile_workers": switches,
        "prefer": st.sampled_from([None, *MEMOPT_PREFERENCES]),
        "profile": st.sampled_from([None, *MEMOPT_PROFILES]),
        "allow_expensive_profiling": switches,
        "checkpoint_budget": st.sampled_from([None, *MEMOPT_CHECKPOINT_BUDGETS]),
        "max_gc_wrapped_modules": st.none() | st.integers(0, 9),
        "gc_target_budget_ratio": ratios,
    },
)


def resolved(**given: Any) -> MemOptOptions:
    return resolve_options(has_dummy_input=given.pop("has_dummy_input", True), **given)


def searches(options: MemOptOptions) -> tuple[Any, ...]:
    return tuple(getattr(options, name) for name in SEARCH)


def test_without_arguments_nothing_is_changed_and_nothing_is_limited() -> None:
    options = resolved()
    assert searches(options) == (0, None, None, False, False, True)
    assert (options.compress_x, options.verbose, options.temporal_split_factor) == (True, False, 2)
    assert (options.profile, options.checkpoint_budget, options.prefer) == (None, None, None)
    assert (options.max_gc_wrapped_modules, options.gc_target_budget_ratio) == (None, None)
    assert (options.requested_level, options.notes) == (0, ())


@pytest.mark.parametrize("profile", MEMOPT_PROFILES)
def test_a_profile_sets_the_level_and_the_search(profile: str) -> None:
    options = resolved(profile=profile)
    assert searches(options) == PRESETS[profile]
    assert options.notes == (f"profile:{profile}",)


@pytest.mark.parametrize(
    ("prefer", "profile"), [("speed", "safe"), ("balanced", "balanced"), ("memory", "memory")]
)
def test_a_preference_stands_for_a_profile_and_a_budget(prefer: str, profile: str) -> None:
    options = resolved(prefer=prefer)
    assert (options.prefer, options.profile, options.checkpoint_budget) == (prefer, profile, prefer)
    assert searches(options) == PRESETS[profile]
    assert options.notes == (
        f"prefer:profile={profile}",
        f"prefer:checkpoint_budget={prefer}",
        f"profile:{profile}",
        f"checkpoint_budget:{prefer}",
    )


def test_a_preference_yields_to_what_is_given_beside_it() -> None:
    options = resolved(prefer="speed", profile="memory", checkpoint_budget="balanced", level=4)
    assert (options.profile, options.checkpoint_budget) == ("memory", "balanced")
    assert (options.level, options.requested_level) == (4, 4)
    assert options.notes == ("profile:memory", "checkpoint_budget:balanced")


@pytest.mark.parametrize(("budget", "ratio"), [("speed", 0.5), ("balanced", 0.75), ("memory", 1)])
def test_a_checkpoint_budget_is_a_ratio(budget: str, ratio: float) -> None:
    options = resolved(checkpoint_budget=budget)
    assert options.gc_target_budget_ratio == ratio
    assert options.notes == (f"checkpoint_budget:{budget}",)


@pytest.mark.parametrize(
    "explicit", [{"max_gc_wrapped_modules": 0}, {"gc_target_budget_ratio": 0.1}]
)
def test_an_explicit_limit_replaces_the_checkpoint_budget(explicit: dict[str, Any]) -> None:
    options = resolved(checkpoint_budget="speed", **explicit)
    assert options.gc_target_budget_ratio == explicit.get("gc_target_budget_ratio")
    assert options.checkpoint_budget == "speed"
    assert options.notes == ()


def test_without_expensive_profiling_a_search_is_one_round_of_one_candidate() -> None:
    options = resolved(level=3, allow_expensive_profiling=False, warmup_in_profile_workers=True)
    assert (options.max_split_rounds, options.max_candidates_per_round) == (1, 1)
    assert not options.warmup_in_profile_workers
    assert options.notes == ("allow_expensive_profiling=False:warmup_in_profile_workers=False",)


def test_limits_below_one_are_kept_without_expensive_profiling() -> None:
    options = resolved(level=2, allow_expensive_profiling=False, max_split_rounds=0)
    assert (options.max_split_rounds, options.max_candidates_per_round) == (0, 1)


def test_level_one_needs_no_limits() -> None:
    options = resolved(level=1, allow_expensive_profiling=False, max_split_rounds=7)
    assert (options.max_split_rounds, options.max_candidates_per_round) == (7, None)


def test_a_negative_limit_means_none_at_all() -> None:
    options = resolved(level=2, max_split_rounds=-3, max_candidates_per_round=-1)
    assert (options.max_split_rounds, options.max_candidates_per_round) == (0, 0)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_level_above_one_without_an_input_is_an_error(level: int) -> None:
    with pytest.raises(ValueError, match=rf"dummy_input must be provided for level={level}.*tuple"):
        resolved(level=level, has_dummy_input=False)


@pytest.mark.parametrize(
    "given", [{"profile": "exhaustive"}, {"prefer": "memory"}, {"profile": "safe", "level": 4}]
)
def test_a_profile_falls_back_to_level_one_without_an_input(given: dict[str, Any]) -> None:
    options = resolved(has_dummy_input=False, **given)
    assert (options.level, options.max_split_rounds) == (1, 0)
    assert options.requested_level == resolved(**given).level > 1
    assert "fallback:level>1_requires_dummy_input" in options.notes


@pytest.mark.parametrize("given", [{"level": 1}, {"level": 0}, {"profile": "safe"}])
def test_level_one_needs_no_input(given: dict[str, Any]) -> None:
    assert resolved(has_dummy_input=False, **given) == resolved(**given)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("profile", "x", "Unsupported memopt profile 'x'. Expected one of 'safe', 'balanced', "),
        ("profile", "", "Unsupported memopt profile ''. Expected one of"),
        ("prefer", "x", "Unsupported prefer 'x'. Expected one of 'speed', 'balanced', 'memory'"),
        ("checkpoint_budget", "x", "Unsupported checkpoint_budget 'x'. Expected one of 'speed', "),
        *(("level", v, "an integer from 0 to 4") for v in (-1, 5, True, 1.0, "1")),
        *(("temporal_split_factor", v, "2 or more") for v in (1, 0, 2.0, True, None)),
        *(("gc_target_budget_ratio", v, "at most 1") for v in (0, -0.5, 1.5, True, "1")),
        ("gc_target_budget_ratio", float("nan"), "above 0"),
        *(("max_gc_wrapped_modules", v, "0 or more") for v in (-1, 1.5, True)),
        *(("max_split_rounds", v, "None for no limit") for v in (1.5, True, "2")),
        *(("max_candidates_per_round", v, "None for no limit") for v in (1.5, False)),
        *(("compress_x", v, "True, False or None") for v in (1, "yes")),
        ("allow_expensive_profiling", 0, "True, False or None"),
        ("warmup_in_main_process", 1, "True, False or None"),
        ("warmup_in_profile_workers", "no", "True, False or None"),
        *(("verbose", v, "True or False") for v in (None, 1)),
    ],
)
def test_any_other_value_is_an_error_that_says_what_is_allowed(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(OptionError) as caught:
        resolved(**{name: value})
    text = str(caught.value)
    assert name in text
    assert repr(value) in text
    assert expected in text


def test_an_unknown_argument_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"unknown argument 'levels'.*allowed: compress_x, level"):
        resolved(levels=2)


def test_every_argument_is_checked() -> None:
    names = {field.name for field in fields(MemOptOptions)} - {"requested_level", "notes"}
    assert set(MemOptArguments.__annotations__) == names
    for name in names:
        with pytest.raises(OptionError):
            resolved(**{name: object()})


@given(arguments)
def test_valid_arguments_with_an_input_always_resolve(given: MemOptArguments) -> None:
    options = resolve_options(has_dummy_input=True, **given)
    assert 0 <= options.level == options.requested_level <= 4
    assert (options.max_split_rounds or 0) >= 0
    assert (options.max_candidates_per_round or 0) >= 0
    assert not any("fallback" in note for note in options.notes)


@given(arguments)
def test_explicit_arguments_win_over_presets(given: MemOptArguments) -> None:
    options = resolve_options(has_dummy_input=True, **given)
    limited = options.level > 1 and not options.allow_expensive_profiling
    for name, value in given.items():
        if value is None:
            continue
        if "max_" in name:
            value = max(0, value)  # pyright: ignore[reportArgumentType]
        if limited and name in LIMITED_TO:
            value = min(value, LIMITED_TO[name])  # pyright: ignore[reportArgumentType]
        assert getattr(options, name) == value


@given(arguments)
def test_without_an_input_only_the_search_gets_smaller(given: MemOptArguments) -> None:
    wanted = resolve_options(has_dummy_input=True, **given)
    if wanted.level > 1 and wanted.profile is None:
        with pytest.raises(OptionError, match="dummy_input"):
            resolve_options(has_dummy_input=False, **given)
        return
    options = resolve_options(has_dummy_input=False, **given)
    assert options.level == min(wanted.level, 1)
    for name in ("compress_x", "gc_target_budget_ratio", "max_gc_wrapped_modules", "profile"):
        assert getattr(options, name) == getattr(wanted, name)


@given(arguments)
def test_without_expensive_profiling_no_search_is_longer(given: MemOptArguments) -> None:
    options = resolve_options(has_dummy_input=True, **given)
    if options.level > 1 and not options.allow_expensive_profiling:
        assert options.max_split_rounds in (0, 1)
        assert options.max_candidates_per_round in (0, 1)
        assert not options.warmup_in_profile_workers
