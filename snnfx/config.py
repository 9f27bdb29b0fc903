"""Options of the backend, in one place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal, get_args

from snnfx.errors import OptionError

Lowering = Literal["inductor", "eager"]
Preference = Literal["speed", "balanced", "memory"]
Optimizer = Literal["none", "sgd", "momentum", "adam"]
MAX_LEVEL = 4

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**i for i, prefix in enumerate("KMGT", start=1)},
    **{f"{prefix}iB": 1024**i for i, prefix in enumerate("KMGT", start=1)},
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True)
class Options:
    """What ``torch.compile(model, backend="snnmem", options={...})`` takes.

    Attributes:
        level: 0 leaves the graph as it is; 1 computes every layer again from its packed input; 2
            also splits the segment at the peak where one more kept value lowers it; 3 also runs
            the part of the backward at the peak in tiles along the batch; 4 also keeps values
            after all where that does not raise the peak, so that they are not computed again.
        memory_budget: bytes of activations, a string such as ``"16GiB"``, or None. With it, the
            plan is the fastest one found whose predicted peak fits.
        prefer: without a budget, how much time a lower peak may cost. ``"speed"`` never tiles, and
            keeps all that stays below the peak of the graph as it was; ``"balanced"`` splits and
            tiles where that lowers the peak by 5% or more and takes 2% of the step or less;
            ``"memory"`` wherever it lowers the peak by 1% or more. The last two keep values only
            where that does not raise the peak.
        compress: whether checkpoints are packed where that is proven lossless.
        lowering: ``"inductor"`` compiles the fused regions, ``"eager"`` runs every op by itself,
            with the bits of the plain model.
        verbose: print the summary of each plan.
        plan_callback: called with each `MemoryPlan` that is applied.
    """

    level: int = MAX_LEVEL
    memory_budget: int | None = None
    prefer: Preference = "balanced"
    compress: bool = True
    lowering: Lowering = "inductor"
    verbose: bool = False
    plan_callback: Callable[[Any], object] | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> Options:
        """Check the options of a user.

        Raises:
            OptionError: an unknown name or value; the text lists what is allowed.
        """
        given = dict(given or {})
        allowed = [field.name for field in fields(cls)]
        for name in given:
            if name not in allowed:
                near = difflib.get_close_matches(name, allowed, 1)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise OptionError(
                    f"unknown option '{name}' of backend 'snnmem'; allowed: "
                    f"{', '.join(allowed)}.{hint}"
                )
        return cls(**{name: _CHECKS[name](name, value) for name, value in given.items()})

    def report(self, plan: Any) -> None:
        """Print a `MemoryPlan` if that was asked for, and pass it to the callback."""
        if self.verbose:
            print(plan.summary())
        if self.plan_callback is not None:
            self.plan_callback(plan)


def parse_bytes(value: int | str) -> int:
    """A number of bytes from an integer or a text such as ``"16GiB"`` or ``"1.5 GB"``.

    Raises:
        OptionError: not a positive number with one of the known units.
    """
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif match and match[2] in _UNITS:
        size = int(Fraction(match[1]) * _UNITS[match[2]])
    else:
        size = 0
    if size <= 0:
        raise OptionError(
            f"memory_budget={value!r} is not an amount of memory; give bytes as a positive "
            f"integer, or a text with one of the units {', '.join(u for u in _UNITS if u)}, "
            "such as '16GiB'"
        )
    return size


def _level(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LEVEL:
        raise OptionError(f"{name}={value!r}; allowed: an integer from 0 to {MAX_LEVEL}")
    return value


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}; allowed: True, False")
    return value


def _one_of(allowed: tuple[str, ...]) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in allowed:
            raise OptionError(f"{name}={value!r}; allowed: {', '.join(map(repr, allowed))}")
        return value

    return check


def _budget(name: str, value: Any) -> int | None:
    del name
    return None if value is None else parse_bytes(value)


def _callback(name: str, value: Any) -> Callable[[Any], object] | None:
    if value is not None and not callable(value):
        raise OptionError(f"{name}={value!r}; allowed: None, or a function of one MemoryPlan")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "level": _level,
    "memory_budget": _budget,
    "prefer": _one_of(get_args(Preference)),
    "compress": _bool,
    "lowering": _one_of(get_args(Lowering)),
    "verbose": _bool,
    "plan_callback": _callback,
}
