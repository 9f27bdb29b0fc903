"""Neurons against SpikingJelly 2.0.0, and what they add to it."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from spikingjelly.activation_based import neuron as peer
from spikingjelly.activation_based import surrogate as peer_surrogate
from torch import nn

from snnfx import base, neurons

NEURONS = ("IFNode", "LIFNode", "ParametricLIFNode")
SURROGATES = (
    "ATan",
    "Sigmoid",
    "PiecewiseQuadratic",
    "PiecewiseLeakyReLU",
    "Rect",
    "LeakyKReLU",
)
RESETS = (0.0, -0.3, None)
EQUATIONS = [
    (kind, v_reset, decay_input)
    for kind, v_reset, decay_input in itertools.product(NEURONS, RESETS, (True, False))
    if decay_input or kind != "IFNode"
]
T, N, FEATURES = 6, 5, 7


def unfused(name: str) -> nn.Module:
    """A peer surrogate for which the peer runs its plain torch code, not its fused operator."""
    return type(name, (getattr(peer_surrogate, name),), {"__module__": __name__})()


class Run(NamedTuple):
    spikes: torch.Tensor
    v: torch.Tensor
    grads: dict[str, torch.Tensor]


def run(node: nn.Module, step_mode: str, dtype: torch.dtype, mean: float) -> Run:
    """One training step with gradients into spikes and final potential; the same inputs always."""
    torch.manual_seed(1)
    x_seq = (torch.randn(T, N, FEATURES, dtype=torch.float64) * 1.5 + mean).to(dtype)
    spike_weight = torch.randn(T, N, FEATURES, dtype=torch.float64).to(dtype)
    v_weight = torch.randn(N, FEATURES, dtype=torch.float64).to(dtype)
    x_seq.requires_grad_()
    node.step_mode = step_mode
    spikes = node(x_seq) if step_mode == "m" else torch.stack([node(x) for x in x_seq])
    ((spikes * spike_weight).sum() + (node.v * v_weight).sum()).backward()
    grads = {name: parameter.grad for name, parameter in node.named_parameters()}
    return Run(spikes.detach(), node.v.detach(), {"x": x_seq.grad, **grads})


def both(
    kind: str,
    v_reset: float | None,
    decay_input: bool,
    ours: nn.Module,
    theirs: nn.Module,
    step_mode: str,
    dtype: torch.dtype,
    **options: Any,
) -> tuple[Run, Run]:
    """Our run and the peer's; the firing rate is one that tests something."""
    options |= {"v_threshold": 0.8, "v_reset": v_reset}
    if kind == "LIFNode":
        options["tau"] = 1.7
    if kind == "ParametricLIFNode":
        options["init_tau"] = 3.0
    if kind != "IFNode":
        options["decay_input"] = decay_input
    mean = 0.8 if decay_input and kind != "IFNode" else 0.3
    runs = []
    for module, surrogate in ((neurons, ours), (peer, theirs)):
        node = getattr(module, kind)(surrogate_function=surrogate, **options)
        runs.append(run(node.to(dtype), step_mode, dtype, mean))
    assert 0.05 < runs[1].spikes.mean().item() < 0.95
    assert all(grad.abs().max() > 1e-4 for grad in runs[1].grads.values())
    return runs[0], runs[1]


def assert_same_run(ours: Run, theirs: Run, w_tolerance: float | None) -> None:
    """Everything bit for bit, but the learned time constant's gradient: a sum in other order.

    In half precision (`w_tolerance` None) that order decides most of its digits.
    """
    assert torch.equal(ours.spikes, theirs.spikes)
    assert torch.equal(ours.v, theirs.v)
    assert torch.equal(ours.grads["x"], theirs.grads["x"])
    assert ours.spikes.dtype == theirs.spikes.dtype
    assert ours.v.dtype == theirs.v.dtype
    assert ours.grads.keys() == theirs.grads.keys()
    if w_tolerance is not None and "w" in ours.grads:
        torch.testing.assert_close(
            ours.grads["w"], theirs.grads["w"], rtol=w_tolerance, atol=w_tolerance
        )


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(("kind", "v_reset", "decay_input"), EQUATIONS)
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_neurons_are_the_peers_torch_neurons_bit_for_bit(
    kind: str,
    v_reset: float | None,
    decay_input: bool,
    surrogate: str,
    dtype: torch.dtype,
) -> None:
    for detach_reset, step_mode in itertools.product((False, True), "sm"):
        ours, theirs = both(
            kind,
            v_reset,
            decay_input,
            getattr(neurons, surrogate)(),
            unfused(surrogate),
            step_mode,
            dtype,
            detach_reset=detach_reset,
        )
        assert_same_run(ours, theirs, 2e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize(("kind", "v_reset", "decay_input"), EQUATIONS)
@pytest.mark.parametrize("surrogate", ["ATan", "Sigmoid", "PiecewiseQuadratic"])
def test_neurons_agree_with_the_peers_fused_operators(
    kind: str, v_reset: float | None, decay_input: bool, surrogate: str
) -> None:
    for detach_reset, step_mode in itertools.product((False, True), "sm"):
        ours, theirs = both(
            kind,
            v_reset,
            decay_input,
            getattr(neurons, surrogate)(),
            getattr(peer_surrogate, surrogate)(),
            step_mode,
            torch.float32,
            detach_reset=detach_reset,
        )
        assert torch.equal(ours.spikes, theirs.spikes)
        assert torch.equal(ours.v, theirs.v)
        # Their backward is written by hand and sums in another order.
        scale = theirs.grads["x"].abs().max().item()
        torch.testing.assert_close(ours.grads["x"], theirs.grads["x"], rtol=1e-6, atol=1e-6 * scale)
        if kind == "ParametricLIFNode":
            torch.testing.assert_close(ours.grads["w"], theirs.grads["w"], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("kind", "v_reset", "decay_input"), EQUATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_inputs_give_the_peers_spikes_and_potentials(
    kind: str, v_reset: float | None, decay_input: bool, dtype: torch.dtype
) -> None:
    ours, theirs = both(
        kind,
        v_reset,
        decay_input,
        neurons.ATan(),
        unfused("ATan"),
        "m",
        dtype,
    )
    assert_same_run(ours, theirs, w_tolerance=None)


@pytest.mark.parametrize("kind", NEURONS)
def test_defaults_are_the_peers(kind: str) -> None:
    ours = run(getattr(neurons, kind)(), "m", torch.float64, 0.8)
    theirs = run(getattr(peer, kind)(), "m", torch.float64, 0.8)
    assert 0.05 < theirs.spikes.mean().item() < 0.95
    assert_same_run(ours, theirs, 1e-13)
    assert isinstance(getattr(neurons, kind)().surrogate_function, neurons.Sigmoid)


@pytest.mark.parametrize("kind", NEURONS)
def test_autocast_keeps_spikes_binary_and_gradients_close(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), getattr(neurons, kind)(v_reset=None), nn.Linear(8, 4))
    x = torch.randn(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        potential = net[0](x)
        assert potential.dtype == torch.bfloat16
        spikes = net[1](potential * 4)
        loss = net[2](spikes).float().square().sum()
    loss.backward()
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net[0].weight.grad.abs().max() > 0


# ---------------------------------------------------------------- state


@pytest.mark.parametrize("kind", NEURONS)
def test_the_potential_is_kept_from_call_to_call_until_reset(kind: str) -> None:
    x_seq = torch.randn(6, 3, 4) + 0.7
    node = getattr(neurons, kind)(step_mode="m")
    whole = node(x_seq)
    final = node.v
    node.reset()
    assert node.v == 0.0
    halves = torch.cat((node(x_seq[:2]), node(x_seq[2:])))
    assert torch.equal(whole, halves)
    assert torch.equal(node.v, final)
    assert not torch.equal(node(x_seq), whole)


def test_an_input_of_another_shape_starts_from_rest() -> None:
    node = neurons.LIFNode(v_reset=-0.25)
    assert node.v == -0.25
    node(torch.ones(4, 2))
    x = torch.rand(3, 2)
    node(x)
    other = neurons.LIFNode(v_reset=-0.25)
    other(x)
    assert torch.equal(node.v, other.v)


def test_an_input_of_another_dtype_converts_the_potential() -> None:
    node = neurons.IFNode()
    node(torch.full((2,), 0.25))
    node(torch.full((2,), 0.25, dtype=torch.float64))
    assert torch.equal(node.v, torch.full((2,), 0.5, dtype=torch.float64))


def test_state_is_listed_loaded_and_made_explicit() -> None:
    node = neurons.LIFNode()
    assert base.extract_memories(node) == [0.0]
    x, v = torch.rand(2, 3)
    spikes, new_v = base.to_functional_forward(node)(x, v)
    expected = v + (x - v) / 2.0
    assert torch.equal(spikes, (expected >= 1.0).float())
    assert torch.equal(new_v, expected * (1 - spikes))
    assert node.v == 0.0


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_stored_potentials_are_the_peers(kind: str, step_mode: str) -> None:
    torch.manual_seed(3)
    x_seq = torch.randn(5, 2, 3, dtype=torch.float64) + 0.7
    nodes = [
        getattr(module, kind)(step_mode=step_mode, store_v_seq=True).double()
        for module in (neurons, peer)
    ]
    for node in nodes:
        assert node.v_seq is None
        for _ in range(2):
            if step_mode == "m":
                node(x_seq)
            else:
                for x in x_seq:
                    node(x)
    assert torch.equal(nodes[0].v_seq, nodes[1].v_seq)
    assert nodes[0].v_seq.shape[0] == (5 if step_mode == "m" else 10)
    assert torch.equal(nodes[0].v_seq[-1], nodes[0].v)
    nodes[0].reset()
    assert nodes[0].v_seq is None


def test_stored_potentials_start_again_with_an_input_of_another_shape() -> None:
    node = neurons.IFNode(store_v_seq=True)
    for shape in ((2,), (2,), (3,)):
        node(torch.zeros(shape))
    assert node.v_seq is not None
    assert node.v_seq.shape == (1, 3)


def test_detach_cuts_potential_and_stored_potentials() -> None:
    node = neurons.LIFNode(step_mode="m", store_v_seq=True)
    node(torch.rand(2, 3, requires_grad=True))
    assert isinstance(node.v, torch.Tensor)
    assert node.v.requires_grad
    neurons.detach_net(nn.Sequential(node))
    assert not node.v.requires_grad
    assert node.v_seq is not None
    assert not node.v_seq.requires_grad


def test_net_helpers_reach_every_nested_neuron() -> None:
    net = nn.Sequential(neurons.IFNode(), nn.Sequential(nn.Linear(3, 3), neurons.LIFNode()))
    neurons.set_step_mode(net, "m")
    assert net(torch.ones(2, 4, 3)).shape == (2, 4, 3)
    nodes = [m for m in net.modules() if isinstance(m, (neurons.IFNode, neurons.LIFNode))]
    assert [node.step_mode for node in nodes] == ["m", "m"]
    assert all(isinstance(node.v, torch.Tensor) for node in nodes)
    neurons.reset_net(net)
    assert [node.v for node in nodes] == [0.0, 0.0]
    with pytest.raises(ValueError, match="step_mode"):
        neurons.set_step_mode(net, "x")


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("tau", [1.0, 0.5, float("nan")])
def test_a_time_constant_of_at_most_one_step_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match="tau must be more than 1"):
        neurons.LIFNode(tau=tau)
    with pytest.raises(ValueError, match="init_tau must be more than 1"):
        neurons.ParametricLIFNode(init_tau=tau)


@pytest.mark.parametrize("kind", NEURONS)
def test_unknown_modes_and_backends_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="step_mode"):
        getattr(neurons, kind)(step_mode="x")
    with pytest.raises(NotImplementedError, match="cupy"):
        getattr(neurons, kind)(backend="cupy")
    with pytest.raises(ValueError, match="T=0"):
        getattr(neurons, kind)(step_mode="m")(torch.zeros(0, 2))


def test_repr_shows_the_arguments() -> None:
    assert "v_reset=None" in repr(neurons.IFNode(v_reset=None))
    assert "tau=3.0, decay_input=False" in repr(neurons.LIFNode(3.0, False))
    assert "tau=2.0, decay_input=True" in repr(neurons.ParametricLIFNode())
