"""From one call of a layer, or of its backward, to pieces of work.

Layers are convolutions (1D, 2D), linear ones, batch normalisation, and neurons. A layer with
``step_mode == "m"`` takes ``[T, N, C, *]``, any other ``[N, C, *]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from snnfx._torch_compat import without_dispatch
from snnfx.op_counter.neuromc import costs
from snnfx.op_counter.neuromc.piece import Bits, Loops, Piece, Process
from snnfx.op_counter.neuron_types import is_neuron
from snnfx.op_counter.spikes import is_binary_tensor

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Stage:
    """What the user said of the work that runs.

    Attributes:
        name: of the stage.
        phase: forward, backward or optimizer.
        reuse_weights: whether the weights are in the cores already.
        batch_norm_backward: whether the backward of a normalisation computes anything.
    """

    name: str = "unlabeled"
    phase: str = "forward"
    reuse_weights: bool = False
    batch_norm_backward: bool = True


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer. Gradients have the shapes of what they are gradients of.

    Attributes:
        module: the layer.
        input_shape: of its first input.
        output_shape: of its first output.
        spikes: whether the input is spikes.
        back_to_input: whether its backward computes the gradient of the input.
    """

    module: nn.Module
    input_shape: torch.Size
    output_shape: torch.Size
    spikes: bool
    back_to_input: bool


LayerRule = Callable[[Stage, LayerCall], list[Piece]]
"""The pieces of a call, or of its backward."""


def is_spikes(value: Tensor) -> bool:
    """Whether all elements are 0 or 1; False without elements, unless they are boolean."""
    if value.dtype == torch.bool:
        return True
    with without_dispatch():
        return value.numel() > 0 and is_binary_tensor(value)


def steps_of(module: nn.Module, shape: torch.Size) -> int:
    """T of what a layer takes or returns; 1 if it takes one step at a time."""
    multi_step = getattr(module, "step_mode", "s") == "m"
    return shape[0] if multi_step and len(shape) > 0 else 1


def weighted_loops(call: LayerCall) -> Loops:
    """The loops of a convolution or linear layer.

    The batch is what is left of the output's elements: any number of leading dimensions, as in
    ``[N, L, C]`` of a linear layer, counts. (SpikingJelly 2.0.0 takes N alone there, and leaves
    out the L products.)
    """
    steps = steps_of(call.module, call.output_shape)
    shape = _sizes_of(call.module, call.output_shape)
    places = steps * shape.channels_out * prod(shape.places)
    return Loops(
        batch=prod(call.output_shape) // places if places else 0,
        steps=steps,
        channels_in=shape.channels_in // shape.groups,
        channels_out=shape.channels_out // shape.groups,
        rows=shape.places[0],
        columns=shape.places[1],
        kernel_rows=shape.kernel[0],
        kernel_columns=shape.kernel[1],
        groups=shape.groups,
    )


@dataclass(frozen=True)
class _Shape:
    channels_in: int
    channels_out: int
    places: tuple[int, int]
    kernel: tuple[int, int]
    groups: int


def _sizes_of(module: Any, output_shape: torch.Size) -> _Shape:
    if isinstance(module, nn.Linear):
        return _Shape(module.in_features, module.out_features, (1, 1), (1, 1), 1)
    return _Shape(
        module.in_channels,
        module.out_channels,
        plane(output_shape[-len(module.kernel_size) :]),
        plane(module.kernel_size),
        module.groups,
    )


def plane(sizes: Iterable[int]) -> tuple[int, int]:
    """One or two sizes as two; a missing one is 1."""
    rows, columns = (*(int(size) for size in sizes), 1)[:2]
    return rows, columns


def map_loops(module: nn.Module | None, shape: torch.Size) -> Loops:
    """The loops over all elements, channels apart: of somas and normalisation."""
    if module is not None and getattr(module, "step_mode", "s") == "m" and len(shape) > 0:
        steps, shape = shape[0], shape[1:]
    else:
        steps = 1
    batch, channels, places = _split(shape)
    return Loops(batch=batch, steps=steps, channels_in=channels, channels_out=channels, rows=places)


def _split(shape: Sequence[int]) -> tuple[int, int, int]:
    """Batch, channels and places of a shape; a single dimension is channels."""
    batch, channels, *places = shape if len(shape) > 1 else (1, *shape, 1)
    return int(batch), int(channels), prod(places)


def weighted_forward(stage: Stage, call: LayerCall) -> list[Piece]:
    """The products of a convolution or a linear layer."""
    weight: Any = call.module.weight
    name, sizes = f"{_kind(call.module)}.forward", (weight.numel(), prod(call.output_shape))
    return [forward_products(stage, name, call.spikes, weighted_loops(call), *sizes)]


def forward_products(
    stage: Stage, name: str, spikes: bool, loops: Loops, weight_numel: int, output_numel: int
) -> Piece:
    """A piece of products with weights, in the forward core for its input."""
    return Piece(
        stage=stage.name,
        phase="forward",
        op_name=name,
        core_type=costs.FORWARD[spikes],
        process_key="with_nothing",
        loops=loops,
        bits=Bits(input=1 if spikes else 16),
        weight_numel=weight_numel,
        output_numel=output_numel,
        macs=loops.macs,
        reuses_weights=stage.reuse_weights,
    )


def norm_forward(stage: Stage, call: LayerCall) -> list[Piece]:
    """Statistics and normalisation of a batch."""
    return [normalisation(stage, call.module, call.input_shape, call.spikes)]


def normalisation(stage: Stage, module: nn.Module | None, shape: torch.Size, spikes: bool) -> Piece:
    """Statistics and normalisation of a batch of some shape."""
    core, loops = costs.NORM_FORWARD[spikes], map_loops(module, shape)
    return _map(stage, "forward", "bn.forward", core, "with_bn", loops)


def soma_forward(stage: Stage, call: LayerCall) -> list[Piece]:
    """Charge, fire and reset of a population."""
    loops, bits = map_loops(call.module, call.output_shape), Bits(output=1)
    return [_map(stage, "forward", "soma.forward", "fp_soma", "with_sg", loops, bits)]


def weighted_backward(stage: Stage, call: LayerCall) -> list[Piece]:
    """The products for the gradients of the input and of the weight, where they are computed."""
    weight: Any = call.module.weight
    loops, kind = weighted_loops(call), _kind(call.module)
    pieces: list[Piece] = []
    if call.back_to_input:
        name, core = f"{kind}.backward.grad_input", costs.INPUT_GRADIENT[call.spikes]
        sizes = weight.numel(), prod(call.input_shape)
        pieces.append(backward_products(stage, name, core, loops, *sizes))
    if weight.requires_grad:
        name, core = f"{kind}.backward.grad_weight", costs.WEIGHT_GRADIENT[call.spikes]
        sizes = prod(call.output_shape), weight.numel()
        pieces.append(backward_products(stage, name, core, loops, *sizes))
    return pieces


def backward_products(
    stage: Stage, name: str, core: str, loops: Loops, weight_numel: int, output_numel: int
) -> Piece:
    """A piece of products for a gradient, in a backward core."""
    return Piece(
        stage=stage.name,
        phase="backward",
        op_name=name,
        core_type=core,
        process_key="with_nothing",
        loops=loops,
        bits=Bits(input=1 if core == costs.WEIGHT_GRADIENT[True] else 16),
        weight_numel=weight_numel,
        output_numel=output_numel,
        macs=loops.macs,
    )


def norm_backward(stage: Stage, call: LayerCall) -> list[Piece]:
    """Backward of a batch normalisation."""
    return [normalisation_backward(stage, call.module, call.output_shape, call.spikes)]


def normalisation_backward(
    stage: Stage, module: nn.Module | None, shape: torch.Size, spikes: bool
) -> Piece:
    """Backward of a normalisation; the stage may say that it computes nothing."""
    core, loops = costs.NORM_BACKWARD[spikes], map_loops(module, shape)
    return _map(stage, "backward", "bn.backward", core, "with_bn", loops)


def soma_backward(stage: Stage, call: LayerCall) -> list[Piece]:
    """Backward of a population through its surrogate gradient."""
    shape = call.input_shape if call.back_to_input else call.output_shape
    loops = map_loops(call.module, shape)
    return [_map(stage, "backward", "soma.backward", "bp_grad", "with_sg", loops)]


def _map(
    stage: Stage,
    phase: Any,
    name: str,
    core: str,
    process: Process,
    loops: Loops,
    bits: Bits | None = None,
) -> Piece:
    is_soma, is_forward = process == "with_sg", phase == "forward"
    return Piece(
        stage=stage.name,
        phase=phase,
        op_name=name,
        core_type=core,
        process_key=process,
        loops=loops,
        bits=bits or Bits(),
        output_numel=prod((loops.batch, loops.steps, loops.channels_out, loops.rows)),
        batch_norm_backward=is_soma or is_forward or stage.batch_norm_backward,
        reuses_weights=is_soma and is_forward and stage.reuse_weights,
    )


def _kind(module: nn.Module) -> str:
    return "linear" if isinstance(module, nn.Linear) else "conv"


@dataclass(frozen=True)
class LayerRules:
    """What a kind of layer makes.

    Attributes:
        covers: whether a module is of the kind.
        forward: its pieces.
        backward: its pieces.
    """

    covers: Callable[[nn.Module], bool]
    forward: LayerRule
    backward: LayerRule


def _is_weighted(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS)


LAYERS = (
    LayerRules(_is_weighted, weighted_forward, weighted_backward),
    LayerRules(_is_norm, norm_forward, norm_backward),
    LayerRules(is_neuron, soma_forward, soma_backward),
)
"""The kinds of layers that the model knows."""


def rules_for(module: nn.Module) -> LayerRules | None:
    """The rules for a layer; None if the model has none for it."""
    return next((rules for rules in LAYERS if rules.covers(module)), None)
