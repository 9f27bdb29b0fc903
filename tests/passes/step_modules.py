"""Small modules over `[T, N, C, H, W]`, some of which mix time steps, and random nets of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron as peer
from torch import Tensor, nn

from snnfx import neurons
from snnfx.base import MemoryModule

CHANNELS = 3


class Function(nn.Module):
    """A function without state."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *sequences: Tensor) -> Any:
        return self.function(*sequences)


class Residual(nn.Module):
    """A module beside the identity."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Delay(MemoryModule):
    """Gives every step the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.step_mode = "m"
        self.register_memory("last", 0.0)

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        first = self.last
        if not isinstance(first, Tensor):
            first = torch.full_like(x_seq[0], first)
        self.last = x_seq[-1]
        return torch.cat([first.unsqueeze(0), x_seq[:-1]])


def conv(source: random.Random) -> nn.Module:
    return layer.SeqToANNContainer(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
    ).train(source.random() < 0.15)


def linear(source: random.Random) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(3), nn.LazyLinear(4), source.choice([nn.LayerNorm(4), nn.ReLU()]),
        nn.Unflatten(3, (2, 2)),
    )  # fmt: skip


def pool(source: random.Random) -> nn.Module:
    kinds = (nn.AvgPool2d(2, 1), nn.MaxPool2d(2, 1), nn.AdaptiveAvgPool2d(2))
    return layer.SeqToANNContainer(source.choice(kinds), nn.ZeroPad2d((0, 1, 0, 1)))


def neuron(source: random.Random) -> nn.Module:
    kinds: tuple[Any, ...] = (
        neurons.IFNode, neurons.LIFNode, neurons.ParametricLIFNode,
        peer.IFNode, peer.LIFNode, peer.ParametricLIFNode,
    )  # fmt: skip
    kind = source.choice(kinds)
    return kind(v_threshold=0.3, v_reset=source.choice([None, 0.0, -0.2]), step_mode="m")


def function(source: random.Random) -> nn.Module:
    return Function(
        source.choice(
            [
                lambda x: torch.stack([a * a for a in x]),
                lambda x: torch.cat([x[:, :, :1], x[:, :, 1:].relu()], 2),
                lambda x: x.transpose(1, 3).tanh().transpose(1, 3),
                lambda x: x - x.mean((2, 3), keepdim=True),
                lambda x: (x.flatten(2) @ x.flatten(2).mT @ x.flatten(2)).view_as(x).tanh(),
            ]
        )
    )


def mixing(source: random.Random) -> nn.Module:
    return Function(
        source.choice(
            [
                lambda x: x.flip(0),
                lambda x: x.cumsum(0),
                lambda x: x - x.mean(0),
                lambda x: torch.cat([x[-1:], x[:-1]]),
                lambda x: x.transpose(0, 1).reshape(x.shape),
                lambda x: x / len(x),
            ]
        )
    )


def residual(source: random.Random) -> nn.Module:
    return Residual(nn.Sequential(conv(source), neuron(source)))


def delay(source: random.Random) -> nn.Module:
    del source
    return Delay()


PARTS = [conv, linear, pool, neuron, function, residual, delay, neuron]


def random_module(source: random.Random) -> tuple[nn.Module, Tensor, tuple[int, ...]]:
    """A net of a few parts in evaluation mode, an input for it, and sizes of chunks."""
    parts = [source.choice(PARTS) for _ in range(source.randint(1, 4))]
    if source.random() < 0.3:
        parts.insert(source.randrange(len(parts) + 1), mixing)
    torch.manual_seed(source.randrange(2**30))
    module = nn.Sequential(*(part(source) for part in parts)).double()
    sizes = tuple(source.randint(1, 3) for _ in range(source.randint(1, 3)))
    x = torch.randn(sum(sizes), source.randint(1, 2), CHANNELS, 3, 3, dtype=torch.float64)
    training = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    module.eval()
    module(x)
    for m in training:
        m.train()
    for m in module.modules():
        if hasattr(m, "reset"):
            m.reset()
    return module, x, sizes
