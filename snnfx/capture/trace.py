"""Trace a model into its joint graph with Dynamo and AOTAutograd, and stop there."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from snnfx._torch_compat import (
    FakeTensor,
    FakeTensorMode,
    TorchDynamoException,
    aot_autograd,
    mutated_inputs,
    pytree,
)
from snnfx.errors import CaptureError
from snnfx.passes.fxgraph import JointRoles, find_roles

WAY_OUT = (
    "If the model runs by itself, write this part without decisions on the values of tensors "
    "(torch.where selects without them), capture the parts of the model one by one, or use "
    "torch.compile without fullgraph, which splits a model where it cannot follow it."
)


class _Traced(BaseException):
    """Ends the compilation from inside; no handler of errors may take it for one."""


class JointTrace:
    """The joint graph of a model, and what its placeholders were called with.

    Attributes:
        joint: raw ATen, functional, with fake tensors.
        roles: its ends.
        arguments: the tensors behind the primals, in the order of the placeholders.
        labels: Dynamo's names of them.
    """

    joint: GraphModule
    roles: JointRoles

    def __init__(self, model: nn.Module, args: Sequence[Any]) -> None:
        """Trace `model` on `args`, which are fake.

        Raises:
            CaptureError: the model cannot be traced as one graph, or has nothing to train.
        """
        self.arguments: tuple[Any, ...] = ()
        self.labels: tuple[str, ...] = ()

        def step(*inputs: Any) -> Any:  # compiling the module itself would leave a mark on it
            return model(*inputs)

        compiled = torch.compile(step, backend=self._backend, fullgraph=True, dynamic=False)
        try:
            with torch.enable_grad():
                compiled(*args)
        except _Traced:
            return
        except TorchDynamoException as error:
            raise CaptureError(_explanation(error)) from error
        raise CaptureError("the model has no operator on tensors that could be captured")

    def _backend(self, module: GraphModule, example_inputs: Sequence[Any]) -> Any:
        self.arguments = tuple(example_inputs)
        self.labels = tuple(n.name for n in module.graph.find_nodes(op="placeholder"))
        compiler = aot_autograd(
            fw_compiler=_no_backward,
            bw_compiler=_no_backward,
            inference_compiler=_no_backward,
            partition_fn=self._partition,
        )
        return compiler(module, example_inputs)

    def _partition(
        self, joint: GraphModule, joint_inputs: Any, *, num_fwd_outputs: int, **kwargs: Any
    ) -> tuple[GraphModule, GraphModule]:
        del kwargs
        primals = len(joint_inputs[0])
        mutated = mutated_inputs(joint, primals, num_fwd_outputs)
        self.joint = joint
        self.roles = find_roles(joint, primals, num_fwd_outputs, mutated)
        raise _Traced


def _no_backward(module: GraphModule, example_inputs: Sequence[Any]) -> Any:
    raise CaptureError(
        "the model has nothing to train: no output depends on a parameter or an input that "
        "requires a gradient. Set requires_grad, and do not compute the outputs under no_grad."
    )


def _explanation(error: BaseException) -> str:
    """Dynamo's reason and the user's line, without the advice on how to debug Dynamo."""
    cause = getattr(error, "inner_exception", None)
    if isinstance(cause, CaptureError):
        return str(cause)
    text = str(error if cause is None else cause)
    reason, _, rest = text.partition("\n")
    details = [_field(rest, "Explanation:"), _field(rest, "Developer debug context:")]
    detail = " ".join(f"{text.rstrip('.')}." for text in details if text)
    _, found, code = text.partition("from user code:\n")
    place = code.partition("\n\n")[0].rstrip()
    where = f"\n{place}" if found else ""
    return f"the model cannot be captured as one graph: {reason}. {detail}{where}\n{WAY_OUT}"


def _field(text: str, name: str) -> str:
    """The rest of the line that starts with `name`; empty if there is none."""
    lines = (line.strip() for line in text.splitlines())
    return next((line.removeprefix(name).strip() for line in lines if line.startswith(name)), "")


@contextmanager
def fake_arguments(
    model: nn.Module, args: Sequence[Any], device: torch.device
) -> Generator[tuple[Any, ...]]:
    """Give fake arguments; until the end, the model's tensors on the meta device are fake, too.

    Args:
        model: gets its own tensors back at the end.
        args: with tensors that are real, fake, or on the meta device.
        device: where tensors on the meta device are taken to be.

    Raises:
        CaptureError: this build of torch cannot trace for `device`.
    """
    if device.type == "cuda" and not torch.backends.cuda.is_built():
        raise CaptureError(f"this torch is built without CUDA, so it cannot trace for '{device}'")
    mode = FakeTensorMode()
    fakes: dict[int, Tensor] = {}
    undo: list[tuple[MutableMapping[str, Any], str, Tensor]] = []
    for values in _tensor_holders(model):
        for name, value in values.items():
            if isinstance(value, Tensor) and value.device.type == "meta":
                undo.append((values, name, value))
    try:
        for values, name, value in undo:
            values[name] = fakes.setdefault(id(value), _fake_of(value, mode, device))
        yield pytree.tree_map_only(Tensor, lambda t: _fake_of(t, mode, device), tuple(args))
    finally:
        for values, name, value in undo:
            values[name] = value


def _tensor_holders(model: nn.Module) -> Iterator[MutableMapping[str, Any]]:
    """The mappings in which the modules keep parameters, buffers, and tensors of their state."""
    for module in model.modules():
        yield module.__dict__
        yield from (value for value in module.__dict__.values() if isinstance(value, dict))


def _fake_of(tensor: Tensor, mode: FakeTensorMode, device: torch.device) -> Tensor:
    if tensor.device.type != "meta":
        return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)
    with mode:
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad)


def primal_names(trace: JointTrace, model: nn.Module, args: Sequence[Any]) -> tuple[str, ...]:
    """A name for each primal: a parameter's or buffer's in the model, an argument's, or Dynamo's.

    Args:
        trace: of the model, or of the model with its loss.
        model: as it was traced.
        args: as it was traced with.
    """
    known: dict[int, str] = {}
    parameters = inspect.signature(model.forward).bind(*args).arguments
    for name, argument in parameters.items():
        for path, leaf in pytree.tree_flatten_with_path(argument)[0]:
            known[id(leaf)] = name + pytree.keystr(path)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        known[id(tensor)] = name
    pairs = zip(trace.arguments, trace.labels, strict=True)
    return tuple(known.get(id(argument), label) for argument, label in pairs)
