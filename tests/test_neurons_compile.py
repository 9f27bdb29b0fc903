"""Neurons under `torch.compile`: one graph, no recompilation that state alone would cause."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from snnfx import neurons

# Dynamo itself makes such an instance to trace an autograd.Function.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)

KINDS = ("IFNode", "LIFNode", "ParametricLIFNode")
T, N, FEATURES = 2, 4, 6


class Net(nn.Module):
    """Two spiking layers that reset where `reset` says: "start", "end" or not "inside"."""

    def __init__(self, kind: str, reset: str, step_mode: str = "m", **options: Any) -> None:
        super().__init__()
        self.reset, self.step_mode = reset, step_mode
        self.first = nn.Linear(FEATURES, FEATURES)
        self.second = nn.Linear(FEATURES, FEATURES)
        self.first_node = getattr(neurons, kind)(step_mode=step_mode, **options)
        self.second_node = getattr(neurons, kind)(step_mode=step_mode, **options)

    def layers(self, x: torch.Tensor) -> torch.Tensor:
        spikes = self.first_node(self.first(x) * 3 + 0.7)
        return self.second_node(self.second(spikes) * 3 + 0.7)

    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        if self.reset == "start":
            neurons.reset_net(self)
        if self.step_mode == "m":
            out = self.layers(x_seq)
        else:
            out = torch.stack([self.layers(x) for x in x_seq])
        if self.reset == "end":
            neurons.reset_net(self)
        return out


def train(net: nn.Module, forward: Any, after: str, batches: tuple[int, ...]) -> list[torch.Tensor]:
    """Spikes of each step, then the accumulated gradients; unequal batches are marked dynamic."""
    torch.manual_seed(1)
    results: list[torch.Tensor] = []
    for batch in batches:
        x_seq = torch.randn(T, batch, FEATURES)
        if len(set(batches)) > 1:
            torch._dynamo.mark_dynamic(x_seq, 1)
        out = forward(x_seq)
        assert 0.05 < out.mean().item() < 0.95
        out.square().sum().backward()
        results.append(out.detach())
        if after == "reset":
            neurons.reset_net(net)
        if after == "detach":
            neurons.detach_net(net)
    return results + [p.grad.clone() for p in net.parameters() if p.grad is not None]


def assert_compiles_like_eager(
    net: nn.Module, after: str, graphs: int, batches: tuple[int, ...] = (N, N)
) -> None:
    expected = train(net, net, after, batches)
    net.zero_grad()
    neurons.reset_net(net)
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    got = train(net, compiled, after, batches)
    assert backend.frame_count == graphs
    assert len(got) == len(expected)
    assert got[-1].abs().max() > 0
    for ours, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("inside", "after"), [("", "reset"), ("start", ""), ("end", "")], ids=["out", "start", "end"]
)
def test_a_net_that_is_reset_compiles_once(kind: str, inside: str, after: str) -> None:
    assert_compiles_like_eager(Net(kind, inside), after, graphs=1)


@pytest.mark.parametrize("kind", KINDS)
def test_carried_state_adds_one_graph_for_the_first_call(kind: str) -> None:
    assert_compiles_like_eager(Net(kind, ""), "detach", graphs=2, batches=(N,) * 3)


@pytest.mark.parametrize(
    "options",
    [
        {"v_reset": None, "detach_reset": True},
        {"v_reset": -0.4, "surrogate_function": neurons.PiecewiseQuadratic()},
        {"store_v_seq": True, "surrogate_function": neurons.ATan()},
        {"surrogate_function": neurons.PiecewiseLeakyReLU()},
        {"surrogate_function": neurons.Rect()},
        {"surrogate_function": neurons.LeakyKReLU(leak=0.1)},
    ],
    ids=["soft", "v_reset", "store", "leaky-relu", "rect", "k-relu"],
)
def test_every_option_and_surrogate_compiles(options: dict[str, Any]) -> None:
    assert_compiles_like_eager(Net("LIFNode", "start", **options), "", graphs=1)


def test_a_single_step_net_unrolls_its_own_time_loop() -> None:
    assert_compiles_like_eager(Net("LIFNode", "start", step_mode="s"), "", graphs=1)


def test_a_dynamic_batch_size_needs_one_graph() -> None:
    assert_compiles_like_eager(Net("LIFNode", ""), "reset", graphs=1, batches=(4, 5, 7))


def test_hyperparameters_are_constants_of_the_graph_even_with_dynamic_floats() -> None:
    """A surrogate's parameter as a graph input would not trace at its second use."""
    floats: list[torch.Tensor] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        floats.extend(i for i in inputs if isinstance(i, torch.Tensor) and i.dim() == 0)
        return gm

    node = neurons.LIFNode(v_reset=-0.4, surrogate_function=neurons.PiecewiseLeakyReLU())
    node(torch.zeros(N, FEATURES))
    compiled = torch.compile(node, backend=backend, fullgraph=True, dynamic=True)
    for w, threshold, tau in ((1.0, 1.0, 2.0), (0.5, 0.7, 3.0)):
        node.surrogate_function.w, node.v_threshold, node.tau = w, threshold, tau
        for _ in range(2):
            neurons.detach_net(node)
            v, x = node.v, torch.rand(N, FEATURES, requires_grad=True)
            spikes = compiled(x)
            h = v + (x - (v + 0.4)) / tau
            assert torch.equal(spikes, (h >= threshold).float())
            (grad,) = torch.autograd.grad(spikes.sum(), x)
            slope = torch.where((h - threshold).abs() < w, 1 / (2 * w), 0.01)
            torch.testing.assert_close(grad, slope / tau)
    assert floats == []


def test_leaving_training_adds_one_graph_and_no_gradient() -> None:
    net = Net("LIFNode", "end")
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    x = torch.randn(T, N, FEATURES)
    with torch.no_grad():
        first, second = compiled(x), compiled(x)
    assert torch.equal(first, net(x).detach())
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert compiled(x).requires_grad
    assert backend.frame_count == 2


def test_the_backward_of_a_sequence_input_is_one_stack() -> None:
    """Indexing each step instead would make T full-size gradients of the sequence."""
    targets: list[str] = []

    def keep(gm: torch.fx.GraphModule, _: Any) -> Any:
        targets.extend(str(node.target) for node in gm.graph.nodes)
        return torch._functorch.aot_autograd.make_boxed_func(gm.forward)

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=keep, bw_compiler=keep)
    node = neurons.LIFNode(step_mode="m")
    x_seq = torch.randn(T, N, FEATURES, requires_grad=True)
    torch.compile(node, backend=backend, fullgraph=True)(x_seq).sum().backward()
    assert "aten.stack.default" in targets
    assert not any("select_backward" in target for target in targets)


@pytest.mark.parametrize("name", ["ATan", "LeakyKReLU", "PiecewiseLeakyReLU", "Rect", "Sigmoid"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_surrogate_is_traced_where_nothing_needs_a_gradient(name: str, grad: bool) -> None:
    node = neurons.LIFNode(surrogate_function=getattr(neurons, name)(), step_mode="m")
    x_seq = torch.randn(T, N, FEATURES)
    expected = node(x_seq)
    node.reset()
    with torch.set_grad_enabled(grad):
        found = torch.compile(node, backend="aot_eager", fullgraph=True)(x_seq)
    assert torch.equal(found, expected)
