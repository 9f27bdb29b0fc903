"""Networks of other frameworks train under the backend as they are."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import snntorch
import torch
from snntorch import surrogate as snntorch_surrogate
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from tests.backend import nets
from tests.backend.harness import (
    Training,
    both_lowerings,
    compare,
    dtype_of,
    ignore_dynamo_warnings,
)

pytestmark = ignore_dynamo_warnings


def lif(**options: Any) -> neuron.LIFNode:
    return neuron.LIFNode(
        tau=4 / 3, decay_input=False, surrogate_function=surrogate.ATan(), detach_reset=True,
        step_mode="m", **options,
    )  # fmt: skip


class SpikingJellyNet(nn.Module):
    """Convolutions and LIF neurons in multi-step mode; `reset` says when `reset_net` is called."""

    def __init__(self, reset: str, **options: Any) -> None:
        super().__init__()
        self.reset = reset
        self.body = nn.Sequential(
            layer.Conv2d(3, 6, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(6, step_mode="m"),
            lif(**options),
            layer.MaxPool2d(2, step_mode="m"),
            layer.Conv2d(6, 6, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(6, step_mode="m"),
            lif(**options),
            nets.Readout(),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.reset == "at the start":
            functional.reset_net(self)
        y = self.body(x)
        if self.reset == "at the end":
            functional.reset_net(self)
        return y


def reset_outside(model: nn.Module) -> None:
    """What a SpikingJelly user calls between batches."""
    functional.reset_net(model)


@pytest.fixture(autouse=True)
def no_garbage() -> Iterator[None]:
    """Dynamo guards on the number of modules that SpikingJelly has ever reset and that are alive.

    Models of earlier tests must be gone before a compilation, not vanish in it.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("reset", "lowering"),
    [
        ("outside", "eager"),
        ("at the start", "eager"),
        ("at the end", "eager"),
        ("outside", "inductor"),
        ("at the end", "inductor"),
    ],
)
def test_spikingjelly_net_with_reset_net_inside_or_outside_of_forward(
    reset: str, lowering: str
) -> None:
    x = nets.images(dtype_of(lowering))
    before = reset_outside if reset == "outside" else lambda model: None
    session = Training([(x,)] * 3, nets.weighted, before_step=before)
    comparison = compare(SpikingJellyNet(reset).to(x.dtype), session, lowering)
    comparison.assert_packed(8)
    states = [v for k, v in comparison.expected.items() if "state" in k]
    assert len(states) == (0 if reset == "at the end" else 6)
    assert all(state.any() for state in states)


def test_spikingjelly_states_carried_over_calls() -> None:
    x = nets.images(torch.float32)
    session = Training([(x,)] * 3, nets.weighted, before_step=functional.detach_net)
    compare(SpikingJellyNet("never"), session).assert_packed(8)


def test_spikingjelly_soft_reset() -> None:
    x = nets.images(torch.float32)
    session = Training([(x,)] * 2, nets.weighted, before_step=reset_outside)
    compare(SpikingJellyNet("outside", v_reset=None), session).assert_packed(8)


class SNNTorchNet(nn.Module):
    """Two layers of `Leaky` with the time loop in forward; states are explicit, or each layer's.

    Per-layer states are reset in forward by each layer's own `reset_mem`.
    """

    def __init__(self, explicit: bool) -> None:
        super().__init__()
        self.explicit = explicit
        options = {"beta": 0.8, "threshold": 0.5, "init_hidden": not explicit}
        gradient = snntorch_surrogate.fast_sigmoid()
        self.first, self.second = nn.Linear(nets.FEATURES, 16), nn.Linear(16, 16)
        self.first_node = snntorch.Leaky(spike_grad=gradient, **options)
        self.second_node = snntorch.Leaky(spike_grad=gradient, **options)
        self.readout = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self._explicit(x) if self.explicit else self._hidden(x)

    def _explicit(self, x: Tensor) -> Tensor:
        first = x.new_zeros(x.shape[1], 16)
        second = torch.zeros_like(first)
        total = x.new_zeros(())
        for step in range(x.shape[0]):
            spikes, first = self.first_node(self.first(x[step]), first)
            spikes, second = self.second_node(self.second(spikes), second)
            total = total + self.readout(spikes)
        return total

    def _hidden(self, x: Tensor) -> Tensor:
        self.first_node.reset_mem()
        self.second_node.reset_mem()
        steps = (self.second_node(self.second(self.first_node(self.first(s)))) for s in x)
        return torch.stack([self.readout(spikes) for spikes in steps]).sum(0)


@both_lowerings
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit states", "own states"])
def test_snntorch_net_with_its_time_loop_in_forward(explicit: bool, lowering: str) -> None:
    """Layer by layer in each step: spikes of one step are no stack in time, and packed by step.

    In float32 in both lowerings, since snnTorch's surrogates give float32 spikes for any input.
    """
    session = Training([(nets.features(torch.float32),)] * 3, nets.weighted)
    compare(SNNTorchNet(explicit), session, lowering).assert_packed()
