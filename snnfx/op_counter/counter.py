"""What every counter is: rules that count, and records of what they counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn

from snnfx.op_counter.tracker import GLOBAL
from snnfx.passes.optable import OpTable

Rule = Callable[[tuple[Any, ...], dict[str, Any], Any], int]
"""``rule(args, kwargs, out)``: how much one call of an operator counts."""

Ignored = type[nn.Module] | nn.Module


def is_ignored(module: nn.Module, ignored: Iterable[Ignored]) -> bool:
    """Whether a module is among `ignored`, or of a type there."""
    return any(
        isinstance(module, entry) if isinstance(entry, type) else module is entry
        for entry in ignored
    )


def rules_of(table: OpTable[Any]) -> dict[Any, Any]:
    """The rules of a table by what runs: those of a packet for each of its overloads."""
    return dict(_expanded(table, sum(1 for _ in table)))


@lru_cache(maxsize=32)
def _expanded(table: OpTable[Any], size: int) -> dict[Any, Any]:
    """See `rules_of`; computed once for a table of that many rules, which are never replaced."""
    del size
    rules: dict[Any, Any] = {}
    for target in table:
        if isinstance(target, torch._ops.OpOverloadPacket):
            overloads = [getattr(target, name) for name in target.overloads()]
        else:
            overloads = [target]
        rules.update((overload, table.find(overload)) for overload in overloads)
    return rules


class BaseCounter:
    """Counts something of each call of an operator, and adds it up for each scope.

    Subclasses fill `rules`. A mode (`DispatchCounterMode`, `FunctionCounterMode`) calls the
    counter.

    Args:
        rules: of the counter.
        extra_rules: further ones, which win.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.

    Attributes:
        records: ``records[scope][operator]`` is what was counted.
        rules: ``rules[operator](args, kwargs, out)`` counts one call.
        ignore_modules: as `extra_ignore_modules`.
    """

    def __init__(
        self,
        rules: Mapping[Any, Rule] | None = None,
        extra_rules: Mapping[Any, Rule] | None = None,
        extra_ignore_modules: Iterable[Ignored] | None = None,
    ) -> None:
        self.records: dict[str, dict[Any, int]] = _no_records()
        self.rules: dict[Any, Rule] = {**(rules or {}), **(extra_rules or {})}
        self.ignore_modules: list[Ignored] = list(extra_ignore_modules or ())

    def has_rule(self, func: Any) -> bool:
        """Whether the counter knows what a call of `func` counts."""
        return func in self.rules

    def count(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        active_modules: set[nn.Module] | None = None,
        parent_names: set[str] | None = None,
    ) -> int:
        """How much one call counts.

        Args:
            func: what was called; `has_rule` holds for it.
            args: as it was called.
            kwargs: as it was called.
            out: what it returned.
            active_modules: the modules that are running, for counters that look at them.
            parent_names: their names.
        """
        del active_modules, parent_names
        return int(self.rules[func](args, kwargs, out))

    def record(self, scope: str, func: Any, value: int) -> None:
        """Add `value` to what is on record for `func` in a scope."""
        counts = self.records[scope]
        if value or func not in counts:  # most calls count 0, and hashing operators takes time
            counts[func] += value

    def get_counts(self) -> dict[str, dict[Any, int]]:
        """A copy of the records."""
        return {scope: dict(counts) for scope, counts in self.records.items()}

    def get_total(self) -> int:
        """The sum over all operators, in the scope ``"Global"``; 0 if there are none."""
        return sum(self.records[GLOBAL].values()) if GLOBAL in self.records else 0

    def reset(self) -> None:
        """Forget all records."""
        self.records = _no_records()

    def ignores(self, active_modules: Iterable[nn.Module]) -> bool:
        """Whether one of the running modules is among those to ignore."""
        if not self.ignore_modules:
            return False
        return any(is_ignored(module, self.ignore_modules) for module in active_modules)


class TableCounter(BaseCounter):
    """A counter with the rules of a table, which subclasses name.

    Args:
        extra_rules: ``{operator: rule(args, kwargs, out)}``; they win over those of `table`.
        extra_ignore_modules: types of modules, or modules, inside of which nothing is counted.

    Attributes:
        table: of the rules.
    """

    table: ClassVar[OpTable[Any]]

    def __init__(
        self,
        extra_rules: Mapping[Any, Rule] | None = None,
        extra_ignore_modules: Iterable[Ignored] | None = None,
    ) -> None:
        super().__init__(self._table_rules(), extra_rules, extra_ignore_modules)

    def _table_rules(self) -> Mapping[Any, Rule]:
        """The rules of the table, as the counter calls them."""
        return rules_of(self.table)


def _no_records() -> dict[str, dict[Any, int]]:
    return defaultdict(lambda: defaultdict(int))
