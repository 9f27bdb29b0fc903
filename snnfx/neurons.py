"""Integrate-and-fire neurons and their surrogate gradients.

One time step of every neuron here, with potential v, input x, threshold and surrogate step H:

    h = charge(x, v)            differs from neuron to neuron
    s = H(h - v_threshold)
    v = s v_reset + (1 - s) h   hard reset, or, with v_reset=None,
    v = h - s v_threshold       soft reset

Numerically these are SpikingJelly 2.0.0's neurons: the same terms in the same order. A term that
is zero for the given v_reset is left out, which changes no value and makes the captured graph
smaller. They trace into one Dynamo graph, the time loop unrolled.

Shapes: T time steps; a step is ``[N, *]`` and a sequence ``[T, N, *]``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import nn

from snnfx.base import ConstantFloat, MemoryModule, StepModule
from snnfx.surrogates import (
    ATan,
    LeakyKReLU,
    PiecewiseLeakyReLU,
    PiecewiseQuadratic,
    Rect,
    Sigmoid,
    SurrogateFunction,
    heaviside,
)

__all__ = [
    "ATan",
    "IFNode",
    "LIFNode",
    "LeakyKReLU",
    "ParametricLIFNode",
    "PiecewiseLeakyReLU",
    "PiecewiseQuadratic",
    "Rect",
    "Sigmoid",
    "SurrogateFunction",
    "detach_net",
    "heaviside",
    "reset_net",
    "set_step_mode",
]


class _BaseNode(MemoryModule):
    """What all neurons share: the potential ``v``, firing, reset, and both step modes.

    ``v`` is the number `v_reset` (0.0 for the soft reset) until the first input gives it a shape,
    and again after `reset`. It is kept from one call to the next. An input of another shape starts
    from the reset potential; one of another dtype or device converts ``v``.

    Args:
        v_threshold: firing threshold.
        v_reset: potential after a spike; None subtracts the threshold instead (soft reset).
        surrogate_function: spike function, called with ``h - v_threshold``; Sigmoid() if None.
        detach_reset: whether the reset is left out of the gradient.
        step_mode: "s" for inputs ``[N, *]``, "m" for ``[T, N, *]``.
        backend: "torch".
        store_v_seq: whether to keep the potentials after each step in ``v_seq``, ``[T, N, *]``:
            those of the last call in step mode "m", of all calls since `reset` in "s".
    """

    v_threshold = ConstantFloat[float]()
    v_reset = ConstantFloat[float | None]()
    v: torch.Tensor | float
    v_seq: torch.Tensor | None

    def __init__(
        self,
        v_threshold: float,
        v_reset: float | None,
        surrogate_function: SurrogateFunction | nn.Module | None,
        detach_reset: bool,
        step_mode: str,
        backend: str,
        store_v_seq: bool,
    ) -> None:
        super().__init__()
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.surrogate_function = Sigmoid() if surrogate_function is None else surrogate_function
        self.detach_reset = detach_reset
        self.step_mode = step_mode
        self.backend = backend
        self.store_v_seq = store_v_seq
        self.v_seq = None
        self.register_memory("v", self._rest)

    @property
    def _rest(self) -> float:
        """The potential that v starts from."""
        v_reset = self.v_reset
        return 0.0 if v_reset is None else v_reset

    @abstractmethod
    def neuronal_charge(self, x: torch.Tensor, v: torch.Tensor, rate: Any) -> torch.Tensor:
        """The potential before firing, ``[N, *]``; `rate` is what `charge_rate` returned."""
        raise NotImplementedError

    def charge_rate(self) -> Any:
        """What `neuronal_charge` needs and is the same for all steps of a sequence."""
        return None

    def neuronal_fire(self, h: torch.Tensor) -> torch.Tensor:
        """The spikes 0 or 1 for potentials `h`, ``[N, *]``, in their dtype."""
        return self.surrogate_function(h - self.v_threshold)

    def neuronal_reset(self, h: torch.Tensor, spike: torch.Tensor) -> torch.Tensor:
        """The potential after firing, ``[N, *]``."""
        if self.detach_reset:
            spike = spike.detach()
        v_reset = self.v_reset
        if v_reset is None:
            return h - spike * self.v_threshold
        if v_reset == 0.0:
            return (1.0 - spike) * h
        return spike * v_reset + (1.0 - spike) * h

    def _step(
        self, x: torch.Tensor, v: torch.Tensor, rate: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.neuronal_charge(x, v, rate)
        spike = self.neuronal_fire(h)
        return spike, self.neuronal_reset(h, spike)

    def _state_for(self, x: torch.Tensor) -> torch.Tensor:
        """The potential as a tensor that fits one step of input `x`, ``[N, *]``."""
        v = self.v
        if not isinstance(v, torch.Tensor):
            return torch.full_like(x, v, requires_grad=False)
        if v.shape != x.shape:
            return torch.full_like(x, self._rest, requires_grad=False)
        return v if v.dtype == x.dtype and v.device == x.device else v.to(x)

    def single_step_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Spikes of one step.

        Args:
            x: input currents, ``[N, *]``, floating point.

        Returns:
            Spikes 0 or 1, ``[N, *]``, in the dtype of `x`.
        """
        spike, v = self._step(x, self._state_for(x), self.charge_rate())
        self.v = v
        if self.store_v_seq:
            self._append_to_v_seq(v)
        return spike

    def multi_step_forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        """Spikes of T steps.

        Args:
            x_seq: input currents, ``[T, N, *]``, floating point, T at least 1.

        Returns:
            Spikes 0 or 1, ``[T, N, *]``, in the dtype of `x_seq`.
        """
        steps = x_seq.unbind(0)
        if not steps:
            raise ValueError("a multi-step input needs at least one time step, got T=0")
        rate = self.charge_rate()
        v = self._state_for(steps[0])
        spikes, potentials = [], []
        for x in steps:
            spike, v = self._step(x, v, rate)
            spikes.append(spike)
            if self.store_v_seq:
                potentials.append(v)
        self.v = v
        if self.store_v_seq:
            self.v_seq = torch.stack(potentials)
        return torch.stack(spikes)

    def _append_to_v_seq(self, v: torch.Tensor) -> None:
        step = v.unsqueeze(0)
        fits = (
            self.v_seq is not None
            and self.v_seq.shape[1:] == v.shape
            and self.v_seq.dtype == v.dtype
            and self.v_seq.device == v.device
        )
        self.v_seq = torch.cat((self.v_seq, step)) if self.v_seq is not None and fits else step

    def reset(self) -> None:
        """Start over: ``v`` is its reset value again, ``v_seq`` is None."""
        super().reset()
        self.v_seq = None

    def detach(self) -> None:
        """Cut ``v`` and ``v_seq`` off the autograd graph."""
        super().detach()
        if self.v_seq is not None:
            self.v_seq = self.v_seq.detach()

    def extra_repr(self) -> str:
        return (
            f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, "
            f"detach_reset={self.detach_reset}, {super().extra_repr()}"
        )


class IFNode(_BaseNode):
    """Integrate-and-fire neuron without leak: ``h = v + x``.

    Args:
        v_threshold: see `LIFNode`, as all arguments.
        v_reset: potential after a spike; None for the soft reset.
        surrogate_function: spike function; Sigmoid() if None.
        detach_reset: whether the reset is left out of the gradient.
        step_mode: "s" or "m".
        backend: "torch".
        store_v_seq: whether to keep all potentials in ``v_seq``.
    """

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: SurrogateFunction | nn.Module | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode,
            backend,
            store_v_seq,
        )

    def neuronal_charge(self, x: torch.Tensor, v: torch.Tensor, rate: Any) -> torch.Tensor:
        return v + x


class LIFNode(_BaseNode):
    """Leaky integrate-and-fire neuron.

    ``h = v + (x - (v - v_rest)) / tau`` with `decay_input`, else ``h = v - (v - v_rest) / tau + x``
    where v_rest is `v_reset`, or 0 for the soft reset.

    Args:
        tau: membrane time constant in time steps, more than 1.
        decay_input: whether the input too is divided by `tau`.
        v_threshold: firing threshold.
        v_reset: potential after a spike; None subtracts the threshold instead (soft reset).
        surrogate_function: spike function, called with ``h - v_threshold``; Sigmoid() if None.
        detach_reset: whether the reset is left out of the gradient.
        step_mode: "s" for inputs ``[N, *]``, "m" for ``[T, N, *]``.
        backend: "torch".
        store_v_seq: whether to keep the potentials after each step in ``v_seq``, ``[T, N, *]``:
            those of the last call in step mode "m", of all calls since `reset` in "s".

    Raises:
        ValueError: `tau` is not more than 1, or `step_mode` is unknown.
        NotImplementedError: `backend` is unknown.
    """

    tau = ConstantFloat[float]()

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: SurrogateFunction | nn.Module | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode,
            backend,
            store_v_seq,
        )
        self.tau = _checked_tau("tau", tau)
        self.decay_input = decay_input

    def neuronal_charge(self, x: torch.Tensor, v: torch.Tensor, rate: Any) -> torch.Tensor:
        rest = self._rest
        leak = v - rest if rest else v
        if self.decay_input:
            return v + (x - leak) / self.tau
        return v - leak / self.tau + x

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tau={self.tau}, decay_input={self.decay_input}"


class ParametricLIFNode(_BaseNode):
    """Leaky integrate-and-fire neuron whose time constant is learned, one for all neurons.

    As `LIFNode` with 1 / tau = sigmoid(w), w a scalar parameter.

    Source: Fang et al., "Incorporating Learnable Membrane Time Constant to Enhance Learning of
    Spiking Neural Networks", ICCV 2021.

    Args:
        init_tau: first value of the time constant in time steps, more than 1.
        decay_input: whether the input too is divided by tau.
        v_threshold: see `LIFNode`, as all that follow.
        v_reset: potential after a spike; None for the soft reset.
        surrogate_function: spike function; Sigmoid() if None.
        detach_reset: whether the reset is left out of the gradient.
        step_mode: "s" or "m".
        backend: "torch".
        store_v_seq: whether to keep all potentials in ``v_seq``.

    Raises:
        ValueError: `init_tau` is not more than 1, or `step_mode` is unknown.
        NotImplementedError: `backend` is unknown.
    """

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: SurrogateFunction | nn.Module | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "torch",
        store_v_seq: bool = False,
    ) -> None:
        super().__init__(
            v_threshold,
            v_reset,
            surrogate_function,
            detach_reset,
            step_mode,
            backend,
            store_v_seq,
        )
        self.decay_input = decay_input
        # 1 / tau = sigmoid(w)  <=>  w = -log(tau - 1)
        self.w = nn.Parameter(torch.tensor(-math.log(_checked_tau("init_tau", init_tau) - 1.0)))

    def charge_rate(self) -> torch.Tensor:
        """1 / tau, ``[]``."""
        return self.w.sigmoid()

    def neuronal_charge(self, x: torch.Tensor, v: torch.Tensor, rate: Any) -> torch.Tensor:
        rest = self._rest
        leak = v - rest if rest else v
        if self.decay_input:
            return v + (x - leak) * rate
        return v - leak * rate + x

    def extra_repr(self) -> str:
        tau = 1.0 / self.w.detach().sigmoid().item()
        return f"{super().extra_repr()}, tau={tau}, decay_input={self.decay_input}"


def _checked_tau(name: str, tau: float) -> float:
    if not tau > 1.0:
        raise ValueError(f"{name} must be more than 1 time step, got {tau}")
    return tau


def reset_net(net: nn.Module) -> None:
    """Reset the state of every `MemoryModule` in `net`."""
    for module in net.modules():
        if isinstance(module, MemoryModule):
            module.reset()


def detach_net(net: nn.Module) -> None:
    """Cut the state of every `MemoryModule` in `net` off the autograd graph."""
    for module in net.modules():
        if isinstance(module, MemoryModule):
            module.detach()


def set_step_mode(net: nn.Module, step_mode: str) -> None:
    """Set the step mode of every `StepModule` in `net`.

    Raises:
        ValueError: a module does not support `step_mode`.
    """
    for module in net.modules():
        if isinstance(module, StepModule):
            module.step_mode = step_mode
