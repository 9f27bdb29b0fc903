"""What levels 2 to 4 do to the two halves of a step: values stay, only memory and time change."""

from __future__ import annotations

import pytest
import torch

from snnfx.capture.halves import Halves, keep_packed, keep_values, schedule_halves
from snnfx.capture.restorable import find_restorable
from snnfx.capture.tiling import find_batch, parts_at_peak, tile_counts, tile_part
from snnfx.passes.analysis.opkinds import is_heavy
from snnfx.passes.fxgraph import output_args

from tests.capture.planned import BATCH, LOWERINGS, MODELS, first_halves, inputs_of, run_halves

both_lowerings = pytest.mark.parametrize("lowering", LOWERINGS)
every_model = pytest.mark.parametrize("name", MODELS)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the norm; of 1 where that is less: gradients that are zero have no digits."""
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1.0))


def assert_same(halves: Halves, other: Halves) -> None:
    """Bit for bit where each value is computed by one and the same operator in both halves."""
    tolerance = 1e-12 if halves.fused else 0.0
    found, expected = run_halves(halves), run_halves(other)
    assert len(found) == len(expected) > 3
    assert max(map(relative_error, found, expected)) <= tolerance
    assert sum(bool(one.any()) for one in found) > 0.7 * len(found)


@both_lowerings
@every_model
def test_any_value_that_can_be_kept_leaves_the_gradients(name: str, lowering: str) -> None:
    halves = first_halves(name, lowering)
    schedule = schedule_halves(halves)
    candidates = find_restorable(halves, schedule)
    assert candidates
    for candidate in candidates[::7]:
        changed = halves.copy()
        keep_values(changed, (candidate.name,))
        assert candidate.name in {n.name for n in output_args(changed.forward.graph) if n}
        seconds = schedule_halves(changed).seconds
        assert seconds < schedule.seconds if candidate.seconds else seconds <= schedule.seconds
        assert_same(changed, halves)
    changed = halves.copy()
    keep_values(changed, tuple(c.name for c in candidates))
    assert_same(changed, halves)


@every_model
def test_values_that_are_kept_packed_leave_the_gradients(name: str) -> None:
    """One after the other, as splitting does it, so that each starts from the copy of a copy."""
    first = halves = first_halves(name, "eager")
    packed = 0
    for _ in range(3):
        candidates = find_restorable(halves, schedule_halves(halves))
        found = [c.name for c in candidates if c.name in halves.encodings]
        if not found:
            break
        halves = halves.copy()
        keep_packed(halves, found[0], halves.encodings[found[0]])
        packed += 1
        assert_same(halves, first)
    assert packed or not set(first.encodings) & set(first.origins.values())


def test_a_name_that_is_free_again_does_not_stand_for_what_had_it() -> None:
    halves = first_halves("batch norm", "eager")
    clone = next(n for n in halves.backward.graph.nodes if n.name in halves.origins)
    name = clone.name
    clone.name = "renamed"
    assert name not in halves.copy().origins


def test_a_copy_is_changed_alone() -> None:
    halves = first_halves("batch norm", "eager")
    texts = [str(half.graph) for half in (halves.forward, halves.backward)]
    copied = halves.copy()
    assert [str(half.graph) for half in (copied.forward, copied.backward)] == texts
    (first, *_) = find_restorable(copied, schedule_halves(copied))
    keep_values(copied, (first.name,))
    assert str(copied.backward.graph) != texts[1]
    assert [str(half.graph) for half in (halves.forward, halves.backward)] == texts


@both_lowerings
@every_model
def test_what_can_be_kept_is_computed_again_between_its_points(name: str, lowering: str) -> None:
    halves = first_halves(name, lowering)
    schedule = schedule_halves(halves)
    forward, points = len(schedule.timeline.forward), schedule.timeline
    for c in find_restorable(halves, schedule):
        assert c.name in halves.origins.values()
        assert 0 <= c.first <= forward <= c.made <= c.last
        assert c.last < forward + len(points.backward)
        assert c.bytes > 0
        assert c.seconds >= 0


@pytest.mark.parametrize(
    ("size", "counts"), [(1, []), (4, [2, 4]), (6, [2, 6]), (7, [7]), (12, [2, 4, 12])]
)
def test_tiles_at_least_double_and_divide_the_batch(size: int, counts: list[int]) -> None:
    assert list(tile_counts(size)) == counts


CASES = [(name, lowering) for name in MODELS for lowering in LOWERINGS]


@pytest.mark.parametrize(("name", "lowering"), CASES)
def test_parts_in_tiles_give_the_gradients_of_the_whole(name: str, lowering: str) -> None:
    halves = first_halves(name, lowering)
    axis = find_batch(halves)
    assert axis is not None
    assert axis.size == BATCH
    parts = parts_at_peak(halves, schedule_halves(halves))
    expected = run_halves(halves)
    for part in parts:
        nodes = {node.name: node for node in halves.backward.graph.nodes}
        assert part.name in part.nodes
        assert is_heavy(nodes[part.name])
        for tiles in (2, BATCH):
            changed = halves.copy()
            done = tile_part(changed, part, axis, tiles)
            if done.declined:
                assert str(changed.backward.graph) == str(halves.backward.graph)
                continue
            assert done.tiles == tiles
            errors = map(relative_error, run_halves(changed), expected)
            assert max(errors) <= 1e-12


def test_a_batch_norm_is_tiled_in_two_rounds_where_it_is_taken_apart() -> None:
    halves = first_halves("batch norm", "inductor")
    axis = find_batch(halves)
    assert axis is not None
    parts = parts_at_peak(halves, schedule_halves(halves))
    done = [tile_part(halves.copy(), part, axis, 2) for part in parts]
    assert max(result.rounds for result in done) == 2


def test_a_batch_norm_as_one_operator_is_not_tiled() -> None:
    halves = first_halves("batch norm", "eager")
    axis = find_batch(halves)
    assert axis is not None
    parts = parts_at_peak(halves, schedule_halves(halves))
    assert parts
    for part in parts:
        reason = tile_part(halves.copy(), part, axis, 2).declined
        assert reason is not None
        assert "is not independent along the axis" in reason


def test_inputs_for_halves_are_random_and_the_same_each_time() -> None:
    halves = first_halves("batch norm", "eager")
    (first, _), (second, _) = inputs_of(halves), inputs_of(halves)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
