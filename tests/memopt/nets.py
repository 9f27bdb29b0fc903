"""Networks of which `memory_optimization` wraps the layers, each with its layer types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from snnfx.base import MemoryModule
from snnfx.neurons import IFNode, LIFNode

from examples.models import SEWBlock, SpikformerBlock, SpikingLayer
from tests import models
from tests.models import HandWrittenNode, Workload

SPLITS = ("spatial_split", "temporal_split", "unwrap")


@dataclass(frozen=True)
class Case:
    """A network, and what level 4 does to it.

    Attributes:
        make: the same network each time, weights and inputs too.
        done: those of `SPLITS` that happen at least once.
    """

    make: Callable[[], Workload]
    done: frozenset[str]


class LinearLayer(nn.Module):
    """Weights, dropout and a neuron that keeps its state, on `[T, N, C]`."""

    def __init__(self, channels_in: int, channels: int, neuron: nn.Module, drop: float = 0.0):
        super().__init__()
        self.weight = nn.Linear(channels_in, channels)
        self.dropout = nn.Dropout(drop) if drop else nn.Identity()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.dropout(3.0 * self.weight(x)))


def detach(model: nn.Module) -> None:
    """Carry the state of neurons on to the next step, but not their history."""
    functional.detach_net(model)
    for module in model.modules():
        if isinstance(module, MemoryModule):
            module.detach()


def workload(
    model: nn.Module,
    x: Tensor,
    *types: type[nn.Module],
    reset: Callable[[nn.Module], None] = detach,
) -> Workload:
    """A workload whose loss no symmetry hides anything from."""

    def loss_fn(output: Tensor) -> Tensor:
        return (output * torch.arange(1.0, output.numel() + 1).view_as(output)).square().mean()

    return Workload(model.train(), (x,), loss_fn, types, lambda: reset(model))


def of_types(make: Callable[[], Workload], *types: type[nn.Module]) -> Callable[[], Workload]:
    """The same workload with other layer types."""
    return lambda: replace(make(), layer_types=types)


def linear_layers(drop: float = 0.0) -> Workload:
    """Layers that can run in chunks, T=6, N=32, in double precision."""
    torch.manual_seed(0)
    sizes = (8, 32, 16)
    nodes = (LIFNode(decay_input=False, step_mode="m"), IFNode(step_mode="m"))
    layers = [
        LinearLayer(a, b, node, drop)
        for a, b, node in zip(sizes[:-1], sizes[1:], nodes, strict=True)
    ]
    model = nn.Sequential(*layers, nn.Linear(16, 3)).double()
    return workload(model, torch.rand(6, 32, 8, dtype=torch.float64), LinearLayer)


class JellyLayer(nn.Module):
    """SpikingJelly's way to run layers without time, and one of its neurons."""

    def __init__(self, channels_in: int, channels: int, neuron: nn.Module) -> None:
        super().__init__()
        self.weight = layer.SeqToANNContainer(
            nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels)
        )
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(self.weight(x))


def jelly_layers() -> Workload:
    """SpikingJelly's neurons of three kinds, its dropout and its pooling; the state is carried."""
    torch.manual_seed(0)
    options = {"surrogate_function": surrogate.ATan(), "step_mode": "m"}
    model = nn.Sequential(
        JellyLayer(2, 6, neuron.IFNode(**options)),
        JellyLayer(6, 6, neuron.LIFNode(tau=4 / 3, decay_input=False, **options)),
        layer.Dropout(0.2, step_mode="m"),
        layer.MaxPool2d(2, step_mode="m"),
        JellyLayer(6, 4, neuron.ParametricLIFNode(decay_input=False, detach_reset=True, **options)),
    )
    return workload(model, torch.rand(4, 2, 2, 6, 6), JellyLayer)


def _case(make: Callable[[], Workload], *done: str) -> Case:
    return Case(make, frozenset(done))


CASES: dict[str, Case] = {
    "vgg": _case(models.vgg_small, "spatial_split", "unwrap"),
    "sew": _case(of_types(models.sew_small, SpikingLayer), "unwrap"),
    "sew_blocks": _case(of_types(models.sew_small, SEWBlock), "spatial_split"),
    "spikformer": _case(models.spikformer_small, "spatial_split", "unwrap"),
    "spikformer_blocks": _case(
        of_types(models.spikformer_small, SpikingLayer, SpikformerBlock), "unwrap"
    ),
    "hand_written": _case(of_types(models.hand_written, HandWrittenNode), "unwrap"),
    "dropout": _case(lambda: linear_layers(drop=0.3), *SPLITS),
    "chunks": _case(linear_layers, "temporal_split"),
    "jelly_vgg": _case(models.vgg_spikingjelly_small, "spatial_split"),
    "jelly_layers": _case(jelly_layers, "spatial_split", "unwrap"),
}
