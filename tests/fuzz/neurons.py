"""Neurons for random networks: the library's, and the ways in which people write their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snnfx import neurons, surrogates

from tests.models import Triangle

Spike = Callable[[Tensor], Tensor]


class FastSigmoid(torch.autograd.Function):
    """A spike function as snnTorch writes it: strict comparison, gradient 1 / (1 + k |x|)^2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad.clone() / (5.0 * x.abs() + 1.0) ** 2


class StraightThrough(torch.autograd.Function):
    """A spike function that hands the gradient on where the potential is near the threshold."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() < 0.5)
        return x.gt(0.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (near,) = ctx.saved_tensors
        return grad * near


class Rounded(torch.autograd.Function):
    """Integer-valued spikes 0 to 4."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.round(torch.clamp(x, 0, 4))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x < 0) | (x > 4), torch.zeros_like(grad), grad)


def smooth(x: Tensor) -> Tensor:
    """A step whose gradient is a sigmoid's, by detaching."""
    soft = torch.sigmoid(4 * x)
    return (x.ge(0).to(x.dtype) - soft).detach() + soft


def chosen(x: Tensor) -> Tensor:
    """A step made by `where`, with a gradient beside it."""
    step = torch.where(x >= 0, 1.0, 0.0).to(x.dtype)
    return step + (x.tanh() - x.tanh().detach())


SURROGATES: dict[str, Callable[[], Spike]] = {
    "atan": surrogates.ATan,
    "sigmoid": surrogates.Sigmoid,
    "quadratic": surrogates.PiecewiseQuadratic,
    "leaky": surrogates.PiecewiseLeakyReLU,
    "rect": surrogates.Rect,
    "krelu": surrogates.LeakyKReLU,
    "triangle": lambda: Triangle.apply,
    "fast": lambda: FastSigmoid.apply,
    "through": lambda: StraightThrough.apply,
    "smooth": lambda: smooth,
    "where": lambda: chosen,
}
RESETS = ("hard", "soft", "none", "to")
LIBRARY = {"if": neurons.IFNode, "lif": neurons.LIFNode, "plif": neurons.ParametricLIFNode}
KINDS = ("if", "lif", "plif", "loop", "adaptive", "synaptic", "delayed", "ternary", "integer",
         "recurrent", "graded", "buffer", "list")  # fmt: skip


class Stepwise(nn.Module):
    """A single-step module over ``[T, N, *]``."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.step(current) for current in x])


class Handwritten(nn.Module):
    """Leaky neurons ``[T, N, *]`` to ``[T, N, *]``, in a loop over time.

    Args:
        kind: what they compute.
        reset: after a spike: "hard" to zero, "soft", "to" a fraction of it, or "none".
        spike: the spike function.
        detach: whether the reset is left out of the gradient.
    """

    def __init__(self, kind: str, reset: str, spike: Spike, detach: bool) -> None:
        super().__init__()
        self.kind, self.reset_kind, self.spike, self.detach = kind, reset, spike, detach
        if kind == "recurrent":
            self.feedback = nn.Parameter(torch.tensor(-0.3))

    def _after(self, h: Tensor, s: Tensor) -> Tensor:
        s = s.detach() if self.detach else s
        if self.reset_kind == "hard":
            return h * (1 - s)
        if self.reset_kind == "soft":
            return h - 0.5 * s
        return torch.where(s > 0, 0.1 * h, h) if self.reset_kind == "to" else h

    def _fire(self, h: Tensor, threshold: Tensor | float) -> Tensor:
        if self.kind == "ternary":
            return self.spike(h - threshold) - self.spike(-h - threshold)
        if self.kind == "integer":
            return Rounded.apply(2 * h)
        return self.spike(h - threshold)

    def forward(self, x: Tensor) -> Tensor:
        v = current = s = torch.zeros_like(x[0])
        threshold: Tensor | float = 0.5
        spikes = []
        for step in x:
            if self.kind == "delayed":
                v = 0.8 * v + step - 0.5 * self.spike(v - 0.5).detach()
                s = self._fire(v, threshold)
                spikes.append(s)
                continue
            if self.kind == "synaptic":
                current = 0.5 * current + step
            feedback = self.feedback * s if self.kind == "recurrent" else 0.0
            h = 0.6 * v + (current if self.kind == "synaptic" else step) + feedback
            s = self._fire(h, threshold)
            v = self._after(h, s)
            if self.kind == "adaptive":
                threshold = 0.9 * threshold + 0.1 * s + 0.05
            spikes.append(s * h.detach() if self.kind == "graded" else s)
        return torch.stack(spikes)


class InBuffer(nn.Module):
    """Keeps its potential as a buffer that it writes to in place."""

    def __init__(self, shape: tuple[int, ...], spike: Spike, detach: bool) -> None:
        super().__init__()
        self.spike, self.detach_reset = spike, detach
        self.register_buffer("v", torch.zeros(shape))

    def reset(self) -> None:
        self.v = torch.zeros_like(self.v)

    def detach(self) -> None:
        self.v = self.v.detach()

    def forward(self, x: Tensor) -> Tensor:
        self.v.mul_(0.6)
        self.v.add_(x)
        spike = self.spike(self.v - 0.5)
        self.v.sub_(0.5 * (spike.detach() if self.detach_reset else spike))
        return spike


class InList(nn.Module):
    """Fills a tensor of spikes step by step, and keeps its potential as a plain attribute."""

    def __init__(self, spike: Spike) -> None:
        super().__init__()
        self.spike = spike
        self.reset()

    def reset(self) -> None:
        self.v: Any = 0.0

    def detach(self) -> None:
        self.v = self.v.detach() if isinstance(self.v, Tensor) else self.v

    def forward(self, x: Tensor) -> Tensor:
        spikes = torch.empty_like(x)
        for index in range(x.shape[0]):
            h = 0.7 * self.v + x[index]
            spikes[index] = self.spike(h - 0.5)
            self.v = h - 0.5 * spikes[index]
        return spikes


def build_neuron(
    shape: tuple[int, ...], kind: str, reset: str, surrogate: str, detach: bool, stepwise: bool
) -> nn.Module:
    """A neuron for inputs of `shape`, ``[T, N, *]``."""
    spike = SURROGATES[surrogate]()
    if kind == "buffer":
        return Stepwise(InBuffer(shape[1:], spike, detach))
    if kind == "list":
        return InList(spike)
    if kind not in LIBRARY:
        return Handwritten(kind, reset, spike, detach)
    v_reset = {"hard": 0.0, "to": 0.2}.get(reset)
    function = spike if isinstance(spike, nn.Module) else Called(spike)
    node = LIBRARY[kind](
        v_threshold=0.5,
        v_reset=v_reset,
        surrogate_function=function,
        detach_reset=detach,
        step_mode="s" if stepwise else "m",
        store_v_seq=reset == "none",
    )
    return Stepwise(node) if stepwise else node


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Spike) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
