"""Which modules of a model become containers, and how each container keeps its input.

Selection is by the types that the user names and by two limits, a number and a ratio. Where not
all can be wrapped, those with the largest inputs come first: a container saves what is computed
inside it, which grows with its input, at the price of keeping the input itself.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from torch import nn

from snnfx import compressors
from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    GridSpikeCompressor,
    NullSpikeCompressor,
)
from snnfx.config import MAX_LEVEL
from snnfx.errors import OptionError
from snnfx.memopt.options import MemOptOptions
from snnfx.passes.analysis.value_range import Encoding

Policy = Literal[
    "no_candidates",
    "explicit_zero_budget",
    "all_candidates",
    "budget_covers_all",
    "largest_input_activations",
    "fallback_module_order",
]

CompressorKind = Literal["manual", "bit", "grid", "null"]
"""Who chose a compressor: the user, a proof that the values fit into one or a few bits, nobody."""


@dataclass(frozen=True)
class Selection:
    """Which modules are wrapped.

    Attributes:
        candidates: the paths of the modules that could be, in the order of `named_modules`.
        selected: the paths of those that are, in the same order.
        policy: how they were chosen, in one word.
        explanation: the same in a sentence.
    """

    candidates: tuple[str, ...]
    selected: tuple[str, ...]
    policy: Policy
    explanation: str


def select_modules(
    net: nn.Module,
    instance: type[nn.Module] | tuple[type[nn.Module], ...],
    max_modules: int | None = None,
    ratio: float | None = None,
    input_bytes: Mapping[str, int] | None = None,
    skip: tuple[type[nn.Module], ...] = (),
) -> Selection:
    """Choose the modules to wrap.

    Candidates are the instances that lie neither inside of another instance nor inside of a module
    of the types `skip`, under any of their paths. A module that is registered at several paths
    counts once, under its first path.

    Args:
        net: the model.
        instance: the types to wrap.
        max_modules: how many to wrap at most; None: no limit.
        ratio: which part of the candidates to wrap at most, rounded up, and one at least.
        input_bytes: bytes of the input of each candidate by its path, as seen in one step; one
            without an entry was not called and comes last. None: unknown.
        skip: types of modules that are left alone with all that they hold: existing containers.

    Raises:
        OptionError: `instance` is not a type or a tuple of types, or the model itself is one.
    """
    candidates = _candidates(net, instance, skip)
    limit = _limit(len(candidates), max_modules, ratio)
    chosen = candidates
    if limit is not None and limit < len(candidates):
        chosen = _largest(candidates, input_bytes)[:limit]
    selected = tuple(path for path in candidates if path in set(chosen))
    policy = _policy(len(candidates), limit, input_bytes is not None)
    return Selection(candidates, selected, policy, _explain(policy, selected, candidates))


def _candidates(
    net: nn.Module,
    instance: type[nn.Module] | tuple[type[nn.Module], ...],
    skip: tuple[type[nn.Module], ...],
) -> tuple[str, ...]:
    _check_types(instance)
    if isinstance(net, skip):
        return ()
    if isinstance(net, instance):
        raise OptionError(
            f"the model itself is a {type(net).__name__}, one of the types to wrap, and cannot be "
            "replaced in place; name the types of modules inside of it, or pass a module that "
            "holds it, such as nn.Sequential(net)"
        )
    kept_whole = [m for m in net.modules() if isinstance(m, (instance, skip))]
    taken = {id(inner) for m in kept_whole for inner in m.modules() if inner is not m}
    return tuple(
        path
        for path, module in net.named_modules()
        if isinstance(module, instance) and not isinstance(module, skip) and id(module) not in taken
    )


def _check_types(instance: Any) -> None:
    types = instance if isinstance(instance, tuple) else (instance,)
    if not all(isinstance(each, type) for each in types):
        raise OptionError(
            f"instance={instance!r} is not allowed; give a class of modules or a tuple of classes"
        )


def _limit(candidates: int, max_modules: int | None, ratio: float | None) -> int | None:
    """How many modules may be wrapped, or None where there is no limit.

    The ratio is taken as it is written: 0.07 of 100 is 7, where the product of floats is above 7.
    """
    limits = [] if max_modules is None else [max(0, max_modules)]
    if ratio is not None:
        limits.append(max(1, math.ceil(candidates * Fraction(repr(float(ratio))))))
    return min(limits, default=None)


def _largest(paths: Sequence[str], input_bytes: Mapping[str, int] | None) -> list[str]:
    """The paths with the largest inputs first, ties in the given order; that order if unknown."""
    known = input_bytes or {}
    return sorted(paths, key=lambda path: -known.get(path, 0))


def _policy(candidates: int, limit: int | None, has_inputs: bool) -> Policy:
    if not candidates:
        return "no_candidates"
    if limit is None:
        return "all_candidates"
    if limit == 0:
        return "explicit_zero_budget"
    if limit >= candidates:
        return "budget_covers_all"
    return "largest_input_activations" if has_inputs else "fallback_module_order"


def _explain(policy: Policy, selected: Sequence[str], candidates: Sequence[str]) -> str:
    some, total = len(selected), len(candidates)
    part = f"{some} of {total} matching modules {'is' if some == 1 else 'are'} wrapped"
    return {
        "no_candidates": "No module of the given types can be wrapped: there is none outside of "
        "existing containers.",
        "explicit_zero_budget": f"max_gc_wrapped_modules=0: {part}.",
        "all_candidates": f"No limit was given: {part}.",
        "budget_covers_all": f"The limit covers all matching modules: {part}.",
        "largest_input_activations": f"{part}: those with the largest observed input activations.",
        "fallback_module_order": f"{part}: the first ones in module order, since no dummy_input "
        "was available to see the sizes of their inputs.",
    }[policy]


_FAVOURS = {
    "speed": "These settings favor training speed.",
    "memory": "These settings favor memory savings.",
}


def recommendation(options: MemOptOptions, selection: Selection) -> str:
    """What the options favour, and what to try next, in one or two sentences."""
    favours = _FAVOURS.get(options.prefer or "", "These settings are balanced: memory and speed.")
    return f"{favours} {_next_step(options, selection)}"


def _next_step(options: MemOptOptions, selection: Selection) -> str:
    """The change that saves most, with the cheapest first where there are several."""
    if options.level == 0:
        return "Nothing was changed; level=1 or more saves memory."
    if not selection.candidates:
        return "No module was wrapped; name in `instance` the types of the layers of this model."
    if options.level < options.requested_level:
        return f"Pass dummy_input to reach level={options.requested_level}."
    if options.level < MAX_LEVEL:
        return f"To save more memory, try level={options.level + 1} with a dummy_input."
    if len(selection.selected) < len(selection.candidates):
        return "To save more memory, wrap more modules, as checkpoint_budget='memory' does."
    return "To save more memory, train with torch.compile(model, backend='snnmem')."


def build_compressor(
    spec: object, proven: Encoding | None, compress: bool
) -> tuple[BaseSpikeCompressor, CompressorKind]:
    """The compressor of a container's input, and who chose it.

    Args:
        spec: what the user set as `x_compressor` on the module: the name of a class in
            `snnfx.compressors`, a class, an instance, which is copied, or None.
        proven: how the input can be packed without loss, if that is proven.
        compress: whether anything but keeping the input as it is is allowed.

    Raises:
        OptionError: `spec` is none of these, or a class that needs arguments.
    """
    if not compress:
        return NullSpikeCompressor(), "null"
    if spec is not None:
        return _manual(spec), "manual"
    if proven is None:
        return NullSpikeCompressor(), "null"
    if (proven.bits, proven.scale, proven.lo) == (1, 1.0, 0):
        return BitSpikeCompressor(), "bit"
    return GridSpikeCompressor(proven.bits, proven.scale, proven.lo), "grid"


def _manual(spec: object) -> BaseSpikeCompressor:
    if isinstance(spec, BaseSpikeCompressor):
        return copy.deepcopy(spec)
    named = _named_compressors()
    names = ", ".join(repr(name) for name, cls in named.items() if _needs_nothing(cls))
    known = named.get(spec) if isinstance(spec, str) else spec
    if not isinstance(known, type) or not issubclass(known, BaseSpikeCompressor):
        raise OptionError(
            f"x_compressor={spec!r} is no compressor; give one of the names {names}, or a class or "
            "an instance of BaseSpikeCompressor"
        )
    if not _needs_nothing(known):
        raise OptionError(
            f"x_compressor={spec!r} cannot be made without arguments; give an instance of it, or "
            f"one of the names {names}"
        )
    return known()


def _named_compressors() -> dict[str, type[BaseSpikeCompressor]]:
    """The compressors of `snnfx.compressors`, by name."""
    classes = ((name, getattr(compressors, name)) for name in compressors.__all__)
    return {
        name: value
        for name, value in classes
        if isinstance(value, type) and issubclass(value, BaseSpikeCompressor)
    }


def _needs_nothing(cls: type[BaseSpikeCompressor]) -> bool:
    parameters = inspect.signature(cls).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return not inspect.isabstract(cls) and all(
        p.default is not p.empty or p.kind in optional for p in parameters
    )
