"""A rewritten step that can be called: its two graphs behind one function with a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.fx import GraphModule

from snnfx.capture.pipeline import Partition
from snnfx.config import Options
from snnfx.errors import ExportError
from snnfx.exporting.signature import DTYPES, StepSignature, TensorSpec, laid_out
from snnfx.exporting.structure import count_tensors
from snnfx.lowering.lower import Lowering
from snnfx.lowering.outer import Outline
from snnfx.passes.fxgraph import node_value, output_args
from snnfx.passes.plan.memory_plan import MemoryPlan

BoxedFunction = Callable[[list[Any]], Any]


@dataclass
class Step:
    """A forward and its backward, compiled when they are first called.

    Attributes:
        signature: what goes in and comes out.
        forward: returns new values of mutated primals, the model's tensors, then what `backward`
            reads.
        backward: None where nothing has a gradient.
        plan: behind the graphs; None where there is no backward.
        options: how they are lowered.
        outlines: how both run, where their regions are to be compiled.
    """

    signature: StepSignature
    forward: GraphModule
    backward: GraphModule | None
    plan: MemoryPlan | None
    options: Options
    outlines: tuple[Outline, Outline] | None = None
    _trained: tuple[BoxedFunction, BoxedFunction] | None = field(default=None, repr=False)
    _inferred: BoxedFunction | None = field(default=None, repr=False)

    @property
    def results(self) -> int:
        """How many results of the forward are not for the backward."""
        return len(self.signature.mutated) + count_tensors(self.signature.outputs)

    def check(self) -> None:
        """Hold that the graphs of a step from a file have the ends of its signature.

        Raises:
            ExportError: they have not.
        """
        signature, primals = self.signature, self.signature.primals
        inputs = self.forward.graph.find_nodes(op="placeholder")
        results = output_args(self.forward.graph)
        saved = len(results) - self.results
        fits = len(inputs) == len(primals) and saved >= 0
        fits &= sum(s.kind == "input" for s in primals) == count_tensors(signature.inputs)
        fits &= all(0 <= index < len(primals) for index in signature.mutated)
        fits &= all(0 <= t.output < self.results - len(signature.mutated)
                    for t in signature.tangents)  # fmt: skip
        fits &= {n for s in primals for n in s.shape if isinstance(n, str)} <= set(signature.sizes)
        if self.backward is not None:
            given = self.backward.graph.find_nodes(op="placeholder")
            fits &= len(given) == saved + len(signature.tangents)
            fits &= len(output_args(self.backward.graph)) == len(primals)
        if not fits:
            raise ExportError("the graphs of the file do not have the ends that its signature says")

    def __deepcopy__(self, memo: dict[int, Any]) -> Step:
        return self  # nothing in it changes with use

    def __call__(self, primals: Sequence[Tensor]) -> list[Tensor]:
        """The model's tensors; mutated primals hold their new values afterwards.

        Args:
            primals: as the signature says; see `check_primals`.
        """
        given = [laid_out(t, s.order) for t, s in zip(primals, self.signature.primals, strict=True)]
        has_gradient = torch.is_grad_enabled() and any(p.requires_grad for p in primals)
        if has_gradient and self.backward is not None:
            results = list(_Function.apply(self, *given))
        else:
            with torch.no_grad(), _no_autocast(primals):
                results = list(self.inferred()(given))
        count = len(self.signature.mutated)
        with torch.no_grad():
            for index, value in zip(self.signature.mutated, results[:count], strict=True):
                primals[index].copy_(value)
        return results[count:]

    def trained(self) -> tuple[BoxedFunction, BoxedFunction]:
        """Forward and backward of a training step."""
        if self._trained is None:
            assert self.backward is not None
            lowering = self._lowering()
            self._trained = (
                lowering.forward(self.forward, _fakes(self.forward)),
                lowering.backward(self.backward, _fakes(self.backward)),
            )
        return self._trained

    def inferred(self) -> BoxedFunction:
        """The forward alone, which keeps nothing for a backward."""
        if self._inferred is None:
            module = without_saved(self.forward, self.results)
            self._inferred = self._lowering().inference(module, _fakes(module))
        return self._inferred

    def _lowering(self) -> Lowering:
        lowering = Lowering(self.options, lambda plan: None)
        if self.plan is not None and self.backward is not None:
            lowering.partition = Partition(self.forward, self.backward, self.plan, self.outlines)
            lowering.outputs = self.results
        return lowering


class _Function(torch.autograd.Function):
    """A step for autograd: what its forward returns beyond its results is kept for its backward."""

    @staticmethod
    def forward(ctx: Any, step: Step, *primals: Tensor) -> tuple[Tensor, ...]:
        ctx.step = step
        with _no_autocast(primals):
            found = list(step.trained()[0](list(primals)))
        results, passed = found[: step.results], found[step.results :]
        ctx.save_for_backward(*(value for value in passed if isinstance(value, Tensor)))
        ctx.numbers = [value for value in passed if not isinstance(value, Tensor)]
        ctx.set_materialize_grads(True)
        first = len(step.signature.mutated)
        with_gradient = {first + tangent.output for tangent in step.signature.tangents}
        ctx.mark_non_differentiable(
            *(result for i, result in enumerate(results) if i not in with_gradient)
        )
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # what the decorator makes
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        step: Step = ctx.step
        first = len(step.signature.mutated)
        tangents = [laid_out(gradients[first + t.output], t.order)
                    for t in step.signature.tangents]  # fmt: skip
        args = [*ctx.numbers, *ctx.saved_tensors, *tangents]
        ctx.maybe_clear_saved_tensors()  # what is read for the last time is released in the graph
        del tangents
        with _no_autocast(gradients):
            return (None, *step.trained()[1](args))


def _no_autocast(tensors: Sequence[Tensor | None]) -> torch.autocast:
    """Graphs say every cast themselves."""
    device = next((t.device.type for t in tensors if t is not None), "cpu")
    return torch.autocast(device, enabled=False)


def without_saved(forward: GraphModule, results: int) -> GraphModule:
    """A copy of a forward that returns its first results only, and computes only what they need."""
    graph = torch.fx.Graph()
    new: dict[torch.fx.Node, torch.fx.Node] = {}
    outputs = graph.graph_copy(forward.graph, new)
    assert isinstance(outputs, (list, tuple))
    graph.output(tuple(outputs[:results]))
    graph.eliminate_dead_code()
    return GraphModule(forward, graph)


def _fakes(module: GraphModule) -> list[Any]:
    return [node_value(node) for node in module.graph.find_nodes(op="placeholder")]


def check_primals(signature: StepSignature, primals: Sequence[Tensor]) -> None:
    """Hold that tensors are such as a step was traced for.

    Raises:
        ExportError: a dtype, device, size or need of a gradient differs; the text says which.
    """
    sizes: dict[str, int] = {}
    for spec, tensor in zip(signature.primals, primals, strict=True):
        if (
            DTYPES[spec.dtype] is not tensor.dtype
            or tensor.device.type != spec.device
            or len(spec.shape) != tensor.dim()
        ):
            raise ExportError(_expected(signature, spec, tensor))
        for expected, size in zip(spec.shape, tensor.shape, strict=True):
            if expected != size and not _varies(signature, sizes, expected, size):
                raise ExportError(_expected(signature, spec, tensor))
        if tensor.requires_grad and not spec.requires_grad and signature.tangents:
            raise ExportError(
                f"{spec.kind} '{spec.name}' requires a gradient, but did not when the model was "
                "exported, so there is none in its backward; export it with requires_grad set"
            )


def _varies(signature: StepSignature, sizes: dict[str, int], name: int | str, size: int) -> bool:
    if isinstance(name, int):
        return False
    low, high = signature.sizes[name]
    return sizes.setdefault(name, size) == size and low <= size and (high is None or size <= high)


def _expected(signature: StepSignature, spec: TensorSpec, tensor: Tensor) -> str:
    names = [size for size in spec.shape if isinstance(size, str)]
    ranges = ", ".join(f"{n} {_range_text(*signature.sizes[n])}" for n in names)
    shape = ", ".join(map(str, spec.shape))
    advice = "Rewrite the model with example inputs such as these, or with dynamic_shapes"
    if spec.kind != "input":
        advice = "Dtypes and devices are fixed: convert the model before it is rewritten"
    return (
        f"{spec.kind} '{spec.name}' must be {spec.dtype} on {spec.device} of shape [{shape}]"
        f"{f' with {ranges}' if ranges else ''}, but is "
        f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device.type} of shape "
        f"{list(tensor.shape)}. {advice}"
    )


def _range_text(low: int, high: int | None) -> str:
    return f"of {low} or more" if high is None else f"from {low} to {high}"
