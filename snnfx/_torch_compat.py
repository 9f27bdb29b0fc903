"""The only module that touches private parts of PyTorch, each with the reason.

- `aot_autograd`: the backend's way into AOTAutograd; `torch.compile` backends that partition their
  own joint graph have no public door. Its keyword arguments are the same in 2.11 to 2.13.
- `_extract_fwd_bwd_modules`: the calling convention between the two halves (order of saved tensors,
  symbols, opaque objects) is AOTAutograd's own and changes; this function is its definition.
- `_BoxedCodeGen`: code that takes its arguments as a list and releases them as it goes.
- `_LazyGraphModule`, `_use_lazy_graph_module`: a graph module whose code is generated when it is
  first called; planning makes many that never are.
- `InputMutationAOTOutput`: the tracer's description of an output that is copied into an input after
  the forward; the metadata that lists them is set only after partitioning.
- `FakeTensorMode` and friends: shapes without memory. `in_kernel_invocation_manager` is how the
  mode makes a tensor from a description that it has worked out before.
- `_select_conv_backend` and `_conv_determine_backend_memory_format`: which of its convolutions
  PyTorch takes for a shape depends on threads, types and build; these two are what it asks itself.
- `TorchDynamoException`: what Dynamo raises where it cannot follow a model; its other names are
  subclasses of this one.
- `peek_interpreter_stack`: whether a transform of `torch.func` is active has no public question.
- `aot_export_joint_with_descriptors`: the joint graph of a module without Dynamo, with the meaning
  of each of its ends; `torch.export` drops the gradients of an `autograd.Function`. The same in
  2.11 to 2.13.
- `TracingContext`: removing dead nodes of a graph removes random ones only while one is active.
- `ConstantSource`: where a size that may vary is said to come from; tracing asks for a source.
- `pytree`: arguments of a model as the tracer takes them apart.
- `TorchDispatchMode`: sees each operator of an eager step, after autograd has taken it apart.
- `_current_graph_task_id` and `_execution_engine.queue_callback`: whether autograd is running a
  backward, and when it ends.
- `_TorchCompileWrapper`, `CompileContext` and `compile_subgraph_reason`: for which call of
  `torch.compile` and which frame a backend is running, and why Dynamo ended the graph there.
- `CompiledFunctionBackward`: AOTAutograd's node of a compiled graph; its `set_materialize_grads` is
  public, the way to the node is not. AOTAutograd hands None on to the compiled backward.
- `_DisableTorchDispatch`: looks at values while modes are active, without their seeing it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.source import ConstantSource
from torch._functorch import partitioners
from torch._functorch._aot_autograd.descriptors import (
    InputMutationAOTOutput,
    PlainAOTInput,
    PlainAOTOutput,
    TangentAOTInput,
)
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._functorch.partitioners import (
    default_partition,
    min_cut_rematerialization_partition,
)
from torch._guards import CompileContext, TracingContext, detect_fake_mode, tracing
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule, _use_lazy_graph_module
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.fx.graph import _BoxedCodeGen
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "FakeTensor",
    "FakeTensorMode",
    "JointEnds",
    "TorchDispatchMode",
    "TorchDynamoException",
    "aot_autograd",
    "as_in_compilation",
    "at_end_of_backward",
    "boxed",
    "compile_call",
    "compile_with_inductor",
    "compiled_frame",
    "convolution_backend",
    "default_partition",
    "detect_fake_mode",
    "export_joint",
    "extract_forward_backward",
    "fake_mode_with_sizes",
    "fake_of_description",
    "graph_break_reason",
    "in_backward",
    "in_transform",
    "is_about_layout",
    "lazy_module",
    "leave_gradients_out",
    "min_cut_rematerialization_partition",
    "mutated_inputs",
    "pytree",
    "symbolic_size",
    "without_dispatch",
]


def mutated_inputs(
    joint: GraphModule, num_primals: int, num_forward_outputs: int
) -> tuple[int, ...]:
    """The positions of the primals that the runtime overwrites when the forward has run."""
    descriptions = joint.graph.output_node().meta["desc"][:num_forward_outputs]
    overwritten = {d.mutated_input for d in descriptions if isinstance(d, InputMutationAOTOutput)}
    placeholders = joint.graph.find_nodes(op="placeholder")[:num_primals]
    return tuple(i for i, node in enumerate(placeholders) if node.meta["desc"] in overwritten)


def convolution_backend(
    x: Tensor, weight: Tensor, bias_sizes: Sequence[int] | None, arguments: Sequence[Any]
) -> tuple[str, bool]:
    """The implementation that PyTorch takes for a convolution, and whether in channels-last.

    Args:
        x: fake or real, sizes all numbers; so is `weight`.
        weight: ``[K, C / groups, *kernel]``.
        bias_sizes: of the bias; None if there is none.
        arguments: stride, padding, dilation, transposed, output padding, groups.
    """
    bias = None if bias_sizes is None else weight.new_empty(tuple(bias_sizes))
    backend = torch._C._select_conv_backend(x, weight, bias, *arguments)
    layout = torch._C._conv_determine_backend_memory_format(x, weight, backend)
    # The binding of the enum leaves one of the CPU's out.
    name = "MkldnnTranspose" if backend.name == "???" else backend.name
    return name, layout in (torch.channels_last, torch.channels_last_3d)


def extract_forward_backward(
    joint: GraphModule,
    saved: Sequence[Node],
    saved_symbols: Sequence[Node],
    num_forward_outputs: int,
) -> tuple[GraphModule, GraphModule]:
    """Split a joint graph in two, with `saved` passing from one half to the other."""
    function = partitioners._extract_fwd_bwd_modules
    added: dict[str, Any] = {"static_lifetime_input_nodes": None}  # by torch 2.12
    known = inspect.signature(function).parameters
    with _use_lazy_graph_module(True):  # no code: the halves are mostly rewritten before they run
        return function(
            joint,
            list(saved),
            list(saved_symbols),
            num_fwd_outputs=num_forward_outputs,
            **{name: value for name, value in added.items() if name in known},
        )


def lazy_module(root: GraphModule, graph: Graph) -> GraphModule:
    """A module of `graph` that takes its constants from `root`; its code is generated on call."""
    return _LazyGraphModule(root, graph)


def boxed(module: GraphModule) -> Callable[[list[Any]], Any]:
    """The module as a function of one list, which it empties: inputs die at their last use."""
    module.graph.set_codegen(_BoxedCodeGen())
    module.recompile()

    def run(args: list[Any]) -> Any:
        return module.forward(args)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def compile_with_inductor(module: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a whole graph of raw ATen operators with Inductor; boxed.

    A forward and a backward of a partitioned graph may be given, too: nothing is differentiated.
    """
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    fake_mode = detect_fake_mode(example_inputs)
    assert fake_mode is not None
    with torch.no_grad(), fake_mode:
        fakes = [fake_mode.from_tensor(x) if isinstance(x, torch.Tensor) else x
                 for x in example_inputs]  # fmt: skip
        lowered = make_fx(module, decomposition_table=select_decomp_table())(*fakes)
    return compile_fx_inner(lowered, fakes)  # type: ignore[arg-type, return-value]


def leave_gradients_out(results: Any, args: Sequence[Any]) -> None:
    """Have autograd give None for gradients that there are none of, not zeros.

    Args:
        results: of a compiled graph; they share one node of autograd's graph, which is asked.
        args: of the same call. A result that is an argument has the node of another call.
    """
    if torch._dynamo.config.compiled_autograd or not isinstance(results, (list, tuple)):
        return  # compiled autograd traces the backward with zeros
    given = [x.grad_fn for x in args if isinstance(x, Tensor) and x.grad_fn is not None]
    for value in results:
        node: Any = value.grad_fn if isinstance(value, Tensor) else None
        if type(node).__name__ == "CompiledFunctionBackward" and node not in given:
            node.set_materialize_grads(False)
            return


def in_transform() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, ...) is running."""
    innermost: Any = peek_interpreter_stack()  # typed as if it were never None
    return innermost is not None


def without_dispatch() -> AbstractContextManager[object]:
    """No mode of `__torch_dispatch__`, and no tensor subclass, sees what runs inside."""
    return torch._C._DisableTorchDispatch()


def in_backward() -> bool:
    """Whether autograd is running a backward in this thread."""
    return torch._C._current_graph_task_id() != -1


def at_end_of_backward(callback: Callable[[], None]) -> None:
    """Have autograd call back once the backward that is running has ended."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(callback)


def fake_of_description(
    mode: FakeTensorMode,
    shape: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> FakeTensor:
    """A new fake tensor, without a call of the mode."""
    with in_kernel_invocation_manager(mode):
        memory = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return FakeTensor(mode, memory, device)


@dataclass(frozen=True)
class JointEnds:
    """What the ends of a joint graph that `export_joint` made are.

    Attributes:
        mutated: for each of the first results, the position of the primal whose new value it is.
        outputs: how many results of the forward come from the module.
        tangents: for each gradient that goes in, the position of the module's result; -1 for the
            new value of a mutated primal.
        aliases: positions of the module's results that share memory with each other or an input.
        is_plain: whether the graph has no other ends, and each primal is an argument in its place.
    """

    mutated: tuple[int, ...]
    outputs: int
    tangents: tuple[int, ...]
    aliases: tuple[int, ...]
    is_plain: bool


def export_joint(module: nn.Module, args: Sequence[Any]) -> tuple[GraphModule, JointEnds]:
    """The joint graph of a module without parameters that takes and gives flat tensors.

    Without anything that requires a gradient it is the graph of the forward alone.

    Args:
        module: its code runs, with fake tensors.
        args: fake.
    """
    with ExitStack() as stack:
        captured = aot_export_joint_with_descriptors(stack, module, tuple(args))
        graph_module = captured.graph_module
        infos = captured._aot_state.fw_metadata.output_info
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    inputs = [node.meta["desc"] for node in placeholders]
    tangents = [d.output for d in inputs if isinstance(d, TangentAOTInput)]
    primals = [d for d in inputs if not isinstance(d, TangentAOTInput)]
    results: list[Any] = graph_module.graph.output_node().meta["desc"]
    written: list[Any] = [d for d in results if isinstance(d, InputMutationAOTOutput)]
    mutated = [d.mutated_input.idx for d in written]
    outputs = [d.idx for d in results if isinstance(d, PlainAOTOutput)]
    kept = ("non_alias", "unsafe_view_alias", "custom_function_view")
    ends = JointEnds(
        tuple(mutated),
        len(outputs),
        tuple(t.idx if isinstance(t, PlainAOTOutput) else -1 for t in tangents),
        tuple(i for i, info in enumerate(infos) if info.output_type.name not in kept),
        primals == [PlainAOTInput(i) for i in range(len(args))]
        and list(results[: len(mutated) + len(outputs)]) == [d for d in results
            if isinstance(d, (InputMutationAOTOutput, PlainAOTOutput))]
        and outputs == list(range(len(infos))),
    )  # fmt: skip
    return graph_module, ends


def fake_mode_with_sizes() -> FakeTensorMode:
    """A mode for fake tensors whose sizes may be symbols; real tensors may be constants in it."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def as_in_compilation() -> AbstractContextManager[object]:
    """Graphs are rewritten inside as they are while `torch.compile` runs."""
    return tracing(TracingContext(None))


def symbolic_size(mode: FakeTensorMode, name: str, size: int) -> Any:
    """A new symbol for a size, which was `size` when it was traced and is at least 2."""
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])  # type: ignore[arg-type]
    example = torch.empty(size, device="meta")
    fake = mode.from_tensor(example, source=ConstantSource(name), symbolic_context=context)
    return fake.shape[0]


def is_about_layout(guard: Any) -> bool:
    """Whether a guard on sizes only chose the strides of a fake convolution's result.

    Operators take any strides when they run, so a graph holds where such a guard does not.
    """
    place = guard.sloc.framework_loc
    name = getattr(place, "filename", "")
    return name.endswith("fake_impls.py") and getattr(place, "name", "") == "conv"


def compile_call() -> Any | None:
    """The call of `torch.compile` for which a backend runs, an object; None outside of any."""
    code = torch._TorchCompileWrapper.__call__.__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]


def compiled_frame() -> tuple[object, object]:
    """The function that Dynamo is compiling, and which of its compilations this is."""
    compilation = CompileContext.current_compile_id()
    return getattr(compilation, "frame_id", None), compilation


def graph_break_reason(module: GraphModule) -> str | None:
    """Why and where Dynamo ended a graph in the middle of a function; None if it did not."""
    reason: Any = getattr(module, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return None
    text = reason.reason.strip().partition("\n")[0].rstrip(".")
    place = reason.user_stack[-1] if reason.user_stack else None
    return text if place is None else f"{text}, at {place.filename}:{place.lineno}"
