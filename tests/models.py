"""Small networks for tests, each with an input on which every neuron fires.

`NETS` maps a name to a builder of a `Workload`: a model in training mode, its inputs and a loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfx.neurons import LIFNode

from examples.models import SEWResNet, Workload, build, firing_rates

__all__ = ["NETS", "Workload", "assert_fires", "firing_rates"]


def assert_fires(model: nn.Module, *inputs: Tensor, low: float = 0.02, high: float = 0.95) -> None:
    """Hold that every neuron of `model` fires at a rate between `low` and `high`."""
    rates = firing_rates(model, *inputs)
    assert rates, "the model has no neurons"
    dull = {name: rate for name, rate in rates.items() if not low < rate < high}
    assert not dull, f"these neurons are silent or always on: {dull}"


class Triangle(torch.autograd.Function):
    """A step whose gradient is a triangle: written by hand, as many users do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (1 - x.abs()).clamp(min=0)


class HandWrittenNode(nn.Module):
    """A leaky neuron with soft reset over `[T, N, ...]`, without anything from a framework."""

    def __init__(self, decay: float = 0.6) -> None:
        super().__init__()
        self.decay = decay

    def forward(self, current: Tensor) -> Tensor:
        potential = torch.zeros_like(current[0])
        spikes = []
        for step in current:
            potential = self.decay * potential + step
            spike = Triangle.apply(potential - 1.0)
            potential = potential - spike
            spikes.append(spike)
        return torch.stack(spikes)


class HandWrittenNet(nn.Module):
    """Three convolutions with own neurons, batch norm and max-pooling, on `[T, N, 3, H, W]`."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        channels = (3, width, width, 2 * width)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in channels[1:])
        self.nodes = nn.ModuleList(HandWrittenNode() for _ in channels[1:])
        self.readout = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        for index, (conv, norm, node) in enumerate(
            zip(self.convs, self.norms, self.nodes, strict=True)
        ):
            x = node(norm(conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]))
            if index == 1:
                x = F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])
        return self.readout(x.mean((3, 4))).mean(0)


class SpikingMLP(nn.Module):
    """Linear layers and LIF neurons, no norm, with dropout of spikes, on `[T, N, C]`."""

    def __init__(self, features: int = 24, classes: int = 5, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(features, 64)
        self.second = nn.Linear(64, 64)
        self.nodes = nn.ModuleList(
            LIFNode(tau=2.0, decay_input=False, detach_reset=True, step_mode="m") for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(64, classes)
        with torch.no_grad():
            self.first.weight.mul_(2.0)
            self.second.weight.mul_(6.0)

    def forward(self, x: Tensor) -> Tensor:
        for linear, node in zip((self.first, self.second), self.nodes, strict=True):
            x = self.dropout(node(linear(x)))
            node.reset()
        return self.readout(x).mean(0)


def _classifier(model: nn.Module, x: Tensor, classes: int = 5) -> Workload:
    batch = x.shape[1] if x.ndim in (3, 5) else x.shape[0]
    target = torch.arange(batch) % classes
    return Workload(
        model.train(), (x,), lambda output: F.cross_entropy(output, target), (), lambda: None
    )


def spiking_mlp(dropout: float = 0.0) -> Workload:
    """Two spiking linear layers, T=4, N=6."""
    torch.manual_seed(0)
    return _classifier(SpikingMLP(dropout=dropout), torch.randn(4, 6, 24))


def hand_written() -> Workload:
    """A convolutional net whose neuron comes from no framework, T=4, N=2, 12x12."""
    torch.manual_seed(0)
    return _classifier(HandWrittenNet(), torch.randn(4, 2, 3, 12, 12))


def sew_small() -> Workload:
    """SEW-ResNet with one block a stage, T=4, N=2, 12x12."""
    torch.manual_seed(0)
    model = SEWResNet((1, 1), width=0.125, steps=4, classes=5, stem="cifar")
    return _classifier(model, torch.rand(2, 3, 12, 12))


def plain_mlp() -> Workload:
    """A network without spikes, N=8."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU())
    return _classifier(nn.Sequential(model, nn.Linear(32, 5)), torch.randn(8, 16))


def vgg_small(dropout: float = 0.0) -> Workload:
    """The spiking VGG-8 at one sixteenth of its width, T=4, N=2, 16x16."""
    return build("vgg8", width=1 / 16, batch=2, steps=4, size=16, dropout=dropout)


def vgg_spikingjelly_small() -> Workload:
    """The same in SpikingJelly's layers; call `before_step` before each step."""
    return build("vgg8_spikingjelly", width=1 / 16, batch=2, steps=4, size=16)


def spikformer_small() -> Workload:
    """Spikformer with one block and 16 channels, T=4, N=2, 8x8."""
    return build("spikformer", width=1 / 8, batch=2, steps=4, size=8, depth=1, heads=2)


SPIKING: dict[str, Callable[[], Workload]] = {
    "spiking_mlp": spiking_mlp,
    "spiking_mlp_dropout": lambda: spiking_mlp(dropout=0.3),
    "hand_written": hand_written,
    "sew": sew_small,
    "vgg": vgg_small,
    "vgg_dropout": lambda: vgg_small(dropout=0.3),
    "spikformer": spikformer_small,
}
NETS: dict[str, Callable[[], Workload]] = {**SPIKING, "plain_mlp": plain_mlp}
