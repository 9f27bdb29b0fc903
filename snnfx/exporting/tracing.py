"""The joint graph of a model with the meaning of its ends, in a form that needs no Dynamo.

`snnfx.capture` gives the graph that the backend sees, whose ends only Dynamo's own code can serve.
Here the model's code runs on fake tensors instead, with its parameters and buffers as arguments and
its results flat.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from snnfx._torch_compat import JointEnds, export_joint, fake_mode_with_sizes
from snnfx.errors import ExportError
from snnfx.exporting.signature import StepSignature, Tangent, TensorSpec, dense_order
from snnfx.exporting.sizes import DynamicShapes, Symbols, named_shapes
from snnfx.exporting.structure import Structure, flatten, unflatten
from snnfx.module_state import changed_tensors, kept_state, tensor_places
from snnfx.passes.fxgraph import JointRoles, find_roles, node_value, schema_of, tensor_value

ADVICE = (
    "Write it without decisions on the values of tensors (torch.where selects without them), and "
    "with sizes that follow from those of the inputs."
)


@dataclass(frozen=True)
class TracedStep:
    """A joint graph, or without gradients the graph of a forward, and its ends.

    Attributes:
        graph_module: raw ATen, functional, with fake tensors.
        roles: its ends as the passes know them.
        signature: its ends as a caller knows them.
    """

    graph_module: GraphModule
    roles: JointRoles
    signature: StepSignature


def trace_step(
    model: nn.Module, args: Sequence[Any], dynamic: DynamicShapes | None, *, with_gradients: bool
) -> TracedStep:
    """Trace a model in the modes that its modules are in.

    Args:
        model: it is left as it was, and so is its state.
        args: example inputs.
        dynamic: which of their sizes may vary.
        with_gradients: False traces the forward alone.

    Raises:
        ExportError: the model cannot be traced, or does what its graph cannot do.
    """
    tensors, inputs = flatten(tuple(args))
    mode = fake_mode_with_sizes()
    symbols = Symbols(mode)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = (*(tuple(t.shape) for t in state.values()), *named_shapes(tensors, dynamic))
    reals = (*state.values(), *tensors)
    names = [*state, *map(str, range(len(tensors)))]
    kinds = [*map(_kind, state.values()), *("input" for _ in tensors)]
    specs = [_spec(*ends, with_gradients) for ends in zip(kinds, names, reals, shapes, strict=True)]
    fakes = [symbols.fake(s.shape, t, s.order) for s, t in zip(specs, reals, strict=True)]
    flat = _Flat(model, tuple(state), inputs)
    with torch.set_grad_enabled(with_gradients):
        module, ends = _trace(flat, fakes)
    _check(module, ends, specs)
    flat.check_state(module)
    count, results = len(specs), len(ends.mutated) + ends.outputs
    signature = StepSignature(
        primals=tuple(specs),
        mutated=ends.mutated,
        arguments=_argument_names(model, len(tuple(args))),
        inputs=inputs,
        outputs=flat.outputs,
        tangents=_tangents(module, count, ends),
        sizes=symbols.ranges(),
    )
    roles = find_roles(module, count, results, ends.mutated)
    return TracedStep(module, roles, signature)


def _kind(tensor: Tensor) -> str:
    return "parameter" if isinstance(tensor, nn.Parameter) else "buffer"


def _spec(
    kind: str, name: str, tensor: Tensor, shape: tuple[int | str, ...], with_gradients: bool
) -> TensorSpec:
    return TensorSpec(
        kind,
        name,
        str(tensor.dtype).removeprefix("torch."),
        tensor.device.type,
        shape,
        dense_order(tensor),
        tensor.requires_grad and with_gradients,
    )


def _argument_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """Names by which arguments may be given, as far as they have any."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(p.name for p in parameters if p.kind in kinds)[:count]


def _trace(flat: _Flat, fakes: Sequence[Tensor]) -> tuple[GraphModule, JointEnds]:
    try:
        module, ends = export_joint(flat, fakes)
        if ends.aliases:  # what a caller gets has memory of its own
            flat.copied = ends.aliases
            module, ends = export_joint(flat, fakes)
    except ExportError:
        raise
    except RuntimeError as error:
        raise ExportError(f"the model cannot be traced: {error}\n{ADVICE}") from error
    return module, ends


def _check(module: GraphModule, ends: JointEnds, specs: Sequence[TensorSpec]) -> None:
    if -1 in ends.tangents:
        names = ", ".join(f"'{specs[i].name}'" for i in ends.mutated)
        raise ExportError(
            f"one of {names} is given a new value that has a gradient, so one call would go on in "
            "the next; detach what is written to buffers and inputs"
        )
    if ends.aliases or not ends.is_plain:
        raise ExportError("results or inputs of the model share memory in a way that has no graph")
    for node in module.graph.nodes:
        value = node_value(node)
        if node.op != "placeholder" and _is_symbolic(value) and free_unbacked_symbols(value):
            raise ExportError(
                f"node '{node.name}' ({node.target}) depends on the values of tensors. {ADVICE}"
            )
        schema = schema_of(node)
        if schema is not None and schema.is_mutable:
            raise ExportError(
                f"node '{node.name}' ({node.target}) writes to a tensor that is neither an input "
                "nor a buffer; register it as a buffer"
            )


def _is_symbolic(value: object) -> bool:
    return isinstance(value, (Tensor, torch.SymInt))


def _tangents(module: GraphModule, primals: int, ends: JointEnds) -> tuple[Tangent, ...]:
    placeholders = module.graph.find_nodes(op="placeholder")[primals:]
    values = [tensor_value(node) for node in placeholders]
    return tuple(
        Tangent(output, dense_order_of_fake(value))
        for output, value in zip(ends.tangents, values, strict=True)
        if value is not None
    )


def dense_order_of_fake(value: Tensor) -> tuple[int, ...]:
    """As `dense_order`, for sizes that may be symbols, which count as they were when traced."""
    shape = [_hint(size) for size in value.shape]
    stride = [_hint(step) for step in value.stride()]
    return dense_order(torch.empty_strided(shape, stride, device="meta"))


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


class _Flat(nn.Module):
    """A model as a function of its parameters, buffers and input tensors, with flat results."""

    def __init__(self, model: nn.Module, names: Sequence[str], inputs: Structure) -> None:
        super().__init__()
        self._step = [_Step(model)]  # not a submodule: its parameters are arguments
        self._names = names
        self._inputs = inputs
        places = tensor_places(model.modules())
        histories = {id(tensor): tensor for _, _, tensor in places if tensor.grad_fn is not None}
        self._detached = {key: tensor.detach() for key, tensor in histories.items()}
        self.copied: tuple[int, ...] = ()

    @property
    def outputs(self) -> Structure:
        return self._step[0].outputs

    def forward(self, *flat: Tensor) -> tuple[Tensor, ...]:
        """Run the model.

        Args:
            flat: parameters and buffers in the order of their names, then inputs.
        """
        step = self._step[0]
        state = dict(zip((f"model.{n}" for n in self._names), flat, strict=False))
        args = unflatten(self._inputs, iter(flat[len(self._names) :]))
        with _swapped(step, state, self._detached):
            results = step(*args)
        return tuple(r.clone() if i in self.copied else r for i, r in enumerate(results))

    def check_state(self, module: GraphModule) -> None:
        """Hold that no state is carried from one call to the next outside of buffers' memory.

        Raises:
            ExportError: the graph reads a tensor that the model replaced while it ran, or one with
                a gradient that goes nowhere.
        """
        placeholders = module.graph.find_nodes(op="placeholder")
        constants = module.graph.find_nodes(op="get_attr")
        state = zip(self._names, placeholders, strict=False)
        read = {name for name, node in state if node.users}
        held = [getattr(module, str(node.target)) for node in constants if node.users]
        for name, value in self._step[0].replaced:
            if name in read or any(value is tensor for tensor in held):
                raise ExportError(
                    f"the model reads '{name}' and replaces it, so it carries state from one call "
                    "to the next, which an exported model does not. Reset the model before it is "
                    "exported, reset it inside of its forward, or write the state into the buffer "
                    "with copy_"
                )
        if any(tensor.requires_grad for tensor in held):
            raise ExportError(
                "the model reads a tensor that requires a gradient and is no parameter; register "
                "it as an nn.Parameter"
            )


class _Step(nn.Module):
    """One call of a model, after which its attributes are what they were."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.outputs: Structure = []
        self.replaced: tuple[tuple[str, Tensor], ...] = ()

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        with kept_state(self.model.modules()):
            with changed_tensors(self.model) as replaced:
                result = self.model(*args)
            self.replaced = tuple(replaced)
        tensors, self.outputs = flatten(result)
        return tuple(tensors)


@contextmanager
def _swapped(
    module: nn.Module, state: dict[str, Tensor], detached: dict[int, Tensor]
) -> Generator[None]:
    """Let the model hold other tensors wherever it holds its parameters and buffers.

    Args:
        module: holds them again in the end.
        state: the others, by name.
        detached: by identity, what takes the place of further tensors with a history.
    """
    originals = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    by_id = {id(originals[name]): tensor for name, tensor in state.items()}
    places = list(tensor_places(module.modules()))
    try:
        for holder, name, tensor in places:
            if id(tensor) in by_id:
                holder[name] = by_id[id(tensor)]
            elif id(tensor) in detached:
                holder[name] = detached[id(tensor)]
        yield
    finally:
        for holder, name, tensor in places:
            holder[name] = tensor
