"""A `MemoryPlan` in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from snnfx.passes.cost.units import counted, format_bytes, format_seconds
from snnfx.passes.plan.records import Decision, PlanRecord, Timeline

LARGEST = 3


def summarise(plan: PlanRecord, decisions: int) -> str:
    """The plan as lines of text.

    Args:
        plan: to tell.
        decisions: how many decisions are told in full.
    """
    if not plan.applied:
        lines = ["snnmem: graph left as it is", *_left(plan)]
    else:
        lines = [_headline(plan), *_peak(plan.predicted), *_segments(plan), *_saved(plan)]
        lines += [_work(plan), *_budget(plan)]
    lines += _decisions(plan.decisions, decisions)
    return "\n".join((*lines, *(f"  note: {note}" for note in plan.notes)))


def _headline(plan: PlanRecord) -> str:
    before, after = plan.baseline_peak_bytes, plan.predicted_peak_bytes
    less = f" ({before / after:.2f}x less)" if after else ""
    return (
        f"snnmem level {plan.level}, {plan.lowering} lowering: predicted activation peak "
        f"{format_bytes(before)} -> {format_bytes(after)}{less}"
    )


def _left(plan: PlanRecord) -> Iterator[str]:
    if plan.baseline.points:
        peak = format_bytes(plan.baseline_peak_bytes)
        yield f"  level {plan.level}, {plan.lowering} lowering: predicted activation peak {peak}"
        yield from _peak(plan.baseline)


def _peak(timeline: Timeline) -> Iterator[str]:
    """Where the peak is, and what it is made of."""
    step = timeline.peak_step
    if step is None:
        return
    count = len(timeline.forward)
    half, index = ("forward", step) if step < count else ("backward", step - count)
    total = count if half == "forward" else len(timeline.backward)
    name = f", '{timeline.names[step]}'" if timeline.names else ""
    yield f"  peak at: {half} step {index + 1} of {total}{name}"
    alive = timeline.alive_at(step)
    if alive:
        shown = ", ".join(f"'{a.name}' {format_bytes(a.bytes)}" for a in alive[:LARGEST])
        rest = sum(a.bytes for a in alive[LARGEST:])
        more = f", {len(alive) - LARGEST} more of {format_bytes(rest)}" if rest else ""
        yield f"  alive there: {shown}{more}"


def _segments(plan: PlanRecord) -> Iterator[str]:
    kinds = Counter(decision.kind for decision in plan.decisions)
    parts = [str(len(plan.segments))]
    parts += [counted(kinds["split"], "split")] if kinds["split"] else []
    parts += [f"{counted(kinds['restore'], 'value')} given back"] if kinds["restore"] else []
    if plan.tiled:
        tiles = ", ".join(f"'{s.name}' x{s.tiles} {s.axis or ''}".rstrip() for s in plan.tiled)
        parts.append(f"{len(plan.tiled)} in tiles: {tiles}")
    yield f"  segments: {'; '.join(parts)}"


def _saved(plan: PlanRecord) -> Iterator[str]:
    kinds = Counter(saved.storage for saved in plan.saved)
    original = format_bytes(sum(saved.original_bytes for saved in plan.saved))
    stored = format_bytes(sum(saved.stored_bytes for saved in plan.saved))
    yield (
        f"  values: {kinds['packed']} packed, {kinds['kept']} kept, {kinds['dropped']} computed "
        f"again; from forward to backward {original} -> {stored}"
    )


def _work(plan: PlanRecord) -> str:
    extra = 100.0 * plan.extra_flops / max(1, plan.baseline_flops)
    text = f"  work: {extra:+.1f}% FLOPs"
    if plan.baseline_seconds > 0 and plan.predicted_seconds > 0:
        text += f"; predicted step time x{plan.predicted_seconds / plan.baseline_seconds:.2f}"
    return text


def _budget(plan: PlanRecord) -> Iterator[str]:
    if plan.memory_budget is not None:
        yield f"  budget: {format_bytes(plan.memory_budget)}, prefer {plan.prefer}"


def _decisions(decisions: tuple[Decision, ...], shown: int) -> Iterator[str]:
    if decisions:
        yield "  decisions:"
    for number, decision in enumerate(decisions[:shown], start=1):
        yield f"    {number}. {_decision(decision)}"
    if len(decisions) > shown:
        kinds = Counter(decision.kind for decision in decisions[shown:])
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield f"    and {len(decisions) - shown} more ({counts})"


def _decision(decision: Decision) -> str:
    before, after = decision.peak_before_bytes, decision.peak_after_bytes
    peak = f"peak {format_bytes(before)} -> {format_bytes(after)}" if before != after else ""
    time = f"time {format_seconds(decision.seconds)}" if decision.seconds else ""
    effect = ", ".join(part for part in (peak, time) if part)
    what = f"{decision.kind} '{decision.target}'" if decision.target else decision.kind
    return f"{what}: {decision.reason}" + (f" ({effect})" if effect else "")
