"""Predicted live bytes against real storages, op by op, and against the profiler."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

import snnfx
from snnfx.capture.offline import Capture, capture
from snnfx.capture.timeline import late_tangents, recorded, step_timeline
from snnfx.passes.analysis.liveness import Phase, analyse_liveness, storage_roots
from snnfx.passes.fxgraph import output_args, set_donations
from snnfx.passes.plan.memory_plan import MemoryPlan

from examples.models import SEWResNet, Workload, build
from tests.models import NETS, SpikingMLP, spiking_mlp
from tests.oracles import measured_activation_bytes
from tests.passes.storages import run_and_measure

# What Dynamo does to its own warnings' dismay, in torch 2.13.
dynamo_warns = [
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

aten = torch.ops.aten
Step = Callable[[Tensor, Tensor], Tensor]
# Each gives [4, 6] from two of [4, 6].
SINGLE: dict[str, Step] = {
    "relu": lambda a, b: a.relu(),
    "product": lambda a, b: a * b,
    "product with itself": lambda a, b: a * a,
    "transposed product": lambda a, b: a @ b.t() @ a,
    "view": lambda a, b: a.reshape(2, 12).view(4, 6),
    "copied layout": lambda a, b: a.t().contiguous().t(),
    "slice": lambda a, b: a[1:3].repeat(2, 1) + b,
    "step": lambda a, b: a[2] + b,
    "expanded": lambda a, b: a[:1].expand(4, 6),
    "joined": lambda a, b: torch.cat([a[:2], b[2:]]),
    "stacked": lambda a, b: torch.stack([a[0], b[1], a[0], b[3]]),
    "sum": lambda a, b: a - b.sum(0, keepdim=True),
    "detached": lambda a, b: a.detach() + 1,
    "double": lambda a, b: (a.double() * 2).float(),
    "mask": lambda a, b: torch.where(a > b, a, b),
}
SEVERAL: dict[str, Step] = {
    "maximum": lambda a, b: a - b.max(1, keepdim=True)[0],
    "both": lambda a, b: torch.stack(list(torch.var_mean(a, 1, keepdim=True))).sum(0) * b,
    "pieces": lambda a, b: a.split(2)[1].repeat(2, 1) * b,
    "steps": lambda a, b: torch.stack(list(b.unbind(0))) + a,
}


def program(names: list[str], picks: list[int]) -> Callable[[Tensor, Tensor], Any]:
    """Apply the operators one after another, each to two of the values so far."""
    table = {**SINGLE, **SEVERAL}

    def run(x: Tensor, y: Tensor) -> Any:
        values = [x, y]
        for name, pick in zip(names, picks, strict=True):
            values.append(table[name](values[-1], values[pick % len(values)]))
        return values[-1], values[len(values) // 2]

    return run


def traced(function: Callable[..., Any], *args: Tensor) -> GraphModule:
    module = make_fx(function, tracing_mode="fake")(*args)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def programs(names: list[str]) -> st.SearchStrategy[Any]:
    def of_size(count: int) -> Any:
        return st.tuples(
            st.lists(st.sampled_from(names), min_size=count, max_size=count),
            st.lists(st.integers(0, 20), min_size=count, max_size=count),
        )

    return st.integers(1, 9).flatmap(of_size)


@given(programs(list(SINGLE)))
@settings(max_examples=60)
def test_the_bytes_at_every_node_are_those_of_the_real_storages(given_program: Any) -> None:
    args = (torch.randn(4, 6), torch.randn(4, 6))
    module = traced(program(*given_program), *args)
    _, alive, end = run_and_measure(module, args)
    found = analyse_liveness(module.graph)
    assert dict(zip(found.names, found.timeline_bytes, strict=True)) == alive
    assert found.end_bytes == end
    assert found.peak_bytes == max([*alive.values(), end])


@given(programs([*SINGLE, *SEVERAL]))
@settings(max_examples=60)
def test_the_peak_is_that_of_the_real_storages_with_several_results_too(given_program: Any) -> None:
    args = (torch.randn(4, 6), torch.randn(4, 6))
    module = traced(program(*given_program), *args)
    _, alive, end = run_and_measure(module, args)
    found = analyse_liveness(module.graph)
    assert found.peak_bytes == max([*alive.values(), end])
    assert found.end_bytes == end


@given(programs(list(SINGLE)))
@settings(max_examples=40)
def test_arguments_that_the_graph_owns_die_at_their_last_use(given_program: Any) -> None:
    args = (torch.randn(4, 6), torch.randn(4, 6))
    module = traced(program(*given_program), *args)
    own = module.graph.find_nodes(op="placeholder")[0]
    if not own.users:
        return
    _, alive, end = run_and_measure(module, args, released=[0])
    found = analyse_liveness(module.graph, {own: 96})
    assert dict(zip(found.names, found.timeline_bytes, strict=True)) == alive
    assert found.end_bytes == end


def made_late(module: GraphModule, late: Node) -> str | None:
    """Make the zeros that a placeholder stands for before its first reader; gives their name."""
    readers = [node for node in module.graph.nodes if late in node.all_input_nodes]
    if readers[0].op == "output":
        return None
    with module.graph.inserting_before(readers[0]):
        zeros = module.graph.call_function(aten.zeros.default, (late.meta["val"].shape,))
    for reader in readers:
        reader.replace_input_with(late, zeros)
    module.recompile()
    return zeros.name


@given(programs(list(SINGLE)), st.sampled_from([0, 1]))
@settings(max_examples=60)
def test_late_arguments_live_from_their_first_reader_to_their_last_use(
    given_program: Any, position: int
) -> None:
    args = (torch.randn(4, 6), torch.randn(4, 6))
    module = traced(program(*given_program), *args)
    late = module.graph.find_nodes(op="placeholder")[position]
    if not late.users:
        return
    found = analyse_liveness(module.graph, late=(late,))
    zeros = made_late(module, late)
    if zeros is None:  # handed on as a result, and read by nothing else
        return
    _, alive, end = run_and_measure(module, args)
    del alive[zeros]
    assert dict(zip(found.names, found.timeline_bytes, strict=True)) == alive
    assert found.end_bytes == end


def test_late_arguments_that_nothing_reads_count_nothing() -> None:
    module = traced(lambda a, b: a.relu().neg(), torch.randn(4, 6), torch.randn(4, 6))
    _, unread = module.graph.find_nodes(op="placeholder")
    assert analyse_liveness(module.graph, late=(unread,)) == analyse_liveness(module.graph)


def test_a_late_argument_that_is_a_result_is_left_out_with_the_results() -> None:
    module = traced(lambda a: (a, a.relu().sum()), torch.randn(4, 6))
    (late,) = module.graph.find_nodes(op="placeholder")
    counted, without = (
        analyse_liveness(module.graph, late=(late,), count_results=results)
        for results in (True, False)
    )
    assert (counted.timeline_bytes, counted.end_bytes) == ((96 + 96, 96 + 96 + 4), 96 + 4)
    assert (without.timeline_bytes, without.end_bytes) == ((96, 96), 0)


def test_a_late_argument_counts_while_it_is_read_and_an_owned_one_from_the_start() -> None:
    def run(a: Tensor, b: Tensor) -> Tensor:
        return ((a.sum() * b).sum() + b.sum()).neg()

    module = traced(run, torch.randn(5), torch.randn(4, 6))
    second = module.graph.find_nodes(op="placeholder")[1]
    late = analyse_liveness(module.graph, late=(second,))
    owned = analyse_liveness(module.graph, {second: 96})
    assert late.names == ("sum_1", "mul", "sum_2", "sum_3", "add", "neg")
    # The scalars are of 4 bytes each, the product of 96.
    assert late.timeline_bytes == (4, 4 + 96 + 96, 96 + 96 + 4, 96 + 4 + 4, 4 + 4 + 4, 4 + 4)
    assert owned.timeline_bytes == (96 + 4, *late.timeline_bytes[1:])
    assert owned.end_bytes == late.end_bytes == 4


def test_the_peak_names_its_node() -> None:
    x = torch.randn(4, 6)
    module = traced(lambda x: torch.cat([x.relu(), x.abs()]).sum(), x)
    found = analyse_liveness(module.graph)
    assert found.peak_node == "cat"
    assert found.peak_bytes == 4 * x.numel() * 4
    empty = traced(lambda x: x, x)
    assert analyse_liveness(empty.graph).peak_node is None
    assert analyse_liveness(empty.graph).peak_bytes == 0


def test_results_can_be_left_out() -> None:
    module = traced(lambda x: (x.relu(), x.abs().sum()), torch.randn(4, 6))
    counted, without = (
        analyse_liveness(module.graph, count_results=results) for results in (True, False)
    )
    assert counted.end_bytes == 96 + 4
    assert without.end_bytes == 0
    assert without.peak_bytes == 96


def test_placeholders_in_one_storage_count_once_and_live_as_long_as_the_last() -> None:
    module = traced(lambda a, b: (a.relu().sum() * b).sum(), torch.randn(4, 6), torch.randn(6))
    first, second = module.graph.find_nodes(op="placeholder")
    shared = analyse_liveness(module.graph, {first: 96}, {second: first})
    apart = analyse_liveness(module.graph, {first: 96, second: 24})
    at = {name: i for i, name in enumerate(shared.names)}["mul"]
    assert shared.timeline_bytes[at] == apart.timeline_bytes[at] - 24 + 96
    assert shared.end_bytes == apart.end_bytes
    assert storage_roots(module.graph, {second: first})[second] == (first,)


def test_workspace_counts_at_its_operator_with_the_results_that_exist_then() -> None:
    def run(x: Tensor) -> Tensor:
        values, places = x.abs().max(1)
        return values + places

    module = traced(run, torch.randn(4, 6))
    base = analyse_liveness(module.graph)

    def added(*phases: Phase) -> dict[str, int]:
        found = analyse_liveness(
            module.graph, workspace=lambda n: phases if n.name == "max_1" else ()
        )
        pairs = zip(found.names, found.timeline_bytes, base.timeline_bytes, strict=True)
        return {name: inside - before for name, inside, before in pairs if inside != before}

    results = 4 * 4 + 4 * 8
    assert added(Phase(100, (0, 1))) == {"max_1": 100}
    assert added(Phase(100, (0,))) == {"max_1": 100 - 4 * 8}
    assert added(Phase(100), Phase(10, (0, 1))) == {"max_1": 100 - results}
    assert added(Phase(results)) == {}


def test_a_picked_result_lives_until_the_last_one_is_picked() -> None:
    def run(x: Tensor) -> Tensor:
        values, places = x.max(1, keepdim=True)
        return values.abs().neg() + places

    x = torch.randn(4, 6)
    module = traced(run, x)
    last = next(n for n in module.graph.nodes if n.op == "call_function" and n.args[1:] == (1,)
                and n.name.startswith("getitem"))  # fmt: skip
    before = next(n for n in module.graph.nodes if n.name.startswith("add"))
    before.prepend(last)
    module.recompile()
    _, alive, _ = run_and_measure(module, (x,))
    found = analyse_liveness(module.graph)
    at = dict(zip(found.names, found.timeline_bytes, strict=True))
    assert at["neg"] == alive["neg"] == 4 * (4 + 8 + 4 + 4)


def test_a_result_in_the_memory_of_an_argument_adds_nothing_when_it_is_picked() -> None:
    def run(a: Tensor) -> Tensor:
        minimum, maximum = torch.aminmax(a * 2, dim=0, keepdim=True)
        return minimum + maximum

    module = make_fx(run, tracing_mode="fake")(torch.ones(1, 10))
    pair = next(node for node in module.graph.nodes if node.target is aten.aminmax.default)
    set_donations(pair, {0: 0})
    row = 40
    # The doubled row, the second result beside it, both picked, then the sum in a row of its own.
    expected = (row, 2 * row, 2 * row, 2 * row, 3 * row)
    assert analyse_liveness(module.graph).timeline_bytes == expected


def test_saved_tensors_are_matched_by_place_whatever_their_names() -> None:
    forward = traced(lambda x: (x.sum(), x.exp(), x.abs()), torch.randn(4, 6)).graph
    backward = traced(lambda a, b, g: (a.neg() * g, b * g), *torch.randn(2, 4, 6),
                      torch.randn(())).graph  # fmt: skip
    timeline = step_timeline(forward, backward, 1)
    at = dict(zip(timeline.backward_names, timeline.backward, strict=True))
    assert at["neg"] == 4 + 3 * 96
    assert at["mul_1"] == 4 + 96
    found = recorded(timeline, forward, backward, 1).allocations
    lives = {one.name: (one.first, one.last) for one in found}
    steps = [*timeline.forward_names, *timeline.backward_names]
    assert lives["exp"] == (steps.index("exp"), steps.index("neg"))
    assert lives["abs_1"] == (steps.index("abs_1"), steps.index("mul_1"))


def forward_and_backward() -> tuple[Graph, Graph]:
    """The backward reads the gradient of the loss first, then that of a state, of 96 bytes each."""
    forward = traced(lambda x: (x.sum(), x.exp(), x.abs()), torch.randn(4, 6)).graph
    backward = traced(lambda saved, loss, state: (loss.neg() * saved).relu() + state,
                      *torch.randn(3, 4, 6)).graph  # fmt: skip
    return forward, backward


def test_the_last_placeholders_of_a_backward_are_late_gradients() -> None:
    _, backward = forward_and_backward()
    saved, loss, state = backward.find_nodes(op="placeholder")
    assert late_tangents(backward, 3) == (saved, loss, state)
    assert late_tangents(backward, 2) == (loss, state)


@pytest.mark.parametrize("count", [0, 1])
def test_a_single_gradient_is_the_callers(count: int) -> None:
    forward, backward = forward_and_backward()
    assert late_tangents(backward, count) == ()
    assert step_timeline(forward, backward, 2, count) == step_timeline(forward, backward, 2)


def test_gradients_of_symbolic_sizes_are_not_late() -> None:
    args = torch.randn(2, 4, 6).unbind()
    backward = make_fx(lambda a, b: a * b, tracing_mode="symbolic")(*args).graph
    assert late_tangents(backward, 2) == ()
    assert len(late_tangents(traced(lambda a, b: a * b, *args).graph, 2)) == 2


def test_late_gradients_count_in_the_step_from_their_first_readers_on() -> None:
    forward, backward = forward_and_backward()
    without, timeline = (step_timeline(forward, backward, 2, count) for count in (0, 2))
    assert timeline.forward == without.forward
    names = ("neg", "mul", "relu", "add")
    assert timeline.backward_names == names
    more = [a - b for a, b in zip(timeline.backward, without.backward, strict=True)]
    assert more == [96, 0, 0, 96]
    found = recorded(timeline, forward, backward, 2, 2).allocations
    lives = {one.name: (one.bytes, one.first, one.last) for one in found}
    steps = [*timeline.forward_names, *names]
    _, loss, state = backward.find_nodes(op="placeholder")
    assert lives[loss.name] == (96, steps.index("neg"), steps.index("neg"))
    assert lives[state.name] == (96, steps.index("add"), steps.index("add"))
    others = recorded(without, forward, backward, 2).allocations
    assert {one.name for one in others} == lives.keys() - {loss.name, state.name}


def halves(captured: Capture, **options: Any) -> tuple[GraphModule, GraphModule, int]:
    """The forward and backward that the eager lowering runs, and the number of results."""
    from snnfx.capture.offline import _copied
    from snnfx.capture.pipeline import partition_joint
    from snnfx.config import Options

    joint, roles = _copied(captured.graph_module, captured.roles)
    parsed = Options.parse({"lowering": "eager", **options})
    partition = partition_joint(joint, roles, parsed)
    return partition.forward, partition.backward, len(roles.forward_outputs)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("name", ["spiking_mlp_dropout", "hand_written", "sew", "plain_mlp"])
class TestHalves:
    """The two graphs of real networks."""

    pytestmark = dynamo_warns

    def test_the_timeline_of_a_step_is_that_of_its_storages(self, name: str, level: int) -> None:
        workload = NETS[name]()
        captured = capture(workload.model, workload.inputs)
        forward, backward, outputs = halves(captured, level=level)
        model = workload.model
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        args = [tensors[n].detach() if n in tensors else workload.inputs[0] for n in captured.names]
        results, alive, _ = run_and_measure(forward, args)
        predicted = step_timeline(forward.graph, backward.graph, outputs, workspace=None)
        assert list(predicted.forward) == list(alive.values())

        saved = dict(zip((n.name for n in output_args(forward.graph)[outputs:]),
                         results[outputs:], strict=True))  # fmt: skip
        tangent = torch.randn_like(results[outputs - 1])
        names = [node.name for node in backward.graph.find_nodes(op="placeholder")]
        given = [saved.get(n, tangent) for n in names]
        # Storages of the caller that are saved come first, so that they count as the caller's.
        shared = {t.untyped_storage().data_ptr() for t in (*args, tangent)}
        released = [i for i, t in enumerate(given)
                    if t.untyped_storage().data_ptr() not in shared]  # fmt: skip
        gradients, alive, _ = run_and_measure(backward, given, released=released)
        total = sum(t.untyped_storage().nbytes() for t in gradients if t is not None)
        others = max(predicted.backward) - max(alive.values())
        assert -total <= others <= predicted.forward[-1]


FITTING: dict[str, Callable[[], Workload]] = {
    "small": spiking_mlp,
    "mlp": lambda: Workload(
        SpikingMLP(128).train(), (torch.randn(8, 256, 128),), lambda y: y.square().mean(), (),
        lambda: None,
    ),
    "mlp with dropout": lambda: Workload(
        SpikingMLP(128, dropout=0.3).train(), (torch.randn(8, 256, 128),),
        lambda y: y.square().mean(), (), lambda: None,
    ),
    "sew": lambda: Workload(
        SEWResNet((1, 1), 0.5, 4, 5, "imagenet").train(), (torch.rand(2, 3, 32, 32),),
        lambda y: y.square().mean(), (), lambda: None,
    ),
    "vgg": lambda: build("vgg8", width=1 / 8, batch=2, steps=4, size=16),
    "spikformer": lambda: build("spikformer", width=1 / 4, batch=2, size=16, depth=1, heads=2),
}  # fmt: skip
# What is not modelled, in bytes: scalars as tensors, sums over channels, and the loss itself.
SLACK = 4096


@pytest.fixture
def one_thread() -> Generator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("one_thread")
class TestPeak:
    """The peak of a step of whole networks."""

    def assert_predicted(self, name: str, **options: Any) -> MemoryPlan:
        workload = FITTING[name]()
        model = torch.compile(workload.model, backend="snnmem", options=options)
        measured = measured_activation_bytes(workload, model)
        plan = snnfx.last_plan()
        assert plan is not None
        assert plan.predicted_peak_bytes == pytest.approx(measured, rel=0.05, abs=SLACK)
        return plan

    @pytest.mark.parametrize("lowering", ["eager", "inductor"])
    @pytest.mark.parametrize("name", FITTING)
    def test_the_plan_predicts_it_within_five_percent(self, name: str, lowering: str) -> None:
        assert self.assert_predicted(name, lowering=lowering).applied

    @pytest.mark.parametrize("name", ["mlp", "sew"])
    def test_the_graph_as_it_is_has_the_baselines_peak(self, name: str) -> None:
        plan = self.assert_predicted(name, lowering="eager", level=0)
        assert plan.predicted_peak_bytes == plan.baseline_peak_bytes
