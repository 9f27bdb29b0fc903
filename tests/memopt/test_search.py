"""Levels 2 to 4 against measured memory, and against the best of all choices on small networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    BooleanSpikeCompressor,
    GridSpikeCompressor,
    NullSpikeCompressor,
    SparseSpikeCompressor,
    Uint8SpikeCompressor,
)
from snnfx.eager.replay import Prediction, Segment, predict
from snnfx.eager.trace import EagerStep, record_step
from snnfx.memopt import MemOptSummary, memory_optimization, search
from snnfx.memopt.containers import Installed, Wrap, Wraps
from snnfx.memopt.facts import StepFacts, step_facts
from snnfx.memopt.search import (
    Limits,
    graph_splits,
    predict_wraps,
    split_along_space,
    split_along_time,
    unwrap,
)
from snnfx.neurons import LIFNode

from examples.models import SEWBlock, SpikformerBlock, SpikingLayer
from tests.eager import steps
from tests.eager.steps import is_near, measured_bytes, record
from tests.memopt.nets import LinearLayer, of_types, workload
from tests.models import Workload

NO_LIMITS = Limits(None, None)


def reset(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, LIFNode):
            module.reset()


def chunkable() -> Workload:
    """Layers that can run in chunks, T=6, N=64."""
    torch.manual_seed(0)
    layers = (
        LinearLayer(8, 32, LIFNode(step_mode="m")),
        LinearLayer(32, 16, LIFNode(step_mode="m")),
    )
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    return workload(model, torch.rand(6, 64, 8), LinearLayer, reset=reset)


LARGE: dict[str, tuple[Callable[[], Workload], tuple[str, ...]]] = {
    "vgg": (steps.vgg, ("spatial", "unwrap")),
    "sew": (steps.sew, ("unwrap",)),
    "sew_blocks": (of_types(steps.sew, SEWBlock), ("spatial",)),
    "spikformer": (
        of_types(steps.spikformer, SpikingLayer, SpikformerBlock),
        ("spatial", "unwrap"),
    ),
    "chunkable": (chunkable, ("temporal",)),
}


def optimised(made: Workload, level: int) -> tuple[MemOptSummary, int]:
    """The summary, and the predicted peak in it."""
    made.before_step()
    result = memory_optimization(
        made.model, made.layer_types, made.inputs, level=level, return_summary=True
    )
    assert isinstance(result, tuple)
    (note,) = (n for n in result[1].notes if n.startswith("predicted_peak_bytes:"))
    return result[1], int(note.split("->")[1])


@pytest.mark.parametrize("name", LARGE)
def test_each_level_needs_what_is_predicted_and_no_more_than_the_one_before(name: str) -> None:
    make, done = LARGE[name]
    before = None
    for level in (1, 2, 3, 4):
        made = make()
        summary, peak = optimised(made, level)
        assert is_near(peak, measured_bytes(made), 0.03)
        assert before is None or peak <= before
        before = peak
        for number, step in ((2, "spatial"), (3, "temporal")):
            count = getattr(summary, f"{step}_split_count")
            assert (count > 0) == (step in done and level >= number)
        assert (summary.unwrap_count > 0) == ("unwrap" in done and level == 4)


def test_a_model_with_nothing_left_to_wrap_is_predicted_as_it_is() -> None:
    made = steps.hand_written()
    plain = record(steps.hand_written()).peak_bytes
    summary, peak = optimised(made, 4)
    assert summary.gc_container_count == 0
    assert peak == plain


def facts_of(made: Workload) -> StepFacts:
    return step_facts(record(made))


def wraps_of(*paths: str, inside: tuple[str, ...] = (), bits: tuple[str, ...] = ()) -> Wraps:
    """Containers, and pieces cut out of them; of those in `bits` the input is packed."""
    return {
        path: Wrap(
            path,
            BitSpikeCompressor() if path in bits else NullSpikeCompressor(),
            "bit" if path in bits else "null",
            is_cut_out=path in inside,
        )
        for path in (*paths, *inside)
    }


NESTED: list[tuple[Callable[[], Workload], Wraps]] = [
    (steps.vgg, wraps_of("features.1", "features.2", inside=("features.1.neuron",))),
    (steps.vgg, wraps_of("features", inside=tuple(f"features.{i}" for i in range(8)))),
    (steps.vgg, wraps_of("features", inside=("features.1",), bits=("features.1",))),
    (steps.vgg, wraps_of("features", inside=("features.1", "features.1.neuron", "features.4"))),
    (steps.sew, wraps_of("stages.0", inside=("stages.0.second",), bits=("stages.0.second",))),
    (steps.sew, wraps_of("stages", inside=("stages.0", "stages.0.first", "stages.1.shortcut"))),
    (
        steps.spikformer,
        wraps_of("blocks.0", inside=("blocks.0.attention", "blocks.0.attention.query")),
    ),
]


@pytest.mark.parametrize(("make", "wraps"), NESTED)
def test_pieces_cut_out_of_containers_need_what_is_predicted(
    make: Callable[[], Workload], wraps: Wraps
) -> None:
    made = make()
    predicted = predict_wraps(facts_of(made), wraps).peak_bytes
    Installed(made.model).install(wraps)
    assert is_near(predicted, measured_bytes(made), 0.02)


def test_cutting_out_matters() -> None:
    facts = facts_of(steps.vgg())
    inside = tuple(f"features.{i}" for i in range(8))
    whole = predict_wraps(facts, wraps_of("features")).peak_bytes
    assert predict_wraps(facts, wraps_of("features", inside=inside)).peak_bytes < 0.7 * whole


COMPRESSORS: list[BaseSpikeCompressor] = [
    NullSpikeCompressor(),
    BooleanSpikeCompressor(),
    Uint8SpikeCompressor(),
    BitSpikeCompressor(),
    GridSpikeCompressor(2, 1.0, 0),
]


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda c: type(c).__name__)
def test_inputs_are_counted_as_their_compressor_keeps_them(compressor: BaseSpikeCompressor) -> None:
    made = steps.vgg()
    wraps = {f"features.{i}": Wrap(f"features.{i}", compressor, "manual") for i in range(1, 8)}
    predicted = predict_wraps(facts_of(made), wraps).peak_bytes
    Installed(made.model).install(wraps)
    assert is_near(predicted, measured_bytes(made), 0.02)


def test_what_a_sparse_compressor_keeps_is_not_known_and_counts_whole() -> None:
    assert Wrap("", SparseSpikeCompressor(), "manual").packed_bits is None


def narrow_wide_narrow(width: int, inner: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Tanh(), nn.Linear(inner, width))


class Pair(nn.Module):
    """Two parts, each of which needs much inside and little outside."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first = narrow_wide_narrow(width, inner)
        self.second = narrow_wide_narrow(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def pairs(*sizes: int) -> Workload:
    model = nn.Sequential(nn.Linear(16, 16), *(Pair(16, inner) for inner in sizes))
    return workload(model, torch.rand(256, 16), Pair)


def layers(made: Workload) -> Wraps:
    named = made.model.named_modules()
    return wraps_of(*(path for path, m in named if isinstance(m, made.layer_types)))


def subsets(wraps: Wraps) -> Iterator[Wraps]:
    for size in range(len(wraps) + 1):
        for chosen in combinations(wraps, size):
            yield {path: wraps[path] for path in chosen}


def all_nestings(wraps: Wraps, facts: StepFacts) -> Iterator[Wraps]:
    """Every set of containers that splits can make: each whole or not, each part in or out."""

    def of(path: str) -> Iterator[Wraps]:
        parts = facts.modules[path].children
        for chosen in subsets(wraps_of(*parts)):
            yield chosen if chosen else wraps_of(path)
            cut_out = {key: replace(wrap, is_cut_out=True) for key, wrap in chosen.items()}
            yield {**wraps_of(path), **cut_out}

    for choice in product(*(list(of(path)) for path in wraps)):
        yield {key: wrap for part in choice for key, wrap in part.items()}


def split(facts: StepFacts, wraps: Wraps, limits: Limits = NO_LIMITS) -> tuple[int, Wraps]:
    found = split_along_space(
        facts, wraps, graph_splits(facts), lambda path: wraps_of(path)[path], limits
    )
    assert predict_wraps(facts, found.wraps).peak_bytes == found.peak_bytes
    return found.peak_bytes, found.wraps


@settings(max_examples=8)
@given(st.lists(st.sampled_from([4, 16, 48, 160]), min_size=1, max_size=2))
def test_splits_are_never_better_than_the_best_choice(sizes: list[int]) -> None:
    made = pairs(*sizes)
    facts, wraps = facts_of(made), layers(made)
    best = min(predict_wraps(facts, choice).peak_bytes for choice in all_nestings(wraps, facts))
    peak, _ = split(facts, wraps)
    assert best <= peak <= predict_wraps(facts, wraps).peak_bytes


@pytest.mark.parametrize("sizes", [(160,), (16, 160), (160, 16), (160, 160)])
def test_splits_find_the_best_choice_where_one_container_is_the_problem(
    sizes: tuple[int, ...],
) -> None:
    made = pairs(*sizes)
    facts, wraps = facts_of(made), layers(made)
    best = min(predict_wraps(facts, choice).peak_bytes for choice in all_nestings(wraps, facts))
    peak, _ = split(facts, wraps)
    assert peak == best < predict_wraps(facts, wraps).peak_bytes


def test_no_rounds_and_no_candidates_split_nothing() -> None:
    made = pairs(160)
    facts, wraps = facts_of(made), layers(made)
    for limits in (Limits(0, None), Limits(None, 0)):
        assert split(facts, wraps, limits)[1] == wraps
    assert split(facts, wraps, Limits(1, 1))[1] != wraps


@settings(max_examples=15)
@given(st.lists(st.sampled_from([4, 16, 48, 160]), min_size=1, max_size=5))
def test_unwrapping_never_raises_the_peak_and_leaves_nothing_to_spare(sizes: list[int]) -> None:
    made = pairs(*sizes)
    facts, wraps = facts_of(made), layers(made)
    found = unwrap(facts, wraps, record_nothing)
    start = predict_wraps(facts, wraps).peak_bytes
    best = min(predict_wraps(facts, choice).peak_bytes for choice in subsets(wraps))
    assert best <= found.peak_bytes == predict_wraps(facts, found.wraps).peak_bytes <= start
    assert len(found.changes) == len(wraps) - len(found.wraps)
    seconds = [predict_wraps(facts, w).seconds for w in (wraps, found.wraps)]
    assert seconds[1] <= seconds[0]
    assert (seconds[1] < seconds[0]) == bool(found.changes)


def record_nothing(_: Wraps) -> EagerStep:
    raise AssertionError("nothing runs in chunks, so that there is no other step to record")


def test_unwrapping_tries_the_container_that_costs_most_time_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = pairs(4, 160, 48)
    facts, wraps = facts_of(made), layers(made)
    tried: list[set[str]] = []

    def higher_without_any(step: EagerStep, segments: Mapping[str, Segment]) -> Prediction:
        tried.append(set(wraps) - set(segments))
        return replace(predict(step, segments), peak_bytes=len(tried[-1]))

    monkeypatch.setattr(search, "predict", higher_without_any)
    found = unwrap(facts, wraps, record_nothing)
    assert found.wraps == wraps
    assert found.skipped == "no_container_to_spare"
    assert tried == [set(), {"2"}, {"3"}, {"1"}]


def measured(made: Workload) -> Callable[[Wraps], Prediction]:
    """The prediction for a record of the model with containers in it."""

    def measure(wraps: Wraps) -> Prediction:
        installed = Installed(made.model)
        installed.install(wraps)
        found = predict(record_step(made.model, made.inputs, keep_saved=True), {})
        installed.remove()
        return found

    return measure


def test_chunks_that_are_not_proven_are_not_made_and_the_reason_is_told() -> None:
    made = chunkable()
    facts, wraps = facts_of(made), layers(made)
    found = split_along_time(facts, wraps, 2, NO_LIMITS, measured(made), lambda wrap: "not so")
    assert found.wraps == wraps
    assert "not so" in found.skipped
    proven = split_along_time(facts, wraps, 2, NO_LIMITS, measured(made), lambda wrap: "")
    assert {w.chunks for w in proven.wraps.values()} & {2, 4}
    assert proven.peak_bytes < found.peak_bytes


@pytest.mark.parametrize("factor", [2, 3, 9])
def test_there_are_no_more_chunks_than_time_steps(factor: int) -> None:
    made = chunkable()
    facts, wraps = facts_of(made), layers(made)
    asked: list[int] = []

    def refusal(wrap: Wrap) -> str:
        asked.append(wrap.chunks)
        return ""

    found = split_along_time(facts, wraps, factor, NO_LIMITS, measured(made), refusal)
    assert all(chunks <= 6 for chunks in asked)
    assert (factor in asked) == (factor <= 6)
    assert factor < 9 or "9 chunks of 6 time steps" in found.skipped
