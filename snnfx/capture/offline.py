"""Capture and plan a model without running it, from shapes alone.

Dynamo and AOTAutograd trace the model as they do for `torch.compile`, with fake tensors, and are
stopped once the joint graph is there. Nothing is computed, no memory is allocated for any tensor,
and nothing that the model would do to its own state is done, so a model that is too big for this
machine can be captured: build it under ``torch.device("meta")``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from snnfx.capture.pipeline import partition_joint
from snnfx.capture.trace import JointTrace, fake_arguments, primal_names
from snnfx.config import Options
from snnfx.errors import CaptureError
from snnfx.passes.fxgraph import JointRoles, numel, tensor_value
from snnfx.passes.plan.memory_plan import MemoryPlan

LossFunction = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Capture:
    """One training step of a model as a graph: its forward and its backward.

    Attributes:
        graph_module: the joint graph, raw ATen operators with fake tensors.
        roles: its ends.
        names: one for each primal, in the order of the placeholders: a parameter's or buffer's name
            in the model, an argument's name in ``model.forward``.
        parameters: those of `names` that are parameters.
        buffers: those of `names` that are buffers.
        inputs: all other `names`.
    """

    graph_module: GraphModule
    roles: JointRoles
    names: tuple[str, ...]
    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    inputs: tuple[str, ...]

    def plan(self, **options: Any) -> MemoryPlan:
        """What the backend would do with this graph; the graph stays as it is.

        Args:
            options: those of the backend; see `snnfx.config.Options`.

        Raises:
            OptionError: an unknown option or value.
        """
        parsed = Options.parse(options)
        joint, roles = _copied(self.graph_module, self.roles)
        plan = partition_joint(joint, roles, parsed).plan
        parsed.report(plan)
        return plan

    def print_readable(self) -> str:
        """Print the joint graph as Python code, and return it."""
        return self.graph_module.print_readable()


def capture(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    loss_fn: LossFunction | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Capture:
    """The joint graph of one training step of `model`, without running it.

    The model is not changed: neither its parameters and buffers nor its state. It is captured in
    the mode (training, evaluation, autocast) that it would run in at this moment.

    Args:
        model: its tensors may be real, fake, or on the meta device.
        example_inputs: the arguments of the model, of which only shapes, dtypes and devices count;
            one tensor stands for a sequence of one.
        loss_fn: from the model's output to a scalar. With it the loss is the graph's output;
            without it the backward starts from the gradients of the model's outputs.
        device: where tensors on the meta device are taken to be.

    Raises:
        CaptureError: the model cannot be traced as one graph, or has nothing to train.
    """
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    with fake_arguments(model, args, torch.device(device)) as fakes:
        trace = JointTrace(model if loss_fn is None else WithLoss(model, loss_fn), fakes)
        names = primal_names(trace, model, fakes)
    if loss_fn is not None:
        _check_loss(trace.roles)
    parameters = {name for name, _ in model.named_parameters()}
    buffers = {name for name, _ in model.named_buffers()}
    return Capture(
        trace.joint,
        trace.roles,
        names,
        tuple(n for n in names if n in parameters),
        tuple(n for n in names if n in buffers),
        tuple(n for n in names if n not in parameters and n not in buffers),
    )


def plan(
    model: nn.Module | Capture,
    example_inputs: Tensor | Sequence[Any] | None = None,
    loss_fn: LossFunction | None = None,
    **options: Any,
) -> MemoryPlan:
    """The plan that ``torch.compile(model, backend="snnmem")`` would apply, without running it.

    Args:
        model: a model, or what `capture` made of it.
        example_inputs: see `capture`; not for a `Capture`.
        loss_fn: see `capture`; not for a `Capture`. The backend sees the loss only where it is
            computed inside of the compiled model, so leave it out to get the backend's plan.
        options: those of the backend; see `snnfx.config.Options`.

    Raises:
        CaptureError: the model cannot be captured, or `example_inputs` are missing.
        OptionError: an unknown option or value.
    """
    Options.parse(options)
    if isinstance(model, Capture):
        if example_inputs is not None or loss_fn is not None:
            raise CaptureError("a Capture has its inputs and its loss: give plan() only options")
        return model.plan(**options)
    if example_inputs is None:
        raise CaptureError("plan() of a model needs example_inputs: the arguments of its forward")
    return capture(model, example_inputs, loss_fn).plan(**options)


class WithLoss(nn.Module):
    """A model whose output is its loss."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, *args: Any) -> Tensor:
        return self.loss_fn(self.model(*args))


def _check_loss(roles: JointRoles) -> None:
    loss = roles.forward_outputs[-1]
    value = None if loss is None else tensor_value(loss)
    if len(roles.tangents) != 1 or value is None or numel(value) != 1:
        given = "something else" if value is None else f"a tensor of {tuple(value.shape)}"
        raise CaptureError(f"loss_fn must give one number that requires a gradient, not {given}")


def _copied(module: GraphModule, roles: JointRoles) -> tuple[GraphModule, JointRoles]:
    """A joint graph of its own nodes, with the same names and the same fake tensors."""
    graph = Graph()
    new: dict[Node, Node] = {}
    results = graph.graph_copy(module.graph, new)
    output = graph.output(results)
    output.meta = dict(module.graph.output_node().meta)

    def many(nodes: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if node is None else new[node] for node in nodes)

    copied = JointRoles(
        many(roles.primals),
        many(roles.tangents),
        many(roles.forward_outputs),
        many(roles.backward_outputs),
        frozenset(many(tuple(roles.mutated))),
    )
    return GraphModule(module, graph), copied
