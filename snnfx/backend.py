"""The backend behind ``torch.compile(model, backend="snnmem", options={...})``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.fx import GraphModule

from snnfx._torch_compat import aot_autograd, mutated_inputs
from snnfx.capture.pipeline import partition_joint
from snnfx.config import Options
from snnfx.graph_count import GraphCount, forget_frames
from snnfx.lowering.absent import may_be_absent, without_absent_gradients
from snnfx.lowering.lower import Lowering
from snnfx.passes.fxgraph import find_roles
from snnfx.passes.plan.memory_plan import MemoryPlan

_applied: list[MemoryPlan] = []


def last_plan() -> MemoryPlan | None:
    """The `MemoryPlan` of the graph that was compiled last, or None before the first.

    A graph is planned when it first runs with gradients; `plan_callback` sees every plan.
    """
    return _applied[-1] if _applied else None


def snnmem(
    module: GraphModule,
    example_inputs: Sequence[Any],
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one graph of Dynamo so that training it takes a fraction of the memory.

    Args:
        module: the graph.
        example_inputs: its inputs.
        options: see `snnfx.config.Options`.
        mode: of `torch.compile`; nothing depends on it.

    Raises:
        OptionError: an unknown option or value.
    """
    del mode
    parsed = Options.parse(options)
    lowering = Lowering(parsed, lambda plan: _record(plan, parsed))
    count = GraphCount.current()
    count.add(module)

    def partition(
        joint: GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **kwargs: Any
    ) -> tuple[GraphModule, GraphModule]:
        del kwargs
        primals = len(joint_inputs[0])
        mutated = mutated_inputs(joint, primals, num_fwd_outputs)
        roles = find_roles(joint, primals, num_fwd_outputs, mutated)
        result = partition_joint(joint, roles, parsed)
        lowering.partition = result
        lowering.outputs = num_fwd_outputs
        lowering.tangents = len(roles.tangents) if may_be_absent(roles.tangents) else 0
        return result.forward, result.backward

    def backward(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        return count.tell_when_run(lowering.backward(module, example_inputs))

    compiler = aot_autograd(
        fw_compiler=lowering.forward,
        bw_compiler=backward,
        inference_compiler=lowering.inference,
        partition_fn=partition,
    )
    return without_absent_gradients(compiler(module, example_inputs), lambda: lowering.tangents > 0)


# Dynamo calls the attribute `reset` of each backend that it has used when it forgets its code.
vars(snnmem)["reset"] = forget_frames


def _record(plan: MemoryPlan, options: Options) -> None:
    _applied[:] = [plan]
    options.report(plan)


__all__ = ["last_plan", "snnmem"]
