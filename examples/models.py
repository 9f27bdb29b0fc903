"""The networks of the benchmarks: plain PyTorch layers with the neurons of snnfx.

Shapes: T time steps, N batch, C channels, H height, W width, L tokens. Every network computes all
T steps in one call, layer by layer; weights and norms see time and batch merged, `[T*N, ...]`.
Each neuron is reset at the end of its layer, so a layer is a pure function of its input, the same
step can be repeated, and a checkpointed layer can be run again.

Weights are random and batch norm keeps the input of each neuron near unit variance, so that every
layer fires from the first step: see `firing_rates`.

Sources: the VGG is SpikingJelly's published memory benchmark (CIFAR10-DVS, T=10); SEW-ResNet is
Fang et al., "Deep residual learning in spiking neural networks", NeurIPS 2021; Spikformer is
Zhou et al., "Spikformer: when spiking neural network meets transformer", ICLR 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfx.neurons import ATan, IFNode, LIFNode


@dataclass(frozen=True)
class Workload:
    """One training step to measure: ``loss_fn(model(*inputs)).backward()``.

    Attributes:
        model: in training mode.
        inputs: the positional arguments of the model.
        loss_fn: takes the model's output, returns a scalar.
        layer_types: the modules that hold one weight-norm-neuron layer each.
        before_step: what the model's user has to call before each step.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    loss_fn: Callable[[Tensor], Tensor]
    layer_types: tuple[type[nn.Module], ...]
    before_step: Callable[[], None]


class SpikingLayer(nn.Module):
    """Pool (optional), weight, norm and neuron, on `[T, N, ...]`."""

    def __init__(
        self, weight: nn.Module, norm: nn.Module, neuron: nn.Module, pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.pool = pool if pool is not None else nn.Identity()
        self.weight = weight
        self.norm = norm
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C, ...]` spikes, sums of spikes or floats to `[T, N, C', ...]` spikes."""
        current = self.norm(self.weight(self.pool(x.flatten(0, 1))))
        spikes = self.neuron(current.unflatten(0, x.shape[:2]))
        self.neuron.reset()
        return spikes


def lif(tau: float = 2.0, threshold: float = 1.0) -> LIFNode:
    """A leaky neuron that unit-variance input makes fire about every fifth step."""
    return LIFNode(
        tau=tau,
        decay_input=False,
        v_threshold=threshold,
        surrogate_function=ATan(),
        detach_reset=True,
        step_mode="m",
    )


def integrate_and_fire() -> IFNode:
    """A neuron without leak, as in SEW-ResNet."""
    return IFNode(surrogate_function=ATan(), detach_reset=True, step_mode="m")


def conv_layer(
    channels_in: int,
    channels: int,
    neuron: nn.Module,
    *,
    kernel: int = 3,
    stride: int = 1,
    pool: nn.Module | None = None,
) -> SpikingLayer:
    """A convolution that keeps H and W at stride 1, with batch norm and `neuron`."""
    weight = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
    return SpikingLayer(weight, nn.BatchNorm2d(channels), neuron, pool)


def scaled(channels: int, width: float) -> int:
    """The number of channels at `width` times the published one, at least 4."""
    return max(4, round(channels * width))


VGG_PLAN = ((64, False), (128, False), (256, True), (256, False)) + ((512, True), (512, False)) * 2
"""Channels of each convolution, and whether average pooling comes before it."""


class SpikingVGG(nn.Module):
    """Eight convolutions and a linear readout; input `[T, N, 2, H, W]`, output `[N, classes]`."""

    def __init__(self, width: float, size: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 2
        for channels, pooled in VGG_PLAN:
            pool = nn.AvgPool2d(2) if pooled else None
            layers.append(
                conv_layer(channels_in, scaled(channels, width), lif(tau=4 / 3), pool=pool)
            )
            channels_in = scaled(channels, width)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.readout = nn.Linear(channels_in * (size // 16) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, 2, H, W]` event frames to `[N, classes]`, the mean over time."""
        spikes = self.features(x)
        pooled = self.pool(spikes.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.readout(self.dropout(pooled.flatten(2))).mean(0)


class SEWBlock(nn.Module):
    """Two spiking layers and a shortcut; what goes on is the sum of their spikes (ADD)."""

    EXPANSION = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = conv_layer(channels_in, channels, integrate_and_fire(), stride=stride)
        self.second = conv_layer(channels, channels, integrate_and_fire())
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = conv_layer(
                channels_in, channels, integrate_and_fire(), kernel=1, stride=stride
            )

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C, H, W]` sums of spikes to the same one level deeper."""
        return self.second(self.first(x)) + self.shortcut(x)


class SEWBottleneck(nn.Module):
    """Three spiking layers, 1x1, 3x3 and 1x1, the last one `EXPANSION` times as wide, and ADD."""

    EXPANSION = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = channels * self.EXPANSION
        self.narrow = conv_layer(channels_in, channels, integrate_and_fire(), kernel=1)
        self.middle = conv_layer(channels, channels, integrate_and_fire(), stride=stride)
        self.widen = conv_layer(channels, wide, integrate_and_fire(), kernel=1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != wide:
            self.shortcut = conv_layer(
                channels_in, wide, integrate_and_fire(), kernel=1, stride=stride
            )

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C, H, W]` sums of spikes to `[T, N, C', H', W']`."""
        return self.widen(self.middle(self.narrow(x))) + self.shortcut(x)


class SEWResNet(nn.Module):
    """SEW-ResNet; the image `[N, 3, H, W]` is the input of every time step.

    Args:
        blocks: number of blocks of the four stages; (2, 2, 2, 2) is SEW-ResNet-18.
        width: factor on all channels.
        steps: T.
        classes: size of the output.
        stem: "imagenet" (7x7 convolution at stride 2 and 3x3 max-pooling) or "cifar" (3x3).
        block: basic or bottleneck blocks.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        width: float,
        steps: int,
        classes: int,
        stem: str,
        block: type[SEWBlock | SEWBottleneck] = SEWBlock,
    ) -> None:
        super().__init__()
        self.steps = steps
        channels = scaled(64, width)
        large = stem == "imagenet"
        kernel, stride = (7, 2) if large else (3, 1)
        self.stem = nn.Conv2d(3, channels, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.neuron = integrate_and_fire()
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        stages: list[nn.Module] = []
        for stage, count in enumerate(blocks):
            for index in range(count):
                wider = scaled(64 * 2**stage, width)
                stages.append(block(channels, wider, 2 if stage and not index else 1))
                channels = wider * block.EXPANSION
        self.stages = nn.Sequential(*stages)
        self.readout = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, classes]`, the mean over time."""
        current = self.norm(self.stem(image))
        spikes = self.neuron(current.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))
        self.neuron.reset()
        x = self.pool(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])
        return self.readout(self.stages(x).mean((3, 4))).mean(0)


def token_layer(channels_in: int, channels: int) -> SpikingLayer:
    """A linear map of each token's channels, with batch norm and a neuron, on `[T, N, C, L]`."""
    weight = nn.Conv1d(channels_in, channels, 1, bias=False)
    return SpikingLayer(weight, nn.BatchNorm1d(channels), lif())


class SpikingAttention(nn.Module):
    """Spiking self attention: queries, keys and values are spikes, and there is no softmax."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = token_layer(channels, channels)
        self.key = token_layer(channels, channels)
        self.value = token_layer(channels, channels)
        self.neuron = lif(threshold=0.25)
        self.project = token_layer(channels, channels)

    def split(self, x: Tensor) -> Tensor:
        """`[T, N, C, L]` to `[T, N, heads, L, C/heads]`."""
        return x.unflatten(2, (self.heads, -1)).transpose(-1, -2)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C, L]` sums of spikes to `[T, N, C, L]` spikes."""
        query, key, value = (self.split(part(x)) for part in (self.query, self.key, self.value))
        # L * C/heads coincidences of three spikes are counted, each a rare event: with this scale
        # the mean does not depend on the sizes, and the neuron fires at the rate of the others.
        scale = 40 / (x.shape[-1] * value.shape[-1])
        mixed = (query @ key.transpose(-1, -2)) @ value * scale
        spikes = self.neuron(mixed.transpose(-1, -2).flatten(2, 3))
        self.neuron.reset()
        return self.project(spikes)


class SpikformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = SpikingAttention(channels, heads)
        self.widen = token_layer(channels, 4 * channels)
        self.narrow = token_layer(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C, L]` sums of spikes to the same one level deeper."""
        x = x + self.attention(x)
        return x + self.narrow(self.widen(x))


class Spikformer(nn.Module):
    """Spikformer for small images; the image `[N, 3, H, W]` is the input of every time step."""

    def __init__(self, channels: int, depth: int, heads: int, steps: int, classes: int) -> None:
        super().__init__()
        self.steps = steps
        eighth = channels // 8
        self.patches = nn.Sequential(
            conv_layer(3, eighth, lif()),
            conv_layer(eighth, 2 * eighth, lif()),
            conv_layer(2 * eighth, 4 * eighth, lif()),
            conv_layer(4 * eighth, channels, lif(), pool=nn.MaxPool2d(2)),
        )
        self.pool = nn.MaxPool2d(2)
        self.position = conv_layer(channels, channels, lif())
        self.blocks = nn.Sequential(*(SpikformerBlock(channels, heads) for _ in range(depth)))
        self.readout = nn.Linear(channels, classes)

    def forward(self, image: Tensor) -> Tensor:
        """`[N, 3, H, W]` to `[N, classes]`, the mean over time."""
        spikes = self.patches(image.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1))
        patches = self.pool(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])
        tokens = (patches + self.position(patches)).flatten(3)
        return self.readout(self.blocks(tokens).mean(-1)).mean(0)


def sew_resnet(
    blocks: tuple[int, ...], block: type[SEWBlock | SEWBottleneck] = SEWBlock
) -> Callable[..., nn.Module]:
    """A builder of SEW-ResNet with that many blocks in each stage."""

    def builder(
        width: float, steps: int, size: int, classes: int, stem: str = "imagenet"
    ) -> nn.Module:
        return SEWResNet(blocks, width, steps, classes, stem, block)

    return builder


def vgg8(width: float, steps: int, size: int, classes: int, dropout: float = 0.0) -> nn.Module:
    """The spiking VGG; any number of steps."""
    return SpikingVGG(width, size, classes, dropout)


def spikformer(
    width: float, steps: int, size: int, classes: int, depth: int = 2, heads: int = 4
) -> nn.Module:
    """Spikformer with 128 channels at width 1."""
    channels = 8 * heads * max(1, round(128 * width / (8 * heads)))
    return Spikformer(channels, depth, heads, steps, classes)


def vgg8_spikingjelly(
    width: float, steps: int, size: int, classes: int, dropout: float = 0.0
) -> nn.Module:
    """The same VGG in SpikingJelly's layers; needs SpikingJelly 2.0.0."""
    from models_spikingjelly import SpikingJellyVGG

    return SpikingJellyVGG(
        [(scaled(c, width), pool) for c, pool in VGG_PLAN], size, classes, dropout
    )


@dataclass(frozen=True)
class Defaults:
    """What a network is built with where the caller names nothing else."""

    build: Callable[..., nn.Module]
    steps: int
    size: int
    channels: int
    timed_input: bool


REGISTRY: dict[str, Defaults] = {
    "vgg8": Defaults(vgg8, 10, 48, 2, True),
    "vgg8_spikingjelly": Defaults(vgg8_spikingjelly, 10, 48, 2, True),
    "sew_resnet18": Defaults(sew_resnet((2, 2, 2, 2)), 4, 64, 3, False),
    "sew_resnet34": Defaults(sew_resnet((3, 4, 6, 3)), 4, 64, 3, False),
    "sew_resnet50": Defaults(sew_resnet((3, 4, 6, 3), SEWBottleneck), 4, 64, 3, False),
    "sew_resnet101": Defaults(sew_resnet((3, 4, 23, 3), SEWBottleneck), 4, 64, 3, False),
    "spikformer": Defaults(spikformer, 4, 32, 3, False),
}


def build(
    name: str,
    *,
    batch: int = 4,
    steps: int | None = None,
    width: float = 1.0,
    size: int | None = None,
    classes: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    **options: Any,
) -> Workload:
    """Build a network with random weights, its input and its loss, all from `seed`.

    Args:
        name: a key of `REGISTRY`.
        batch: N.
        steps: T; None takes the published number.
        width: factor on the number of channels.
        size: H and W of the input; None takes the network's default.
        classes: size of the output.
        seed: of weights, inputs and targets.
        dtype: of weights and inputs.
        device: where all of it lives.
        options: further arguments of the network's builder: `dropout`, `stem`, `depth`, `heads`.

    Raises:
        ValueError: there is no network of that name.
    """
    if name not in REGISTRY:
        raise ValueError(f"no model named '{name}'; there are {', '.join(REGISTRY)}")
    entry = REGISTRY[name]
    steps, size = steps or entry.steps, size or entry.size
    torch.manual_seed(seed)
    model = entry.build(width, steps, size, classes, **options)
    shape = (batch, entry.channels, size, size)
    x = torch.rand((steps, *shape) if entry.timed_input else shape)
    target = torch.randint(classes, (batch,)).to(device)
    model = model.to(device=device, dtype=dtype).train()

    def loss_fn(output: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    inputs = (x.to(device=device, dtype=dtype),)
    layer_types, before_step = _driver(name, model)
    return Workload(model, inputs, loss_fn, layer_types, before_step)


def _driver(name: str, model: nn.Module) -> tuple[tuple[type[nn.Module], ...], Callable[[], None]]:
    """The layer type of the network, and what resets it from outside."""
    if name != "vgg8_spikingjelly":
        return (SpikingLayer,), lambda: None
    from models_spikingjelly import SpikingJellyLayer, reset

    return (SpikingJellyLayer,), lambda: reset(model)


def firing_rates(model: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """Spikes for each neuron and step in one forward pass, by the name of the neuron module."""
    rates: dict[str, float] = {}
    handles = [
        module.register_forward_hook(
            lambda _module, _args, spikes, name=name: rates.__setitem__(name, spikes.mean().item())
        )
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Node")
    ]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return rates
