"""Random stacks, cut at random places into containers, train as the plain stack does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnfx import neurons

from tests.checkpoint_neurons import Attribute, InPlace, Loop, detach_all, reset_all
from tests.checkpointed import SPIKE_COMPRESSORS, checkpointed, compare, spikes

WIDTH = 6


class Steps(nn.Module):
    """A layer for ``[N, *]`` on ``[T, N, *]``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def strong_linear() -> nn.Module:
    layer = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        layer.weight.mul_(3).add_(0.1)
    return layer


NEURONS: dict[str, Callable[[], nn.Module]] = {
    "if": lambda: neurons.IFNode(v_threshold=0.5, step_mode="m"),
    "lif": lambda: neurons.LIFNode(v_threshold=0.4, step_mode="m", store_v_seq=True),
    "plif": lambda: neurons.ParametricLIFNode(v_threshold=0.4, step_mode="m"),
    "attribute": lambda: Loop(Attribute()),
    "in place": lambda: Loop(InPlace()),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "linear": strong_linear,
    "batch norm": lambda: Steps(nn.BatchNorm1d(WIDTH)),
    "cumulative": lambda: Steps(nn.BatchNorm1d(WIDTH, momentum=None)),
    "dropout": lambda: nn.Dropout(0.3),
    "relu": lambda: nn.Sequential(nn.Softplus(), nn.ReLU(inplace=True)),
    "double": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.2)),
}
LAYERS = NEURONS | OTHERS


@st.composite
def trees(draw: st.DrawFn, first: int, end: int, depth: int = 3) -> Any:
    """A random way to put the layers from `first` to `end` into containers, nested `depth` deep.

    A part is the index of a layer, or a container's compressor, form and parts.
    """
    parts: list[Any] = []
    index = first
    while index < end:
        if depth and draw(st.booleans()):
            stop = draw(st.integers(index + 1, end))
            compressor = draw(st.sampled_from(sorted(SPIKE_COMPRESSORS)))
            form = draw(st.sampled_from(["container", "wrapping", "to_gc_function"]))
            parts.append((compressor, form, draw(trees(index, stop, depth - 1))))
            index = stop
        else:
            parts.append(index)
            index += 1
    return parts


def takes_spikes(part: Any, names: Sequence[str]) -> bool:
    """Whether the first layer of a part gets the spikes that went in, or those of a neuron."""
    while not isinstance(part, int):
        part = part[2][0]
    return part == 0 or names[part - 1] in NEURONS


def build(parts: Any, layers: Sequence[nn.Module], names: Sequence[str]) -> nn.Sequential:
    built: list[nn.Module] = []
    for part in parts:
        if isinstance(part, int):
            built.append(layers[part])
            continue
        compressor, form, inner = part
        held = SPIKE_COMPRESSORS[compressor if takes_spikes(part, names) else "null"]
        built.append(checkpointed(build(inner, layers, names), form, held))
    return nn.Sequential(*built)


def training(carry: bool) -> Callable[..., Any]:
    """Two calls in one graph with the state carried over, or one from a state without history."""

    def step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
        outputs = [model(*inputs)]
        if carry:
            outputs.append(model(*inputs))
        loss(outputs).backward()
        (reset_all if carry else detach_all)(model)
        return outputs

    return step


@given(st.data(), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_a_stack_in_containers_trains_as_the_plain_stack(
    data: st.DataObject, carry: bool, tracked: bool
) -> None:
    names = ["linear"]  # so that there is something to train
    names += data.draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=7))
    parts = data.draw(trees(0, len(names)))
    torch.manual_seed(0)
    layers = [LAYERS[name]() for name in names]
    x = spikes(3, 5, WIDTH).requires_grad_(tracked)
    compare(
        nn.Sequential(*layers),
        lambda model: build(parts, list(model), names),
        [x],
        step=training(carry),
    )
