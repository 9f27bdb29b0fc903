"""Context managers that hand every operator that runs to counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from snnfx._torch_compat import TorchDispatchMode
from snnfx.errors import UncountedError
from snnfx.op_counter.counter import BaseCounter
from snnfx.op_counter.spikes import MeasuredValues, SpikeCounter
from snnfx.op_counter.tracker import ActiveModuleTracker

Mode = TypeVar("Mode", bound="_Counting")


class _Counting:
    """What both modes do with a call that has been made."""

    def __init__(
        self, counters: Sequence[BaseCounter], strict: bool = False, verbose: bool = False
    ) -> None:
        super().__init__()
        self.counters = list(counters)
        self.strict = strict
        self.verbose = verbose
        self.module_tracker = ActiveModuleTracker()
        self._unsupported: dict[BaseCounter, dict[str, int]] = {}
        self._values = MeasuredValues()
        self._looking = [c for c in self.counters if isinstance(c, SpikeCounter)]
        self._depth = 0

    def __enter__(self: Mode) -> Mode:
        self._depth += 1
        if self._depth == 1:
            self._unsupported = {counter: {} for counter in self.counters}
            self.module_tracker.__enter__()
        super().__enter__()  # type: ignore[misc]
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)  # type: ignore[misc]
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.module_tracker.__exit__(*error)

    def get_unsupported(self, counter: BaseCounter) -> dict[str, int]:
        """What ran without a rule of `counter`: the number of calls, by the operator's name.

        Raises:
            ValueError: the counter is none of this mode.
        """
        if counter not in self.counters:
            raise ValueError(
                f"this mode has no such counter ({type(counter).__name__}); ask for one of those "
                "that it was made with"
            )
        return dict(self._unsupported.get(counter, {}))

    def _knowing(self, func: Any) -> list[bool]:
        """Which counters have a rule for `func`."""
        return [counter.has_rule(func) for counter in self.counters]

    def _counted(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], known: list[bool]
    ) -> Any:
        """Make a call and hand it to the counters."""
        self._look_before(func, args, kwargs)
        try:
            out = func(*args, **kwargs)
            self._count(func, args, kwargs, out, known)
        finally:
            self._values.forget()
            for counter in self._looking:
                counter.values = None
        return out

    def _look_before(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at what `func` writes to while it is what it reads."""
        schema = getattr(func, "_schema", None)
        if schema is None or not schema.is_mutable:
            return
        if any(counter.asks(func) for counter in self._looking):
            self._values.look((*args, *kwargs.values()))

    def _count(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, known: list[bool]
    ) -> None:
        modules, parents = self.module_tracker.active_modules, self.module_tracker.parents
        for counter, has_rule in zip(self.counters, known, strict=True):
            if counter.ignores(modules):
                continue
            if not has_rule:
                self._missed(counter, func)
                continue
            if isinstance(counter, SpikeCounter):
                counter.values = self._values
            value = counter.count(func, args, kwargs, out, modules, parents)
            for scope in parents:
                counter.record(scope, func, value)
            if self.verbose:
                print(f"{type(counter).__name__}: {resolve_name(func)} counts {value}")

    def _missed(self, counter: BaseCounter, func: Any) -> None:
        name = str(resolve_name(func))
        missed = self._unsupported[counter]
        missed[name] = missed.get(name, 0) + 1
        if self.strict:
            kind = type(counter).__name__
            raise UncountedError(
                f"{kind} has no rule for {name}: give it one with "
                f"{kind}(extra_rules={{{name}: rule}}), where rule(args, kwargs, out) returns what "
                "a call counts, or count with strict=False to leave such operators out"
            )


class DispatchCounterMode(_Counting, TorchDispatchMode):
    """Counts all ATen operators that run inside, of forwards and backwards.

    In inference mode PyTorch runs operators whole that it otherwise takes apart, such as
    ``aten.linear``: one that a counter has no rule for is taken apart here.

    Args:
        counters: each counts every operator that it has a rule for. One counter may serve several
            modes, also one after the other: records add up until `BaseCounter.reset`.
        strict: an operator without a rule is an error, instead of being left out.
        verbose: print what each operator counts.

    Raises:
        UncountedError: inside, with `strict`; it is a `NotImplementedError`.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        known = self._knowing(func)
        if not all(known) and isinstance(func, torch._ops.OpOverload):
            if func.namespace == "prim":  # where a fake tensor is, and other questions
                return func(*args, **(kwargs or {}))
            with self:  # what the operator is made of is counted instead
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        return self._counted(func, args, kwargs or {}, known)


class FunctionCounterMode(_Counting, TorchFunctionMode):
    """Counts all functions of PyTorch that are called inside; see `DispatchCounterMode`.

    The keys of rules are functions such as ``torch.nn.functional.linear``, as `__torch_function__`
    gets them; what these call in turn is not seen.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        return self._counted(func, args, kwargs or {}, self._knowing(func))
