"""Neurons that keep their potential in each of the ways that people write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import snntorch
import torch
from spikingjelly.activation_based import neuron as peer
from torch import Tensor, nn

from snnfx import neurons

from tests.models import Triangle


class Loop(nn.Module):
    """A single-step module over ``[T, N, *]``."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.step(current) for current in x])


class Attribute(nn.Module):
    """Keeps its potential as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.v: Any = 0.0

    def detach(self) -> None:
        self.v = self.v.detach()

    def forward(self, x: Tensor) -> Tensor:
        h = 0.6 * self.v + x
        spike = Triangle.apply(h - 0.5)
        self.v = h * (1 - spike)
        return spike


class Buffer(Attribute):
    """Keeps it as a buffer, which it replaces."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.register_buffer("v", torch.zeros(5, 6))

    def reset(self) -> None:
        self.v = torch.zeros_like(self.v)


class InPlace(Buffer):
    """Keeps it as a buffer, and writes to it."""

    def forward(self, x: Tensor) -> Tensor:
        self.v.mul_(0.6)
        self.v.add_(x)
        spike = Triangle.apply(self.v - 0.5)
        self.v.sub_(0.5 * spike)
        return spike


class Silent(Buffer):
    """Keeps a running mean of its input, which it writes to outside of autograd."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.v.lerp_(x.detach(), 0.3)
        return Triangle.apply(x - self.v)


class Appending(nn.Module):
    """Keeps all of its potentials in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.potentials: list[Tensor] = []

    def reset(self) -> None:
        self.potentials.clear()

    def detach(self) -> None:
        self.potentials[:] = [v.detach() for v in self.potentials]

    def forward(self, x: Tensor) -> Tensor:
        last = self.potentials[-1] if self.potentials else torch.zeros_like(x)
        h = 0.6 * last + x / len([*self.potentials, x])
        spike = Triangle.apply(h - 0.3)
        self.potentials.append(h - 0.3 * spike)
        return spike


class InDictionary(nn.Module):
    """Keeps potential and last spike in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Any] = {"v": 0.0}

    def reset(self) -> None:
        self.memory = {"v": 0.0}

    def detach(self) -> None:
        self.memory["v"] = self.memory["v"].detach()

    def forward(self, x: Tensor) -> Tensor:
        h = 0.6 * self.memory["v"] + x - 0.2 * self.memory.get("spike", 0.0)
        self.memory["spike"] = Triangle.apply(h - 0.4)
        self.memory["v"] = h - 0.4 * self.memory["spike"]
        return self.memory["spike"]


class SNNTorch(nn.Module):
    """snnTorch's leaky neuron, which keeps its potential in a buffer of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky = snntorch.Leaky(beta=0.7, threshold=0.5, init_hidden=True)

    def reset(self) -> None:
        self.leaky.reset_mem()

    def detach(self) -> None:
        self.leaky.mem = self.leaky.mem.detach()

    def forward(self, x: Tensor) -> Tensor:
        return self.leaky(x)


NEURONS: dict[str, Callable[[], nn.Module]] = {
    "lif": lambda: neurons.LIFNode(v_threshold=0.5, step_mode="m"),
    "lif single-step": lambda: Loop(neurons.LIFNode(v_threshold=0.5)),
    "lif v_seq": lambda: neurons.LIFNode(v_threshold=0.5, step_mode="m", store_v_seq=True),
    "lif v_seq single-step": lambda: Loop(neurons.LIFNode(v_threshold=0.5, store_v_seq=True)),
    "if": lambda: neurons.IFNode(v_threshold=0.5, step_mode="m"),
    "plif": lambda: neurons.ParametricLIFNode(v_threshold=0.5, step_mode="m"),
    "spikingjelly lif": lambda: peer.LIFNode(v_threshold=0.5, step_mode="m"),
    "spikingjelly lif v_seq": lambda: peer.LIFNode(
        v_threshold=0.5, step_mode="m", store_v_seq=True
    ),
    "spikingjelly lif single-step": lambda: Loop(peer.LIFNode(v_threshold=0.5)),
    "spikingjelly if": lambda: peer.IFNode(v_threshold=0.5, step_mode="m"),
    "spikingjelly if single-step": lambda: Loop(peer.IFNode(v_threshold=0.5)),
    "spikingjelly plif": lambda: peer.ParametricLIFNode(v_threshold=0.5, step_mode="m"),
    "spikingjelly plif single-step": lambda: Loop(peer.ParametricLIFNode(v_threshold=0.5)),
    "snntorch leaky": lambda: Loop(SNNTorch()),
    "attribute": lambda: Loop(Attribute()),
    "buffer": lambda: Loop(Buffer()),
    "in place": lambda: Loop(InPlace()),
    "silent": lambda: Loop(Silent()),
    "appending": lambda: Loop(Appending()),
    "in a dictionary": lambda: Loop(InDictionary()),
}
"""Each on ``[T, 5, 6]``, with `reset` and `detach` on the module that has the state."""


def reset_all(model: nn.Module) -> None:
    for module in model.modules():
        if callable(getattr(module, "reset", None)):  # snnTorch has a buffer of that name
            module.reset()


def detach_all(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "detach"):
            module.detach()
