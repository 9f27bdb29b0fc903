"""Step modes and the explicit state ("memory") of stateful spiking modules.

A stateful module registers each state variable with a reset value. The state then lives outside
of parameters and buffers: it is not in the `state_dict`, it follows `.to()`, it may be a Python
number until the first input gives it a shape, and it can be listed, extracted and loaded for a
whole module tree. The API is the documented one of SpikingJelly's `activation_based.base`.

Shapes: T time steps, N batch. A single-step input is ``[N, *]``, a multi-step one ``[T, N, *]``.
"""

from __future__ import annotations

import copy
import importlib.util
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

import torch
from torch import nn

_BACKEND_LIBRARIES = {"torch": "torch", "cupy": "cupy", "triton": "triton", "lava": "lava"}
_IMMUTABLE = (int, float, complex, bool, str, type(None))

Number = TypeVar("Number", bound=float | None)


class ConstantFloat(Generic[Number]):
    """A float (or None) attribute that compiled code sees as a constant.

    Dynamo turns a float attribute that may vary (``dynamic=True``, or one changed between calls)
    into a graph input. A threshold is then no longer known in the graph, and an autograd.Function
    that takes such an input twice fails to trace. A string is never an input, so the value is
    kept as its `repr`, which is exact; changing it compiles once more.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name}_text"

    def __get__(self, instance: Any, owner: type | None = None) -> Number:
        text = instance.__dict__[self._key]
        value: Any = None if text is None else float(text)
        return value

    def __set__(self, instance: Any, value: Number) -> None:
        instance.__dict__[self._key] = None if value is None else repr(float(value))


def check_backend_library(backend: str) -> None:
    """Check that the Python library which a backend needs is installed.

    Args:
        backend: "torch", "cupy", "triton" or "lava".

    Raises:
        ImportError: the library is not installed.
        NotImplementedError: there is no backend of that name.
    """
    if backend not in _BACKEND_LIBRARIES:
        allowed = ", ".join(_BACKEND_LIBRARIES)
        raise NotImplementedError(f"unknown backend '{backend}'; the backends are {allowed}")
    library = _BACKEND_LIBRARIES[backend]
    if importlib.util.find_spec(library) is None:
        raise ImportError(f"backend '{backend}' needs the package '{library}'; install it first")


class StepModule:
    """Interface of modules that tell single-step mode "s" from multi-step mode "m"."""

    _step_mode: str

    def supported_step_mode(self) -> tuple[str, ...]:
        """The step modes this module can run in."""
        return ("s", "m")

    @property
    def step_mode(self) -> str:
        """The current step mode.

        Raises:
            ValueError: on assignment of a mode that `supported_step_mode` does not list.
        """
        return self._step_mode

    @step_mode.setter
    def step_mode(self, value: str) -> None:
        supported = self.supported_step_mode()
        if value not in supported:
            raise ValueError(
                f"step_mode of {type(self).__name__} can only be one of {supported}, got {value!r}"
            )
        self._step_mode = value


class SingleStepModule(StepModule):
    """Interface of modules that only run one time step at a time."""

    def supported_step_mode(self) -> tuple[str, ...]:
        """Only "s"."""
        return ("s",)


class MultiStepModule(StepModule):
    """Interface of modules that only run whole sequences."""

    def supported_step_mode(self) -> tuple[str, ...]:
        """Only "m"."""
        return ("m",)


class MemoryModule(nn.Module, StepModule):
    """Base class of all stateful modules.

    Registered state variables read and write like attributes (``self.v``). Subclasses implement
    `single_step_forward`, and `multi_step_forward` where a loop over it is not what they want.

    A state tensor must never be changed in place by the module itself: autograd, and whoever
    extracted the state, may hold the same tensor. Assign a new one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memories: dict[str, Any] = {}
        self._memories_rv: dict[str, Any] = {}
        self._backend = "torch"
        self._step_mode = "s"

    @property
    def supported_backends(self) -> tuple[str, ...]:
        """The backends this module can run on."""
        return ("torch",)

    @property
    def backend(self) -> str:
        """The name of the current backend.

        Raises:
            NotImplementedError: on assignment of one that `supported_backends` does not list.
            ImportError: on assignment of one whose library is not installed.
        """
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        if value not in self.supported_backends:
            raise NotImplementedError(
                f"backend of {type(self).__name__} can only be one of {self.supported_backends}, "
                f"got {value!r}"
            )
        check_backend_library(value)
        self._backend = value

    @abstractmethod
    def single_step_forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run one time step.

        Args:
            x: input of the step, ``[N, *]``.
            *args: further inputs, passed on as they are.
            **kwargs: further options, passed on as they are.

        Returns:
            The output of the step.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define single_step_forward")

    def multi_step_forward(self, x_seq: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run `single_step_forward` over all time steps.

        Args:
            x_seq: inputs, ``[T, N, *]``.
            *args: passed to every step as they are.
            **kwargs: passed to every step as they are.

        Returns:
            The outputs of the steps stacked along a new first dimension, ``[T, ...]``.

        Raises:
            RuntimeError: the outputs cannot be stacked (from `torch.stack`), or T is 0.
        """
        # The gradient of unbind is one stack; that of T indexings would be T full-size tensors.
        steps = x_seq.unbind(0)
        return torch.stack([self.single_step_forward(x, *args, **kwargs) for x in steps])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call `single_step_forward` or `multi_step_forward`, as `step_mode` says.

        Raises:
            ValueError: `step_mode` is neither "s" nor "m".
        """
        if self.step_mode == "s":
            return self.single_step_forward(*args, **kwargs)
        if self.step_mode == "m":
            return self.multi_step_forward(*args, **kwargs)
        raise ValueError(f"step_mode must be 's' or 'm', got {self.step_mode!r}")

    def extra_repr(self) -> str:
        """The step mode, for `repr`."""
        return f"step_mode={self.step_mode}, backend={self.backend}"

    def register_memory(self, name: str, value: Any) -> None:
        """Add a state variable.

        Args:
            name: the attribute name under which the state is read and written.
            value: the first value. A copy of it is the reset value.

        Raises:
            AssertionError: the module has an attribute of that name already.
        """
        if hasattr(self, name):
            raise AssertionError(f"{type(self).__name__} already has an attribute '{name}'")
        self._memories[name] = value
        self.set_reset_value(name, value)

    def reset(self) -> None:
        """Set every state variable to its reset value.

        A state tensor that has the shape, dtype and device of its reset value is overwritten in
        place where that is safe, so that its storage stays the same; one that autograd tracks, or
        that cannot be written to, is replaced. Everything else, and in compiled code everything,
        is replaced by a copy of the reset value without looking at what the state was: the
        compiled graph changes no input in place, and does not depend on a state thrown away.
        """
        for name in self._memories:
            reset_value = self._memories_rv[name]
            if isinstance(reset_value, torch.Tensor):
                self._reset_tensor(name, reset_value)
            else:
                self._memories[name] = _copied(reset_value)

    def _reset_tensor(self, name: str, reset_value: torch.Tensor) -> None:
        if not torch.compiler.is_compiling():
            current = self._memories[name]
            if isinstance(current, torch.Tensor) and _can_overwrite(current, reset_value):
                current.copy_(reset_value)
                return
        self._memories[name] = _copied(reset_value)

    def set_reset_value(self, name: str, value: Any) -> None:
        """Change what `reset` sets a state variable to.

        Args:
            name: a registered state variable.
            value: the new reset value; a copy of it is kept.

        Raises:
            KeyError: no state variable has that name.
        """
        if name not in self._memories:
            raise KeyError(f"{type(self).__name__} has no memory '{name}'; register it first")
        self._memories_rv[name] = _copied(value)

    def memories(self) -> Iterator[Any]:
        """Yield the state variables of this module, without those of its children."""
        yield from self._memories.values()

    def named_memories(self) -> Iterator[tuple[str, Any]]:
        """Yield name and value of this module's state variables, without its children's."""
        yield from self._memories.items()

    def detach(self) -> None:
        """Cut every state tensor off the autograd graph.

        Called between chunks of a sequence, this gives truncated backpropagation through time.
        The state is replaced by a detached view of itself, so a tensor that the caller extracted
        before keeps its history.
        """
        for name, value in self._memories.items():
            if isinstance(value, torch.Tensor):
                self._memories[name] = value.detach()

    def __getattr__(self, name: str) -> Any:
        memories = self.__dict__.get("_memories")
        if memories is not None and name in memories:
            return memories[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        memories = self.__dict__.get("_memories")
        if memories is not None and name in memories:
            memories[name] = value
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in self._memories:
            del self._memories[name]
            del self._memories_rv[name]
        else:
            super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted([*super().__dir__(), *self._memories])

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        for values in (self._memories, self._memories_rv):
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    values[name] = fn(value)
        return super()._apply(fn, recurse)

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()
        # nn.Module copies its own dictionaries only; replicas must not share one state.
        replica.__dict__["_memories"] = self._memories.copy()
        replica.__dict__["_memories_rv"] = self._memories_rv.copy()
        return replica


def _copied(value: Any) -> Any:
    """A value that shares nothing mutable with `value`; a tensor comes detached."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    # copy.deepcopy is slow to trace, and these are most of the states there are.
    return value if isinstance(value, _IMMUTABLE) else copy.deepcopy(value)


def _can_overwrite(current: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether `value` may be copied into `current` without breaking anyone who holds it."""
    alike = (
        current.shape == value.shape
        and current.dtype == value.dtype
        and current.device == value.device
    )
    expanded = any(stride == 0 for stride in current.stride())
    return alike and not (expanded or current.requires_grad or current.is_inference())


def _memory_slots(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, MemoryModule, str]]:
    """Yield full name, owner and local name of every state variable, each owner once."""
    for path, child in module.named_modules(prefix=prefix):
        if isinstance(child, MemoryModule):
            for name, _ in child.named_memories():
                yield (f"{path}.{name}" if path else name), child, name


def named_memories(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of every state variable in a module tree.

    Like `named_parameters`: parents before children, children in order of registration, and a
    module that appears at several places counts once, under its first name.

    Args:
        module: the root of the tree.
        prefix: put before every name, with a dot.

    Raises:
        RecursionError: the tree is nested deeper than Python's recursion limit.
    """
    for name, owner, local_name in _memory_slots(module, prefix):
        yield name, getattr(owner, local_name)


def memories(module: nn.Module) -> Iterator[Any]:
    """Yield every state variable in a module tree, in the order of `named_memories`.

    Args:
        module: the root of the tree.

    Raises:
        RecursionError: the tree is nested deeper than Python's recursion limit.
    """
    for _, value in named_memories(module):
        yield value


def extract_memories(module: nn.Module) -> list[Any]:
    """The state variables of a module tree as a list, in the order of `named_memories`.

    Args:
        module: the root of the tree.

    Raises:
        RecursionError: the tree is nested deeper than Python's recursion limit.
    """
    return list(memories(module))


def load_memories(module: nn.Module, memory_list: Sequence[Any]) -> None:
    """Set the state variables of a module tree.

    Args:
        module: the root of the tree.
        memory_list: the values, in the order of `extract_memories`. They are not copied.

    Raises:
        ValueError: there are more or fewer values than state variables; nothing is loaded then.
    """
    slots = list(_memory_slots(module))
    if len(slots) != len(memory_list):
        raise ValueError(
            f"{type(module).__name__} has {len(slots)} memories, got {len(memory_list)} values"
        )
    for (_, owner, local_name), value in zip(slots, memory_list, strict=True):
        setattr(owner, local_name, value)


def to_functional_forward(
    module: nn.Module, fn: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Turn a stateful forward into a function with explicit state.

    The returned function maps ``(*inputs, *states)`` to ``(*outputs, *new_states)``. The last
    arguments are the states, in the order of `extract_memories`; keyword arguments go to the
    forward function. An output that is a tuple or a list is flattened by one level. The module's
    own state is put back afterwards, also after an error.

    Args:
        module: the module whose state is made explicit. It must not change a state tensor in
            place, or the caller's states are changed.
        fn: the forward function to run, such as that of a parent class; `module.forward` if None.

    Returns:
        The function with explicit state; without any state to make explicit, the forward
        function itself.

    Raises:
        ValueError: from the returned function, when it is called with fewer arguments than the
            module has state variables.
    """
    forward = module.forward if fn is None else fn
    if not extract_memories(module):
        return forward

    def functional_forward(*inputs_and_states: Any, **kwargs: Any) -> tuple[Any, ...]:
        own_states = extract_memories(module)
        num_inputs = max(len(inputs_and_states) - len(own_states), 0)
        load_memories(module, inputs_and_states[num_inputs:])
        try:
            outputs = forward(*inputs_and_states[:num_inputs], **kwargs)
            new_states = extract_memories(module)
        finally:
            load_memories(module, own_states)
        if not isinstance(outputs, (tuple, list)):
            outputs = (outputs,)
        return (*outputs, *new_states)

    return functional_forward
