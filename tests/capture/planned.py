"""Small networks whose plans tile, split and restore, and what is planned for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfx.capture import pipeline
from snnfx.capture.halves import Halves
from snnfx.capture.offline import Capture, _copied, capture
from snnfx.capture.planning import plan_levels
from snnfx.config import Options
from snnfx.neurons import LIFNode
from snnfx.passes.plan.memory_plan import MemoryPlan

import examples.models
from tests.backend import nets
from tests.models import NETS, Workload

LOWERINGS = ("eager", "inductor")
BATCH = 4


def two_weights_in_a_row() -> nn.Module:
    """Between its two layers of neurons, one convolution widens and the next one narrows."""
    pair = nets.Merged(
        nn.Conv2d(nets.CHANNELS, 12, 3, padding=1), nn.Conv2d(12, nets.CHANNELS, 3, padding=1)
    )
    return nn.Sequential(nets.conv(3), nets.lif(), pair, nets.lif(), nets.Readout())


def images() -> Tensor:
    return nets.images(torch.float64, batch=BATCH)


def tokens() -> Tensor:
    """`[T, N, L, C]`."""
    return torch.randn(nets.T, BATCH, 6, nets.FEATURES, dtype=torch.float64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "no norm": (lambda: nets.convolutional(norm=nn.Identity), images),
    "batch norm": (nets.convolutional, images),
    "two weights in a row": (two_weights_in_a_row, images),
    "attention": (lambda: nets.Attention(False), tokens),
}
OTHERS = ("spiking_mlp", "hand_written")
"""Of `tests.models.NETS`."""
NAMES = (*MODELS, *OTHERS)


class Stepwise(nn.Module):
    """Its layers are called once a time step, on images that it pools to half their size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), LIFNode(step_mode="s"))
            for before, after in ((3, 16), (16, 16), (16, 8))
        )
        self.readout = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, 3, H, W]` to `[N, 4]`."""
        for layer in self.layers:
            layer[1].reset()  # type: ignore[index]
        total = x.new_zeros(())
        for spikes in x:
            for index, layer in enumerate(self.layers):
                spikes = F.avg_pool2d(spikes, 2) if index == 2 else spikes
                spikes = layer(3 * spikes)
            total = total + self.readout(spikes.mean((2, 3)))
        return total


def stepwise() -> Workload:
    model, x = Stepwise(), torch.randn(4, BATCH, 3, 16, 16)
    return Workload(model, (x,), torch.sum, (), lambda: None)


LARGER: dict[str, Callable[[], Workload]] = {
    "vgg8": lambda: examples.models.build("vgg8", width=0.125, size=32, steps=4, batch=BATCH),
    "a loop over time": stepwise,
}
"""Whose first layers are so much larger than the others that tiles are what lowers the peak."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model in float64 and training mode, and its input."""
    torch.manual_seed(0)
    if name in MODELS:
        make, data = MODELS[name]
        return make().double().train(), data()
    workload = LARGER[name]() if name in LARGER else NETS[name]()
    return workload.model.double().train(), workload.inputs[0].double()


@cache
def captured(name: str) -> Capture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return capture(*build(name))


@cache
def planned(name: str, lowering: str, **options: Any) -> MemoryPlan:
    """The plan of a network; each is made once."""
    return captured(name).plan(lowering=lowering, **options)


def first_halves(name: str, lowering: str) -> Halves:
    """What level 1 makes of a network, and levels 2 to 4 start from."""
    return halves_of(captured(name), lowering)


def halves_of(own: Capture, lowering: str) -> Halves:
    """What level 1 makes of what was captured."""
    given: list[Halves] = []

    def noted(halves: Halves, options: Options, baseline_bytes: int) -> Any:
        given.append(halves.copy())
        return plan_levels(halves, options, baseline_bytes)

    joint, roles = _copied(own.graph_module, own.roles)
    with mock.patch.object(pipeline, "plan_levels", noted):
        pipeline.partition_joint(joint, roles, Options.parse({"level": 1, "lowering": lowering}))
    (halves,) = given
    return halves


def inputs_of(halves: Halves) -> tuple[list[Tensor], list[Tensor]]:
    """Random inputs of the forward, and random gradients of what it returns."""
    generator = torch.Generator().manual_seed(0)

    def real(fake: Tensor) -> Tensor:
        value = torch.randn(fake.shape, generator=generator, dtype=torch.float64)
        return value.to(fake.dtype).as_strided(fake.shape, fake.stride())

    forward = halves.forward.graph.find_nodes(op="placeholder")
    backward = halves.backward.graph.find_nodes(op="placeholder")
    tangents = backward[len(backward) - halves.tangents :]
    first, second = ([real(n.meta["val"]) for n in ends] for ends in (forward, tangents))
    return first, second


def run_halves(halves: Halves) -> list[Tensor]:
    """Outputs, then gradients, from inputs that are the same for the same ends."""
    inputs, tangents = inputs_of(halves)
    for half in (halves.forward, halves.backward):
        half.graph.lint()
        half.recompile()
    results = halves.forward(*inputs)
    gradients = halves.backward(*results[halves.outputs :], *tangents)
    return [r for r in (*results[: halves.outputs], *gradients) if isinstance(r, Tensor)]
