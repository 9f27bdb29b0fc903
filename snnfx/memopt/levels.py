"""Levels 2 to 4 on a model: what the search asks of it, and of its record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from snnfx.checkpointing import chunk_sizes
from snnfx.eager.chunk_proof import prove_chunks_of_call
from snnfx.eager.replay import Prediction, predict
from snnfx.eager.trace import EagerStep, record_step
from snnfx.errors import CaptureError
from snnfx.memopt.containers import Installed, Wrap, Wraps
from snnfx.memopt.facts import StepFacts
from snnfx.memopt.options import MemOptOptions
from snnfx.memopt.search import (
    Limits,
    SearchResult,
    Split,
    graph_splits,
    split_along_space,
    split_along_time,
    unwrap,
)

WrapOf = Callable[[str, StepFacts], Wrap]

_MODEL_ERRORS = (TypeError, AttributeError, LookupError, ValueError, AssertionError)
"""What a model's own code raises where a part of it is not what it knows."""


def record_installed(
    net: nn.Module, inputs: tuple[Any, ...], *, keep_saved: bool = True
) -> EagerStep:
    """Record a step of a model that has containers in it, and trains without them.

    Args:
        net: the model.
        inputs: its arguments.
        keep_saved: as for `record_step`.

    Raises:
        CaptureError: it does not train with them.
    """
    try:
        return record_step(net, inputs, keep_saved=keep_saved)
    except _MODEL_ERRORS as error:
        raise CaptureError(f"{type(error).__name__}: {error}") from error


class Levels:
    """The searches of one `memory_optimization`.

    Args:
        net: has no containers of ours in it, except while it is measured.
        inputs: its arguments.
        facts: of its recorded step.
        options: of the run.
        wrap_of: the container for the module at a path.

    Attributes:
        complaints: what the user is to be warned of.
    """

    def __init__(
        self,
        net: nn.Module,
        inputs: tuple[Any, ...],
        facts: StepFacts,
        options: MemOptOptions,
        wrap_of: WrapOf,
    ) -> None:
        self._net = net
        self._inputs = inputs
        self._facts = facts
        self._options = options
        self._wrap_of = wrap_of
        self._limits = Limits(options.max_split_rounds, options.max_candidates_per_round)
        self._graph_splits = graph_splits(facts)
        self._declared: dict[str, Sequence[Split]] = {}
        self.complaints: list[str] = []

    def apply(self, level: int, wraps: Wraps) -> SearchResult:
        """What a level makes of the containers of the level below."""
        if level == 2:
            return self._split_along_space(wraps)
        if level == 3:
            factor = self._options.temporal_split_factor
            return split_along_time(
                self._facts, wraps, factor, self._limits, self._measure, self._chunk_refusal
            )
        return unwrap(self._facts, wraps, lambda some: self._record(some, keep_saved=False))

    def _split_along_space(self, wraps: Wraps) -> SearchResult:
        """Level 2; nothing, if the model does not run with containers at those places."""
        found = split_along_space(self._facts, wraps, self._splits, self._make, self._limits)
        if not found.changes:
            return found
        try:
            self._measure(found.wraps)
        except CaptureError as error:
            skipped = f"model_does_not_run_with_containers: {error}"
            return SearchResult(wraps, self._measure(wraps).peak_bytes, (), skipped)
        return found

    def _make(self, path: str) -> Wrap:
        return self._wrap_of(path, self._facts)

    def _splits(self, path: str) -> Sequence[Split]:
        """What a module declares in `__spatial_split__`, or else what the record shows."""
        module = self._net.get_submodule(path)
        declare = getattr(module, "__spatial_split__", None)
        if declare is None:
            return self._graph_splits(path)
        if path not in self._declared:
            self._declared[path] = self._declared_splits(path, module, declare())
        return self._declared[path]

    def _declared_splits(
        self, path: str, module: nn.Module, declared: Iterable[nn.Module]
    ) -> Sequence[Split]:
        """The split into the declared modules; none, with a complaint, if some are not its own."""
        names = {id(child): name for name, child in module.named_modules() if name}
        parts = [names.get(id(part)) for part in declared]
        paths = tuple(f"{path}.{part}" for part in parts if part is not None)
        if len(paths) < len(parts):
            self.complaints.append(
                f"snnfx: '{path}' is not split, since its __spatial_split__ returns modules that "
                "are not registered inside of it"
            )
            return ()
        known = self._facts.modules
        return [Split(paths)] if all(p in known and not known[p].refusal for p in paths) else ()

    def _measure(self, wraps: Wraps) -> Prediction:
        """The prediction for the model with these containers in it."""
        return predict(self._record(wraps, keep_saved=True), {})

    def _record(self, wraps: Wraps, *, keep_saved: bool) -> EagerStep:
        installed = Installed(self._net)
        installed.install(wraps)
        try:
            return record_installed(self._net, self._inputs, keep_saved=keep_saved)
        finally:
            installed.remove()

    def _chunk_refusal(self, wrap: Wrap) -> str:
        """Why the calls of a module are not proven to run in chunks, or ""."""
        module = self._net.get_submodule(wrap.path)
        refusals = (
            prove_chunks_of_call(module, call, chunk_sizes(call.inputs[0].shape[0], wrap.chunks))
            for call in self._facts.step.calls_of(wrap.path)
        )
        found = next((refusal for refusal in refusals if refusal is not None), None)
        return "" if found is None else found.reason
