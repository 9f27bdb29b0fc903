"""Records of storages: their sum is the liveness analysis, and they name the user's lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import snnfx
from snnfx.passes.analysis.lifetimes import Lifetime, source_lines, storage_lifetimes
from snnfx.passes.analysis.liveness import analyse_liveness
from snnfx.passes.plan.memory_plan import Timeline

from tests.models import NETS
from tests.passes.test_liveness import SEVERAL, SINGLE, program, programs, traced

# What Dynamo does to its own warnings' dismay, in torch 2.13.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def sums(lives: tuple[Lifetime, ...], steps: int) -> list[int]:
    """Bytes alive at each step."""
    return [
        sum(x.bytes for x in lives if x.first <= step and (x.last is None or step <= x.last))
        for step in range(steps)
    ]


@given(programs([*SINGLE, *SEVERAL]))
@settings(max_examples=60)
def test_the_records_add_up_to_the_bytes_at_every_node(given_program: Any) -> None:
    module = traced(program(*given_program), torch.randn(4, 6), torch.randn(4, 6))
    own = module.graph.find_nodes(op="placeholder")[0]
    for owned in ({}, {own: 96}):
        for results in (True, False):
            found = analyse_liveness(module.graph, owned, count_results=results)
            lives = storage_lifetimes(module.graph, owned, count_results=results)
            assert sums(lives, len(found.names)) == list(found.timeline_bytes)


@given(programs([*SINGLE, *SEVERAL]))
@settings(max_examples=60)
def test_the_records_add_up_with_late_placeholders_too(given_program: Any) -> None:
    module = traced(program(*given_program), torch.randn(4, 6), torch.randn(4, 6))
    late = module.graph.find_nodes(op="placeholder")
    for results in (True, False):
        found = analyse_liveness(module.graph, late=late, count_results=results)
        lives = storage_lifetimes(module.graph, late=late, count_results=results)
        assert sums(lives, len(found.names)) == list(found.timeline_bytes)


def test_late_placeholders_that_no_operator_reads_have_no_record() -> None:
    module = traced(lambda a, b, c: (a.relu(), b), *torch.randn(3, 4, 6))
    _, *unread = module.graph.find_nodes(op="placeholder")
    lives = storage_lifetimes(module.graph, late=unread)
    assert [record.node.name for record in lives] == ["relu"]


def test_a_late_placeholder_lives_from_its_first_reader_to_the_last_use_of_its_views() -> None:
    def run(a: Tensor, b: Tensor) -> Tensor:
        total = a.relu().sum()
        rows = b.view(24)
        return (total + rows.sum()).neg()

    module = traced(run, torch.randn(6), torch.randn(4, 6))
    _, late = module.graph.find_nodes(op="placeholder")
    steps = [n.name for n in module.graph.nodes if n.op == "call_function"]
    (record,) = [x for x in storage_lifetimes(module.graph, late=(late,)) if x.node is late]
    readers = [steps.index(name) for name in ("view", "sum_2")]
    assert (record.bytes, record.first, record.last) == (96, *readers)
    assert 0 < record.first < readers[1] < len(steps) - 1


def test_a_placeholder_that_comes_in_anothers_storage_has_no_record() -> None:
    module = traced(lambda a, b: a.relu() + b, torch.randn(6), torch.randn(6))
    first, second = module.graph.find_nodes(op="placeholder")
    lives = storage_lifetimes(module.graph, {first: 24}, {second: first})
    assert [(x.node, x.bytes, x.first, x.last) for x in lives if x.node.op == "placeholder"] == [
        (first, 24, 0, 1)
    ]


def total(timeline: Timeline) -> list[int]:
    return [
        sum(a.bytes for a in timeline.allocations if a.first <= step <= a.last)
        for step in range(len(timeline.points))
    ]


@pytest.mark.parametrize("name", ["spiking_mlp", "hand_written", "plain_mlp"])
def test_the_records_of_a_step_reach_its_peak_and_never_pass_it(name: str) -> None:
    workload = NETS[name]()
    plan = snnfx.plan(workload.model, workload.inputs, lowering="eager")
    for timeline in (plan.predicted, plan.baseline):
        known = total(timeline)
        assert max(known) <= timeline.peak_bytes
        assert max(known) > 0.7 * timeline.peak_bytes


def test_what_the_backward_needs_lives_from_its_operator_to_its_last_use() -> None:
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh()), torch.randn(3, 4)
    timeline = snnfx.plan(model, x, lowering="eager", level=0).baseline
    (tanh,) = [a for a in timeline.allocations if a.name == "tanh"]
    first = timeline.names.index("tanh")
    assert (tanh.bytes, tanh.first) == (3 * 6 * 4, first)
    readers = [i for i, name in enumerate(timeline.names) if name in ("mul", "tanh_backward")]
    assert tanh.last >= len(timeline.forward)
    assert tanh.last == readers[-1]


def test_records_name_the_users_lines_and_none_of_the_tracer() -> None:
    workload = NETS["hand_written"]()
    plan = snnfx.plan(workload.model, workload.inputs, lowering="eager")
    convolution = next(a for a in plan.baseline.allocations if a.name == "convolution")
    (line,) = [line for line in convolution.stack if "tests/models.py" in line]
    file, number, function = line.rsplit(":", 2)
    assert function == "forward"
    text = Path(file).read_text().splitlines()[int(number) - 1]
    assert "conv(" in text
    frames = [line for a in plan.predicted.allocations for line in a.stack]
    assert not [f for f in frames if "snnfx/capture" in f or "site-packages/torch" in f]


def test_a_node_without_a_stack_has_no_lines() -> None:
    node = traced(lambda x: x.relu(), torch.randn(3)).graph.find_nodes(op="placeholder")[0]
    assert source_lines(node) == ()
    node.meta["stack_trace"] = (
        '  File "/a b/net.py", line 3, in outer\n    inner(x)\n'
        '  File "/a b/net.py", line 9, in inner\n    return x + 1\n'
    )
    assert source_lines(node) == ("/a b/net.py:9:inner", "/a b/net.py:3:outer")


def test_a_backend_plan_equals_an_offline_one_though_stacks_differ() -> None:
    class Net(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh()

    model, x = Net(4, 6), torch.randn(3, 4)
    offline = snnfx.plan(model, x, lowering="eager")
    torch.compile(model, backend="snnmem", options={"lowering": "eager"})(x).sum().backward()
    assert snnfx.last_plan() == offline
