"""Spike functions: a Heaviside step forward, the derivative of a smooth function backward.

Each surrogate gives ``(x >= 0)`` as a number in the dtype of ``x`` and, in backward, multiplies
the incoming gradient by g'(x) where g is its *primitive* function. Formulas and defaults are those
of SpikingJelly's `surrogate` module, evaluated in the same order, so that gradients agree bit for
bit. The surrogate gradient method: Neftci, Mostafa and Zenke, "Surrogate Gradient Learning in
Spiking Neural Networks", IEEE Signal Processing Magazine 36(6), 2019.

Backward keeps one tensor, the input x; alpha, w, c, k and leak are Python numbers.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from snnfx.base import ConstantFloat


def heaviside(x: torch.Tensor) -> torch.Tensor:
    """1 where ``x >= 0`` and 0 elsewhere (NaN too), in the dtype of `x`."""
    return (x >= 0).to(x)


class _SpikeFunction(torch.autograd.Function):
    """The step forward, with one parameter; subclasses add backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, parameter: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.parameters = (parameter,)
        return heaviside(x)


class _SpikeFunction2(torch.autograd.Function):
    """The same with two; Dynamo takes `*parameters` for a forward without `ctx`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, first: float, second: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.parameters = (first, second)
        return heaviside(x)


class _ATanSpike(_SpikeFunction):
    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,), (x,), (alpha,) = grad_outputs, ctx.saved_tensors, ctx.parameters
        half = alpha / 2
        scaled = math.pi * half * x
        return half / (1 + scaled * scaled) * grad, None


class _SigmoidSpike(_SpikeFunction):
    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,), (x,), (alpha,) = grad_outputs, ctx.saved_tensors, ctx.parameters
        value = (x * alpha).sigmoid()
        return grad * (1.0 - value) * value * alpha, None


class _PiecewiseQuadraticSpike(_SpikeFunction):
    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,), (x,), (alpha,) = grad_outputs, ctx.saved_tensors, ctx.parameters
        distance = x.abs()
        slope = grad * (-(alpha**2) * distance + alpha)
        return slope.masked_fill(distance > 1 / alpha, 0), None


class _PiecewiseLeakyReLUSpike(_SpikeFunction2):
    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,), (x,), (w, c) = grad_outputs, ctx.saved_tensors, ctx.parameters
        slope = torch.full_like(x, c).masked_fill(x.abs() < w, 1 / (2 * w))
        return grad * slope, None, None


class _RectSpike(_SpikeFunction):
    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,), (x,), (alpha,) = grad_outputs, ctx.saved_tensors, ctx.parameters
        return alpha * (x.abs() < 0.5 / alpha).to(x) * grad, None


class _LeakyKReLUSpike(_SpikeFunction2):
    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,), (x,), (leak, k) = grad_outputs, ctx.saved_tensors, ctx.parameters
        slope = torch.full_like(x, leak).masked_fill(x >= 0, k)
        return grad * slope, None, None


class SurrogateFunction(nn.Module):
    """Base class of the spike functions.

    Args:
        spiking: True for the step with the surrogate gradient; False for the primitive function,
            which is differentiated as it is (a non-spiking relaxation of the net).
    """

    def __init__(self, spiking: bool = True) -> None:
        super().__init__()
        self.spiking = spiking

    def set_spiking_mode(self, spiking: bool) -> None:
        """Choose between the step (True) and the primitive function (False)."""
        self.spiking = spiking

    @abstractmethod
    def spiking_function(self, x: torch.Tensor) -> torch.Tensor:
        """The step with the surrogate gradient, any shape, in the dtype of `x`."""
        raise NotImplementedError

    @abstractmethod
    def primitive_function(self, x: torch.Tensor) -> torch.Tensor:
        """The function whose derivative is the surrogate gradient, any shape."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes for ``x = potential - threshold``, any shape, in the dtype of `x`."""
        return self.spiking_function(x) if self.spiking else self.primitive_function(x)


class _AlphaSurrogate(SurrogateFunction):
    """A surrogate with one positive parameter alpha."""

    alpha = ConstantFloat[float]()

    def __init__(self, alpha: float, spiking: bool) -> None:
        super().__init__(spiking)
        self.alpha = _positive("alpha", alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, spiking={self.spiking}"


class ATan(_AlphaSurrogate):
    """Arc tangent: ``g(x) = atan(pi/2 alpha x) / pi + 1/2``.

    ``g'(x) = (alpha/2) / (1 + (pi/2 alpha x)^2)``.

    Source: Fang et al., "Incorporating Learnable Membrane Time Constant to Enhance Learning of
    Spiking Neural Networks", ICCV 2021.
    """

    def __init__(self, alpha: float = 2.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    def spiking_function(self, x: torch.Tensor) -> torch.Tensor:
        return _ATanSpike.apply(x, self.alpha)

    def primitive_function(self, x: torch.Tensor) -> torch.Tensor:
        return (math.pi / 2 * self.alpha * x).atan() / math.pi + 0.5


class Sigmoid(_AlphaSurrogate):
    """Logistic function: ``g(x) = 1 / (1 + exp(-alpha x))``, ``g' = alpha g (1 - g)``."""

    def __init__(self, alpha: float = 4.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    def spiking_function(self, x: torch.Tensor) -> torch.Tensor:
        return _SigmoidSpike.apply(x, self.alpha)

    def primitive_function(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.alpha).sigmoid()


class PiecewiseQuadratic(_AlphaSurrogate):
    """Triangular gradient: ``g'(x) = max(0, alpha - alpha^2 |x|)``.

    Source: Bohte, "Error-Backpropagation in Networks of Fractionally Predictive Spiking Neurons",
    ICANN 2011.
    """

    def __init__(self, alpha: float = 1.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    def spiking_function(self, x: torch.Tensor) -> torch.Tensor:
        return _PiecewiseQuadraticSpike.apply(x, self.alpha)

    def primitive_function(self, x: torch.Tensor) -> torch.Tensor:
        inside = x.clamp(-1.0 / self.alpha, 1.0 / self.alpha)
        return self.alpha * inside - self.alpha**2 / 2 * inside * inside.abs() + 0.5


class PiecewiseLeakyReLU(SurrogateFunction):
    """Piecewise linear: ``g'(x) = 1 / (2 w)`` where ``|x| < w``, else c.

    Args:
        w: half width of the steep part, positive.
        c: slope outside of it.
        spiking: see `SurrogateFunction`.
    """

    w = ConstantFloat[float]()
    c = ConstantFloat[float]()

    def __init__(self, w: float = 1.0, c: float = 0.01, spiking: bool = True) -> None:
        super().__init__(spiking)
        self.w = _positive("w", w)
        self.c = c

    def extra_repr(self) -> str:
        return f"w={self.w}, c={self.c}, spiking={self.spiking}"

    def spiking_function(self, x: torch.Tensor) -> torch.Tensor:
        return _PiecewiseLeakyReLUSpike.apply(x, self.w, self.c)

    def primitive_function(self, x: torch.Tensor) -> torch.Tensor:
        inside = x.clamp(-self.w, self.w)
        return inside / (2 * self.w) + 0.5 + self.c * (x - inside)


class Rect(_AlphaSurrogate):
    """Rectangular gradient: ``g'(x) = alpha`` where ``|x| < 1 / (2 alpha)``, else 0.

    Source: Wu et al., "Spatio-Temporal Backpropagation for Training High-Performance Spiking
    Neural Networks", Frontiers in Neuroscience 12, 2018.
    """

    def __init__(self, alpha: float = 1.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    def spiking_function(self, x: torch.Tensor) -> torch.Tensor:
        return _RectSpike.apply(x, self.alpha)

    def primitive_function(self, x: torch.Tensor) -> torch.Tensor:
        return (self.alpha * x + 0.5).clamp(0.0, 1.0)


class LeakyKReLU(SurrogateFunction):
    """Piecewise linear: ``g'(x) = k`` where ``x >= 0``, else leak.

    Args:
        leak: slope below threshold.
        k: slope at and above threshold.
        spiking: see `SurrogateFunction`.
    """

    leak = ConstantFloat[float]()
    k = ConstantFloat[float]()

    def __init__(self, leak: float = 0.0, k: float = 1.0, spiking: bool = True) -> None:
        super().__init__(spiking)
        self.leak = leak
        self.k = k

    def extra_repr(self) -> str:
        return f"leak={self.leak}, k={self.k}, spiking={self.spiking}"

    def spiking_function(self, x: torch.Tensor) -> torch.Tensor:
        return _LeakyKReLUSpike.apply(x, self.leak, self.k)

    def primitive_function(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x >= 0, self.k * x, self.leak * x)


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return value
