"""Which modules are running, forward or backward, at any moment."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from snnfx._torch_compat import at_end_of_backward, in_backward, pytree

GLOBAL = "Global"
"""The scope that everything belongs to."""


class ActiveModuleTracker:
    """Knows the modules whose forward or backward is running, while it is entered.

    A module is named as `torch.utils.module_tracker.ModuleTracker` names it: the class of the
    outermost module that was called, and the path from there: ``VGG.features.0``. A backward
    begins for a module when the gradients of all its outputs are there, and ends when those of its
    inputs are; where no input requires a gradient it ends with the backward of the model.

    Attributes:
        active_modules: the modules that are running.
        parents: their names, and ``"Global"``.
    """

    def __init__(self) -> None:
        self.active_modules: set[nn.Module] = set()
        self.parents: set[str] = {GLOBAL}
        self._path: dict[str, nn.Module] = {}
        self._names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
        self._expanded: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._handles: list[RemovableHandle] = []
        self._awaits_end = False

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the modules that are running, in the order in which they began."""
        return tuple(self._path)

    @property
    def is_backward(self) -> bool:
        """Whether autograd is running a backward."""
        return in_backward()

    def __enter__(self) -> ActiveModuleTracker:
        self._forget()
        self._handles = [
            register_module_forward_pre_hook(self._forward_begins),
            register_module_forward_hook(self._forward_ends, always_call=True),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._forget()

    def _forget(self) -> None:
        self._path.clear()
        self.parents = {GLOBAL}
        self.active_modules = set()
        self._awaits_end = False

    def _forward_begins(self, module: nn.Module, args: Any) -> None:
        name = self._name(module)
        self._begin(module, name)
        if torch.is_grad_enabled():
            self._on_gradients(args, lambda *_: self._end(module, name))

    def _forward_ends(self, module: nn.Module, args: Any, output: Any) -> None:
        del args
        name = self._name(module)
        self._end(module, name)
        if torch.is_grad_enabled():
            self._on_gradients(output, lambda *_: self._backward_begins(module, name))

    def _on_gradients(self, values: Any, call: Any) -> None:
        """Call once the gradients of all tensors in `values` have been computed."""
        leaves = (values,) if isinstance(values, Tensor) else pytree.tree_leaves(values)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
        if tensors:
            self._handles.append(register_multi_grad_hook(tensors, call))

    def _backward_begins(self, module: nn.Module, name: str) -> None:
        if not self._awaits_end:
            self._awaits_end = True
            at_end_of_backward(self._forget)
        self._begin(module, name)

    def _begin(self, module: nn.Module, name: str) -> None:
        self._path[name] = module
        self.parents.add(name)
        self.active_modules.add(module)

    def _end(self, module: nn.Module, name: str) -> None:
        self._path.pop(name, None)
        self.parents.discard(name)
        self.active_modules.discard(module)

    def _name(self, module: nn.Module) -> str:
        name = self._names.setdefault(module, type(module).__name__)
        if module not in self._expanded:
            for path, inner in list(module.named_modules(prefix=name))[1:]:
                self._names[inner] = path
                self._expanded.add(inner)
            self._expanded.add(module)
        return name
