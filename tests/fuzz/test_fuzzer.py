"""The fuzzer draws what it should, finds faults that are put in, and makes them small."""

from __future__ import annotations

from typing import Any

import pytest
from torch.fx import Graph

from snnfx.capture.pipeline import Partition, partition_joint
from snnfx.passes.analysis.grid import BINARY
from snnfx.passes.analysis.value_range import ValueRanges, analyse_value_ranges
from snnfx.passes.fxgraph import output_args

from tests.backend.harness import ignore_dynamo_warnings
from tests.fuzz import grids, levels
from tests.fuzz.checking import check
from tests.fuzz.network import build
from tests.fuzz.operations import OPERATIONS
from tests.fuzz.programs import Program, Step, from_seed
from tests.fuzz.shrink import shrink

pytestmark = ignore_dynamo_warnings

LAYER = (
    Step("linear", (8, True, "fold", True)),
    Step("neuron", ("lif", "hard", "atan", False, False)),
)
SMALL = Program(steps=(*LAYER, *LAYER), time=8, batch=(4, 4))


def test_a_seed_gives_one_program_which_prints_as_the_code_that_makes_it() -> None:
    for seed in range(50):
        program = from_seed(seed)
        assert eval(repr(program)) == program == from_seed(seed)


def test_seeds_give_every_kind_of_layer_with_every_argument() -> None:
    steps = [step for seed in range(1500) for step in from_seed(seed).steps]
    assert {step.op for step in steps} == set(OPERATIONS)
    for name, operation in OPERATIONS.items():
        for place, options in enumerate(operation.arguments):
            assert {s.args[place] for s in steps if s.op == name} == set(options), name


def test_most_layers_of_a_program_become_layers_of_its_network() -> None:
    programs = [from_seed(seed) for seed in range(60)]
    layers = sum(len(build(program).wiring) for program in programs)
    assert layers >= 0.85 * sum(len(program.steps) for program in programs)


def test_a_plain_program_is_planned_and_equal_at_every_level() -> None:
    outcome = check(SMALL)
    assert outcome.kind == "equal", outcome.reasons
    (plans,) = outcome.plans
    assert [plan.applied for plan in plans.values()] == [False, True, True, True, True]
    assert outcome.tally.packed > 16


@pytest.mark.parametrize("main", [1, 4])
def test_a_wrong_gradient_at_one_level_is_found(main: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(joint: Any, roles: Any, options: Any) -> Partition:
        result = partition_joint(joint, roles, options)
        if options.level == 1:
            _negate_first_result(result.backward.graph)
            result.backward.recompile()
        return result

    monkeypatch.setattr(levels, "partition_joint", wrong)
    outcome = check(SMALL, main)
    assert outcome.kind == "failure"
    named = "level 1 backward result" if main == 4 else "step 0 input gradient"
    assert any(named in reason for reason in outcome.reasons)


def _negate_first_result(graph: Graph) -> None:
    import torch

    first = next(r for r in output_args(graph) if r is not None)
    output = graph.output_node()
    with graph.inserting_before(output):
        output.replace_input_with(first, graph.call_function(torch.ops.aten.neg.default, (first,)))


def test_a_wrong_claim_about_values_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph) -> ValueRanges:
        seeds = dict.fromkeys(graph.find_nodes(op="placeholder"), BINARY)
        return analyse_value_ranges(graph, seeds)

    monkeypatch.setattr(grids, "analyse_value_ranges", wrong)
    outcome = check(SMALL)
    assert outcome.kind == "failure"
    assert all("is not on Grid" in reason for reason in outcome.reasons)


def test_shrinking_keeps_just_what_a_failure_needs() -> None:
    def fails(program: Program) -> bool:
        return program.time > 1 and any(step.op == "pool" for step in program.steps)

    program = next(p for p in map(from_seed, range(1000)) if fails(p) and len(p.steps) > 6)
    small = shrink(program, fails)
    assert small == Program(steps=(Step("pool", ("max", "fold"), *_sources(small)),), time=2)


def _sources(program: Program) -> tuple[int, int]:
    return program.steps[0].source, program.steps[0].other


def test_an_error_of_the_compiled_module_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Partition:
        raise ValueError("no plan")

    monkeypatch.setattr(levels, "partition_joint", broken)
    outcome = check(SMALL)
    assert outcome.kind == "failure"
    assert "no plan" in outcome.reasons[0]
