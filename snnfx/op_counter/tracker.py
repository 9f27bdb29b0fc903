"""Which modules are running, forward or backward, at any moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from snnfx._torch_compat import at_end_of_backward, in_backward, pytree

GLOBAL = "Global"
"""The scope that everything belongs to."""


@dataclass(frozen=True)
class _Running:
    """A forward or backward of a module that has begun and not ended."""

    name: str
    module: nn.Module
    backward: bool


class ActiveModuleTracker:
    """Knows the modules whose forward or backward is running, while it is entered.

    A module is named as `torch.utils.module_tracker.ModuleTracker` names it: the class of the
    outermost module that was called, and the path from there: ``VGG.features.0``. A backward
    begins for a module when the gradients of all its outputs are there, and ends when those of its
    inputs are; where no input requires a gradient it ends with the backward of the model. A module
    that is called several times runs until the last of its calls has ended.

    Attributes:
        active_modules: the modules that are running.
        parents: their names, and ``"Global"``.
        path: their names in the order in which they began.
    """

    def __init__(self) -> None:
        self.active_modules: set[nn.Module] = set()
        self.parents: set[str] = {GLOBAL}
        self.path: tuple[str, ...] = ()
        self._running: list[_Running] = []
        self._names: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._named_inside: WeakSet[nn.Module] = WeakSet()
        self._handles: list[RemovableHandle] = []
        self._awaits_end = False

    @property
    def is_backward(self) -> bool:
        """Whether autograd is running a backward."""
        return in_backward()

    def __enter__(self) -> ActiveModuleTracker:
        self._set(())
        self._handles = [
            register_module_forward_pre_hook(self._forward_begins),
            register_module_forward_hook(self._forward_ends, always_call=True),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._awaits_end = False
        self._set(())

    def _forward_begins(self, module: nn.Module, args: Any) -> None:
        running = _Running(self._name(module), module, False)
        self._begin(running)
        backward = replace(running, backward=True)
        self._on_gradients(_differentiable(args), lambda *_: self._end(backward))

    def _forward_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        running = _Running(self._name(module), module, False)
        self._end(running)
        backward = replace(running, backward=True)
        # What is handed on as it came has no backward, which nothing would end.
        given = {id(tensor) for tensor in _differentiable(args)}
        made = [tensor for tensor in _differentiable(output) if id(tensor) not in given]
        self._on_gradients(made, lambda *_: self._backward_begins(backward))

    def _on_gradients(self, tensors: Sequence[Tensor], call: Callable[..., None]) -> None:
        """Call once the gradients of all `tensors` have been computed."""
        if tensors:
            self._handles.append(register_multi_grad_hook(tensors, call))

    def _backward_begins(self, running: _Running) -> None:
        if not self._awaits_end:
            self._awaits_end = True
            at_end_of_backward(self._backward_is_over)
        self._begin(running)

    def _backward_is_over(self) -> None:
        self._awaits_end = False
        self._set(entry for entry in self._running if not entry.backward)

    def _begin(self, running: _Running) -> None:
        self._set((*self._running, running))

    def _end(self, running: _Running) -> None:
        if running in self._running:
            last = len(self._running) - 1 - self._running[::-1].index(running)
            self._set((*self._running[:last], *self._running[last + 1 :]))

    def _set(self, running: Iterable[_Running]) -> None:
        self._running = list(running)
        self.path = tuple(dict.fromkeys(entry.name for entry in self._running))
        self.parents = {GLOBAL, *self.path}
        self.active_modules = {entry.module for entry in self._running}

    def _name(self, module: nn.Module) -> str:
        name = self._names.setdefault(module, type(module).__name__)
        if module not in self._named_inside:
            for path, inner in module.named_modules(prefix=name):
                self._names[inner] = path
                self._named_inside.add(inner)
        return name


def _differentiable(values: Any) -> list[Tensor]:
    """The tensors in `values` that get a gradient."""
    if not torch.is_grad_enabled():
        return []
    leaves = (values,) if isinstance(values, Tensor) else pytree.tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
