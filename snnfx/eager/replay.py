"""Predict the peak of activation memory, and the time, of a recorded step with containers.

A container checkpoints one module: what autograd saves inside it is not kept; its first input is
kept packed, or as it is, and the other inputs as they are. The first time that the backward wants
one of the saved tensors, the module runs again from its inputs, up to the last tensor that is still
wanted. This is non-reentrant checkpointing with early stop, as in `torch.utils.checkpoint` and in
`snnfx.checkpointing`.

The record tells when Python's own references to each storage go. So a prediction is a walk over
the events that counts references: one from the record, one for each saved tensor that is kept, one
for each that is in use. Recomputation walks the forward's events of a call again, with storages of
its own. O(events), nothing is run.

What is not modelled: memory that packing and unpacking need inside themselves, and the time they
take; state that a module carries from one call to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from snnfx.eager.step import (
    ALLOC,
    DROP,
    ENTER,
    EXIT,
    FREE,
    OUTSIDE,
    RUN,
    SAVE,
    USE,
    CallTensor,
    EagerStep,
    ModuleCall,
)
from snnfx.errors import PlanError


@dataclass(frozen=True)
class Segment:
    """A module that is wrapped in a container.

    Attributes:
        path: of the module.
        packed_bits: bits an element in which the first tensor among its inputs is kept; None keeps
            the tensor as it is.
        is_cut_out: whether it may lie inside of another segment, as a piece cut out of that: it
            keeps its inputs itself.
    """

    path: str
    packed_bits: int | None = None
    is_cut_out: bool = False


@dataclass(frozen=True)
class Prediction:
    """What a step needs.

    Attributes:
        peak_bytes: the most activation memory at once.
        path: the module in which the peak is reached: the innermost one in the forward, the
            container's in recomputation, that of the saved tensor last used in the backward.
        phase: "forward", "recompute" or "backward".
        seconds: of all operators of forward, backward and recomputation, by the roofline.
        timeline: bytes at the worst moment of each operator, in the order in which they run.
    """

    peak_bytes: int
    path: str
    phase: str
    seconds: float
    timeline: tuple[int, ...] = field(repr=False)


def predict(step: EagerStep, segments: Mapping[str, Segment]) -> Prediction:
    """What the recorded step needs when these modules are wrapped in containers.

    Args:
        step: recorded without `keep_saved`, if there are segments.
        segments: by the path of the module; only pieces that are cut out may lie inside of another,
            each is called in the step.

    Raises:
        PlanError: segments are nested otherwise, not called, or have nothing to pack; or the
            record does not tell what autograd saves.
    """
    chosen = _chosen_calls(step, segments)
    replay = _Replay(step, chosen)
    replay.run()
    return Prediction(
        replay.peak, replay.peak_path(), replay.peak_phase, replay.seconds, tuple(replay.timeline)
    )


def _chosen_calls(step: EagerStep, segments: Mapping[str, Segment]) -> dict[int, Segment]:
    """The segment of each call that belongs to one, by the number of the call."""
    if not segments:
        return {}
    if not step.replayable:
        raise PlanError(
            "the step was recorded with keep_saved=True, which leaves out what autograd saves; "
            "record it without, to predict other containers"
        )
    chosen: dict[int, Segment] = {}
    called, end, outer = set[str](), -1, ""
    for number, call in enumerate(step.calls):
        segment = segments.get(call.path)
        if segment is None:
            continue
        if call.enter < end and not segment.is_cut_out:
            raise PlanError(
                f"segment '{call.path}' runs inside of segment '{outer}': choose one of the two"
            )
        if segment.packed_bits is not None and not call.inputs:
            raise PlanError(f"module '{call.path}' is passed no tensor that could be packed")
        chosen[number] = segment
        called.add(call.path)
        if call.exit > end:
            end, outer = call.exit, call.path
    missing = [path for path in segments if path not in called]
    if missing:
        raise PlanError(
            f"the recorded step calls no module '{missing[0]}'; a segment is one of "
            + ", ".join(repr(path) for path in dict.fromkeys(call.path for call in step.calls))
        )
    return chosen


@dataclass(eq=False)
class _Running:
    """A call of a container.

    Attributes:
        call: of the module inside.
        segment: how it is wrapped.
        payload: the storages that it keeps for recomputation.
        waiting: holders of saved tensors that have not been dropped.
        entered: whether the forward is inside of it.
    """

    call: ModuleCall
    segment: Segment
    payload: list[int]
    waiting: set[int] = field(default_factory=set[int])
    entered: bool = True


class _Replay:
    """One walk over the events of a step."""

    def __init__(self, step: EagerStep, chosen: Mapping[int, Segment]) -> None:
        self.step = step
        self.chosen = chosen
        self.bytes = list(step.storage_bytes)
        self.references = [0] * len(self.bytes)
        self.kept: dict[int, int] = {}
        self.owners: dict[int, _Running] = {}
        self.inside: list[_Running] = []
        self.latest: _Running | None = None
        self.in_use = set[int]()
        self.again: _Running | None = None
        self.alive = 0
        self.seconds = 0.0
        self.timeline: list[int] = []
        self.peak = 0
        self.peak_phase = "forward"
        self._peak_position = 0
        self._peak_again: _Running | None = None

    def run(self) -> None:
        """Walk over all events."""
        seconds = self.step.operator_seconds
        for position, (kind, key, value) in enumerate(self.step.events):
            if kind == RUN:
                self.seconds += seconds[key]
                self._reach(position, value)
            elif kind == ALLOC:
                self.references[key] = 1
                self.alive += self.bytes[key]
            elif kind == FREE:
                self._release(key)
            elif kind == SAVE:
                self._save(key, value)
            elif kind == USE:
                self._use(position, key)
            elif kind == DROP:
                self._drop(key)
            elif kind == ENTER:
                self._enter(position, key)
            elif kind == EXIT:
                self._exit(key)
            else:
                self.in_use.discard(key)
                self._release(self.kept[key])

    def _reach(self, position: int, extra: int) -> None:
        """Note the bytes that are alive, and `extra` that an operator needs for a moment."""
        held = self.alive + extra
        self.timeline.append(held)
        if held > self.peak:
            self.peak = held
            self._peak_position = position
            self._peak_again = self.again
            later = position >= self.step.backward
            self.peak_phase = "recompute" if self.again else "backward" if later else "forward"

    def _new(self, size: int) -> int:
        self.bytes.append(size)
        self.references.append(1)
        self.alive += size
        return len(self.bytes) - 1

    def _release(self, storage: int) -> None:
        left = self.references[storage] - 1
        self.references[storage] = left
        if not left:
            self.alive -= self.bytes[storage]

    def _save(self, holder: int, storage: int) -> None:
        if self.inside:
            self.inside[-1].waiting.add(holder)
            self.owners[holder] = self.inside[-1]
        else:
            self._keep(holder, storage)

    def _keep(self, holder: int, storage: int) -> None:
        self.references[storage] += 1
        self.kept[holder] = storage

    def _use(self, position: int, holder: int) -> None:
        running = self.owners.get(holder)
        if running is not None and holder not in self.kept:
            self._forget(self.latest)
            self._recompute(position, running)
            self.latest = running
        self.in_use.add(holder)
        self.references[self.kept[holder]] += 1

    def _forget(self, running: _Running | None) -> None:
        """Release what a segment was run again for, and was not asked for until another is run."""
        for holder in () if running is None else running.waiting:
            if holder in self.kept and holder not in self.in_use:
                self._release(self.kept.pop(holder))

    def _drop(self, holder: int) -> None:
        if holder in self.kept:
            self._release(self.kept[holder])
        running = self.owners.get(holder)
        if running is not None:
            running.waiting.discard(holder)
            self._finish_if_done(running)

    def _enter(self, position: int, number: int) -> None:
        segment = self.chosen.get(number)
        call = self.step.calls[number]
        if segment is None or not self._saves(call):
            return
        packs = segment.packed_bits is not None
        kept = [tensor.storage for tensor in call.inputs[packs:]]
        for storage in kept:
            self.references[storage] += 1
        if segment.packed_bits is not None:
            kept.append(self._new(_packed_bytes(call.inputs[0], segment.packed_bits)))
            self._reach(position, 0)
        self.inside.append(_Running(call, segment, kept))

    def _saves(self, call: ModuleCall) -> bool:
        """Whether autograd saves anything in a call; else its container is not in use."""
        return any(event[0] == SAVE for event in self.step.events[call.enter : call.exit])

    def _exit(self, number: int) -> None:
        if self.inside and self.inside[-1].call is self.step.calls[number]:
            running = self.inside.pop()
            running.entered = False
            self._finish_if_done(running)

    def _finish_if_done(self, running: _Running) -> None:
        """Release the inputs once nothing that was saved inside is wanted any more."""
        if not running.waiting and not running.entered:
            for storage in running.payload:
                self._release(storage)
            running.payload = []

    def _recompute(self, position: int, running: _Running) -> None:
        """Run a call again, up to the last saved tensor that is still wanted."""
        self.again = running
        own: dict[int, int] = {}
        unpacked: list[int] = []
        if running.segment.packed_bits is not None:
            first = running.call.inputs[0]
            unpacked.append(self._new(first.bytes))
            if first.storage != OUTSIDE:
                own[first.storage] = unpacked[0]
            self._reach(position, 0)
        for storage in (*self._run_again(position, running, own), *unpacked):
            self._release(storage)
        self.again = None

    def _run_again(self, position: int, running: _Running, own: dict[int, int]) -> set[int]:
        """Walk over the call's events with storages of its own.

        Args:
            position: of the event that wants the call.
            running: the call.
            own: for storages of the forward, those that take their place; updated.

        Returns:
            The new storages that are referenced where the run stops.
        """
        referenced = set[int]()
        events, seconds = self.step.events, self.step.operator_seconds
        for kind, key, value in events[running.call.enter : self._last_wanted(running) + 1]:
            if kind == RUN:
                self.seconds += seconds[key]
                self._reach(position, value)
            elif kind == ALLOC:
                own[key] = storage = self._new(self.bytes[key])
                referenced.add(storage)
            elif kind == FREE and own.get(key) in referenced:
                referenced.remove(own[key])
                self._release(own[key])
            elif kind == SAVE and key in running.waiting and key not in self.kept:
                self._keep(key, own.get(value, value))
        return referenced

    def _last_wanted(self, running: _Running) -> int:
        """The position of the last SAVE in the call whose holder is still there."""
        events, call = self.step.events, running.call
        return next(
            position
            for position in range(call.exit, call.enter, -1)
            if events[position][0] == SAVE and events[position][1] in running.waiting
        )

    def peak_path(self) -> str:
        """The module in which the peak is reached."""
        if self._peak_again is not None:
            return self._peak_again.call.path
        calls, events = self.step.calls, self.step.events
        if self.peak_phase == "forward":
            around = [c for c in calls if c.enter <= self._peak_position <= c.exit]
            return around[-1].path if around else ""
        for kind, key, _ in reversed(events[: self._peak_position]):
            if kind == USE:
                number = self.step.holder_calls[key]
                return calls[number].path if number >= 0 else ""
        return ""


def _packed_bytes(tensor: CallTensor, bits: int) -> int:
    return -(-tensor.numel * bits // 8)
