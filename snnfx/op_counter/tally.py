"""Apply the rules of all quantities to the operators of a record, and add up what they count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.overrides import resolve_name

from snnfx.errors import OptionError, UncountedError
from snnfx.op_counter.byte_rules import BYTES
from snnfx.op_counter.counter import Rule, rules_of
from snnfx.op_counter.flop_rules import FLOPS
from snnfx.op_counter.record import RecordedCall
from snnfx.op_counter.report import QUANTITIES, OperatorCount, frozen
from snnfx.op_counter.spike_rules import ACS, MACS, SYNOPS
from snnfx.op_counter.spikes import Count, ShapeRule, SpikeCall, SpikeFacts, SpikeRule
from snnfx.passes.fxgraph import node_value
from snnfx.passes.optable import OpTable

SHAPE_TABLES: Mapping[str, OpTable[Rule]] = MappingProxyType({"flops": FLOPS, "bytes": BYTES})
"""The rules that look at shapes only, by quantity."""

SPIKE_TABLES: Mapping[str, OpTable[SpikeRule]] = MappingProxyType(
    {"mac": MACS, "ac": ACS, "synops": SYNOPS}
)
"""The rules that ask which operands are spikes, by quantity."""

ExtraRules = Mapping[str, Mapping[Any, Rule]]


@dataclass(frozen=True)
class RuleSets:
    """The rules of each quantity, by operator.

    Attributes:
        shape: ``rule(args, kwargs, out)``, of any quantity.
        spike: rules that ask for spikes.
    """

    shape: Mapping[str, Mapping[Any, Rule]]
    spike: Mapping[str, Mapping[Any, SpikeRule]]

    @classmethod
    def of(cls, extra: ExtraRules) -> RuleSets:
        """The rules of the tables, and those of the user, which win.

        Raises:
            OptionError: there is no such quantity.
        """
        unknown = [name for name in extra if name not in QUANTITIES]
        if unknown:
            raise OptionError(
                f"extra_rules has rules for {', '.join(map(repr, unknown))}; quantities are "
                f"{', '.join(QUANTITIES)}"
            )
        shape = {name: rules_of(table) for name, table in SHAPE_TABLES.items()}
        spike: dict[str, dict[Any, SpikeRule]] = {}
        for name, table in SPIKE_TABLES.items():
            rules = rules_of(table)
            asking = {t: rule for t, rule in rules.items() if not isinstance(rule, ShapeRule)}
            spike[name] = asking
            shape[name] = {t: rule.rule for t, rule in rules.items() if t not in asking}
        for name, rules in extra.items():
            shape[name].update(rules)
            for target in rules:
                spike.get(name, {}).pop(target, None)
        return cls(shape, spike)

    def has(self, quantity: str, target: Any) -> bool:
        """Whether there is a rule for an operator."""
        known = self.shape.get(quantity, {}), self.spike.get(quantity, {})
        return any(target in rules for rules in known)

    @property
    def quantities(self) -> tuple[str, ...]:
        """Those that there are rules for."""
        return tuple(name for name in QUANTITIES if name in self.shape or name in self.spike)


_Described = tuple[tuple[Any, ...], dict[str, Any], Any, dict[str, Count]]
"""Arguments and result of a call, and what it counts by them alone."""


@dataclass
class _Entry:
    """What is added up for one operator, in one place."""

    calls: int = 0
    counts: dict[str, Count] = field(default_factory=dict[str, Count])


class Tally:
    """Adds up what calls count.

    Args:
        rules: of all quantities.
        strict: an operator without a rule is an error.

    Attributes:
        unsupported: by quantity, the operators without a rule and how often they ran.
    """

    def __init__(self, rules: RuleSets, strict: bool) -> None:
        self._rules = rules
        self._strict = strict
        self._known: dict[Hashable, _Described] = {}
        self._entries: dict[Hashable, _Entry] = {}
        self.unsupported: dict[str, Counter[str]] = {q: Counter() for q in rules.quantities}

    def add(self, call: RecordedCall, facts: SpikeFacts) -> dict[str, Count]:
        """Count one call: what it counts, by quantity.

        Args:
            call: of an operator.
            facts: about the spikes among its operands.

        Raises:
            UncountedError: there is no rule for it, with `strict`.
        """
        target = call.node.target
        entry = self._entries.setdefault((call.path, call.stage, target), _Entry())
        entry.calls += 1
        counted = self.counts(call, facts)
        for quantity, value in counted.items():
            entry.counts[quantity] = entry.counts.get(quantity, 0) + value
        for quantity, missed in self.unsupported.items():
            if not self._rules.has(quantity, target):
                self._miss(quantity, missed, target)
        return counted

    def operators(self) -> tuple[OperatorCount, ...]:
        """What was counted."""
        return tuple(
            OperatorCount(*key, entry.calls, frozen(_plain(entry.counts)))  # type: ignore[misc]
            for key, entry in self._entries.items()
        )

    def counts(self, call: RecordedCall, facts: SpikeFacts) -> dict[str, Count]:
        """What one call counts, by quantity; it is not added."""
        target: Any = call.node.target
        args, kwargs, out, fixed = self._described(call)
        asking = [q for q, rules in self._rules.spike.items() if target in rules]
        if not asking:
            return fixed
        seen = SpikeCall(args, kwargs, out, facts)
        return fixed | {q: self._rules.spike[q][target](seen) for q in asking}

    def _described(self, call: RecordedCall) -> _Described:
        """Calls with arguments of the same description count the same by their shapes."""
        target: Any = call.node.target
        key = (target, call.result_is_argument, *_description(call.node))
        if key not in self._known:
            args, kwargs, out = described_call(call)
            rules = {q: rules for q, rules in self._rules.shape.items() if target in rules}
            fixed: dict[str, Count] = {
                q: int(r[target](args, kwargs, out)) for q, r in rules.items()
            }
            self._known[key] = (args, kwargs, out, fixed)
        return self._known[key]

    def _miss(self, quantity: str, missed: Counter[str], target: Any) -> None:
        name = str(resolve_name(target))
        missed[name] += 1
        if self._strict:
            raise UncountedError(
                f"there is no rule for {name} among those of '{quantity}': give one with "
                f"extra_rules={{'{quantity}': {{{name}: rule}}}}, where rule(args, kwargs, out) "
                "returns what a call counts, or count with strict=False to leave such operators out"
            )


def described_call(call: RecordedCall) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Arguments and result of a call: fake tensors, one for each value and none for two."""
    own: dict[Node, Any] = {}

    def value_of(node: Node) -> Any:
        if node not in own:
            own[node] = _copied(node_value(node))
        return own[node]

    args, kwargs = map_arg((call.node.args, call.node.kwargs), value_of)  # type: ignore[misc]
    written = call.result_is_argument
    out = _copied(node_value(call.node)) if written is None else args[written]
    return tuple(args), dict(kwargs), out


def _copied(value: Any) -> Any:
    """Tensors of the same description that are other objects."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value


def _description(node: Node) -> tuple[Hashable, ...]:
    """What rules about shapes can tell of a call: descriptions of values, and which are one."""
    places: dict[Node, int] = {}

    def describe(value: Any) -> Hashable:
        if isinstance(value, Node):
            # Values of the same description share one fake tensor; see `Metas`.
            found = node_value(value)
            shown = id(found) if isinstance(found, Tensor) else describe(found)
            return (shown, places.setdefault(value, len(places)))
        if isinstance(value, Tensor):
            return id(value)
        if isinstance(value, (list, tuple)):
            return tuple(describe(item) for item in value)
        if isinstance(value, Mapping):
            return tuple((name, describe(item)) for name, item in value.items())
        return (type(value), value) if isinstance(value, Hashable) else repr(value)

    return describe(node.args), describe(node.kwargs), describe(node_value(node))


def _plain(counts: Mapping[str, Count]) -> dict[str, Count]:
    """Counts with integers where they are integral."""
    return {name: plain(value) for name, value in counts.items()}


def plain(value: Count) -> Count:
    """An int where a count is integral."""
    is_whole = isinstance(value, Fraction) and value.denominator == 1
    return int(value) if is_whole else value
