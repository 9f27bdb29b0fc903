"""Offline capture: no compute, no memory, no traces on the model, and the backend's own plan."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import snnfx
from snnfx.capture.offline import Capture, capture, plan
from snnfx.errors import CaptureError, OptionError
from snnfx.neurons import LIFNode
from snnfx.passes.fxgraph import output_args, tensor_value
from snnfx.passes.plan.memory_plan import MemoryPlan

from tests.models import NETS, SpikingMLP, Workload, hand_written, spiking_mlp
from tests.oracles import measured_added_bytes

# What Dynamo does to its own warnings' dismay, in torch 2.13.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Stateful(nn.Module):
    """Two layers whose neurons keep their potentials from call to call, on `[T, N, C]`."""

    def __init__(self, features: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.linear = nn.Linear(features, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.node = LIFNode(step_mode="m")
        self.readout = nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        current = self.norm(self.linear(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.readout(self.node(current)).mean(0)


class Refusing(nn.Module):
    """Runs `body` on the output of a linear layer."""

    def __init__(self, body: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.linear(x))


def branching(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def failing(x: Tensor) -> Tensor:
    raise ValueError(f"no way with {x.ndim} dimensions")


def backend_plan(workload: Workload, **options: Any) -> snnfx.MemoryPlan:
    model = torch.compile(workload.model, backend="snnmem", options=options)
    workload.loss_fn(model(*workload.inputs)).backward()
    applied = snnfx.last_plan()
    assert applied is not None
    return applied


def content(model: nn.Module) -> dict[str, Any]:
    """All that a module tree holds, tensors by identity and value."""
    found: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        for key, value in module.__dict__.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            for name, item in inner:
                copied = item.clone() if isinstance(item, Tensor) and not item.is_meta else None
                found[f"{prefix}.{key}.{name}"] = (id(item), copied)
    return found


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = content(model)
    assert before.keys() == after.keys()
    for name, (identity, value) in before.items():
        assert after[name][0] == identity, name
        if value is not None:
            torch.testing.assert_close(after[name][1], value, rtol=0, atol=0, equal_nan=True)


def unnamed(made: MemoryPlan) -> MemoryPlan:
    """The plan without the names of schedule points: Dynamo numbers some of them differently."""
    drop = {"forward_names": (), "backward_names": ()}
    return replace(
        made, predicted=replace(made.predicted, **drop), baseline=replace(made.baseline, **drop)
    )


@pytest.mark.parametrize("name", ["vgg", "hand_written", "plain_mlp"])
def test_the_plan_is_that_of_the_backend(name: str) -> None:
    workload = NETS[name]()
    offline = plan(workload.model, workload.inputs, lowering="eager")
    assert unnamed(offline) == unnamed(backend_plan(workload, lowering="eager"))


def test_the_plan_is_that_of_the_backend_where_regions_are_compiled() -> None:
    workload = spiking_mlp()
    offline = plan(workload.model, workload.inputs)
    applied = backend_plan(workload)
    assert offline.applied
    assert offline.predicted == applied.predicted
    assert offline.baseline == applied.baseline
    assert [len(p.segments) for p in (offline, applied)] == [2, 2]
    assert offline.summary() == applied.summary()


def test_the_same_capture_gives_the_same_plan_again_and_stays_as_it_is() -> None:
    workload = hand_written()
    captured = capture(workload.model, workload.inputs)
    text = str(captured.graph_module.graph)
    first = captured.plan(lowering="eager")
    assert first == captured.plan(lowering="eager") == plan(captured, lowering="eager")
    assert first.applied
    assert str(captured.graph_module.graph) == text


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_segments_are_found_in_the_schedule_last_layer_first(lowering: str) -> None:
    workload = NETS["vgg"]()
    made = plan(workload.model, workload.inputs, level=1, lowering=lowering)
    points = [segment.backward_points for segment in made.segments]
    assert all(points)
    for (first, last), before in itertools.pairwise([p for p in reversed(points) if p]):
        assert first <= last < before[0]
    for segment in made.segments:
        first, last = segment.backward_points or (0, 0)
        names = made.predicted.backward_names[first : last + 1]
        assert sum(name.startswith("convolution") for name in names) >= 1, segment.name
        assert (segment.tiles, segment.axis) == (1, None)


def test_a_segment_tells_in_how_many_tiles_it_is_computed_again() -> None:
    workload = NETS["vgg"]()
    made = plan(workload.model, workload.inputs, level=3, prefer="memory")
    tiled = {d.target: d.reason for d in made.decisions if d.kind == "tile"}
    assert tiled
    for segment in made.segments:
        assert (segment.name in tiled) == (segment.tiles > 1) == (segment.axis == "batch")
        assert segment.tiles == 1 or f" {segment.tiles} tiles" in tiled[segment.name]
    assert all(segment.backward_points for segment in made.segments)


PLANS_ELSEWHERE = """
import snnfx, tests.models
workload = tests.models.hand_written()
print(snnfx.plan(workload.model, workload.inputs, lowering="eager").to_json())
"""


def test_another_process_comes_to_the_same_plan() -> None:
    workload = hand_written()
    own = plan(workload.model, workload.inputs, lowering="eager").to_json()
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{PLANS_ELSEWHERE}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert done.stdout.strip() == own


def test_the_options_are_those_of_the_backend() -> None:
    workload = spiking_mlp()
    seen: list[snnfx.MemoryPlan] = []
    captured = capture(workload.model, workload.inputs)
    made = captured.plan(level=0, lowering="eager", plan_callback=seen.append)
    assert seen == [made]
    assert (made.level, made.applied) == (0, False)
    loose = captured.plan(compress=False, lowering="eager")
    assert not loose.packed
    with pytest.raises(OptionError, match="unknown option 'levle'"):
        captured.plan(levle=1)
    with pytest.raises(OptionError, match="unknown option 'levle'"):
        plan(workload.model, workload.inputs, levle=1)


def test_the_joint_graph_has_gradients_through_hand_written_surrogates() -> None:
    workload = hand_written()
    captured = capture(workload.model, workload.inputs)
    gradients = dict(zip(captured.names, captured.roles.backward_outputs, strict=True))
    assert all(gradients[name] is not None for name in captured.parameters)
    assert all(gradients[name] is None for name in (*captured.buffers, *captured.inputs))


def test_the_joint_graph_computes_the_model_and_its_gradients() -> None:
    workload = hand_written()
    captured = capture(workload.model, workload.inputs)
    tensors = {**dict(workload.model.named_parameters()), **dict(workload.model.named_buffers())}
    tensors = {name: value.detach().clone() for name, value in tensors.items()}
    tensors["x"] = workload.inputs[0]
    output = workload.model(*workload.inputs)
    tangent = torch.randn_like(output)
    output.backward(tangent)
    primals = [tensors[name] for name in captured.names]
    results = captured.graph_module([*primals], [tangent])
    results = results if isinstance(results, (list, tuple)) else [results]
    flat = list(torch.utils._pytree.tree_leaves(results, is_leaf=lambda x: x is None))
    count = len(captured.roles.forward_outputs)
    assert torch.equal(flat[count - 1], output)
    for name, gradient in zip(captured.names, flat[count:], strict=True):
        if name in captured.parameters:
            assert torch.equal(gradient, workload.model.get_parameter(name).grad), name


def test_with_a_loss_the_graph_ends_in_it() -> None:
    workload = hand_written()
    captured = capture(workload.model, workload.inputs, workload.loss_fn)
    (tangent,) = captured.roles.tangents
    loss = captured.roles.forward_outputs[-1]
    assert [tensor_value(node).shape for node in (tangent, loss)] == [(), ()]
    assert captured.plan(lowering="eager").applied


def test_without_a_loss_each_output_has_a_tangent() -> None:
    class TwoOutputs(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), self.weight.sum()

    captured = capture(TwoOutputs(4, 3), torch.randn(2, 4))
    assert [tensor_value(t).shape for t in captured.roles.tangents] == [(2, 3), ()]


def test_names_follow_the_placeholders() -> None:
    model = Stateful()
    captured = capture(model, torch.randn(3, 2, 8))
    assert captured.inputs == ("x",)
    assert set(captured.parameters) == {name for name, _ in model.named_parameters()}
    assert set(captured.buffers) == {name for name, _ in model.named_buffers()}
    for name, node in zip(captured.names, captured.roles.primals, strict=True):
        if name != "x":
            owner = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name]
            assert tensor_value(node).shape == owner.shape
    overwritten = {captured.names[captured.roles.primals.index(n)] for n in captured.roles.mutated}
    assert overwritten == set(captured.buffers)


def test_nested_arguments_are_named_by_their_place() -> None:
    class Nested(nn.Linear):
        def forward(self, pair: list[Tensor], options: dict[str, Tensor]) -> Tensor:
            return super().forward(pair[0] + pair[1] * options["scale"])

    inputs = ([torch.randn(2, 4), torch.randn(2, 4)], {"scale": torch.randn(4)})
    assert set(capture(Nested(4, 4), inputs).inputs) == {"pair[0]", "pair[1]", "options['scale']"}


@pytest.mark.parametrize("calls_before", [0, 1])
def test_the_model_is_left_untouched(calls_before: int) -> None:
    model, x = Stateful(), torch.randn(3, 2, 8)
    for _ in range(calls_before):
        model(x)
    before = content(model)
    capture(model, x)
    assert_untouched(model, before)
    assert all(not isinstance(t, FakeTensor) for t in model.state_dict().values())


def test_a_failed_capture_leaves_the_model_untouched() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Stateful(), Refusing(failing))
    before = content(model)
    with pytest.raises(CaptureError):
        capture(model, torch.empty(3, 2, 8, device="meta"))
    assert_untouched(model, before)


def test_the_model_still_trains_after_its_capture() -> None:
    captured, plain = hand_written(), hand_written()
    plan(captured.model, captured.inputs, lowering="eager")
    for workload in (captured, plain):
        workload.loss_fn(workload.model(*workload.inputs)).backward()
    for own, other in zip(captured.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)


def test_random_numbers_are_not_drawn() -> None:
    workload = spiking_mlp(dropout=0.5)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    captured = capture(workload.model, workload.inputs)
    assert torch.equal(torch.get_rng_state(), state)
    targets = {str(node.target) for node in captured.graph_module.graph.nodes}
    assert targets & {"aten.native_dropout.default", "aten.bernoulli.p", "aten.rand_like.default"}


def test_capture_needs_no_memory_for_tensors() -> None:
    model, x = SpikingMLP(features=512), torch.randn(8, 512, 512)
    one_activation = 8 * 512 * 64 * 4
    assert measured_added_bytes(lambda: capture(model, x)) < one_activation


def big_net() -> nn.Module:
    """40 GB of weights in each of three layers."""
    hidden = 100_000
    layers = [
        nn.Sequential(nn.Linear(hidden, hidden, bias=False), LIFNode(step_mode="m"))
        for _ in range(3)
    ]
    return nn.Sequential(*layers, nn.Linear(hidden, 10))


@pytest.mark.parametrize("context", [lambda: torch.device("meta"), FakeTensorMode])
def test_a_model_too_big_for_any_machine_is_planned(context: Callable[[], Any]) -> None:
    steps, batch, hidden = 8, 8192, 100_000
    with context():
        model, x = big_net(), torch.empty(steps, batch, hidden)
    before = content(model) if x.is_meta and not isinstance(x, FakeTensor) else None
    captured = capture(model, x)
    made = captured.plan(lowering="eager")
    one_spike_tensor = steps * batch * hidden * 4
    assert made.applied
    assert made.baseline_peak_bytes > 200e9
    assert made.predicted_peak_bytes < made.baseline_peak_bytes
    assert sum(s.stored_bytes for s in made.packed) == 3 * one_spike_tensor // 32
    devices = {tensor_value(n).device.type for n in captured.roles.primals}
    assert devices == {"cpu"}
    if before is not None:
        assert_untouched(model, before)
        assert all(p.is_meta for p in model.parameters())


def test_tied_parameters_on_the_meta_device_stay_tied() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
    captured = capture(model, torch.empty(2, 4, device="meta"))
    assert captured.parameters == ("0.weight",)


def test_one_tensor_stands_for_a_sequence_of_one() -> None:
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    one, many = capture(model, x), capture(model, [x])
    assert str(one.graph_module.graph) == str(many.graph_module.graph)


def test_the_readable_graph_is_printed_and_returned(capsys: pytest.CaptureFixture[str]) -> None:
    text = capture(nn.Linear(4, 3), torch.randn(2, 4)).print_readable()
    assert "addmm" in text
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("body", [branching, failing])
def test_what_cannot_be_captured_is_named_with_the_reason_and_a_way_out(
    body: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(CaptureError, match="cannot be captured as one graph") as caught:
        capture(Refusing(body), torch.randn(2, 4))
    text = str(caught.value)
    reason = {branching: "Data-dependent branching", failing: "no way with 2 dimensions"}[body]
    assert reason in text
    assert __file__ in text
    assert "torch.where" in text


def test_a_model_without_anything_to_train_is_an_error() -> None:
    model = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(CaptureError, match="nothing to train"):
        capture(model, torch.randn(2, 4))
    assert capture(model, torch.randn(2, 4, requires_grad=True)).parameters == ("weight", "bias")


def test_a_model_without_operators_is_an_error() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> int:
            return 3

    with pytest.raises(CaptureError, match="no operator"):
        capture(Constant(), torch.randn(2, 4))
    with pytest.raises(CaptureError, match="nothing to train"):
        capture(nn.Identity(), torch.randn(2, 4))


@pytest.mark.parametrize("loss_fn", [lambda y: y, lambda y: y.detach().sum(), lambda y: (y, y)])
def test_a_loss_that_is_no_number_is_an_error(loss_fn: Callable[[Tensor], Any]) -> None:
    with pytest.raises(CaptureError, match=r"one number|nothing to train"):
        capture(nn.Linear(4, 3), torch.randn(2, 4), loss_fn)


def test_a_plan_of_a_model_needs_its_inputs_and_a_plan_of_a_capture_has_them() -> None:
    model, x = nn.Linear(4, 3), torch.randn(2, 4)
    with pytest.raises(CaptureError, match="needs example_inputs"):
        plan(model)
    captured = capture(model, x)
    with pytest.raises(CaptureError, match="only options"):
        plan(captured, x)
    with pytest.raises(CaptureError, match="only options"):
        plan(captured, loss_fn=F.mse_loss)


def test_a_device_that_torch_is_not_built_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(CaptureError, match="built without CUDA"):
        capture(nn.Linear(4, 3), torch.randn(2, 4), device="cuda")


def test_capture_is_a_function_of_the_package_even_after_its_modules_are_imported() -> None:
    assert isinstance(snnfx.capture(nn.Linear(4, 3), torch.randn(2, 4)), Capture)
    assert isinstance(snnfx.plan(nn.Linear(4, 3), torch.randn(2, 4), level=0), snnfx.MemoryPlan)


def test_every_value_of_the_graph_is_fake() -> None:
    graph = capture(Stateful(), torch.randn(3, 2, 8)).graph_module.graph
    values = [tensor_value(node) for node in graph.nodes if node.op != "output"]
    assert all(isinstance(value, FakeTensor) for value in values if value is not None)
    assert output_args(graph)
