"""What one recorded step tells of the modules that could be wrapped in containers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from snnfx.eager.step import EagerStep, ModuleCall
from snnfx.passes.analysis.value_range import Encoding, ValueRanges, analyse_value_ranges


@dataclass(frozen=True)
class ModuleFacts:
    """A module that the step calls.

    Attributes:
        path: as `named_modules` names it first.
        refusal: why it cannot be wrapped, or "".
        encoding: how its first input can be packed in every call, proven; None: not at all.
        input_bytes: of its largest first input.
        time_steps: the size of dimension 0 of its first input, the same in every call; 0 if not.
        seconds: of one forward of all its calls, by the roofline.
        children: the modules that it calls, in the order of their first calls; those of a child
            are left out.
    """

    path: str
    refusal: str
    encoding: Encoding | None
    input_bytes: int
    time_steps: int
    seconds: float
    children: tuple[str, ...]


@dataclass(frozen=True)
class StepFacts:
    """A recorded step, and what it tells of each module."""

    step: EagerStep
    modules: Mapping[str, ModuleFacts] = field(repr=False)

    def input_bytes(self) -> dict[str, int]:
        """Bytes of the first input of each module, by its path."""
        return {path: facts.input_bytes for path, facts in self.modules.items()}


def step_facts(step: EagerStep) -> StepFacts:
    """Find out what `step` tells of its modules.

    What is proven of an input holds for any input of the model of these shapes, as long as the
    model takes the same path: nothing is tried out on numbers.
    """
    ranges = analyse_value_ranges(step.graph)
    calls: dict[str, list[ModuleCall]] = {}
    for call in step.calls:
        calls.setdefault(call.path, []).append(call)
    children = _children(step)
    modules = {
        path: _facts(path, own, tuple(children.get(path, {})), ranges)
        for path, own in calls.items()
    }
    return StepFacts(step, modules)


def _facts(
    path: str, calls: list[ModuleCall], children: tuple[str, ...], ranges: ValueRanges
) -> ModuleFacts:
    first = [call.inputs[0] for call in calls if call.inputs]
    encodings = {ranges.encoding(tensor.node, strict=True) for tensor in first}
    steps = {tensor.shape[0] if tensor.shape else 0 for tensor in first}
    return ModuleFacts(
        path,
        _refusal(calls),
        encodings.pop() if len(encodings) == 1 else None,
        max((tensor.bytes for tensor in first), default=0),
        steps.pop() if len(steps) == 1 else 0,
        sum(call.seconds for call in calls),
        children,
    )


def _refusal(calls: list[ModuleCall]) -> str:
    if any(call.arguments.has_keywords for call in calls):
        return "it is called with keyword arguments, and a container takes positional ones"
    if not all(call.arguments.starts_with_tensor for call in calls):
        return "its first argument is not a tensor"
    return ""


def _children(step: EagerStep) -> dict[str, dict[str, None]]:
    """The modules that each module calls itself."""
    found: dict[str, dict[str, None]] = {}
    open_calls: list[ModuleCall] = []
    for call in step.calls:
        while open_calls and open_calls[-1].exit < call.enter:
            open_calls.pop()
        if open_calls:
            found.setdefault(open_calls[-1].path, {})[call.path] = None
        open_calls.append(call)
    return found
