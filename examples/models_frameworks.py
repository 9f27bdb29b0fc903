"""Networks of SpikingJelly, snnTorch, Norse and Sinabs, written as their users write them.

SpikingJelly's are built from its own model files. Each comes in three sizes: `tiny` for tests,
`small` for a benchmark of a minute a network on two cores, and `full` as published, for a machine
with memory. Shapes: T time steps, N batch, C channels, H height, W width.

A network makes all its spikes from the first step: weights are random, and scaled where the
frameworks' own initialisation would leave deep layers silent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sinabs
import snntorch
import torch
import torch.nn.functional as F
from sinabs.activation import SingleSpike
from sinabs.layers import IAFSqueeze, LIFSqueeze
from snntorch import surrogate as snntorch_surrogate
from snntorch import utils as snntorch_utils
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from models import Workload
from torchvision_stand_in import stand_in_for_torchvision

stand_in_for_torchvision()

with warnings.catch_warnings():  # of torch.jit, while it is imported
    warnings.simplefilter("ignore", DeprecationWarning)
    import norse.torch as norse

from spikingjelly.activation_based.model.qkformer import QKFormer  # noqa: E402
from spikingjelly.activation_based.model.sew_resnet import BasicBlock, SEWResNet  # noqa: E402
from spikingjelly.activation_based.model.spike_driven_transformer import (  # noqa: E402
    SpikeDrivenTransformer,
)
from spikingjelly.activation_based.model.spikformer import Spikformer  # noqa: E402
from spikingjelly.activation_based.model.spiking_vgg import SpikingVGG  # noqa: E402

CLASSES = 10
LIVELY = 2.0  # a factor on the input of each neuron, so that deep neurons fire in the first steps


@dataclass(frozen=True)
class Scale:
    """How large a network is.

    Attributes:
        width: channels of its first or only stage.
        depth: blocks; stages of a VGG or ResNet; elsewhere, convolutions.
        steps: T.
        batch: N.
        size: H and W of the input.
    """

    width: int
    depth: int
    steps: int
    batch: int
    size: int


@dataclass(frozen=True)
class Framework:
    """How to build a network, and at which sizes.

    Attributes:
        build: makes the model.
        timed_input: whether the input has a time dimension, `[T, N, C, H, W]`.
        channels: C of the input.
        reset: what a user calls with the model before each step.
    """

    build: Callable[[Scale], nn.Module]
    tiny: Scale
    small: Scale
    full: Scale
    timed_input: bool = True
    channels: int = 3
    reset: Callable[[nn.Module], None] = functional.reset_net


def _lif(**options: Any) -> dict[str, Any]:
    return {
        "spiking_neuron": neuron.LIFNode,
        "surrogate_function": surrogate.ATan(),
        "detach_reset": True,
        **options,
    }


def _lively(model: nn.Module) -> nn.Module:
    functional.set_step_mode(model, "m")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.fill_(LIVELY)
            elif isinstance(module, nn.Linear):
                module.weight.mul_(LIVELY)
    return model


class VGG(SpikingVGG):
    """SpikingJelly's VGG with a readout for small images, not one of half a gigabyte."""

    def __init__(self, scale: Scale) -> None:
        nn.Module.__init__(self)
        plan: list[int | str] = []
        for stage in range(scale.depth):
            channels = scale.width << min(stage, 3)
            plan += [channels] * (1 if stage < 2 else 2) + ["M"]
        neurons = _lif()
        neurons["neuron"] = neurons.pop("spiking_neuron")
        self.features = self.make_layers(plan, True, **neurons)
        self.avgpool = layer.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            layer.Linear(4 * channels, 2 * channels),
            neuron.LIFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
            layer.Dropout(),
            layer.Linear(2 * channels, CLASSES),
        )


def spikingjelly_vgg(scale: Scale) -> nn.Module:
    """Convolution, batch norm, LIF, max-pooling; linear, LIF, dropout."""
    return _lively(VGG(scale))


def spikingjelly_sew_resnet(scale: Scale) -> nn.Module:
    """SEW-ResNet with `depth` blocks in each of four stages; its width is the published one."""
    return _lively(
        SEWResNet(BasicBlock, [scale.depth] * 4, num_classes=CLASSES, cnf="ADD", **_lif())
    )


def spikingjelly_spikformer(scale: Scale) -> nn.Module:
    """Spikformer, on images."""
    return _lively(
        Spikformer(
            T=scale.steps, img_size_h=scale.size, img_size_w=scale.size, patch_size=4,
            num_classes=CLASSES, embed_dims=scale.width, num_heads=max(2, scale.width // 48),
            depths=scale.depth,
        )
    )  # fmt: skip


def spikingjelly_qkformer(scale: Scale) -> nn.Module:
    """QKFormer, on images: Q-K attention in two stages, self-attention in the third."""
    heads = max(2, scale.width // 64)
    return _lively(
        QKFormer(
            T=scale.steps, num_classes=CLASSES, embed_dims=scale.width,
            num_heads=(heads,) * 3, depths=(1, 1, scale.depth),
        )
    )  # fmt: skip


def spikingjelly_spike_driven_transformer(scale: Scale) -> nn.Module:
    """A spike-driven transformer, on images."""
    return _lively(
        SpikeDrivenTransformer(
            T=scale.steps, num_classes=CLASSES, embed_dims=scale.width,
            num_heads=max(2, scale.width // 48), depths=scale.depth,
        )
    )  # fmt: skip


def _stages(scale: Scale) -> list[tuple[int, int, bool]]:
    """`depth` convolutions: channels in, channels, and whether a pooling comes after the neuron."""
    plan: list[tuple[int, int, bool]] = []
    channels_in = 2
    for index in range(scale.depth):
        channels = scale.width << min(index // 2, 2)
        plan.append((channels_in, channels, index % 2 == 1))
        channels_in = channels
    return plan


def _features(scale: Scale) -> int:
    """How many numbers a sample has after all convolutions."""
    pools = sum(pooled for *_, pooled in _stages(scale))
    return _stages(scale)[-1][1] * (scale.size >> pools) ** 2


def _convolution(channels_in: int, channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels_in, channels, 3, padding=1)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
    with torch.no_grad():
        convolution.weight.mul_(LIVELY)
    return convolution


class SNNTorchNet(nn.Module):
    """Convolutions with `Leaky` neurons that keep their states, and a loop over time in forward."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        gradient = snntorch_surrogate.fast_sigmoid(slope=25)
        self.layers = nn.ModuleList()
        for channels_in, channels, pooled in _stages(scale):
            leaky = snntorch.Leaky(beta=0.7, threshold=1, spike_grad=gradient, init_hidden=True)
            pool = [nn.MaxPool2d(2)] if pooled else []
            self.layers.append(nn.Sequential(_convolution(channels_in, channels), leaky, *pool))
        self.readout = nn.Linear(_features(scale), CLASSES)
        self.integrator = snntorch.Leaky(beta=0.9, init_hidden=True, output=True, learn_beta=True)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, 2, H, W]` to the mean potential, `[N, classes]`."""
        snntorch_utils.reset(self)
        potentials: list[Tensor] = []
        for spikes in x:
            for stage in self.layers:
                spikes = stage(spikes)
            _, potential = self.integrator(self.readout(spikes.flatten(1)))
            potentials.append(potential)
        return torch.stack(potentials).mean(0)


class NorseNet(nn.Module):
    """Convolutions with LIF cells in a `SequentialState`, called for each time step."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        neuron = norse.LIFParameters(v_th=torch.tensor(0.1), method="super", alpha=10.0)
        layers: list[nn.Module] = []
        for channels_in, channels, pooled in _stages(scale):
            layers += [_convolution(channels_in, channels), norse.LIFCell(p=neuron)]
            layers += [nn.MaxPool2d(2)] if pooled else []
        layers += [nn.Flatten(), nn.Linear(_features(scale), CLASSES), norse.LICell()]
        self.body = norse.SequentialState(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, 2, H, W]` to the last potential, `[N, classes]`."""
        state, potential = None, x.new_zeros(())
        for frame in x:
            potential, state = self.body(frame, state)
        return potential


class SinabsNet(nn.Module):
    """Convolutions with Sinabs's squeezing layers, which see batch and time merged."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        options = {"batch_size": scale.batch, "spike_fn": SingleSpike, "min_v_mem": -1.0}
        layers: list[nn.Module] = []
        for index, (channels_in, channels, pooled) in enumerate(_stages(scale)):
            leaky = LIFSqueeze(tau_mem=10.0, norm_input=False, **options)
            layers += [_convolution(channels_in, channels)]
            layers += [leaky if index else IAFSqueeze(**options)]
            layers += [nn.AvgPool2d(2)] if pooled else []
        layers += [nn.Flatten(), nn.Linear(_features(scale), CLASSES)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, 2, H, W]` to the mean over time, `[N, classes]`."""
        batch_first = x.transpose(0, 1)
        output = self.body(batch_first.flatten(0, 1))
        return output.unflatten(0, batch_first.shape[:2]).mean(1)


def _nothing(model: nn.Module) -> None:
    del model


def _reset_sinabs(model: nn.Module) -> None:
    sinabs.reset_states(model)
    sinabs.zero_grad(model)


_IMAGES = {"timed_input": False}
_EVENTS = {"channels": 2}
FRAMEWORKS: dict[str, Framework] = {
    "spikingjelly_vgg": Framework(
        spikingjelly_vgg, Scale(8, 2, 3, 2, 8), Scale(32, 4, 10, 4, 32), Scale(64, 5, 10, 32, 48)
    ),
    "spikingjelly_sew_resnet": Framework(
        spikingjelly_sew_resnet,
        Scale(64, 1, 3, 2, 32), Scale(64, 2, 4, 4, 64), Scale(64, 2, 4, 32, 224),
    ),
    "spikingjelly_spikformer": Framework(
        spikingjelly_spikformer,
        Scale(16, 1, 3, 2, 16), Scale(96, 4, 4, 4, 32), Scale(384, 4, 4, 32, 32), **_IMAGES,
    ),
    "spikingjelly_qkformer": Framework(
        spikingjelly_qkformer,
        Scale(16, 1, 3, 2, 16), Scale(96, 2, 4, 4, 32), Scale(384, 7, 4, 32, 224), **_IMAGES,
    ),
    "spikingjelly_spike_driven_transformer": Framework(
        spikingjelly_spike_driven_transformer,
        Scale(16, 1, 3, 2, 16), Scale(96, 2, 4, 4, 32), Scale(384, 8, 4, 32, 224), **_IMAGES,
    ),
    "snntorch": Framework(
        SNNTorchNet,
        Scale(8, 3, 4, 2, 8), Scale(16, 8, 10, 4, 32), Scale(32, 8, 25, 32, 64),
        reset=_nothing, **_EVENTS,
    ),
    "norse": Framework(
        NorseNet,
        Scale(8, 3, 4, 2, 8), Scale(16, 8, 10, 4, 32), Scale(32, 8, 32, 32, 64),
        reset=_nothing, **_EVENTS,
    ),
    "sinabs": Framework(
        SinabsNet,
        Scale(8, 3, 4, 2, 8), Scale(16, 8, 10, 4, 32), Scale(32, 8, 32, 32, 64),
        reset=_reset_sinabs, **_EVENTS,
    ),
}  # fmt: skip


def build_framework(name: str, size: str = "small", seed: int = 0) -> Workload:
    """Build a network of `FRAMEWORKS` with its input, loss and reset, all from `seed`.

    Args:
        name: a key of `FRAMEWORKS`.
        size: `tiny`, `small` or `full`.
        seed: of weights, inputs and targets.
    """
    torch.manual_seed(seed)
    entry = FRAMEWORKS[name]
    scale: Scale = getattr(entry, size)
    model = entry.build(scale).train()
    shape = (scale.batch, entry.channels, scale.size, scale.size)
    x = torch.rand((scale.steps, *shape) if entry.timed_input else shape)
    target = torch.randint(CLASSES, (scale.batch,))

    def loss_fn(output: Tensor) -> Tensor:
        logits = output.mean(0) if output.ndim == 3 else output
        return F.cross_entropy(logits, target)

    return Workload(model, (x,), loss_fn, (), lambda: entry.reset(model))
