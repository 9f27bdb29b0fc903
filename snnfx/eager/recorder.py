"""Watch a step on fake tensors: a dispatch mode, hooks of modules, and hooks of saved tensors."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from snnfx._torch_compat import FakeTensorMode, TorchDispatchMode
from snnfx.eager.graph_recorder import GraphRecorder, Metas
from snnfx.eager.step import (
    ALLOC,
    DROP,
    ENTER,
    EXIT,
    FREE,
    OUTSIDE,
    RETURN,
    RUN,
    SAVE,
    USE,
    CallArguments,
    CallTensor,
    Event,
)
from snnfx.eager.storages import Storages, tensors_in
from snnfx.eager.twin import MAKES_LITERALS, with_fakes
from snnfx.passes.fxgraph import tensor_bytes

aten = torch.ops.aten

NOT_ALLOCATED = -1


@dataclass(frozen=True)
class Operator:
    """An operator that has run.

    Attributes:
        node: its call.
        results: the storages that it allocated for its results, by their place; `NOT_ALLOCATED`
            for one that lies in older memory.
    """

    node: Node
    results: tuple[int, ...]


@dataclass
class OpenCall:
    """A call of a module, from when it begins; see `snnfx.eager.step.ModuleCall`."""

    path: str
    index: int
    inputs: tuple[CallTensor, ...]
    arguments: CallArguments
    enter: int
    exit: int = -1
    outputs: tuple[Node, ...] = ()


class Recorder(TorchDispatchMode):
    """Records what runs while it is the innermost mode, above a `FakeTensorMode`.

    Attributes:
        events: as `snnfx.eager.step` describes them; RUN without its bytes.
        operators: those of RUN.
        storage_bytes: of each storage that was allocated, or followed from the start (0).
        calls: of modules in the forward.
        stack: the calls that have not returned yet.
        holder_calls: for each holder of a saved tensor, the call in which it was made, or -1.
        gradients: the storages of the parameters' gradients.
        forward: the graph of the forward.
        backward: the position at which the backward began.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode
        self._metas = Metas(mode)
        self._storages = Storages()
        self._graph = GraphRecorder(self._storages, self._metas)
        self._quiet = False
        self._entered: dict[str, int] = {}
        self.forward = self._graph.graph
        self.backward = -1
        self.events: list[Event] = []
        self.operators: list[Operator] = []
        self.storage_bytes: list[int] = [0]  # of OUTSIDE
        self.calls: list[OpenCall] = []
        self.stack: list[int] = []
        self.holder_calls: list[int] = []
        self.gradients: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if self._quiet or func.namespace == "prim":
            return func(*args, **kwargs)
        if func not in MAKES_LITERALS:
            args, kwargs = with_fakes(args, self._fake_of), with_fakes(kwargs, self._fake_of)
        result = func(*args, **kwargs)
        found = result if isinstance(result, (list, tuple)) else (result,)
        numbers = tuple(self._allocated(item) for item in found)
        node = self._graph.add(func, args, kwargs, result)
        self.events.append((RUN, len(self.operators), 0))
        self.operators.append(Operator(node, numbers))
        return result

    @contextmanager
    def pause(self) -> Generator[None]:
        """Record nothing inside."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _fake_of(self, real: Tensor) -> Tensor:
        """In the place of a real tensor, which belongs to the user."""
        fake = self._mode.from_tensor(real)
        self._storages.find_or_add_outside(fake)
        return fake

    def _allocated(self, result: Any) -> int:
        """The number of the storage of a result, if the operator has just allocated it."""
        if not isinstance(result, Tensor) or result.layout is not torch.strided:
            return NOT_ALLOCATED
        if self._storages.find(result) is not None:
            return NOT_ALLOCATED
        return self._follow(result, int(result.untyped_storage().nbytes()))

    def _follow(self, tensor: Tensor, size: int) -> int:
        number = len(self.storage_bytes)
        self.storage_bytes.append(size)
        self.events.append((ALLOC, number, 0))
        self._storages.add(tensor, number, lambda: self.events.append((FREE, number, 0)))
        return number

    def name(self, tensor: Tensor, name: str, *, followed: bool = False) -> None:
        """Tell the record of a tensor that exists before the step.

        Args:
            tensor: a parameter, a buffer, or an input.
            name: of its placeholder.
            followed: whether containers may store something in its place, as they do for inputs.
        """
        if followed and self._storages.find(tensor) is None and tensor.layout is torch.strided:
            self._follow(tensor, 0)
        self._graph.node_of(tensor, name)

    def results(self, value: Any) -> tuple[Node, ...]:
        """The nodes of the tensors in a value."""
        return tuple(self._graph.node_of(tensor) for tensor in tensors_in(value))

    def begin_backward(self) -> None:
        """From now on operators belong to the backward, and calls of modules to recomputation."""
        self.backward = len(self.events)
        self.forward.output(self.calls[0].outputs)
        self._storages.forget_contents()
        self._graph = GraphRecorder(self._storages, self._metas)

    def watch_modules(self, model: nn.Module) -> None:
        """Record the calls of the modules of `model`."""
        for path, module in model.named_modules():
            module.register_forward_pre_hook(self._enter(path), prepend=True, with_kwargs=True)
            module.register_forward_hook(self._exit(path), with_kwargs=True)

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            del module
            if self.backward >= 0:
                return
            index = self._entered.get(path, 0)
            self._entered[path] = index + 1
            with self.pause():
                inputs = tuple(self._passed(tensor) for tensor in tensors_in((args, kwargs)))
            self.stack.append(len(self.calls))
            how = _arguments(args, kwargs)
            self.calls.append(OpenCall(path, index, inputs, how, len(self.events)))
            self.events.append((ENTER, self.stack[-1], 0))

        return enter

    def _exit(self, path: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            del module, args, kwargs
            if self.backward >= 0:
                return
            with self.pause():
                outputs = self.results(output)
            # A call that ended in an error which its caller caught is closed with its caller.
            while self.stack:
                number = self.stack.pop()
                call = self.calls[number]
                call.exit, call.outputs = len(self.events), outputs if call.path == path else ()
                self.events.append((EXIT, number, 0))
                if call.path == path:
                    break

        return leave

    def _passed(self, tensor: Tensor) -> CallTensor:
        storage = self._storages.find_or_add_outside(tensor)
        number = OUTSIDE if storage is None else storage.number
        node = self._graph.node_of(tensor)
        size = tensor_bytes(tensor)
        return CallTensor(node, number, tuple(tensor.shape), tensor.dtype, size)

    def watch_gradient(self, parameter: Tensor) -> None:
        """Record in which storage the gradient of a parameter comes to lie."""

        def accumulated(leaf: Tensor) -> None:
            storage = None if leaf.grad is None else self._storages.find(leaf.grad)
            if storage is not None and storage.number != OUTSIDE:
                self.gradients.append(storage.number)

        parameter.register_post_accumulate_grad_hook(accumulated)

    def pack(self, tensor: Tensor) -> Tensor | Holder:
        """What autograd keeps in the place of a tensor: something that keeps no memory alive.

        Parameters are kept themselves, by containers too.
        """
        storage = self._storages.find_or_add_outside(tensor)
        if storage is None or isinstance(tensor, nn.Parameter):
            return tensor if tensor.is_leaf else tensor.detach()
        with self.pause():
            meta = self._metas.of(tensor)
            assert meta is not None, "only strided tensors have a storage"
            holder = Holder(self.events, len(self.holder_calls), meta)
        self.events.append((SAVE, holder.number, storage.number))
        self.holder_calls.append(self.stack[-1] if self.stack else -1)
        return holder

    def unpack(self, saved: Tensor | Holder) -> Tensor:
        """A tensor with the sizes of the one that was saved."""
        if isinstance(saved, Tensor):
            return saved
        number, meta = saved.number, saved.meta
        self.events.append((USE, number, 0))
        with self.pause():
            tensor = torch.empty_strided(
                meta.shape, meta.stride(), dtype=meta.dtype, device=meta.device
            )
            self._storages.add(tensor, OUTSIDE, lambda: self.events.append((RETURN, number, 0)))
        return tensor


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallArguments:
    are_tensors = [isinstance(value, Tensor) for value in args]
    return CallArguments(
        starts_with_tensor=are_tensors[:1] == [True],
        only_tensors=all(are_tensors) and not kwargs,
        has_keywords=bool(kwargs),
    )


@dataclass(eq=False)
class Holder:
    """Stands for a saved tensor; its end says that autograd let go of it."""

    events: list[Event] = field(repr=False)
    number: int
    meta: Tensor

    def __del__(self) -> None:
        self.events.append((DROP, self.number, 0))
