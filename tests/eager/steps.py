"""Networks large enough that fixed costs do not decide, and their layers in real containers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snnfx.checkpointing import GCContainer
from snnfx.compressors import BitSpikeCompressor
from snnfx.eager.replay import Segment
from snnfx.eager.trace import EagerStep, record_step
from snnfx.passes.analysis.value_range import analyse_value_ranges

from examples.measure import measure_memory
from examples.models import SEWResNet, SpikingLayer, build
from tests.models import HandWrittenNet, Workload
from tests.oracles import training_step


def hand_written() -> Workload:
    """A net with own neurons, T=4, N=4, 32x32; its layers are the neurons."""
    torch.manual_seed(0)
    model = HandWrittenNet(width=16)
    target = torch.arange(4)
    return Workload(
        model.train(),
        (torch.randn(4, 4, 3, 32, 32),),
        lambda output: F.cross_entropy(output, target),
        (type(model.nodes[0]),),
        lambda: None,
    )


def vgg() -> Workload:
    """The spiking VGG-8, T=4, N=2, 32x32."""
    return build("vgg8", width=0.25, batch=2, steps=4, size=32)


def vgg_spikingjelly() -> Workload:
    """The same in SpikingJelly's layers."""
    return build("vgg8_spikingjelly", width=0.25, batch=2, steps=4, size=32)


def sew() -> Workload:
    """SEW-ResNet with two stages of one block, T=4, N=4, 24x24."""
    torch.manual_seed(0)
    model = SEWResNet((1, 1), width=0.5, steps=4, classes=5, stem="cifar")
    target = torch.arange(4)
    return Workload(
        model.train(),
        (torch.rand(4, 3, 24, 24),),
        lambda output: F.cross_entropy(output, target),
        (SpikingLayer,),
        lambda: None,
    )


def spikformer() -> Workload:
    """Spikformer with one block, T=4, N=2."""
    return build("spikformer", width=0.25, batch=2, depth=1)


LARGE = [
    vgg,
    sew,
    spikformer,
    hand_written,
    pytest.param(
        vgg_spikingjelly,
        marks=pytest.mark.skipif(
            importlib.util.find_spec("spikingjelly") is None, reason="SpikingJelly is not installed"
        ),
    ),
]

Wrap = Callable[[nn.Module, int | None], nn.Module]


class TorchCheckpoint(nn.Module):
    """PyTorch's own checkpointing around a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor:
        return checkpoint(self.inner, *inputs, use_reentrant=False)


def in_torch_checkpoint(module: nn.Module, bits: int | None) -> nn.Module:
    assert bits is None
    return TorchCheckpoint(module)


def in_container(module: nn.Module, bits: int | None) -> nn.Module:
    assert bits in (None, 1)
    return GCContainer.wrapping(module, BitSpikeCompressor() if bits else None)


def layer_paths(workload: Workload) -> list[str]:
    modules = workload.model.named_modules()
    return [path for path, module in modules if isinstance(module, workload.layer_types)]


def record(workload: Workload, *, keep_saved: bool = False) -> EagerStep:
    workload.before_step()
    return record_step(workload.model, workload.inputs, workload.loss_fn, keep_saved=keep_saved)


def binary_segments(step: EagerStep, paths: list[str]) -> dict[str, Segment]:
    """A segment for each path, with one bit an element where that is proven to hold the input."""
    ranges = analyse_value_ranges(step.graph)
    segments: dict[str, Segment] = {}
    for path in paths:
        encodings = [ranges.encoding(call.inputs[0].node) for call in step.calls_of(path)]
        binary = all(e is not None and (e.bits, e.scale, e.lo) == (1, 1, 0) for e in encodings)
        segments[path] = Segment(path, 1 if binary else None)
    return segments


def wrap_segments(model: nn.Module, segments: dict[str, Segment], wrap: Wrap) -> None:
    """Put each segment's module into a container, in place."""
    for path, segment in segments.items():
        parent, _, name = path.rpartition(".")
        inner = wrap(model.get_submodule(path), segment.packed_bits)
        setattr(model.get_submodule(parent), name, inner)


def measured_bytes(workload: Workload) -> int:
    """Activation memory of a training step after one warm-up, in bytes (CPU).

    State of neurons is let go of before: the profiler may take the release of a block that is
    older than itself for that of another one, which it has seen at the same address.
    """
    step = training_step(workload)
    step()
    workload.before_step()
    return measure_memory(step, workload.model, workload.inputs).activation_bytes


def is_near(found: int, expected: int, relative: float, absolute: int = 0) -> bool:
    return abs(found - expected) <= relative * expected + absolute
