"""The largest batch that a memory holds, plain and at each level, found without running anything.

For a fixed plan every activation has the batch as a factor or not at all, so what a step needs is
affine in the batch: two captures give the line, and the line gives the candidate. Plans may change
with the batch, so the answer does not rest on the line: the search ends only when one capture shows
that the batch fits and another that the next one does not. It assumes that a larger batch never
needs less. All methods are planned from the same captures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from snnfx._torch_compat import pytree
from snnfx.capture.offline import Capture, capture
from snnfx.config import MAX_LEVEL, Optimizer
from snnfx.passes.fxgraph import tensor_bytes
from snnfx.passes.plan.memory_plan import MemoryPlan
from snnfx.target import Built

STATE_TENSORS: dict[Optimizer, int] = {"none": 0, "sgd": 0, "momentum": 1, "adam": 2}
"""Tensors of the size of the trained parameters that an optimizer keeps."""

EAGER = "eager"
METHODS = (EAGER, *(f"level {level}" for level in range(MAX_LEVEL + 1)))
FIRST_BATCHES = (2, 4)
Say = Callable[[str, int], None]


@dataclass(frozen=True)
class Need:
    """Bytes that one training step needs at its peak, by what they are.

    Attributes:
        parameters: of the model, frozen ones included.
        gradients: of the parameters that are trained.
        optimizer: what the optimizer keeps for them.
        buffers: of the model.
        inputs: of one batch.
        activations: predicted peak of all that the step itself allocates.
    """

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    inputs: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        fixed = self.parameters + self.gradients + self.optimizer + self.buffers
        return fixed + self.inputs + self.activations


@dataclass(frozen=True)
class Fit:
    """The answer for one method.

    Attributes:
        method: one of `METHODS`.
        batch: the largest that fits; 0 if none does.
        need: at that batch; at batch 1 if none fits.
        limited: a larger one may fit, too: the search stopped at its limit.
        applied: whether the level has a plan of its own there; False is the baseline's need.
    """

    method: str
    batch: int
    need: Need
    limited: bool = False
    applied: bool = False


def find_fits(
    build: Callable[[int], Built],
    memory_bytes: int,
    *,
    optimizer: Optimizer = "adam",
    max_batch: int = 65536,
    options: Mapping[str, Any] | None = None,
    methods: Iterable[str] = METHODS,
    say: Say = lambda text, done: None,
) -> tuple[Fit, ...]:
    """The largest batch for each method.

    Args:
        build: gives the model and its inputs for a batch.
        memory_bytes: what there is.
        optimizer: what keeps state for the trained parameters.
        max_batch: no larger one is tried.
        options: of the backend, but for the level.
        methods: which of `METHODS`.
        say: called with what is going on, and how many methods are done.

    Raises:
        CaptureError: the model cannot be captured at one of the batches.
        TargetError: it cannot be built.
    """
    say_at: list[int] = [0]
    captures = _Captures(build, optimizer, dict(options or {}), lambda t: say(t, say_at[0]))
    found: list[Fit] = []
    for method in methods:
        found.append(_find(method, captures, memory_bytes, max_batch))
        say_at[0] = len(found)
        say(f"{method}: batch {found[-1].batch}", len(found))
    return tuple(found)


def _find(method: str, captures: _Captures, memory_bytes: int, max_batch: int) -> Fit:
    """Close in on the last batch that fits, from what is known of all batches so far."""
    for batch in FIRST_BATCHES:
        if batch > max_batch or captures.need(method, batch)[0].total > memory_bytes:
            break
    while True:
        known = captures.totals(method)
        fits = max((n for n, total in known.items() if total <= memory_bytes), default=0)
        over = min((n for n, t in known.items() if t > memory_bytes and n > fits), default=None)
        if fits >= max_batch or over == fits + 1:
            break
        top = max_batch if over is None else over - 1
        captures.need(method, _candidate(known, fits, top, memory_bytes))
    need, applied = captures.need(method, max(1, fits))
    return Fit(method, fits, need, fits >= max_batch, applied)


def _candidate(known: Mapping[int, int], fits: int, top: int, memory_bytes: int) -> int:
    """The batch to try next, in `fits + 1` to `top`: the last one that fits by the known line.

    Where the line's answer is `fits` itself, the next one is tried, which ends the search if the
    line is right. A line that keeps missing on one side would creep, so every fourth try halves.
    """
    if len(known) < 2:
        return top
    if len(known) % 4 == 0 and len(known) > 4 and top > 2 * fits + 1:
        return (fits + 1 + top) // 2
    nearest = sorted(known, key=lambda n: (abs(known[n] - memory_bytes), n))[:2]
    first, second = min(nearest), max(nearest)
    slope = (known[second] - known[first]) / max(1, second - first)
    if slope <= 0:
        return top if top - fits < 2 else min(top, 2 * max(1, fits))
    return min(top, max(fits + 1, first + int((memory_bytes - known[first]) // slope)))


class _Captures:
    """What each method needs at each batch, from one capture a batch."""

    def __init__(
        self,
        build: Callable[[int], Built],
        optimizer: Optimizer,
        options: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._build = build
        self._optimizer: Optimizer = optimizer
        self._options = options
        self._say = say
        self._captures: dict[int, tuple[Capture, Need]] = {}
        self._plans: dict[tuple[int, int], MemoryPlan] = {}
        self._needs: dict[tuple[str, int], tuple[Need, bool]] = {}

    def need(self, method: str, batch: int) -> tuple[Need, bool]:
        """What a method needs, and whether it has a plan of its own."""
        key = (method, batch)
        if key not in self._needs:
            made, fixed = self._plan(method, batch)
            peak = made.baseline_peak_bytes if method == EAGER else made.predicted_peak_bytes
            self._needs[key] = (replace(fixed, activations=peak), made.applied)
        return self._needs[key]

    def totals(self, method: str) -> dict[int, int]:
        """Total bytes by batch, as far as they are known."""
        return {n: need.total for (m, n), (need, _) in self._needs.items() if m == method}

    def _captured(self, batch: int) -> tuple[Capture, Need]:
        if batch not in self._captures:
            self._say(f"batch {batch}: capturing")
            built = self._build(batch)
            captured = capture(built.model, built.inputs)
            self._captures[batch] = captured, fixed_need(built, self._optimizer)
        return self._captures[batch]

    def _plan(self, method: str, batch: int) -> tuple[MemoryPlan, Need]:
        """Eager training is what level 0 leaves the graph as."""
        level = 0 if method == EAGER else int(method.split()[1])
        captured, fixed = self._captured(batch)
        if (level, batch) not in self._plans:
            self._say(f"batch {batch}: planning {method}")
            self._plans[level, batch] = captured.plan(**self._options, level=level)
        return self._plans[level, batch], fixed


def fixed_need(built: Built, optimizer: Optimizer) -> Need:
    """What a step needs beside activations: from shapes, each tied parameter once."""
    parameters = list(built.model.parameters())
    trained = sum(tensor_bytes(p) for p in parameters if p.requires_grad)
    inputs = (leaf for leaf in pytree.tree_leaves(built.inputs) if isinstance(leaf, Tensor))
    return Need(
        parameters=sum(map(tensor_bytes, parameters)),
        gradients=trained,
        optimizer=STATE_TENSORS[optimizer] * trained,
        buffers=sum(map(tensor_bytes, built.model.buffers())),
        inputs=sum(map(tensor_bytes, inputs)),
        activations=0,
    )
