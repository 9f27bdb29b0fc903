"""Spike functions against closed forms, their own primitives and the peer framework."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import surrogate as peer
from torch import nn

from snnfx import surrogates

PARAMETERS: list[tuple[str, dict[str, float]]] = [
    ("ATan", {}),
    ("ATan", {"alpha": 3.7}),
    ("Sigmoid", {}),
    ("Sigmoid", {"alpha": 1.3}),
    ("PiecewiseQuadratic", {}),
    ("PiecewiseQuadratic", {"alpha": 2.3}),
    ("PiecewiseLeakyReLU", {}),
    ("PiecewiseLeakyReLU", {"w": 0.7, "c": 0.13}),
    ("Rect", {}),
    ("Rect", {"alpha": 1.9}),
    ("LeakyKReLU", {}),
    ("LeakyKReLU", {"leak": 0.21, "k": 1.7}),
]
SLOPES: dict[str, Callable[..., float]] = {
    "ATan": lambda x, alpha=2.0: alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2),
    "Sigmoid": lambda x, alpha=4.0: alpha / (2 + math.exp(alpha * x) + math.exp(-alpha * x)),
    "PiecewiseQuadratic": lambda x, alpha=1.0: max(0.0, alpha - alpha**2 * abs(x)),
    "PiecewiseLeakyReLU": lambda x, w=1.0, c=0.01: 1 / (2 * w) if abs(x) < w else c,
    "Rect": lambda x, alpha=1.0: alpha if abs(x) < 0.5 / alpha else 0.0,
    "LeakyKReLU": lambda x, leak=0.0, k=1.0: k if x >= 0 else leak,
}

each_surrogate = pytest.mark.parametrize(("name", "parameters"), PARAMETERS)


def gradient(f: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(x), x, upstream)
    return grad


@each_surrogate
@given(xs=st.lists(st.floats(-5, 5), min_size=1, max_size=6), upstream=st.floats(-3, 3))
def test_the_gradient_is_the_closed_form(
    name: str, parameters: dict[str, float], xs: list[float], upstream: float
) -> None:
    x = torch.tensor(xs, dtype=torch.float64)
    grad = gradient(getattr(surrogates, name)(**parameters), x, torch.full_like(x, upstream))
    expected = [upstream * SLOPES[name](value, **parameters) for value in xs]
    assert torch.allclose(grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@each_surrogate
def test_the_gradient_is_the_derivative_of_the_primitive(
    name: str, parameters: dict[str, float]
) -> None:
    f = getattr(surrogates, name)(**parameters)
    # An odd offset keeps the grid off the kinks, where the derivative is not defined.
    x = torch.linspace(-3, 3, 501, dtype=torch.float64) + 1e-4 * math.pi
    spiking = gradient(f, x, torch.ones_like(x))
    f.set_spiking_mode(False)
    step = 1e-6
    numerical = (f(x + step) - f(x - step)) / (2 * step)
    torch.testing.assert_close(spiking, numerical, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(gradient(f, x, torch.ones_like(x)), spiking)


@each_surrogate
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_spikes_and_gradients_are_the_peers_bit_for_bit(
    name: str, parameters: dict[str, float], dtype: torch.dtype
) -> None:
    ours, theirs = getattr(surrogates, name)(**parameters), getattr(peer, name)(**parameters)
    x = torch.cat((torch.randn(1000), torch.tensor([0.0, -0.0, 0.5, -0.5, 1.0, -1.0]))).to(dtype)
    upstream = torch.randn(x.shape).to(dtype)
    assert torch.equal(ours(x), theirs(x))
    assert ours(x).dtype == dtype
    assert torch.equal(gradient(ours, x, upstream), gradient(theirs, x, upstream))


@each_surrogate
def test_primitives_are_the_peers(name: str, parameters: dict[str, float]) -> None:
    ours = getattr(surrogates, name)(**parameters, spiking=False)
    theirs = getattr(peer, name)(**parameters, spiking=False)
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@each_surrogate
def test_a_spike_is_one_from_the_threshold_on(name: str, parameters: dict[str, float]) -> None:
    x = torch.tensor([-math.inf, -1.0, -1e-30, -0.0, 0.0, 1e-30, 1.0, math.inf, math.nan])
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    assert torch.equal(getattr(surrogates, name)(**parameters)(x), expected)


@each_surrogate
def test_backward_keeps_the_input_and_nothing_else(name: str, parameters: dict[str, float]) -> None:
    x = torch.randn(5, requires_grad=True) * 1.0
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        getattr(surrogates, name)(**parameters)(x)
    assert len(kept) == 1
    assert kept[0].data_ptr() == x.data_ptr()


@each_surrogate
def test_repr_shows_the_parameters(name: str, parameters: dict[str, float]) -> None:
    text = repr(getattr(surrogates, name)(**parameters))
    assert all(f"{key}={value}" in text for key, value in parameters.items())
    assert "spiking=True" in text


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("ATan", "alpha"),
        ("Sigmoid", "alpha"),
        ("PiecewiseQuadratic", "alpha"),
        ("Rect", "alpha"),
        ("PiecewiseLeakyReLU", "w"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_widths_must_be_positive(name: str, parameter: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{parameter} must be positive"):
        getattr(surrogates, name)(**{parameter: value})
