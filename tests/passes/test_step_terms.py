"""Every term against the tensor that it stands for: equal terms, equal numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from snnfx.passes.analysis import step_values
from snnfx.passes.analysis.placement import Placement, Shape, tile_shape
from snnfx.passes.analysis.step_calls import NORMAL_FORMS, Call, Results, results_of
from snnfx.passes.analysis.step_terms import BEFORE, Term, Terms
from snnfx.passes.analysis.step_values import SLICE_RULES, Sliced, Steps, Value, Whole, sliced

import tests.passes.axis_programs_windows  # noqa: F401  # more steps for random programs
from tests.passes.axis_programs import Program, random_program, shape, value

aten = torch.ops.aten

Build = Callable[[Program], list[Node | None]]


class Checked(Terms):
    """A table that computes each term by other means, and fails where two ways differ."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[Term, Tensor] = {}
        self.compared = 0

    def note(self, term: Term, tensor: Tensor | None) -> Term:
        """Keep what a term stands for, or compare; None for what unknown tensors went into."""
        if tensor is None:
            return term
        assert self.shape(term) == tuple(tensor.shape)
        if term in self.tensors:
            assert self.tensors[term].dtype == tensor.dtype
            torch.testing.assert_close(
                self.tensors[term], tensor, rtol=1e-9, atol=1e-9, equal_nan=True
            )
            self.compared += 1
        self.tensors.setdefault(term, tensor)
        return term

    def apply(self, function: Callable[..., Tensor], *sources: Term) -> Tensor | None:
        known = all(source in self.tensors for source in sources)
        return function(*(self.tensors[source] for source in sources)) if known else None

    def view(self, term: Term, shape: Shape) -> Term:
        return self.note(super().view(term, shape), self.apply(lambda x: x.reshape(shape), term))

    def permute(self, term: Term, dims: Sequence[int]) -> Term:
        moved = self.apply(lambda x: x.permute(*dims), term)
        return self.note(super().permute(term, dims), moved)

    def expand(self, term: Term, shape: Shape) -> Term:
        return self.note(super().expand(term, shape), self.apply(lambda x: x.expand(shape), term))

    def pick(self, term: Term, dim: int, index: int) -> Term:
        picked = self.apply(lambda x: x.select(dim, index), term)
        return self.note(super().pick(term, dim, index), picked)

    def cut(self, term: Term, dim: int, kept: range) -> Term:
        indices = torch.tensor(list(kept), dtype=torch.int64)
        part = self.apply(lambda x: x.index_select(dim, indices), term)
        return self.note(super().cut(term, dim, kept), part)

    def join(self, pieces: Sequence[Term], dim: int) -> Term:
        whole = self.apply(lambda *xs: torch.cat(xs, dim), *pieces)
        return self.note(super().join(pieces, dim), whole)

    def assemble(self, slices: Sequence[Term], place: Placement) -> Term:
        def together(*parts: Tensor) -> Tensor:
            apart = [x.reshape(place.split_shape(list(x.shape), 1)) for x in parts]
            return torch.cat(apart, place.dim + 1).flatten(place.dim, place.dim + 2)

        return self.note(super().assemble(slices, place), self.apply(together, *slices))

    def narrowed(self, term: Term, dim: int, length: int) -> Term | None:
        found, part = (
            super().narrowed(term, dim, length),
            self.apply(lambda x: x.narrow(dim, 0, length), term),
        )
        return None if found is None else self.note(found, part)

    def results_of(self, terms: Terms, call: Call) -> Results:
        """The terms of a call that is also really run, on the tensors of its operands."""
        found = results_of(terms, call)
        if not all(operand in self.tensors for operand in call.operands.values()):
            return found
        args, kwargs = map_arg(
            (call.args, dict(call.kwargs)), lambda node: self.tensors[call.operands[node]]
        )
        result: Any = call.node.target(*args, **kwargs)  # type: ignore[operator]
        results = result if isinstance(result, (tuple, list)) else [result]
        for term, tensor in zip(found, results, strict=False):
            self.note(term, tensor)
        return found

    def check(self, node: Node, found: Value) -> None:
        """Compare what is said of a node with what it really computed."""
        tensor = value(node)
        if isinstance(found, Whole):
            self.note(found.term, tensor)
            return
        for step, term in enumerate(found.terms):
            self.note(term, slice_of(tensor, found.placement, len(found.terms), step))


def slice_of(tensor: Tensor, place: Placement, size: int, step: int) -> Tensor:
    """One slice, with the dimension that the axis lies in."""
    apart = tensor.reshape(place.split_shape(list(tensor.shape), size))
    tile = tile_shape(list(tensor.shape), place, 1)
    return apart.select(place.dim + 1, step).reshape(tile)


def follow(program: Program) -> tuple[Checked, Steps]:
    """The values of a random program, every term of them checked."""
    terms = Checked()
    given: dict[Node, Value] = {}
    for node in program.graph.find_nodes(op="placeholder"):
        tensor, place = value(node), program.seeds.get(node)
        pieces = 1 if place is None else program.size
        found = [
            terms.note(terms.leaf((node.name, t), tuple(part.shape), t if place else BEFORE), part)
            for t in range(pieces)
            for part in [tensor if place is None else slice_of(tensor, place, pieces, t)]
        ]
        given[node] = sliced(place or Placement(0, 1, 1), found)
    with patch.object(step_values, "results_of", terms.results_of):
        steps = Steps(terms, program.graph, given, program.size)
    for node in steps.nodes:
        if isinstance(node.meta["val"], Tensor):
            terms.check(node, steps.of(node))
    return terms, steps


@settings(max_examples=100)
@given(st.randoms(use_true_random=False), st.sampled_from([1, 2, 3, 4]))
def test_every_term_of_a_random_program_stands_for_what_it_computes(
    source: random.Random, size: int
) -> None:
    terms, _ = follow(random_program(source, size, steps=14))
    assert terms.compared > 0


def test_every_rule_finds_terms_in_random_programs() -> None:
    spellings = {aten.contiguous.default, aten.lift_fresh.default, aten.lift_fresh_copy.default,
                 aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default}  # fmt: skip
    missing = (set(NORMAL_FORMS) | set(SLICE_RULES)) - spellings
    apart = 0
    for seed in range(40):
        _, steps = follow(random_program(random.Random(seed), 3, steps=14))
        missing -= {node.target for node in steps.nodes}
        apart += sum(isinstance(steps.of(n), Sliced) for n in steps.nodes if n.op != "placeholder")
    assert missing == set()
    assert apart > 100


def test_views_of_one_tensor_are_one_term_whatever_they_are_spelled() -> None:
    terms = Terms()
    x = terms.leaf("x", (1, 2, 3))
    flat = terms.view(x, (6,))
    assert terms.view(flat, (1, 2, 3)) == x
    assert terms.pick(x, 0, 0) == terms.view(flat, (2, 3))
    assert terms.permute(x, (1, 0, 2)) == terms.view(flat, (2, 1, 3))
    assert terms.expand(x, (1, 1, 2, 3)) == terms.view(x, (1, 1, 2, 3))
    assert terms.permute(x, (0, 2, 1)) != terms.view(x, (1, 3, 2))


def test_numbers_that_python_takes_for_equal_are_told_apart() -> None:
    program = Program(random.Random(0), 2)
    x = program.constant((2, 2))
    whole = program.call(aten._to_copy.default, x, dtype=torch.int64)
    assert whole is not None
    numbers = [1, 1.0, 0.0, -0.0, float("nan")]
    nodes = [program.graph.call_function(aten.mul.Tensor, (whole, n)) for n in numbers]
    for node, number in zip(nodes, numbers, strict=True):
        node.meta["val"] = value(whole) * number
    _, steps = follow(program)
    assert len({steps.of(node) for node in nodes}) == len(numbers)
    assert shape(nodes[0]) == (2, 2)


def sequence(p: Program, sizes: Sequence[int], place: Placement) -> Node:
    """An input of these sizes, sliced there."""
    node = p.constant(sizes)
    p.seeds[node] = place
    return node


def ranges_of_steps(p: Program) -> list[Node | None]:
    x = sequence(p, (5, 2), Placement(0, 1, 1))
    return [
        p.call(aten.slice.Tensor, x, 0, 1, 4),
        p.call(aten.slice.Tensor, x, 0, 1, 5, 2),
        p.call(aten.slice.Tensor, x, -2, -3),
        p.call(aten.slice.Tensor, x, 0, 2, 3),
        p.call(aten.select.int, x, 0, -2),
        *p.items(p.call(aten.split.Tensor, x, 2)),
        *p.items(p.call(aten.unbind.int, x)),
    ]


def ranges_of_merged_steps(p: Program) -> list[Node | None]:
    x = sequence(p, (15, 2), Placement(0, 1, 3))
    parts = p.items(p.call(aten.split.Tensor, x, 3))
    return [
        p.call(aten.slice.Tensor, x, 0, 3, 12),
        *p.items(p.call(aten.split_with_sizes.default, x, [6, 9])),
        *parts,
        p.call(aten.cat.default, parts),
        p.call(aten.cat.default, [p.call(aten.relu.default, part) for part in parts]),
        p.call(aten.cat.default, [p.call(aten.slice.Tensor, x, 0, 0, 6), *parts[2:]]),
    ]


def repeated_constants(p: Program) -> list[Node | None]:
    x = sequence(p, (5, 2), Placement(0, 1, 1))
    row = p.constant((1, 2))
    repeated = p.call(aten.repeat.default, row, [5, 1])
    again = p.call(aten.expand.default, p.constant((2,)), [5, 2])
    return [
        p.call(aten.add.Tensor, x, p.call(aten.expand.default, row, [5, 2])),
        p.call(aten.mul.Tensor, repeated, x),
        p.call(aten.add.Tensor, p.call(aten.mul.Tensor, x, again), again),
    ]


def steps_put_together(p: Program) -> list[Node | None]:
    x = sequence(p, (5, 2), Placement(0, 1, 1))
    steps = p.items(p.call(aten.unbind.int, x))
    late = p.call(aten.slice.Tensor, x, 0, 1)
    return [
        p.call(aten.stack.default, steps),
        p.call(aten.stack.default, steps, -1),
        p.call(aten.stack.default, [x, x], 1),
        p.call(aten.cat.default, [p.constant((1, 2)), late]),
        p.call(aten.cat.default, [p.call(aten.unsqueeze.default, steps[0], 0), late]),
        p.call(aten.cat.default, [p.constant((0, 2)), x]),
    ]


@pytest.mark.parametrize(
    "build", [ranges_of_steps, ranges_of_merged_steps, repeated_constants, steps_put_together]
)
def test_steps_that_are_taken_and_put_together_stay_apart(build: Build) -> None:
    program = Program(random.Random(0), 5)
    nodes = [node for node in build(program) if node is not None]
    _, steps = follow(program)
    taken = [node for node in nodes if steps.terms.latest(steps.whole(node)) >= 0]
    assert taken == nodes
    assert not set(nodes) & steps.mixing


def parts_of_steps(p: Program) -> list[Node | None]:
    x = sequence(p, (15, 2), Placement(0, 1, 3))
    return [
        p.call(aten.slice.Tensor, x, 0, 1, 4),
        p.call(aten.slice.Tensor, x, 0, 3, 7),
        p.call(aten.select.int, x, 0, 4),
    ]


def halves_of_all_steps(p: Program) -> list[Node | None]:
    x = sequence(p, (10, 2), Placement(0, 2, 1))
    return [
        p.call(aten.slice.Tensor, x, 0, 0, 5),
        p.call(aten.cat.default, [p.constant((2, 2)), x]),
        *p.items(p.call(aten.split.Tensor, x, 5)),
    ]


def a_constant_for_each_step(p: Program) -> list[Node | None]:
    x = sequence(p, (5, 2), Placement(0, 1, 1))
    own = p.call(aten.expand.default, p.constant((5, 1)), [5, 2])
    return [p.call(aten.add.Tensor, x, own), p.call(aten.add.Tensor, p.constant((5, 2)), x)]


@pytest.mark.parametrize("build", [parts_of_steps, halves_of_all_steps, a_constant_for_each_step])
def test_what_reads_other_parts_than_steps_is_one_term(build: Build) -> None:
    program = Program(random.Random(0), 5)
    nodes = [node for node in build(program) if node is not None]
    _, steps = follow(program)
    assert all(isinstance(steps.of(node), Whole) for node in nodes)


def test_two_sequences_one_after_the_other_are_no_longer_sequence() -> None:
    program = Program(random.Random(0), 5)
    x = sequence(program, (10, 2), Placement(0, 2, 1))
    y = program.call(aten.cat.default, [x, x])
    assert y is not None
    _, steps = follow(program)
    found = steps.of(y)
    assert isinstance(found, Sliced)
    assert found.placement == Placement(0, 4, 1)
