"""The VGG of the benchmarks in SpikingJelly's own layers; imported only where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn


class SpikingJellyLayer(nn.Module):
    """Pool (optional), convolution, batch norm and LIF neuron, all in multi-step mode."""

    def __init__(self, channels_in: int, channels: int, pooled: bool) -> None:
        super().__init__()
        pool = [layer.AvgPool2d(2, step_mode="m")] if pooled else []
        self.project = nn.Sequential(
            *pool,
            layer.Conv2d(channels_in, channels, 3, padding=1, bias=False, step_mode="m"),
            layer.BatchNorm2d(channels, step_mode="m"),
        )
        self.neuron = neuron.LIFNode(
            tau=4 / 3,
            decay_input=False,
            surrogate_function=surrogate.ATan(),
            detach_reset=True,
            step_mode="m",
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C, H, W]` to `[T, N, C', H', W']` spikes."""
        return self.neuron(self.project(x))


class SpikingJellyVGG(nn.Module):
    """Input `[T, N, 2, H, W]`, output `[N, classes]`; `reset` must be called before each step.

    Args:
        plan: channels of each convolution, and whether average pooling comes before it.
        size: H and W.
        classes: size of the output.
        dropout: probability of dropping a pooled feature before the readout.
    """

    def __init__(
        self, plan: Sequence[tuple[int, bool]], size: int, classes: int, dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 2
        for channels, pooled in plan:
            layers.append(SpikingJellyLayer(channels_in, channels, pooled))
            channels_in = channels
        self.features = nn.Sequential(*layers, layer.AvgPool2d(2, step_mode="m"))
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(channels_in * (size // 16) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, 2, H, W]` event frames to `[N, classes]`, the mean over time."""
        return self.readout(self.dropout(self.features(x).flatten(2))).mean(0)


def reset(model: nn.Module) -> None:
    """Set the state of every SpikingJelly neuron back to its start."""
    functional.reset_net(model)
