"""One registry type for every table of per-operator rules.

A rule is a pure function registered for one or several operators by a decorator. Every analysis
and every cost model owns one `OpTable`; rules of the same operator in two tables never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch

from snnfx.errors import RuleError

Rule = TypeVar("Rule", bound=Callable[..., Any])


class OpTable(Generic[Rule]):
    """Rules keyed by operator.

    A key is an `OpOverloadPacket` (``torch.ops.aten.add``: all overloads), one `OpOverload`
    (``torch.ops.aten.add.Tensor``; wins over its packet), or any other callable that an FX node
    can have as its target (``operator.getitem``).

    Args:
        name: what the table answers; used in error messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._rules: dict[object, Rule] = {}

    def rule(self, *targets: object) -> Callable[[Rule], Rule]:
        """Register the decorated function for `targets`.

        Raises:
            RuleError: a target has a rule already.
        """

        def register(function: Rule) -> Rule:
            for target in targets:
                if target in self._rules:
                    raise RuleError(f"table '{self.name}' already has a rule for {target}")
                self._rules[target] = function
            return function

        return register

    def find(self, target: object) -> Rule | None:
        """The rule for `target`, that of its packet, or None."""
        found = self._rules.get(target)
        if found is None and isinstance(target, torch._ops.OpOverload):
            found = self._rules.get(target.overloadpacket)
        return found

    def __contains__(self, target: object) -> bool:
        return self.find(target) is not None

    def __iter__(self) -> Iterator[object]:
        return iter(self._rules)
