"""Every value-range rule, alone and in random graphs, against what the ops compute."""

from __future__ import annotations

import operator
import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.fx import GraphModule, Interpreter, Node

from snnfx.passes.analysis.grid import Grid, fits
from snnfx.passes.analysis.value_range import Encoding, ValueRanges, analyse_value_ranges

from tests.passes.test_value_range_programs import EMITTERS, FLOATS, Program, aten, prims

BITS_OF = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

UNKNOWN_BY_DESIGN = {
    *(aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default),
    *(aten.new_empty.default, aten.new_empty_strided.default, aten.empty_permuted.default),
    *(aten.view.dtype, aten.view_copy.dtype, aten.as_strided.default, prims.view_of_dtype.default),
}


class Recorder(Interpreter):
    """Runs a graph and keeps what each node computed."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def assert_on_grid(node: Node, value: torch.Tensor, grid: Grid, *, zero_sign: bool) -> None:
    """Each element is a number of `grid`, exactly, and `grid` fits the dtype."""
    assert fits(grid, value.dtype), (node, grid)
    for element in set(value.flatten().tolist()):
        assert element == element, (node, "NaN", grid)
        assert abs(element) != float("inf"), (node, "infinite", grid)
        assert Fraction(element) in grid, (node, element, grid)
    if value.is_floating_point() and not zero_sign:
        assert not (torch.signbit(value) & (value == 0)).any(), (node, "-0.0", grid)


def assert_round_trip(value: torch.Tensor, encoding: Encoding, *, zero_sign: bool) -> None:
    """Packing and unpacking gives back the bits."""
    wide = torch.float64 if value.is_floating_point() else torch.int64
    scale = encoding.scale if value.is_floating_point() else int(encoding.scale)
    codes = (value.to(wide) / scale).to(torch.int64) - encoding.lo
    assert ((codes >= 0) & (codes < 1 << encoding.bits)).all()
    levels = codes + encoding.lo
    single = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    for compute in {single, value.dtype}:
        decoded = (levels.to(compute) * scale).to(value.dtype)
        if zero_sign:
            assert torch.equal(decoded, value)
        else:
            bits = BITS_OF[value.element_size()]
            assert torch.equal(decoded.view(bits), value.contiguous().view(bits))


def check(program: Program) -> int:
    """Run the program on new data and hold each claim; the number of claims that were held."""
    graph = program.graph
    graph.output(tuple(node for node in graph.nodes if node.op != "placeholder"))
    graph.lint()
    ranges = analyse_value_ranges(graph)
    claims = 0
    for program.finite in (False, True):
        recorder = Recorder(GraphModule(program.root, graph))
        recorder.run(*(make() for make in program.inputs))
        claims += check_run(recorder, ranges)
    return claims


def check_run(recorder: Recorder, ranges: ValueRanges) -> int:
    """Hold each claim against what one run computed; the number of claims that were held."""
    claims = 0
    reached_by_nan: set[Node] = set()
    for node in recorder.graph.nodes:
        value, grid = recorder.values[node], ranges.grid(node)
        has_nan = isinstance(value, torch.Tensor) and bool(value.isnan().any())
        if has_nan or any(source in reached_by_nan for source in node.all_input_nodes):
            reached_by_nan.add(node)
        if grid is None or (ranges.assumes_finite(node) and node in reached_by_nan):
            continue
        claims += 1
        zero_sign = ranges.loses_zero_sign(node)
        assert_on_grid(node, value, grid, zero_sign=zero_sign)
        encoding = ranges.encoding(node)
        if encoding is not None and value.dtype is not torch.bool:
            assert_round_trip(value, encoding, zero_sign=zero_sign)
    return claims


@pytest.mark.parametrize("key", EMITTERS, ids=str)
def test_each_rule_claims_something_true_of_spikes(key: object) -> None:
    for dtype in (torch.float32, torch.float64):
        program = Program(random.Random(0), dtype)
        program.plain = True
        node = program.emit(key)
        assert node is not None, f"{key} did not run"
        results = [user for user in node.users if user.target is operator.getitem] or [node]
        check(program)
        ranges = analyse_value_ranges(program.graph)
        claimed = [ranges.grid(result) is not None for result in results]
        assert all(claimed) if key not in UNKNOWN_BY_DESIGN else not any(claimed)


@pytest.mark.parametrize("key", EMITTERS, ids=str)
def test_each_rule_holds_for_every_kind_of_input(key: object) -> None:
    source = random.Random(str(key))
    program = Program(source, source.choice(FLOATS))
    program.palette()
    for index, kind in enumerate(program.kinds):
        for other in (kind, program.kinds[index - 1], source.choice(program.kinds)):
            program.wanted = [kind, other]
            program.emit(key)
    assert check(program) > 0


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    source=st.randoms(use_true_random=False),
    dtype=st.sampled_from(FLOATS),
    keys=st.lists(st.sampled_from(list(EMITTERS)), min_size=5, max_size=40),
)
def test_values_of_random_graphs_are_on_the_claimed_grids(
    source: random.Random, dtype: torch.dtype, keys: list[object]
) -> None:
    program = Program(source, dtype)
    program.palette()
    for key in keys:
        program.emit(key)
    assert check(program) > 0


def test_every_rule_runs_in_long_random_graphs() -> None:
    emitted: set[object] = set()
    source = random.Random(1)
    for dtype in FLOATS:
        for _ in range(3):
            program = Program(source, dtype)
            program.palette()
            for key in source.sample(list(EMITTERS), len(EMITTERS)):
                program.emit(key)
            emitted |= program.emitted
            assert check(program) > 100
    assert emitted == set(EMITTERS)
