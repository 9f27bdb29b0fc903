"""How a planned graph runs: op by op, or with its fused regions compiled."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from snnfx._torch_compat import boxed, compile_with_inductor
from snnfx.capture.pipeline import Partition
from snnfx.capture.timeline import step_timeline
from snnfx.config import Options
from snnfx.errors import KernelError, SnnfxWarning
from snnfx.lowering.absent import fill_at_first_use, fill_before
from snnfx.lowering.outer import compile_outline
from snnfx.passes.fxgraph import last_placeholders
from snnfx.passes.plan.memory_plan import MemoryPlan

BoxedFunction = Callable[[list[Any]], Any]


class Lowering:
    """The compilers of the halves of one graph.

    Attributes:
        options: of the user.
        partition: of the joint graph, once there is one; None for inference.
        outputs: how many results of the forward go to the caller.
        tangents: how many gradients the backward takes that may be absent.
        report: called with the plan when both halves are lowered.
    """

    def __init__(self, options: Options, report: Callable[[MemoryPlan], None]) -> None:
        self.options = options
        self.report = report
        self.partition: Partition | None = None
        self.outputs = 0
        self.tangents = 0
        self._forward: GraphModule | None = None
        self._failed = False

    def forward(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile the forward of a training step."""
        if not self._has_regions():
            return self._whole(module, example_inputs)
        self._forward = self._lowered(module, 0)
        return boxed(self._forward)

    def backward(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile the backward of a training step."""
        lowered = self._lowered(module, 1) if self._has_regions() else None
        self._finish(lowered)
        if lowered is None and self.options.lowering == "inductor":
            tangents = last_placeholders(module.graph, self.tangents)
            return fill_before(self._whole(module, example_inputs), tangents)
        return boxed(fill_at_first_use(lowered or module, self.tangents))

    def inference(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile a graph without a backward: nothing is kept, so nothing is packed."""
        return self._whole(module, example_inputs)

    def _has_regions(self) -> bool:
        applied = self.partition is not None and self.partition.plan.applied
        return applied and self.options.lowering == "inductor"

    def _whole(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        if self.options.lowering == "eager":
            return boxed(module)
        return compile_with_inductor(module, example_inputs)

    def _lowered(self, module: GraphModule, half: int) -> GraphModule:
        """The outer graph with its regions compiled, or the graph itself where that fails."""
        assert self.partition is not None
        if self.partition.outlines is None or self._failed:
            return module
        try:
            return compile_outline(module, self.partition.outlines[half])
        except KernelError as error:
            self._failed = True
            warnings.warn(
                f"snnmem runs this graph op by op, since its regions cannot be compiled: {error}",
                SnnfxWarning,
                stacklevel=2,
            )
            return module

    def _finish(self, backward: GraphModule | None) -> None:
        if self.partition is None:
            return
        plan = self.partition.plan
        if self._failed and backward is not None and self._forward is not None:
            timeline = step_timeline(
                self._forward.graph, backward.graph, self.outputs, self.tangents
            )
            plan = dataclasses.replace(plan, predicted=timeline)
        self.report(plan)
