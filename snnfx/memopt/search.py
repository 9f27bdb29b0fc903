"""Levels 2 to 4: split containers where the predicted peak is, and take away what it allows.

Each level is a greedy search over sets of containers. Splits along space and unwrapping are judged
by `snnfx.eager.replay`, in milliseconds; chunks along time by recording the model with its
containers, a fraction of a second each, since chunks run other operators. Only the containers
with the largest inputs are tried for chunks, the one at the peak first.

What is greedy is not always best: a split that lowers the peak only together with another one is
not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, count

from snnfx.eager.replay import Prediction, Segment, predict
from snnfx.eager.step import EagerStep
from snnfx.memopt.containers import Wrap, Wraps
from snnfx.memopt.facts import StepFacts

MAX_CHILDREN = 6
"""Of modules with more children than this not every choice of children is tried."""


MAX_CHUNKED = 3
"""Containers that are tried in chunks before the search ends: the one at the peak, and the next."""


@dataclass(frozen=True)
class Limits:
    """How long a search may take.

    Attributes:
        rounds: of each level; None: until nothing is left to gain.
        candidates: containers that are tried in a round; None: all.
    """

    rounds: int | None
    candidates: int | None


@dataclass(frozen=True)
class SearchResult:
    """What a level did.

    Attributes:
        wraps: the containers afterwards.
        peak_bytes: predicted for them.
        changes: one line for each change that was made.
        skipped: why there was nothing to do, or no more; "" if that needs no saying.
    """

    wraps: Wraps
    peak_bytes: int
    changes: tuple[str, ...] = ()
    skipped: str = ""


@dataclass(frozen=True)
class Split:
    """One way to split a container.

    Attributes:
        parts: the modules inside of it that get containers.
        keeps_rest: whether the container stays around the rest; the parts are cut out of it.
    """

    parts: tuple[str, ...]
    keeps_rest: bool = False


Splits = Callable[[str], Sequence[Split]]
"""From the path of a wrapped module to the ways to split it."""

MakeWrap = Callable[[str], Wrap]


def segments_of(wraps: Wraps) -> dict[str, Segment]:
    """The containers as the replay takes them."""
    return {p: Segment(p, wrap.packed_bits, wrap.is_cut_out) for p, wrap in wraps.items()}


def predict_wraps(facts: StepFacts, wraps: Wraps) -> Prediction:
    """What the step needs with these containers; chunks are not taken into account."""
    return predict(facts.step, segments_of(wraps))


def graph_splits(facts: StepFacts) -> Splits:
    """The choices among the modules that a module calls, by the recorded step.

    Either they get containers in the place of the whole, or they are cut out of the whole: what
    the module computes beside them is then a segment of its own.
    """

    def choices(path: str) -> Sequence[Split]:
        known = facts.modules
        children = [c for c in known[path].children if not known[c].refusal and known[c].seconds]
        few = len(children) <= MAX_CHILDREN
        sizes = range(1, len(children) + 1) if few else (1, len(children) - 1, len(children))
        parts = [choice for size in sizes for choice in combinations(children, size)]
        return [Split(choice, keeps_rest) for keeps_rest in (True, False) for choice in parts]

    return choices


def split_along_space(
    facts: StepFacts, wraps: Wraps, splits: Splits, make: MakeWrap, limits: Limits
) -> SearchResult:
    """Level 2: put parts of a module into containers, in the place of the whole.

    Args:
        facts: of the step.
        wraps: at level 1.
        splits: what a module can be split into.
        make: the container for a module.
        limits: of the search.
    """
    found = SearchResult(wraps, predict_wraps(facts, wraps).peak_bytes)
    if not any(splits(path) for path in wraps):
        return replace(found, skipped="no_spatial_candidates")
    for _ in _rounds(limits.rounds):
        better = _first_split(facts, found, splits, make, limits.candidates)
        if better is None:
            return replace(found, skipped="no_improving_candidate")
        found = better
    return found


def _rounds(limit: int | None) -> Iterable[int]:
    return count() if limit is None else range(limit)


def _first_split(
    facts: StepFacts,
    before: SearchResult,
    splits: Splits,
    make: MakeWrap,
    candidates: int | None,
) -> SearchResult | None:
    """The best split of a container around the peak; splitting another one cannot lower it."""
    for path in _around_peak(facts, before.wraps)[:candidates]:
        best: tuple[int, float] = (before.peak_bytes, 0.0)
        chosen: Wraps | None = None
        for split in splits(path):
            wraps = _with_split(before.wraps, path, split, make)
            if wraps is None:
                continue
            prediction = predict_wraps(facts, wraps)
            if prediction.peak_bytes < before.peak_bytes:
                chosen, best = min(
                    (chosen, best),
                    (wraps, (prediction.peak_bytes, prediction.seconds)),
                    key=lambda item: item[1],
                )
        if chosen is not None:
            inside = ", ".join(key for key in chosen if key not in before.wraps)
            how = "without" if path in chosen else "->"
            change = f"{path} {how} {inside}: {before.peak_bytes} -> {best[0]} bytes"
            return SearchResult(chosen, best[0], (*before.changes, change))
    return None


def _with_split(wraps: Wraps, path: str, split: Split, make: MakeWrap) -> Wraps | None:
    """The containers after a split; None if it asks for what there is already, or for nesting."""
    inner = [key for key in wraps if key.startswith(f"{path}.")]
    if any(key == part or key.startswith(f"{part}.") for key in inner for part in split.parts):
        return None
    if inner and not split.keeps_rest:
        return None
    whole = wraps[path]
    cut_out = split.keeps_rest or whole.is_cut_out
    parts = {part: replace(make(part), is_cut_out=cut_out) for part in split.parts}
    others = {k: wrap for k, wrap in wraps.items() if split.keeps_rest or k != path}
    return {**others, **parts}


def _around_peak(facts: StepFacts, wraps: Wraps) -> list[str]:
    """The containers inside of which the peak is, the innermost first."""
    peak = predict_wraps(facts, wraps).path
    found = [path for path in wraps if path == peak or peak.startswith(f"{path}.")]
    return sorted(found, key=len, reverse=True)


Measure = Callable[[Wraps], Prediction]
"""The prediction for a model with these containers in it, chunks taken into account."""

Refusal = Callable[[Wrap], str]
"""Why a container's chunks are not proven to be exact, or ""."""


def split_along_time(
    facts: StepFacts,
    wraps: Wraps,
    factor: int,
    limits: Limits,
    measure: Measure,
    refusal: Refusal,
) -> SearchResult:
    """Level 3: run the container at the peak in chunks along time, or in more of them.

    Args:
        facts: of the step.
        wraps: at level 2.
        factor: by which the number of chunks grows.
        limits: of the search; one candidate a round is all there is.
        measure: records the model with containers.
        refusal: asks for the proof.
    """
    found = SearchResult(wraps, measure(wraps).peak_bytes)
    blocked: dict[str, str] = {}
    for _ in _rounds(limits.rounds):
        better = None
        for path in _at_peak_first(facts, found.wraps, limits.candidates):
            if path in blocked:
                continue
            wrap = found.wraps[path]
            wrap = replace(wrap, chunks=wrap.chunks * factor)
            blocked[path] = _too_many(facts, wrap) or refusal(wrap)
            if blocked[path]:
                continue
            blocked[path] = "does not lower the peak"
            after = measure({**found.wraps, path: wrap}).peak_bytes
            if after < found.peak_bytes:
                change = f"{path} x{wrap.chunks}: {found.peak_bytes} -> {after} bytes"
                changed = {**found.wraps, path: wrap}
                better = SearchResult(changed, after, (*found.changes, change))
                break
        if better is None:
            why = "; ".join(f"{path}: {reason}" for path, reason in blocked.items())
            return replace(found, skipped=f"no_temporal_candidates: {why}" if why else "")
        found, blocked = better, {}
    return found


def _at_peak_first(facts: StepFacts, wraps: Wraps, candidates: int | None) -> list[str]:
    """The containers around the peak, then those with the largest inputs, at most `MAX_CHUNKED`.

    The replay that says where the peak is does not know chunks, so once the container at the peak
    runs in chunks, the next one may be it.
    """
    around = _around_peak(facts, wraps)
    others = sorted(wraps, key=lambda path: -facts.modules[path].input_bytes)
    ranked = [*around, *(path for path in others if path not in around)]
    return ranked[: MAX_CHUNKED if candidates is None else min(candidates, MAX_CHUNKED)]


def _too_many(facts: StepFacts, wrap: Wrap) -> str:
    steps = facts.modules[wrap.path].time_steps
    return "" if steps >= wrap.chunks else f"{wrap.chunks} chunks of {steps} time steps"


RecordWith = Callable[[Wraps], EagerStep]
"""Records the model with these containers in it, such that others can be predicted."""


def unwrap(facts: StepFacts, wraps: Wraps, record: RecordWith) -> SearchResult:
    """Level 4: take containers away where that does not raise the peak, most time saved first.

    Those that run in chunks stay, with what is inside of them: the peak needs them.

    Args:
        facts: of the step.
        wraps: at level 3.
        record: gives a step with the chunks in it, which the replay alone does not know.
    """
    roots = [path for path, wrap in wraps.items() if wrap.chunks > 1]
    chunked = {
        path: wrap
        for path, wrap in wraps.items()
        if any(path == root or path.startswith(f"{root}.") for root in roots)
    }
    step = record(chunked) if chunked else facts.step

    def peak(candidate: Wraps) -> int:
        whole = {path: wrap for path, wrap in candidate.items() if path not in chunked}
        return predict(step, segments_of(whole)).peak_bytes

    found = SearchResult(wraps, peak(wraps))
    free = [path for path in wraps if path not in chunked]
    for path in sorted(free, key=lambda key: -facts.modules[key].seconds):
        fewer = {key: wrap for key, wrap in found.wraps.items() if key != path}
        after = peak(fewer)
        if after <= found.peak_bytes:
            change = f"{path}: {found.peak_bytes} -> {after} bytes"
            found = SearchResult(fewer, after, (*found.changes, change))
    return found if found.changes else replace(found, skipped="no_container_to_spare")
