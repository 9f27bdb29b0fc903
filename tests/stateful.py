"""Small stateful modules for the tests of `snnfx.base`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from snnfx import base


class Counter(base.MemoryModule):
    """Counts its steps and scales its input."""

    def __init__(self, start: Any = 0.0) -> None:
        super().__init__()
        self.register_memory("count", start)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def single_step_forward(self, x: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        self.count = self.count + 1
        return x * self.scale * self.count + shift


class Integrator(base.MemoryModule):
    """Two inputs, two outputs, two memories; the gradient flows through the state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("total", torch.zeros(3))
        self.register_memory("last", None)

    def single_step_forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.total = self.total * 0.5 + x * y
        self.last = y
        return self.total.tanh(), x - y
