"""Gradients that autograd has none of are zeros, made where the backward first reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

import snnfx
import snnfx._torch_compat as compat
import snnfx.lowering.absent as absent
from snnfx._torch_compat import boxed, leave_gradients_out
from snnfx.lowering.absent import fill_at_first_use, fill_before, may_be_absent, zeros_if_absent
from snnfx.neurons import LIFNode
from snnfx.passes.fxgraph import set_value

from tests.backend.harness import both_lowerings, ignore_dynamo_warnings
from tests.models import Workload
from tests.oracles import measured_activation_bytes

pytestmark = ignore_dynamo_warnings
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def backward_of_three(stride: tuple[int, int] = (4, 1)) -> tuple[GraphModule, list[Node]]:
    """``(saved, a, b) -> saved * 2 + a, that + b``, whose last two placeholders are gradients."""
    graph = Graph()
    nodes = [graph.placeholder(name) for name in ("saved", "a", "b")]
    saved, a, b = nodes
    first = graph.call_function(aten.add.Tensor, (graph.call_function(aten.neg, (saved,)), a))
    graph.output((first, graph.call_function(aten.add.Tensor, (first, b))))
    with FakeTensorMode():
        for node in nodes:
            set_value(node, torch.empty_strided((3, 4), stride))
    return GraphModule({}, graph), nodes[1:]


@pytest.mark.parametrize("given", [(True, True), (True, False), (False, True), (False, False)])
def test_an_absent_gradient_counts_as_zeros(given: tuple[bool, bool]) -> None:
    module, tangents = backward_of_three()
    saved = torch.rand(3, 4)
    values = [torch.rand(3, 4) if there else None for there in given]
    zeros = torch.zeros(3, 4)
    expected = module(saved, *(zeros if v is None else v for v in values))
    lazily = boxed(fill_at_first_use(module, 2))([saved, *values])
    at_once = fill_before(boxed(module), tangents)([saved, *values])
    for found in (lazily, at_once):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_gradient_is_made_next_to_its_first_reader_and_the_given_graph_is_left_alone() -> None:
    module, _ = backward_of_three()
    before = str(module.graph)
    filled = fill_at_first_use(module, 2)
    names = [node.name for node in filled.graph.nodes if node.op == "call_function"]
    assert names == ["neg", "zeros_if_absent", "add_tensor", "zeros_if_absent_1", "add_tensor_1"]
    assert str(module.graph) == before


def test_zeros_have_the_layout_that_the_graph_was_traced_with() -> None:
    args = ((3, 4), (1, 3), torch.float64, torch.device("cpu"))
    made = zeros_if_absent(None, *args)
    assert (made.shape, made.stride(), made.dtype) == ((3, 4), (1, 3), torch.float64)
    assert not made.any()
    given = torch.ones(3, 4)
    assert zeros_if_absent(given, *args) is given


def test_gradients_of_symbolic_sizes_are_left_to_autograd() -> None:
    _, tangents = backward_of_three()
    assert may_be_absent(tangents)
    mode = compat.fake_mode_with_sizes()
    size = compat.symbolic_size(mode, "N", 4)
    with mode:
        set_value(tangents[0], torch.empty(size, 3))
    assert not may_be_absent(tangents)


class Stateful(nn.Module):
    """Two layers of neurons that keep their potentials, ``[T, N, 8]`` to ``[N, 4]``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, width)
        self.readout = nn.Linear(width, 4)
        self.neurons = nn.ModuleList(LIFNode(step_mode="m") for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons[0](2 * self.first(x))
        return self.readout(self.neurons[1](3 * self.second(spikes)).mean(0))


def trained(
    session: Callable[[nn.Module, Callable[..., Any]], Any], lowering: str | None, **options: Any
) -> tuple[Any, list[Tensor | None]]:
    torch.manual_seed(0)
    model = Stateful().double()
    run: Any = model
    if lowering is not None:
        run = torch.compile(model, backend="snnmem", options={"lowering": lowering, **options})
    result = session(model, run)
    return result, [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def agree(first: list[Tensor | None], second: list[Tensor | None], lowering: str) -> bool:
    """Whether gradients are the same; a compiled graph gives zeros where autograd gives None."""
    zero = torch.tensor(0.0).double()
    pairs = [
        tuple(zero if gradient is None else gradient for gradient in pair)
        for pair in zip(first, second, strict=True)
    ]
    tolerance = 0 if lowering == "eager" else 1e-10
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)


def frames() -> Tensor:
    return torch.rand(5, 3, 8, generator=torch.Generator().manual_seed(3)).double()


def _reset(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, LIFNode):
            module.reset()


def a_step_without_the_states(model: nn.Module, run: Callable[..., Any]) -> None:
    run(frames()).square().sum().backward()


def a_loss_of_the_states_alone(model: nn.Module, run: Callable[..., Any]) -> None:
    run(frames())
    assert isinstance(model, Stateful)
    sum(neuron.v.square().sum() for neuron in model.neurons).backward()  # type: ignore[union-attr]


def two_calls_and_a_loss_of_the_second(model: nn.Module, run: Callable[..., Any]) -> None:
    run(frames())
    run(frames().flip(0)).square().sum().backward()


def a_backward_twice(model: nn.Module, run: Callable[..., Any]) -> None:
    loss = run(frames()).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()


SESSIONS = [
    a_step_without_the_states,
    a_loss_of_the_states_alone,
    two_calls_and_a_loss_of_the_second,
    a_backward_twice,
]


@both_lowerings
@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("session", SESSIONS, ids=lambda s: s.__name__)
def test_every_use_of_states_gives_the_gradients_of_the_plain_model(
    session: Callable[..., Any], level: int, lowering: str
) -> None:
    _, expected = trained(session, None)
    _, found = trained(session, lowering, level=level)
    assert agree(found, expected, lowering)
    assert any(gradient is not None and gradient.any() for gradient in expected)


def test_any_batch_size_works_with_states() -> None:
    def session(model: nn.Module, run: Callable[..., Any]) -> None:
        for batch in (3, 4, 5):
            _reset(model)
            run(torch.ones(2, batch, 8).double()).square().sum().backward()

    _, expected = trained(session, None)
    _, found = trained(session, "eager")
    assert agree(found, expected, "eager")


def test_gradients_of_states_take_no_memory_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def peak() -> int:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Stateful(512)
        options = {"lowering": "eager", "level": 1}
        run = torch.compile(model, backend="snnmem", options=options)
        x = torch.rand(4, 16, 8)
        work = Workload(model, (x,), torch.sum, (), lambda: _reset(model))
        return measured_activation_bytes(work, run)

    lazily = peak()
    plan = snnfx.last_plan()
    assert plan is not None
    assert lazily == pytest.approx(plan.predicted_peak_bytes, rel=0.05)
    monkeypatch.setattr(absent, "leave_gradients_out", lambda results, args: None)
    state = 16 * 512 * 4
    assert peak() >= lazily + state


def test_only_the_node_of_the_call_itself_is_asked() -> None:
    def square(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * x, x + 1

    other = torch.compile(square, backend="aot_eager")
    given = other(torch.ones(3, requires_grad=True))
    result = torch.compile(square, backend="aot_eager")(given[0])
    leave_gradients_out([given[0]], given)
    given[0].sum().backward(retain_graph=True)  # with None it could not be run
    leave_gradients_out([result[0]], given)
    with pytest.raises(Exception, match="None"):
        result[0].sum().backward()
