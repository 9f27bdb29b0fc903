"""The module of a program, its inputs, and what two steps of training give."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from snnfx.base import named_memories

from tests.fuzz.operations import OPERATIONS, Operation
from tests.fuzz.programs import Program, Step

Results = dict[str, Tensor]


class Network(nn.Module):
    """The network of a program.

    A layer that the plain module cannot run, such as a convolution in a dtype that it has no kernel
    for, is left out when the network is built.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.static, self.time = program.static, program.time
        self.layers = nn.ModuleList()
        self.wiring: list[tuple[int, tuple[int, ...]]] = []
        with torch.no_grad():
            values = self._prepared(make_inputs(program, 0))
            for step in program.steps:
                self._add(step, values, program)
        self.outputs = [len(values) - 1, *(k % len(values) for k in program.outputs)]

    def _prepared(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        if not self.static:
            return list(inputs)
        return [x.unsqueeze(0).repeat(self.time, *[1] * x.dim()) for x in inputs]

    def _add(self, step: Step, values: list[Tensor], program: Program) -> None:
        operation = OPERATIONS[step.op]
        source = len(values) - 1 - step.source % len(values)
        x = values[source]
        operands: tuple[int, ...] = (source,)
        if operation.needs == "same":
            fitting = [i for i, v in enumerate(values) if v.shape == x.shape]
            operands = (source, fitting[step.other % len(fitting)])
        if operation.needs == "weights":
            index = step.other % len(self.layers) if self.layers else -1
            layer = self.layers[index] if self.layers else None
            layer = None if layer is None or len(self._operands(index)) > 1 else layer
        else:
            index = len(self.layers)
            layer = _built(operation, tuple(x.shape), step, getattr(torch, program.dtype))
        if layer is None:
            return
        try:
            result = layer(*(values[i].detach().clone() for i in operands))
        except (
            RuntimeError,
            ValueError,
        ):  # shapes or dtypes that the plain module has no kernel for
            return
        if index == len(self.layers):
            self.layers.append(layer)
        self.wiring.append((index, operands))
        values.append(result)

    def _operands(self, layer: int) -> tuple[int, ...]:
        return next(operands for index, operands in self.wiring if index == layer)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = self._prepared(inputs)
        for layer, operands in self.wiring:
            values.append(self.layers[layer](*[values[i] for i in operands]))
        return tuple(values[i] for i in self.outputs)


def _built(
    operation: Operation, shape: tuple[int, ...], step: Step, dtype: torch.dtype
) -> nn.Module | None:
    """A layer whose parameters and buffers have a dtype."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return operation.build(shape, *step.args)
    finally:
        torch.set_default_dtype(default)


def build(program: Program) -> Network:
    """The module of a program, in the state in which its training starts."""
    torch.manual_seed(0)
    network = Network(program)
    reset(network)
    parameters = list(network.parameters())
    for index, parameter in enumerate(parameters):
        frozen = program.frozen and index % program.frozen == 0 and len(parameters) > 1
        parameter.requires_grad_(not frozen)
    return network.train(program.training)


def make_inputs(program: Program, step: int) -> tuple[Tensor, ...]:
    """The inputs of a step; the same each time."""
    generator = torch.Generator().manual_seed(step)
    spatial = {"image": (program.size, program.size + 1), "sequence": (program.size,)}
    sizes = (program.channels, *spatial.get(program.form, ()))
    lead = () if program.static else (program.time,)
    shape = (*lead, program.batch[min(step, 1)], *sizes)
    inputs = [_laid_out(shape, program, generator) for _ in range(program.inputs)]
    if program.input_dtype:
        inputs[-1] = (inputs[-1] > 0.5 if program.input_dtype == "bool" else inputs[-1].abs()).to(
            getattr(torch, program.input_dtype)
        )
    if program.input_grad and inputs[0].is_floating_point():
        inputs[0].requires_grad_()
    return tuple(inputs)


def _laid_out(shape: tuple[int, ...], program: Program, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, program.dtype)
    layout = program.layout
    if layout == "expanded":
        return torch.randn(1, *shape[1:], dtype=dtype, generator=generator).expand(shape)
    if layout == "strided":
        return torch.randn(*shape, 2, dtype=dtype, generator=generator)[..., 0]
    x = torch.randn(shape, dtype=dtype, generator=generator)
    if layout == "batch_first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels_last" and len(shape) >= 4:
        return x.movedim(-3, -1).contiguous().movedim(-1, -3)
    return x


def reset(network: nn.Module) -> None:
    """Every state as it was before the first call."""
    for module in network.modules():
        if callable(getattr(module, "reset", None)):
            module.reset()


def detach(network: nn.Module) -> None:
    """Cut every state off the graph of the last call."""
    for module in network.modules():
        if callable(getattr(module, "detach", None)):
            module.detach()


def train(program: Program, network: Network, call: Callable[..., Any]) -> Results:
    """Two steps of training, and everything that a user could see of them."""
    found: Results = {}
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, 0.01) if program.optimizer and parameters else None
    if program.inference:
        torch.manual_seed(7)
        with torch.no_grad():
            found |= _named("inference", call(*make_inputs(program, 0)))
    for step in range(2):
        (detach if program.carried else reset)(network)
        torch.manual_seed(step)
        inputs = make_inputs(program, step)
        cast = torch.autocast("cpu", torch.bfloat16) if program.autocast else nullcontext()
        with cast:
            outputs = call(*inputs)
        used = outputs[:1] if program.unused else outputs
        loss = sum(_loss(x) for x in used if x.requires_grad)
        if isinstance(loss, Tensor):
            loss.backward()
        found |= _named(f"step {step} output", outputs)
        found |= _named(f"step {step} input", inputs)
        found |= _named(f"step {step} input gradient", [x.grad for x in inputs])
        found |= _state(f"step {step}", network)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    return found


def _loss(x: Tensor) -> Tensor:
    weights = torch.arange(x.numel(), dtype=torch.float64).cos().view(x.shape)
    return (x.double() * weights).sum() + x.double().square().mean()


def _state(prefix: str, network: nn.Module) -> Results:
    """Gradients, buffers and neuron states of the moment."""
    # Where a parameter takes no part, autograd gives None, and AOTAutograd zeros.
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in network.named_parameters()
    }
    states = {k: v for k, v in named_memories(network) if isinstance(v, Tensor)}
    plain = {
        f"{name}.v": module.__dict__["v"]
        for name, module in network.named_modules()
        if isinstance(module.__dict__.get("v"), Tensor)
    }
    parts = {"gradient": gradients, "buffer": dict(network.named_buffers())}
    parts |= {"state": states, "attribute": plain}
    return {
        f"{prefix} {part} {name}": value.detach().clone()
        for part, values in parts.items()
        for name, value in values.items()
    }


def _named(prefix: str, tensors: Any) -> Results:
    return {f"{prefix} {i}": t.detach().clone() for i, t in enumerate(tensors) if t is not None}
