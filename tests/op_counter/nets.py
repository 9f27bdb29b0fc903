"""The networks whose operations tests count: SpikingJelly's own model files, snnTorch, Norse, ours.

`NETS` maps a name to a builder of a `Net`, small, with random weights, on which neurons fire.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import snntorch
import torch
import torch.nn.functional as F
from snntorch import surrogate as snntorch_surrogate
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from tests.framework_stubs import stand_in_for_torchvision
from tests.models import NETS as OUR_NETS

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

STEPS, BATCH = 3, 2
LIVELY = 4.0  # on the scale of the weights, so that deep neurons fire in the first steps


@dataclass(frozen=True)
class Net:
    """A model, and how to call it.

    Attributes:
        model: in training mode.
        inputs: its positional arguments.
        reset: what its user calls before each step.
    """

    model: nn.Module
    inputs: tuple[Tensor, ...]
    reset: Callable[[], None]

    def forward(self) -> Tensor:
        """The output, from a fresh state."""
        self.reset()
        output = self.model(*self.inputs)
        return output[0] if isinstance(output, tuple) else output

    def step(self) -> None:
        """A forward and a backward, from a fresh state."""
        loss_of(self.forward()).backward()


def loss_of(output: Tensor) -> Tensor:
    """A number to differentiate, of any output with classes as the last dimension."""
    logits = output.flatten(0, -2)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def _lif(**options: Any) -> dict[str, Any]:
    return {
        "spiking_neuron": neuron.LIFNode,
        "surrogate_function": surrogate.ATan(),
        "detach_reset": True,
        **options,
    }


def _of_spikingjelly(model: nn.Module, x: Tensor) -> Net:
    functional.set_step_mode(model, "m")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.fill_(LIVELY)
            elif isinstance(module, nn.Linear):
                module.weight.mul_(LIVELY)
    return Net(model.train(), (x,), lambda: functional.reset_net(model))


class NarrowVGG(SpikingVGG):
    """SpikingJelly's VGG with a readout that is not half a gigabyte."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.features = self.make_layers([8, "M", 16, 16, "M"], True, **_own_neuron())
        self.avgpool = layer.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            layer.Linear(64, 24), neuron.IFNode(), layer.Dropout(), layer.Linear(24, 5)
        )


def _own_neuron() -> dict[str, Any]:
    options = _lif()
    return {"neuron": options.pop("spiking_neuron"), **options}


def spikingjelly_vgg() -> Net:
    """Conv, batch norm, LIF, max-pooling, linear, dropout, on `[T, N, 3, 12, 12]`."""
    return _of_spikingjelly(NarrowVGG(), torch.rand(STEPS, BATCH, 3, 12, 12))


def spikingjelly_sew_resnet() -> Net:
    """SEW-ResNet with one block a stage, on `[T, N, 3, 32, 32]`."""
    model = SEWResNet(BasicBlock, [1, 1, 1, 1], num_classes=5, cnf="ADD", **_lif())
    return _of_spikingjelly(model, torch.rand(STEPS, BATCH, 3, 32, 32))


def spikingjelly_spikformer() -> Net:
    """Spikformer with one block of 16 channels, on images `[N, 3, 16, 16]`."""
    model = Spikformer(
        T=STEPS, img_size_h=16, img_size_w=16, patch_size=4, num_classes=5,
        embed_dims=16, num_heads=2, depths=1,
    )  # fmt: skip
    return _of_spikingjelly(model, torch.rand(BATCH, 3, 16, 16))


def spikingjelly_qkformer() -> Net:
    """QKFormer with one block a stage, on images `[N, 3, 16, 16]`."""
    model = QKFormer(
        T=STEPS, num_classes=5, embed_dims=16, num_heads=(2, 2, 2), depths=(1, 1, 1)
    )  # fmt: skip
    return _of_spikingjelly(model, torch.rand(BATCH, 3, 16, 16))


def spikingjelly_spike_driven_transformer() -> Net:
    """A spike-driven transformer with one block, on images `[N, 3, 16, 16]`."""
    model = SpikeDrivenTransformer(T=STEPS, num_classes=5, embed_dims=16, num_heads=2, depths=1)
    return _of_spikingjelly(model, torch.rand(BATCH, 3, 16, 16))


class SNNTorchNet(nn.Module):
    """Convolution, Leaky, max-pooling, linear, Synaptic: a loop over time in the user's code."""

    def __init__(self) -> None:
        super().__init__()
        grad = snntorch_surrogate.atan()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.leaky = snntorch.Leaky(beta=0.8, spike_grad=grad, learn_beta=True)
        self.pool = nn.MaxPool2d(2)
        self.readout = nn.Linear(6 * 16, 5)
        self.synaptic = snntorch.Synaptic(alpha=0.8, beta=0.7, spike_grad=grad)

    def forward(self, x: Tensor) -> Tensor:
        leaky = self.leaky.reset_mem()
        current, membrane = self.synaptic.reset_mem()
        potentials: list[Tensor] = []
        for frame in x:
            spikes, leaky = self.leaky(4 * self.conv(frame), leaky)
            features = self.readout(self.pool(spikes).flatten(1))
            _, current, membrane = self.synaptic(features, current, membrane)
            potentials.append(membrane)
        return torch.stack(potentials)


def snntorch_net() -> Net:
    """A convolutional net of snnTorch, on `[T, N, 2, 8, 8]`."""
    return Net(SNNTorchNet().train(), (torch.rand(STEPS, BATCH, 2, 8, 8),), lambda: None)


class NorseNet(nn.Module):
    """Convolution, LIF, average pooling, linear, leaky integrator, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.body = norse.SequentialState(
            nn.Conv2d(2, 6, 3),
            norse.LIFCell(p=norse.LIFParameters(v_th=torch.tensor(0.2))),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(6 * 9, 12),
            norse.LIFBoxCell(p=norse.LIFBoxParameters(v_th=torch.tensor(0.02))),
            norse.LILinearCell(12, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        state = None
        outputs: list[Tensor] = []
        for frame in x:
            output, state = self.body(8 * frame, state)
            outputs.append(output)
        return torch.stack(outputs)


def norse_net() -> Net:
    """A convolutional net of Norse, on `[T, N, 2, 8, 8]`."""
    return Net(NorseNet().train(), (torch.rand(2 * STEPS, BATCH, 2, 8, 8),), lambda: None)


def _ours(name: str) -> Callable[[], Net]:
    def build() -> Net:
        work = OUR_NETS[name]()
        return Net(work.model, work.inputs, work.before_step)

    return build


BUILDERS: dict[str, Callable[[], Net]] = {
    "spikingjelly_vgg": spikingjelly_vgg,
    "spikingjelly_sew_resnet": spikingjelly_sew_resnet,
    "spikingjelly_spikformer": spikingjelly_spikformer,
    "spikingjelly_qkformer": spikingjelly_qkformer,
    "spikingjelly_spike_driven_transformer": spikingjelly_spike_driven_transformer,
    "snntorch": snntorch_net,
    "norse": norse_net,
    **{f"ours_{name}": _ours(name) for name in OUR_NETS},
}


def build(name: str) -> Net:
    """A network of `BUILDERS`, always with the same weights and inputs."""
    torch.manual_seed(0)
    return BUILDERS[name]()
