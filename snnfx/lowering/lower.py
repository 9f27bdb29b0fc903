"""How a planned graph runs: op by op, or with its fused regions compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from snnfx._torch_compat import boxed, compile_with_inductor
from snnfx.config import Options
from snnfx.passes.plan.memory_plan import MemoryPlan

BoxedFunction = Callable[[list[Any]], Any]


class Lowering:
    """The compilers of the halves of one graph.

    Attributes:
        plan: of the joint graph, once it is partitioned; None for inference.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.plan: MemoryPlan | None = None

    def forward(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile the forward of a training step."""
        return self._lower(module, example_inputs)

    def backward(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile the backward of a training step."""
        return self._lower(module, example_inputs)

    def inference(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        """Compile a graph without a backward."""
        return self._lower(module, example_inputs)

    def _lower(self, module: GraphModule, example_inputs: Sequence[Any]) -> BoxedFunction:
        if self.options.lowering == "eager":
            return boxed(module)
        if self.plan is None or not self.plan.applied:
            return compile_with_inductor(module, example_inputs)
        return boxed(module)
