"""SpikingJelly's NeuroMC as the reference of ours: the same run through both, field by field."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.op_counter import neuromc as peer
from torch import Tensor, nn

from snnfx.op_counter import neuromc
from snnfx.op_counter.neuromc import NeuroMCRuntimeEnergyReport

REPORT_FIELDS = [field.name for field in fields(NeuroMCRuntimeEnergyReport)]
PEER_PROFILER = peer.core.NeuroMCEnergyProfiler

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class Run:
    """What both are given.

    Attributes:
        make: builds the model, from the random state.
        inputs: of the model.
        train: with a backward, of the mean square of the output.
        optimizer: whose step is counted.
        config: memories, from a module with `MemoryHierarchyConfig`.
    """

    make: Callable[[], nn.Module]
    inputs: Tensor
    train: bool = False
    optimizer: MakeOptimizer | None = None
    config: Callable[[ModuleType], Any] = lambda module: module.MemoryHierarchyConfig()

    def report(self, module: ModuleType, **options: Any) -> Any:
        """The report of one of both modules."""
        torch.manual_seed(0)
        model = self.make()
        with torch.no_grad():
            target = torch.zeros_like(model(self.inputs))
        functional.reset_net(model)
        return module.estimate_neuromc_runtime_energy(
            model,
            self.inputs,
            target=target,
            loss_fn=F.mse_loss if self.train else None,
            optimizer=self.optimizer(model.parameters()) if self.optimizer else None,
            memory_config=self.config(module),
            **options,
        )

    def ours(self, **options: Any) -> NeuroMCRuntimeEnergyReport:
        return self.report(neuromc, **options)

    def theirs(self) -> Any:
        return self.report(peer)


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """The places where two nested values differ; floats by more than rounding."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            if key in ours and key in theirs:
                yield from differences(ours[key], theirs[key], f"{where}/{key}")
            else:
                yield f"{where}/{key}: only one has it"
    elif isinstance(ours, list) and len(ours) == len(theirs):
        for position, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(mine, other, f"{where}[{position}]")
    elif ours != (pytest.approx(theirs, rel=1e-9) if isinstance(ours, float) else theirs):
        yield f"{where}: {ours} here, {theirs} there"


def differing(ours: NeuroMCRuntimeEnergyReport, theirs: Any) -> list[str]:
    """Where two reports differ, but for the label of the core, which just ours has."""
    found = [
        place
        for name in REPORT_FIELDS
        for place in differences(getattr(ours, name), getattr(theirs, name), name)
    ]
    return [place for place in found if place != "primitive_counts/core_type: only one has it"]


def conv_net() -> nn.Module:
    """Convolutions, one strided, with normalisation and both kinds of neurons; it fires."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        neuron.LIFNode(v_threshold=0.3),
        nn.Conv2d(4, 20, 3, stride=2, padding=1, bias=False),
        neuron.IFNode(v_threshold=0.1),
        nn.Flatten(),
    )


def multi_step_net() -> nn.Module:
    """All kinds of layers, ``[T, N, 2, 4, 4]`` to ``[T, N, 5]``."""
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1),
        layer.BatchNorm2d(4),
        neuron.IFNode(v_threshold=0.1),
        layer.Conv2d(4, 20, 3),
        neuron.LIFNode(v_threshold=0.1),
        layer.Flatten(),
        layer.Linear(80, 5),
    )
    functional.set_step_mode(net, "m")
    return net


def linear_net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 20), neuron.LIFNode(v_threshold=0.1), nn.Linear(20, 3), neuron.IFNode()
    )


def conv1d_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 18, 3), nn.BatchNorm1d(18), neuron.IFNode(v_threshold=0.2), nn.Conv1d(18, 3, 2)
    )


def images(*leading: int, spikes: bool = False) -> Tensor:
    """Random ``[*leading, 2, 4, 4]``."""
    values = torch.rand(*leading, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return (values > 0.5).float() if spikes else values
