"""Axis facts against the whole: every claim about slices is computed slice by slice."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from snnfx.errors import RuleError
from snnfx.passes.analysis.axes import Outcome, analyse_axis, tile_call
from snnfx.passes.analysis.axes_rules import RELATIONS
from snnfx.passes.analysis.placement import (
    Along,
    AxisValue,
    Constant,
    Filled,
    Mixed,
    Partial,
    Placement,
    tile_shape,
)

import tests.passes.axis_programs_windows  # noqa: F401  # more steps for random programs
from tests.passes.axis_programs import Program, random_program
from tests.passes.axis_tiles import check_facts

aten, snn = torch.ops.aten, torch.ops.snnfx
# Random numbers, and batch norms of other devices in training.
NEVER_INDEPENDENT = {
    aten.native_dropout.default, aten.bernoulli.p, aten.rand_like.default, aten.randn_like.default,
    aten._batch_norm_with_update_functional.default, aten.batch_norm_backward.default,
}  # fmt: skip
# Rules of what no program of this file holds: other spellings of what is there.
OTHER_SPELLINGS = {
    aten.contiguous.default, aten.lift_fresh_copy.default, aten.zeros_like, aten.ones_like,
    aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default,
}  # fmt: skip


@settings(max_examples=100)
@given(st.randoms(use_true_random=False), st.sampled_from([(2, 1), (4, 2), (6, 3), (3, 1), (4, 1)]))
def test_every_claim_about_a_random_program_holds_in_tiles(
    source: random.Random, sizes: tuple[int, int]
) -> None:
    size, tile = sizes
    program = random_program(source, size, steps=12)
    facts = analyse_axis(program.graph, size, program.seeds)
    check_facts(program.graph, facts, program.seeds, tile)


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.sampled_from([(2, 1), (4, 2), (3, 1)]))
def test_with_complete_sums_every_claim_holds_when_readers_see_the_whole_sum(
    source: random.Random, sizes: tuple[int, int]
) -> None:
    size, tile = sizes
    program = random_program(source, size, steps=12)
    facts = analyse_axis(program.graph, size, program.seeds, complete_sums=True)
    check_facts(program.graph, facts, program.seeds, tile, complete_sums=True)


def test_every_rule_proves_something_in_random_programs() -> None:
    missing = set(RELATIONS) - NEVER_INDEPENDENT - OTHER_SPELLINGS
    for seed in range(900):
        program = random_program(random.Random(seed), 2, steps=12)
        facts = analyse_axis(program.graph, 2, program.seeds)
        for node in program.graph.nodes:
            found = facts.outcomes[node]
            if any(isinstance(c, (Along, Partial)) for c in outcomes(found)):
                missing -= {node.target, getattr(node.target, "overloadpacket", None)}
        if not missing:
            return
    assert missing == set()


def outcomes(found: Outcome) -> tuple[AxisValue, ...]:
    return found if isinstance(found, tuple) else (found,)


def program_of(size: int, *shapes: tuple[tuple[int, ...], Placement | None]) -> Program:
    """A program with inputs of these shapes and placements."""
    program = Program(random.Random(0), size)
    for sizes, placement in shapes:
        node = program.constant(sizes)
        if placement is not None:
            program.seeds[node] = placement
    return program


def claims(program: Program) -> dict[str, object]:
    """The facts by the names of the nodes."""
    facts = analyse_axis(program.graph, program.size, program.seeds)
    check_facts(program.graph, facts, program.seeds, 1)
    return {node.name: facts.of(node) for node in program.graph.nodes}


STEPS_FIRST = Placement(1, 1, 1)
"""Batch in `[T, N, ...]`."""


def test_batch_lies_between_time_and_what_follows_when_dimensions_merge() -> None:
    program = program_of(3, ((4, 3, 5, 2), STEPS_FIRST))
    (x,) = program.tensors
    merged = program.call(aten.view.default, x, [12, 5, 2])
    heads = program.call(aten.view.default, x, [60, 2])
    everything = program.call(aten.view.default, x, [120])
    again = program.call(aten.view.default, everything, [4, 3, 10])
    facts = analyse_axis(program.graph, 3, program.seeds)
    found = [facts.placement(n) for n in (merged, heads, everything, again) if n is not None]
    expected = [(0, 4, 1), (0, 4, 5), (0, 4, 10), (1, 1, 1)]
    assert found == [Placement(*each) for each in expected]


def test_a_dimension_that_holds_a_part_of_the_axis_is_mixed() -> None:
    program = program_of(6, ((6, 4), Placement(0, 1, 1)))
    program.call(aten.view.default, program.tensors[0], [2, 3, 4])
    program.call(aten.view.default, program.tensors[0], [8, 3])
    assert list(claims(program).values())[1:] == [Mixed(), Mixed()]


@pytest.mark.parametrize(
    ("layout", "bits", "shape", "placement", "stored"),
    [
        ("time", 1, (8, 3, 5), STEPS_FIRST, STEPS_FIRST),
        ("time", 1, (8, 3, 5), Placement(0, 1, 1), None),
        ("flat", 1, (2, 3, 16), STEPS_FIRST, Placement(0, 2, 2)),
        ("flat", 4, (2, 3, 16), STEPS_FIRST, Placement(0, 2, 8)),
        ("flat", 1, (2, 3, 4), STEPS_FIRST, None),
    ],
)
def test_slices_of_whole_bytes_are_packed_by_themselves(
    layout: str, bits: int, shape: tuple[int, ...], placement: Placement, stored: Placement | None
) -> None:
    size = shape[placement.dim]
    program = program_of(size, (shape, placement))
    spike = program.call(aten.gt.Scalar, program.tensors[0], 0)
    packed = program.call(snn.pack_bits.default, spike, bits, layout)
    program.call(snn.unpack_bits.default, packed, list(shape), torch.float64, bits, layout)
    found = claims(program)
    if stored is None:
        assert isinstance(found["pack_bits_default"], Mixed)
        assert isinstance(found["unpack_bits_default"], Mixed)
    else:
        assert found["pack_bits_default"] == Along(stored)
        assert found["unpack_bits_default"] == Along(placement)


def test_gradients_of_a_weight_add_up_and_that_of_the_input_is_sliced() -> None:
    program = program_of(3, ((3, 2, 4, 4), Placement(0, 1, 1)), ((5, 2, 3, 3), None))
    x, weight = program.tensors
    rest = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    y = program.call(aten.convolution.default, x, weight, None, *rest)
    assert y is not None
    program.items(
        program.call(aten.convolution_backward.default, y, x, weight, [5], *rest, [True] * 3)
    )
    found = claims(program)
    assert found["getitem"] == Along(Placement(0, 1, 1))
    assert found["getitem_1"] == found["getitem_2"] == Partial()


def test_a_transposed_convolution_is_sliced_and_its_weight_adds_up() -> None:
    program = program_of(3, ((3, 2, 4, 4), Placement(0, 1, 1)), ((2, 5, 3, 3), None))
    x, weight = program.tensors
    rest = ([2, 2], [1, 1], [1, 1], True, [1, 1], 1)
    y = program.call(aten.convolution.default, x, weight, None, *rest)
    assert y is not None
    program.items(
        program.call(aten.convolution_backward.default, y, x, weight, [5], *rest, [True] * 3)
    )
    found = claims(program)
    assert found[y.name] == found["getitem"] == Along(Placement(0, 1, 1))
    assert found["getitem_1"] == found["getitem_2"] == Partial()


def test_patches_are_sliced_by_samples_and_not_by_channels() -> None:
    window = ([2, 2], [1, 1], [0, 0], [1, 1])
    for dim, expected in ((0, Along(Placement(0, 2, 1))), (1, Mixed())):
        program = program_of(3, ((6, 3, 4, 4), Placement(dim, 2 - dim, 1)))
        columns = program.call(aten.im2col.default, program.tensors[0], *window)
        image = program.call(aten.col2im.default, columns, [4, 4], *window)
        assert columns is not None
        assert image is not None
        found = claims(program)
        assert found[columns.name] == found[image.name] == expected


def test_what_is_not_linear_in_a_sum_is_mixed() -> None:
    program = program_of(3, ((3, 4), Placement(0, 1, 1)), ((4,), None))
    x, constant = program.tensors
    total = program.call(aten.sum.dim_IntList, x, [0])
    program.call(aten.mul.Tensor, total, constant)
    program.call(aten.add.Tensor, total, constant)
    program.call(aten.mul.Tensor, total, total)
    program.call(aten.relu.default, total)
    program.call(aten.div.Tensor, constant, total)
    program.call(aten._to_copy.default, total, dtype=torch.float32)
    program.call(aten.sub.Tensor, x, total)
    found = claims(program)
    assert found["mul_tensor"] == Partial()
    names = ("add_tensor", "mul_tensor_1", "relu_default", "div_tensor", "_to_copy_default")
    assert {type(found[name]) for name in (*names, "sub_tensor")} == {Mixed}


def test_a_mean_over_the_axis_is_mixed_and_one_over_others_is_sliced() -> None:
    program = program_of(3, ((3, 4), Placement(0, 1, 1)))
    program.call(aten.mean.dim, program.tensors[0], [0])
    program.call(aten.mean.dim, program.tensors[0], [1])
    found = claims(program)
    assert found["mean_dim"] == Mixed()
    assert found["mean_dim_1"] == Along(Placement(0, 1, 1))


def test_a_constant_of_the_size_of_the_axis_makes_a_sum_mixed_and_a_filled_one_does_not() -> None:
    program = program_of(3, ((3, 4), Placement(0, 1, 1)), ((3, 4), None), ((1, 4), None))
    x, whole, row = program.tensors
    fill = program.call(aten.full.default, [3, 4], 2.0, dtype=torch.float64)
    for other in (whole, row, fill):
        program.call(aten.add.Tensor, x, other)
    found = claims(program)
    assert found["full_default"] == Filled()
    assert isinstance(found["full_default"], Constant)
    assert found["add_tensor"] == Mixed()
    assert found["add_tensor_1"] == found["add_tensor_2"] == Along(Placement(0, 1, 1))


def test_random_numbers_and_unknown_operators_are_mixed() -> None:
    program = program_of(3, ((3, 4), Placement(0, 1, 1)), ((4,), None))
    x, constant = program.tensors
    program.call(aten.bernoulli.p, constant, 0.5)
    program.call(aten.sort.default, x)
    program.call(aten.sort.default, constant)
    program.call(aten.empty_like.default, constant)
    found = claims(program)
    assert found["bernoulli_p"] == found["sort_default"] == found["empty_like_default"] == Mixed()
    assert found["sort_default_1"] == Constant()


def test_a_written_tensor_is_mixed() -> None:
    program = program_of(3, ((3, 4), Placement(0, 1, 1)))
    copy = program.call(aten.clone.default, program.tensors[0])
    program.call(aten.add_.Tensor, copy, 1.0)
    facts = analyse_axis(program.graph, 3, program.seeds)
    assert [type(facts.of(n)) for n in program.graph.nodes][1:] == [Mixed, Mixed]


def test_a_complete_sum_is_constant_for_those_that_read_it() -> None:
    program = program_of(3, ((3, 4), Placement(0, 1, 1)))
    (x,) = program.tensors
    total = program.call(aten.sum.dim_IntList, x, [0])
    mean = program.call(aten.mul.Tensor, total, 1 / 3)
    root = program.call(aten.sqrt.default, program.call(aten.abs.default, mean))
    centred = program.call(aten.sub.Tensor, x, mean)
    again = program.call(aten.sum.dim_IntList, program.call(aten.mul.Tensor, centred, root), [0])
    plain = analyse_axis(program.graph, 3, program.seeds)
    whole = analyse_axis(program.graph, 3, program.seeds, complete_sums=True)
    check_facts(program.graph, whole, program.seeds, 1, complete_sums=True)
    nodes = [n for n in (total, mean, root, centred, again) if n is not None]
    mixed, along = Mixed(), Along(Placement(0, 1, 1))
    assert [plain.of(n) for n in nodes] == [Partial(), Partial(), mixed, mixed, mixed]
    assert [whole.of(n) for n in nodes] == [Partial(), Constant(), Constant(), along, Partial()]


def test_one_of_several_results_that_is_a_complete_sum_is_constant_for_its_readers() -> None:
    program = program_of(3, ((3, 2, 4, 4), Placement(0, 1, 1)), ((5, 2, 3, 3), None))
    x, weight = program.tensors
    rest = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    y = program.call(aten.convolution.default, x, weight, None, *rest)
    both = program.call(
        aten.convolution_backward.default, y, x, weight, [5], *rest, [True, True, False]
    )
    image_grad, weight_grad = program.items(both)
    squared = program.call(aten.mul.Tensor, weight_grad, weight_grad)
    assert squared is not None
    facts = analyse_axis(program.graph, 3, program.seeds, complete_sums=True)
    check_facts(program.graph, facts, program.seeds, 1, complete_sums=True)
    assert facts.of(image_grad) == Along(Placement(0, 1, 1))
    assert facts.of(weight_grad) == Partial()
    assert facts.of(squared) == Constant()


def test_a_mixed_value_is_mixed_with_complete_sums_too() -> None:
    program = program_of(3, ((3, 4), Placement(0, 1, 1)))
    lines = program.call(aten.cumsum.default, program.tensors[0], 0)
    scaled = program.call(aten.mul.Tensor, program.tensors[0], lines)
    facts = analyse_axis(program.graph, 3, program.seeds, complete_sums=True)
    assert [facts.of(n) for n in (lines, scaled) if n is not None] == [Mixed(), Mixed()]


@pytest.mark.parametrize("kind", ["average", "maximum", "offsets"])
@pytest.mark.parametrize("dim", [1, 2, 0, 3])
def test_steps_that_are_packed_are_pooled_by_samples_and_by_channels(kind: str, dim: int) -> None:
    program = program_of(4, ((12, 4, 4, 4, 2), Placement(dim, 3 if dim == 0 else 1, 1)))
    (x,) = program.tensors
    packed = program.call(snn.pack_bits.default, program.call(aten.gt.Scalar, x, 0), 1, "time")
    values = (torch.float64, 1, 1.0, 0, kind)
    window = ([2, 2], [2, 2], [0, 0])
    pooled = program.call(
        snn.pool_packed.default, packed, list(x.meta["val"].shape), *values, *window
    )
    assert pooled is not None
    found = claims(program)[pooled.name]
    expected = {1: Along(Placement(0, 12, 1)), 2: Along(Placement(1, 1, 1))}
    assert found == expected.get(dim, Mixed())
    if dim in expected:
        facts = analyse_axis(program.graph, 4, program.seeds)
        sizes = [2 if d == dim else n for d, n in enumerate((12, 4, 4, 4, 2))]
        assert tile_call(pooled, facts, 2).args[1] == sizes


def test_a_part_of_a_graph_takes_everything_outside_for_constant() -> None:
    program = program_of(3, ((3, 4), Placement(0, 1, 1)))
    (x,) = program.tensors
    total = program.call(aten.sum.dim_IntList, x, [0])
    centred = program.call(aten.sub.Tensor, x, total)
    assert centred is not None
    whole = analyse_axis(program.graph, 3, program.seeds)
    part = analyse_axis([centred], 3, program.seeds)
    assert whole.of(centred) == Mixed()
    assert part.of(centred) == Along(Placement(0, 1, 1))
    assert part.is_independent(centred)
    assert not whole.is_independent(centred)


def test_a_seed_takes_the_place_of_the_rule() -> None:
    program = program_of(3, ((3, 4), None))
    total = program.call(aten.cumsum.default, program.tensors[0], 0)
    again = program.call(aten.neg.default, total)
    assert total is not None
    assert again is not None
    facts = analyse_axis(program.graph, 3, {total: Placement(0, 1, 1)})
    assert facts.of(program.tensors[0]) == Constant()
    assert facts.of(again) == Along(Placement(0, 1, 1))


def test_a_seed_that_does_not_fit_is_an_error_that_names_it() -> None:
    program = program_of(3, ((4, 4), Placement(0, 1, 1)))
    with pytest.raises(
        RuleError, match=r"seed Placement.* of 'input_0'.* dimension of 3.*\[4, 4\]"
    ):
        analyse_axis(program.graph, 3, program.seeds)


def test_sizes_of_a_tile_follow_the_placement() -> None:
    program = program_of(6, ((2, 6, 5), STEPS_FIRST))
    merged = program.call(aten.view.default, program.tensors[0], [12, 5])
    assert merged is not None
    facts = analyse_axis(program.graph, 6, program.seeds)
    assert tile_call(merged, facts, 3).args == (program.tensors[0], [6, 5])
    assert tile_shape((12, 5), Placement(0, 2, 1), 3) == [6, 5]
    assert Placement(0, 2, 1).split_shape((12, 5), 6) == [2, 6, 1, 5]
