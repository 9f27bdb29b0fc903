"""How a planned graph runs: op by op, or with its fused regions compiled."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from snnfx._torch_compat import boxed, compile_with_inductor
from snnfx.capture.timeline import step_timeline
from snnfx.config import Options
from snnfx.errors import KernelError, SnnfxWarning
from snnfx.lowering.outer import lower_regions
from snnfx.passes.fxgraph import is_on_cpu, output_args, set_value, tensor_value
from snnfx.passes.plan.memory_plan import MemoryPlan

BoxedFunction = Callable[[list[Any]], Any]


class Lowering:
    """The compilers of the halves of one graph.

    Attributes:
        options: of the user.
        plan: of the joint graph, once it is partitioned; None for inference.
        tangents: how many of the backward's inputs are tangents (its last ones).
        report: called with the plan when both halves are lowered.
    """

    def __init__(self, options: Options, report: Callable[[MemoryPlan], None]) -> None:
        self.options = options
        self.report = report
        self.plan: MemoryPlan | None = None
        self.tangents = 0
        self.outputs = 0
        self._forward: GraphModule | None = None
        self._failed = False
        self._saved: dict[str, Tensor | None] = {}

    def forward(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile the forward of a training step."""
        if not self._has_regions():
            return self._whole(module, example_inputs)
        names = [getattr(result, "name", None) for result in output_args(module.graph)]
        driving = module.graph.find_nodes(op="placeholder")
        self._forward = self._lowered(module, driving)
        results = output_args(self._forward.graph)
        self._saved = {
            name: tensor_value(result)
            for name, result in zip(names, results, strict=True)
            if name is not None and isinstance(result, Node)
        }
        return boxed(self._forward)

    def backward(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile the backward of a training step."""
        if not self._has_regions():
            self._finish(None)
            return self._whole(module, example_inputs)
        placeholders = module.graph.find_nodes(op="placeholder")
        for node in placeholders:
            value = self._saved.get(node.name)
            if value is not None:
                set_value(node, value)  # with the strides that the forward gave it
        lowered = self._lowered(module, placeholders[len(placeholders) - self.tangents :])
        self._finish(lowered)
        return boxed(lowered)

    def inference(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile a graph without a backward: nothing is kept, so nothing is packed."""
        return self._whole(module, example_inputs)

    def _has_regions(self) -> bool:
        applied = self.plan is not None and self.plan.applied
        return applied and self.options.lowering == "inductor"

    def _whole(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        if self.options.lowering == "eager":
            return boxed(module)
        return compile_with_inductor(module, example_inputs)

    def _lowered(self, module: GraphModule, driving: Sequence[Any]) -> GraphModule:
        """The outer graph with its regions compiled, or the graph itself where that fails."""
        if self._failed or not is_on_cpu(module.graph):
            return module
        try:
            return lower_regions(module, driving)
        except KernelError as error:
            self._failed = True
            warnings.warn(
                f"snnmem runs this graph op by op, since its regions cannot be compiled: {error}",
                SnnfxWarning,
                stacklevel=2,
            )
            return module

    def _finish(self, backward: GraphModule | None) -> None:
        if self.plan is None:
            return
        if backward is not None and self._forward is not None:
            timeline = step_timeline(self._forward.graph, backward.graph, self.outputs)
            self.plan = dataclasses.replace(self.plan, predicted=timeline)
        self.report(self.plan)
