"""Programs of a spiking layer, and tensors to run them on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from snnfx.kernels.region_build import compile_program
from snnfx.kernels.region_ir import (
    Buffer,
    ChannelSum,
    Compute,
    Constant,
    Instruction,
    Load,
    Program,
    Store,
)
from snnfx.kernels.region_layout import Layout
from snnfx.kernels.region_ops import operation


class Builder:
    """Appends instructions; every method returns the id of the value it made."""

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.dtypes: list[torch.dtype | None] = []

    def emit(self, instruction: Instruction, dtype: torch.dtype | None = None) -> int:
        self.instructions.append(instruction)
        self.dtypes.append(dtype)
        return len(self.instructions) - 1

    def load(self, buffer: int, step: int, dtype: torch.dtype) -> int:
        value = torch.float32 if dtype == torch.bfloat16 else dtype
        return self.emit(Load(buffer, step), value)

    def constant(self, value: float, dtype: torch.dtype) -> int:
        return self.emit(Constant(value, dtype), dtype)

    def op(self, name: str, *args: int, dtype: torch.dtype | None = None) -> int:
        result = torch.bool if operation(name).result == "bool" else dtype or self.dtypes[args[-1]]
        assert result is not None
        return self.emit(Compute(name, args, result), result)

    def store(self, output: int, step: int, value: int) -> None:
        self.emit(Store(output, step, value))

    def channel_sum(self, output: int, value: int) -> None:
        self.emit(ChannelSum(output, value))

    def program(
        self, inputs: Sequence[torch.dtype], outputs: Sequence[torch.dtype], rank: int
    ) -> Program:
        return Program(
            tuple(Buffer(dtype) for dtype in inputs),
            tuple(Buffer(dtype) for dtype in outputs),
            rank,
            tuple(self.instructions),
        )


def layout_of(view: torch.Tensor) -> Layout:
    """The layout of a view ``[steps, *base]``."""
    return view.stride(0), tuple(view.stride()[1:])


DECAY, THRESHOLD = 0.5, 1.0


def _normalise(b: Builder, steps: int, dtype: torch.dtype) -> tuple[list[int], list[int]]:
    """Normalised x and y of each step, from inputs 0 (x) and 1 to 4 (mean, rstd, weight, bias)."""
    mean, rstd, weight, bias = (b.load(i, 0, dtype) for i in (1, 2, 3, 4))
    hats = [b.op("mul", b.op("sub", b.load(0, t, dtype), mean), rstd) for t in range(steps)]
    return hats, [b.op("add", b.op("mul", x, weight), bias) for x in hats]


def _charge(b: Builder, v: int, y: int, decay: int) -> int:
    return b.op("add", v, b.op("mul", b.op("sub", y, v), decay))


def lif_forward(steps: int, dtype: torch.dtype = torch.float32) -> Program:
    """Batch norm and a leaky integrate-and-fire neuron with hard reset.

    Inputs: x ``[T, N, C, H, W]``; mean, rstd, weight, bias by channel. Outputs: spikes, as floats
    and packed along time.
    """
    b = Builder()
    _, ys = _normalise(b, steps, dtype)
    decay, threshold = b.constant(DECAY, dtype), b.constant(THRESHOLD, dtype)
    zero, v = b.constant(0.0, dtype), b.constant(0.0, dtype)
    byte = b.constant(0, torch.uint8)
    for t, y in enumerate(ys):
        h = _charge(b, v, y, decay)
        spike = b.op("ge", h, threshold)
        b.store(0, t, b.op("cast", spike, dtype=dtype))
        v = b.op("where", spike, zero, h)
        bit = b.op("cast", spike, dtype=torch.uint8)
        byte = b.op("bitwise_or", byte, b.op("shift_left", bit, b.constant(t % 8, torch.uint8)))
        if t % 8 == 7 or t == steps - 1:
            b.store(1, t // 8, byte)
            byte = b.constant(0, torch.uint8)
    return b.program([dtype] * 5, [dtype, torch.uint8], 4)


def lif_backward(steps: int, dtype: torch.dtype = torch.float32) -> Program:
    """Backward through time of `lif_forward`, with an ATan surrogate and spikes from bits.

    Inputs: as `lif_forward`, then the spikes' gradient ``[T, N, C, H, W]`` and the packed spikes.
    Outputs: gradient of y ``[T, N, C, H, W]``; its sum, and that of it times xhat, by channel.
    """
    b = Builder()
    hats, ys = _normalise(b, steps, dtype)
    decay, threshold = b.constant(DECAY, dtype), b.constant(THRESHOLD, dtype)
    keep, zero, v = b.constant(1 - DECAY, dtype), b.constant(0.0, dtype), b.constant(0.0, dtype)
    scale, one = b.constant(3.14159265 / 2 * 2.0, dtype), b.constant(1.0, dtype)
    bit_one, charges, spikes = b.constant(1, torch.uint8), list[int](), list[int]()
    for t, y in enumerate(ys):
        charges.append(_charge(b, v, y, decay))
        byte, position = b.load(6, t // 8, torch.uint8), b.constant(t % 8, torch.uint8)
        bit = b.op("bitwise_and", b.op("shift_right", byte, position), bit_one)
        spikes.append(b.op("cast", bit, dtype=torch.bool))
        v = b.op("where", spikes[t], zero, charges[t])
    grad_v = zero
    for t in reversed(range(steps)):
        over = b.op("mul", b.op("sub", charges[t], threshold), scale)
        surrogate = b.op("div", one, b.op("add", one, b.op("mul", over, over)))
        grad_h = b.op("mul", b.load(5, t, dtype), surrogate)
        grad_h = b.op("add", grad_h, b.op("where", spikes[t], zero, grad_v))
        grad_y = b.op("mul", grad_h, decay)
        grad_v = b.op("mul", grad_h, keep)
        b.store(0, t, grad_y)
        b.channel_sum(1, grad_y)
        b.channel_sum(2, b.op("mul", grad_y, hats[t]))
    return b.program([dtype] * 6 + [torch.uint8], [dtype] * 3, 4)


def lif_tensors(
    steps: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Views for `lif_backward`: seven inputs, and the outputs of `lif_forward` and of it."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    images, channels = shape[0], shape[1]

    def sequence(count: int, kind: torch.dtype) -> torch.Tensor:
        full = torch.empty(count * images, *shape[1:], dtype=kind, memory_format=order)
        return full.unflatten(0, (count, images))

    def by_channel() -> torch.Tensor:
        return torch.empty(channels, dtype=dtype).view(1, 1, -1, 1, 1).expand(1, *shape)

    x = sequence(steps, dtype).normal_()
    parameters = [by_channel() for _ in range(4)]
    for parameter, (low, high) in zip(
        parameters, [(-1, 1), (0.5, 2), (0.5, 2), (0, 1)], strict=True
    ):
        parameter[0, 0, :, 0, 0].uniform_(low, high) if images * shape[2] * shape[3] else None
    gradient = sequence(steps, dtype).normal_()
    forward = [sequence(steps, dtype), sequence(-(-steps // 8), torch.uint8)]
    backward = [sequence(steps, dtype), by_channel(), by_channel()]
    return [x, *parameters, gradient, forward[1]], forward, backward


def sums_like(view: torch.Tensor) -> torch.Tensor:
    """Memory of its own for a sum: a view with the sizes and strides of `view`."""
    reached = sum((n - 1) * s for n, s in zip(view.shape, view.stride(), strict=True) if n)
    return view.new_zeros(reached + 1).as_strided(view.shape, view.stride())


def run_kernel(
    program: Program,
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    shape: tuple[int, ...],
) -> None:
    """Compile `program` and run it on views ``[steps, *shape]``."""
    kernel = compile_program(program)
    layouts = tuple(map(layout_of, inputs)), tuple(map(layout_of, outputs))
    # An expanded view without elements has no address, but a sum over nothing is still written.
    memory = [o.as_strided((1,), (1,)) if not all(layout_of(o)[1]) else o for o in outputs]
    kernel(inputs, memory, shape, *layouts)
