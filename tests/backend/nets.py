"""Small spiking networks that differ in one thing each, for `[T, N, ...]` inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfx.neurons import IFNode, LIFNode

T, N = 3, 3
FEATURES, CHANNELS, SIZE = 12, 6, 8


class RoundedSTE(torch.autograd.Function):
    """`round(clamp(x, 0, 4))` with the gradient of the clamp: an integer-valued neuron's spikes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 4).round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * ((x >= 0) & (x <= 4))


class TernarySTE(torch.autograd.Function):
    """-1, 0 or 1, with a gradient around both thresholds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0.5).to(x.dtype) - (x < -0.5).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / (1 + (x.abs() - 0.5).square())


def detach_trick(x: Tensor) -> Tensor:
    """A step with a sigmoid's gradient; it is 0 and 1 only up to the rounding of two sums."""
    soft = torch.sigmoid(4 * (x - 0.5))
    hard = torch.heaviside(x - 0.5, x.new_ones(()))
    return hard.detach() + soft - soft.detach()


class HeavisideSTE(torch.autograd.Function):
    """A step by the operator of that name, with a rectangle's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.heaviside(x - 0.5, x.new_ones(()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * ((x - 0.5).abs() < 0.5)


class WhereSTE(torch.autograd.Function):
    """A step by `where`, with a triangle's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x > 0.5, 1.0, 0.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (1 - (x - 0.5).abs()).clamp(min=0)


class OwnNode(nn.Module):
    """A leaky neuron with soft reset around any function from potentials to spikes."""

    def __init__(self, fire: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fire = fire

    def forward(self, current: Tensor) -> Tensor:
        potential = torch.zeros_like(current[0])
        spikes = []
        for step in current:
            potential = 0.5 * potential + step
            spikes.append(self.fire(potential))
            potential = potential - spikes[-1]
        return torch.stack(spikes)


class Pure(nn.Module):
    """A neuron that is reset after each call: a function of its input."""

    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.node = node

    def forward(self, current: Tensor) -> Tensor:
        spikes = self.node(current)
        self.node.reset()
        return spikes


def lif() -> Pure:
    return Pure(LIFNode(tau=2.0, decay_input=False, v_threshold=0.5, step_mode="m"))


def integrate() -> Pure:
    return Pure(IFNode(v_threshold=0.5, step_mode="m"))


class Merged(nn.Module):
    """Layers of `[N, C, H, W]` applied with time and batch merged."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def conv(channels_in: int = CHANNELS, norm: nn.Module | None = None) -> Merged:
    return Merged(nn.Conv2d(channels_in, CHANNELS, 3, padding=1), norm or nn.BatchNorm2d(CHANNELS))


class Readout(nn.Module):
    """Means over space and time of a linear layer of the channels."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(3).mean(3) if x.ndim > 3 else x).mean(0)


def mlp(node: Callable[[], nn.Module] = lif) -> nn.Sequential:
    """Two linear layers with neurons."""
    return nn.Sequential(nn.Linear(FEATURES, 16), node(), nn.Linear(16, 16), node(), Readout(16))


def convolutional(
    node: Callable[[], nn.Module] = lif,
    norm: Callable[[], nn.Module] = lambda: nn.BatchNorm2d(CHANNELS),
    between: nn.Module | None = None,
) -> nn.Sequential:
    """Two convolutions with norm and neuron, with `between` after the first."""
    return nn.Sequential(
        conv(3, norm()),
        node(),
        Merged(between or nn.Identity()),
        conv(norm=norm()),
        node(),
        Readout(),
    )


class Added(nn.Module):
    """A chain of residual blocks whose shortcut adds spikes to sums of spikes (SEW-ADD)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(3), integrate())
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(), integrate(), conv(), integrate()) for _ in range(blocks)
        )
        self.readout = Readout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.readout(x)


class Concatenated(nn.Module):
    """Spikes next to the floats that they were computed from, in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.node = conv(3), lif()
        self.second, self.third = conv(3 + CHANNELS), nn.Sequential(conv(), lif())
        self.readout = Readout()

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.node(self.first(x))
        return self.readout(self.third(F.relu(self.second(torch.cat([spikes, x], dim=2)))))


class Attention(nn.Module):
    """Queries, keys and values are spikes; `softmax` says how they are mixed."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.softmax = softmax
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(FEATURES, 8), lif()) for _ in range(3))
        self.project = nn.Sequential(nn.Linear(8, 8), lif())
        self.readout = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part(4 * x) for part in self.parts)
        if self.softmax:
            mixed = F.scaled_dot_product_attention(query, key, value)
        else:
            mixed = (query @ key.transpose(-1, -2)) @ value
        return self.readout(self.project(mixed)).mean((0, 2))


class AnalogFront(nn.Module):
    """Two convolutions with ReLU, whose result is the current of every step of a spiking back."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU(),
        )  # fmt: skip
        self.back = nn.Sequential(conv(), lif(), conv(), lif(), Readout())

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.front(x[0]).unsqueeze(0).expand(T, -1, -1, -1, -1))


class Shared(nn.Module):
    """The same convolution and norm used for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.nodes = conv(3), nn.ModuleList(lif() for _ in range(3))
        self.shared, self.readout = conv(), Readout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.nodes[0](self.first(x))
        for node in self.nodes[1:]:
            x = node(self.shared(x))
        return self.readout(x)


class InPlace(nn.Module):
    """Activations and sums written into their inputs, and a buffer moved on in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(3), conv()
        self.nodes, self.readout = nn.ModuleList((lif(), lif())), Readout()
        self.register_buffer("trace", torch.zeros(CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        current = F.leaky_relu_(self.first(x).add_(0.1), 0.2)
        current = current * (1 + self.trace[:, None, None])
        with torch.no_grad():
            self.trace.mul_(0.9).add_(current.mean((0, 1, 3, 4)), alpha=0.1)
        spikes = self.nodes[0](current)
        spikes = self.nodes[1](self.second(spikes).mul_(1.5))
        return self.readout(spikes.mul_(2.0))


class TwoInputs(nn.Module):
    """Events and a float vector in; logits, rates and potentials out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 16), lif(), nn.Linear(16, 16))
        self.node, self.context, self.readout = lif(), nn.Linear(5, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, context: Tensor) -> dict[str, Tensor]:
        current = self.body(x) + self.context(context)
        spikes = self.node(current)
        return {"logits": self.readout(spikes).mean(0), "rate": spikes.mean(0), "v": current}


def weighted(output: Any) -> Tensor:
    """A loss of any output: random, but fixed, weights on each of its tensors."""
    tensors = [output] if isinstance(output, Tensor) else list(output.values())
    generator = torch.Generator().manual_seed(1)
    total = tensors[0].new_zeros(())
    for tensor in tensors:
        weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        total = total + (tensor * weights.to(tensor.dtype)).sum()
    return total


def features(dtype: torch.dtype, batch: int = N, steps: int = T) -> Tensor:
    return torch.randn(steps, batch, FEATURES, dtype=dtype)


def tokens(dtype: torch.dtype) -> Tensor:
    """`[T, N, L, C]`."""
    return torch.randn(T, N, 3, FEATURES, dtype=dtype)


def images(dtype: torch.dtype, batch: int = N, steps: int = T) -> Tensor:
    return torch.randn(steps, batch, 3, SIZE, SIZE, dtype=dtype)
