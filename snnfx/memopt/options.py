"""The arguments of `memory_optimization`, checked and resolved.

Three layers give a value: an explicit argument wins over the preset of the profile, which wins
over the default. `prefer` stands for a profile and a checkpoint budget where those are not given.
Two things then limit the result, wherever a value came from: without `dummy_input` there is
nothing to predict with, so that no level above 1 is possible, and without
`allow_expensive_profiling` each search takes one round with one candidate at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict, Unpack

from snnfx.config import MAX_LEVEL
from snnfx.errors import OptionError
from snnfx.memopt.summary import MEMOPT_CHECKPOINT_BUDGETS, MEMOPT_PREFERENCES, MEMOPT_PROFILES


@dataclass(frozen=True)
class MemOptOptions:
    """What `memory_optimization` does, resolved.

    Attributes:
        level: 0 changes nothing, 1 wraps the modules, 2 also splits containers into chains, 3 also
            along time, 4 also unwraps those that the peak does not need.
        compress_x: whether the inputs of containers are compressed.
        verbose: whether each step is printed.
        temporal_split_factor: by how much the number of chunks grows with each split along time.
        max_split_rounds: rounds of each search for splits; None: no limit, 0: no search.
        max_candidates_per_round: containers tried in a round; None: no limit, 0: none.
        warmup_in_main_process: whether the result runs one step of training before it is returned.
        warmup_in_profile_workers: accepted for code that sets it; predictions need no warm-up.
        allow_expensive_profiling: whether a search may take more than a round of one candidate.
        profile: the profile in force, or None.
        checkpoint_budget: the checkpoint budget in force, or None.
        prefer: as given.
        max_gc_wrapped_modules: how many modules are wrapped at most; None: no limit.
        gc_target_budget_ratio: how large a part of them is, in (0, 1]; None: no limit.
        requested_level: the level before it was lowered for a missing `dummy_input`.
        notes: how the arguments were resolved, one remark each.
    """

    level: int
    compress_x: bool
    verbose: bool
    temporal_split_factor: int
    max_split_rounds: int | None
    max_candidates_per_round: int | None
    warmup_in_main_process: bool
    warmup_in_profile_workers: bool
    allow_expensive_profiling: bool
    profile: str | None
    checkpoint_budget: str | None
    prefer: str | None
    max_gc_wrapped_modules: int | None
    gc_target_budget_ratio: float | None
    requested_level: int
    notes: tuple[str, ...]


class MemOptArguments(TypedDict, total=False):
    """The arguments of `memory_optimization` that `resolve_options` takes; None: not given."""

    compress_x: bool | None
    level: int | None
    verbose: bool
    temporal_split_factor: int
    max_split_rounds: int | None
    max_candidates_per_round: int | None
    warmup_in_main_process: bool | None
    warmup_in_profile_workers: bool | None
    prefer: str | None
    profile: str | None
    allow_expensive_profiling: bool | None
    checkpoint_budget: str | None
    max_gc_wrapped_modules: int | None
    gc_target_budget_ratio: float | None


@dataclass(frozen=True)
class _Search:
    """The arguments that a profile sets."""

    level: int
    max_split_rounds: int | None
    max_candidates_per_round: int | None
    warmup_in_main_process: bool
    warmup_in_profile_workers: bool
    allow_expensive_profiling: bool


_NO_PROFILE = _Search(0, None, None, False, False, True)
_PROFILES = {
    "safe": _Search(1, 0, 0, False, False, False),
    "balanced": _Search(2, 1, 1, False, False, False),
    "memory": _Search(3, 2, 2, False, True, True),
    "exhaustive": _Search(4, None, None, True, True, True),
}
_PREFERRED_PROFILE = {"speed": "safe", "balanced": "balanced", "memory": "memory"}
_RATIOS = {"speed": 0.5, "balanced": 0.75, "memory": 1.0}
"""The part of the matching modules that each checkpoint budget wraps."""


def resolve_options(*, has_dummy_input: bool, **given: Unpack[MemOptArguments]) -> MemOptOptions:
    """Check and resolve the arguments of `memory_optimization`, which documents them.

    Warm-ups that neither an argument nor a profile asks for are not run: on the CPU nothing is
    compiled at the first use, so that there is no delay to hide.

    Args:
        has_dummy_input: whether there is an input to predict with.
        **given: the arguments; one that is None or left out has its default.

    Raises:
        OptionError: an unknown name, a value outside of its range, or a level above 1 without
            `dummy_input` and without a profile. It is a ValueError.
    """
    _check_all(given)
    profile, checkpoint_budget, notes = _presets(given)
    asked = _search(given, profile)
    search = asked if has_dummy_input else _without_input(asked, profile, notes)
    search = search if search.allow_expensive_profiling else _limited(search, given, notes)
    compress_x = given.get("compress_x")
    return MemOptOptions(
        **vars(search),
        compress_x=True if compress_x is None else compress_x,
        verbose=given.get("verbose", False),
        temporal_split_factor=given.get("temporal_split_factor", 2),
        profile=profile,
        checkpoint_budget=checkpoint_budget,
        prefer=given.get("prefer"),
        max_gc_wrapped_modules=given.get("max_gc_wrapped_modules"),
        gc_target_budget_ratio=_ratio(given, checkpoint_budget, notes),
        requested_level=asked.level,
        notes=tuple(notes),
    )


def _presets(given: MemOptArguments) -> tuple[str | None, str | None, list[str]]:
    """The profile and the checkpoint budget in force, and the first notes."""
    profile, checkpoint_budget = given.get("profile"), given.get("checkpoint_budget")
    prefer, notes = given.get("prefer"), list[str]()
    if prefer is not None and profile is None:
        profile = _PREFERRED_PROFILE[prefer]
        notes.append(f"prefer:profile={profile}")
    if prefer is not None and checkpoint_budget is None:
        checkpoint_budget = prefer
        notes.append(f"prefer:checkpoint_budget={checkpoint_budget}")
    if profile is not None:
        notes.append(f"profile:{profile}")
    return profile, checkpoint_budget, notes


def _search(given: MemOptArguments, profile: str | None) -> _Search:
    """The values of the profile, each replaced by the argument where there is one."""
    preset = _NO_PROFILE if profile is None else _PROFILES[profile]
    explicit: dict[str, Any] = {
        field.name: given[field.name]
        for field in fields(_Search)
        if given.get(field.name) is not None
    }
    search = replace(preset, **explicit)
    return replace(
        search,
        max_split_rounds=_not_negative(search.max_split_rounds),
        max_candidates_per_round=_not_negative(search.max_candidates_per_round),
    )


def _not_negative(limit: int | None) -> int | None:
    return None if limit is None else max(limit, 0)


def _without_input(search: _Search, profile: str | None, notes: list[str]) -> _Search:
    """The search where there is nothing to predict with.

    Raises:
        OptionError: the level needs an input, and no profile says that less will do.
    """
    if search.level <= 1:
        return search
    if profile is None:
        raise OptionError(
            f"dummy_input must be provided for level={search.level}: levels above 1 predict the "
            "memory of a training step; pass the inputs of one step as a tuple, or use level 0 or 1"
        )
    notes.append("fallback:level>1_requires_dummy_input")
    return replace(search, level=1, max_split_rounds=0, max_candidates_per_round=0)


def _limited(search: _Search, given: MemOptArguments, notes: list[str]) -> _Search:
    """The search without expensive profiling; arguments that this overrides are noted."""
    if search.level <= 1:
        return search
    limited = replace(
        search,
        max_split_rounds=_at_most_one(search.max_split_rounds),
        max_candidates_per_round=_at_most_one(search.max_candidates_per_round),
        warmup_in_profile_workers=False,
    )
    for field in fields(_Search):
        value = getattr(limited, field.name)
        if given.get(field.name) is not None and value != getattr(search, field.name):
            notes.append(f"allow_expensive_profiling=False:{field.name}={value}")
    return limited


def _at_most_one(limit: int | None) -> int:
    return 1 if limit is None else min(limit, 1)


def _ratio(given: MemOptArguments, budget: str | None, notes: list[str]) -> float | None:
    """The ratio as given, or that of the checkpoint budget where no limit is given."""
    ratio = given.get("gc_target_budget_ratio")
    if budget is None or ratio is not None or given.get("max_gc_wrapped_modules") is not None:
        return ratio
    notes.append(f"checkpoint_budget:{budget}")
    return _RATIOS[budget]


def _check_all(given: MemOptArguments) -> None:
    for name, value in given.items():
        if name not in _CHECKS:
            raise OptionError(
                f"unknown argument '{name}' of memory_optimization; allowed: {', '.join(_CHECKS)}"
            )
        _CHECKS[name](name, value)


def _one_of(what: str, allowed: tuple[str, ...]) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value is not None and value not in allowed:
            raise OptionError(
                f"Unsupported {what} {value!r}. Expected one of "
                f"{', '.join(map(repr, allowed))}, or None to leave {name} out"
            )

    return check


def _checked_by(accepts: Callable[[Any], bool], expected: str) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not accepts(value):
            raise OptionError(f"{name}={value!r} is not allowed; give {expected}")

    return check


def _is_integer(value: Any) -> bool:
    """Whether it is an integer; bool, which Python counts among them, is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_level(value: Any) -> bool:
    return value is None or (_is_integer(value) and 0 <= value <= MAX_LEVEL)


def _is_factor(value: Any) -> bool:
    return _is_integer(value) and value >= 2


def _is_limit(value: Any) -> bool:
    return value is None or _is_integer(value)


def _is_count(value: Any) -> bool:
    return value is None or (_is_integer(value) and value >= 0)


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_ratio(value: Any) -> bool:
    return value is None or ((_is_integer(value) or isinstance(value, float)) and 0 < value <= 1)


_LIMIT = _checked_by(_is_limit, "an integer, with 0 for no search, or None for no limit")
_SWITCH = _checked_by(_is_switch, "True, False or None")

_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "compress_x": _SWITCH,
    "level": _checked_by(_is_level, f"an integer from 0 to {MAX_LEVEL}, or None"),
    "verbose": _checked_by(lambda value: isinstance(value, bool), "True or False"),
    "temporal_split_factor": _checked_by(_is_factor, "an integer of 2 or more"),
    "max_split_rounds": _LIMIT,
    "max_candidates_per_round": _LIMIT,
    "warmup_in_main_process": _SWITCH,
    "warmup_in_profile_workers": _SWITCH,
    "prefer": _one_of("prefer", MEMOPT_PREFERENCES),
    "profile": _one_of("memopt profile", MEMOPT_PROFILES),
    "allow_expensive_profiling": _SWITCH,
    "checkpoint_budget": _one_of("checkpoint_budget", MEMOPT_CHECKPOINT_BUDGETS),
    "max_gc_wrapped_modules": _checked_by(
        _is_count, "an integer of 0 or more, with 0 to wrap nothing, or None for no limit"
    ),
    "gc_target_budget_ratio": _checked_by(
        _is_ratio,
        "the part of the matching modules to wrap, above 0 and at most 1, or None for no limit; "
        "max_gc_wrapped_modules=0 wraps nothing",
    ),
}
