"""A spiking VGG for the command line: how much memory it needs, and which batch fits.

snnfx plan examples/fit_vgg.py:vgg --batch 4 --plot plan.png
snnfx fit examples/fit_vgg.py:vgg --memory 8GiB
"""

from __future__ import annotations

from torch import Tensor, nn

from models import build


def vgg(batch: int = 4) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The VGG of the benchmarks at half width: T=10, 48x48 event frames."""
    workload = build("vgg8", width=0.5, batch=batch)
    return workload.model, workload.inputs
