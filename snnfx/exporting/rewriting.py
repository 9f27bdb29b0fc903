"""`snnfx.rewrite`: the step of a model, planned and rewritten, as a module in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from snnfx._torch_compat import as_in_compilation
from snnfx.capture.pipeline import partition_joint
from snnfx.config import Options
from snnfx.errors import ExportError
from snnfx.exporting.graph_data import check_graph
from snnfx.exporting.module import EVAL, TRAIN, RewrittenModule
from snnfx.exporting.sizes import DynamicShapes
from snnfx.exporting.step import Step
from snnfx.exporting.tracing import TracedStep, trace_step
from snnfx.module_state import kept_state


def rewrite(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Any],
    *,
    dynamic_shapes: DynamicShapes | None = None,
    train: bool = True,
    lowering: str = "eager",
    **options: Any,
) -> RewrittenModule:
    """The training step of a model as a module whose code is the planned graphs.

    Unlike `torch.compile`, this runs the model's code once, on fake tensors, and never again: what
    it decides on other things than tensors is decided for good. A model that carries state from one
    call to the next is to be reset before, or in its forward.

    Args:
        model: its parameters and buffers are shared with the result; it is not changed. A model in
            training mode is rewritten in the modes that its modules are in, and once more in
            evaluation mode; one in evaluation mode in that alone.
        example_inputs: the arguments of its forward; one tensor stands for a sequence of one.
        dynamic_shapes: for each tensor among them, None or names of the sizes that may vary, such
            as ``{1: "N"}`` for the batch of ``[T, N, C]``. They are 2 or more in any call.
        train: False gives the forward in evaluation mode alone, for inference.
        lowering: ``"eager"`` runs operator by operator, with the bits of the model at levels 1 and
            2; ``"inductor"`` compiles the regions between operators.
        options: the others of the backend; see `snnfx.config.Options`.

    Raises:
        ExportError: the model cannot be traced, or does what a rewritten one cannot do.
        OptionError: an unknown option or value.
    """
    if not isinstance(model, nn.Module):
        raise ExportError(
            f"only a torch.nn.Module can be rewritten or exported, not a {type(model).__name__}"
        )
    parsed = Options.parse({"lowering": lowering, **options})
    args = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    steps: dict[str, Step] = {}
    if train and model.training:
        steps[TRAIN] = _step(trace_step(model, args, dynamic_shapes, with_gradients=True), parsed)
    with kept_state(model.modules()):
        if model.training:  # one in evaluation mode keeps the modes of its modules
            model.eval()
        traced = trace_step(model, args, dynamic_shapes, with_gradients=train)
        steps[EVAL] = _step(traced, parsed)
    return RewrittenModule(steps, _state(model))


def _step(traced: TracedStep, options: Options) -> Step:
    check_graph(traced.graph_module)
    if not traced.roles.tangents:
        return Step(traced.signature, traced.graph_module, None, None, options)
    with as_in_compilation():
        partition = partition_joint(traced.graph_module, traced.roles, options)
    options.report(partition.plan)
    return Step(
        traced.signature,
        partition.forward,
        partition.backward,
        partition.plan,
        options,
        partition.outlines,
    )


def _state(model: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    state: dict[str, tuple[Tensor, bool]] = {
        name: (parameter, True)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    for path, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            persistent = name not in module._non_persistent_buffers_set
            state[f"{path}.{name}" if path else name] = (buffer, persistent)
    return state
