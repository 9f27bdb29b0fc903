"""Let Dynamo see the networks of other frameworks as one graph, where their own code breaks it.

    undo = snnfx.adapters.adapt(model)  # then torch.compile(model, backend="snnmem")

A backend meets a model only after Dynamo has split it, so it cannot mend a split by itself. Three
frameworks split a model in a line or two that have nothing to do with the numbers; an adapter
replaces those lines in one model, and computes the same bits:

- **Norse** makes the initial state of a cell with ``state.v.requires_grad = True``, an assignment
  that Dynamo does not follow. The adapted cell leaves it out. No gradient of a parameter or of an
  input changes; the initial state itself, which nobody else holds, gets none.
- **Sinabs** reads ``spike_fn.required_states`` from the class of an autograd function, which
  Dynamo does not follow. The adapted layer holds an object with that list and that function.
  ``reset_states`` detaches buffers in place; the adapted one puts new zeros in their place, so it
  may also be called inside of forward.
- **snnTorch**'s ``utils.reset`` makes its global variables when it first runs. The adapter makes
  them before; they are the framework's own, and serve all its models.

A framework is recognised by the classes of a model's modules; none is imported here.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FunctionType, MethodType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

_ABSENT = object()


@dataclass
class Adaptation:
    """What `adapt` changed; call `undo`, or leave the ``with`` block, to have it all as it was.

    Attributes:
        changed: a line for each module or place that was changed.
    """

    changed: list[str] = field(default_factory=list)
    _restore: list[tuple[Any, str, Any]] = field(default_factory=list)

    def set(self, owner: Any, name: str, value: object) -> None:
        """Set an attribute in the instance's own dictionary, and remember what was there."""
        self._restore.append((owner, name, vars(owner).get(name, _ABSENT)))
        vars(owner)[name] = value

    def undo(self) -> None:
        """Put everything back; a second call does nothing."""
        while self._restore:
            owner, name, value = self._restore.pop()
            if value is _ABSENT:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = value
        self.changed.clear()

    def __enter__(self) -> Adaptation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()


def adapt(model: nn.Module) -> Adaptation:
    """Change the modules of Norse, Sinabs and snnTorch in `model` so that Dynamo can follow them.

    Outputs and gradients keep their bits. Modules of other packages, and what needs no change, are
    left alone; a model without any is not changed. Adapt a model once, before `torch.compile`.

    Args:
        model: changed in place.
    """
    adaptation = Adaptation()
    for name, module in model.named_modules():
        for adapter in _adapters_of(module):
            adapter(module, name or type(module).__name__, adaptation)
    return adaptation


Adapter = Callable[[nn.Module, str, Adaptation], None]


def _adapters_of(module: nn.Module) -> Iterator[Adapter]:
    """Those of each framework that one of the module's classes comes from."""
    packages = {kind.__module__.split(".")[0] for kind in type(module).__mro__}
    yield from (adapter for package, adapter in _ADAPTERS.items() if package in packages)


# Norse


def _adapt_norse(module: nn.Module, name: str, adaptation: Adaptation) -> None:
    for method in ("initial_state", "forward"):
        function = getattr(type(module), method, None)
        changed = _without_requires_grad(function) if isinstance(function, FunctionType) else None
        if changed is None:
            continue
        bound = MethodType(changed, module)
        adaptation.set(module, method, bound)
        # Each cell keeps the bound method that it falls back on.
        if getattr(vars(module).get("state_fallback"), "__func__", None) is function:
            adaptation.set(module, "state_fallback", bound)
        adaptation.changed.append(f"{name}.{method}")


def _without_requires_grad(function: FunctionType) -> FunctionType | None:
    """The function without its statements ``... .requires_grad = True``; None if it has none."""
    if "requires_grad" not in function.__code__.co_names:
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    remover = _RemoveRequiresGrad()
    tree = ast.fix_missing_locations(remover.visit(tree))
    if not remover.removed or function.__closure__:
        return None
    scope: dict[str, Any] = {}
    exec(compile(tree, f"<{function.__qualname__}, adapted>", "exec"), function.__globals__, scope)
    changed: FunctionType = scope[function.__name__]
    return changed


class _RemoveRequiresGrad(ast.NodeTransformer):
    """Removes assignments of True to an attribute `requires_grad`."""

    def __init__(self) -> None:
        self.removed = 0

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        """Drop the statement, or leave it."""
        (target, *others) = node.targets
        if others or not isinstance(target, ast.Attribute) or target.attr != "requires_grad":
            return node
        if not isinstance(node.value, ast.Constant) or node.value.value is not True:
            return node
        self.removed += 1
        return ast.Pass()


# Sinabs


@dataclass(frozen=True)
class SpikeFunction:
    """An autograd function of Sinabs as an object, whose attributes Dynamo can read.

    Attributes:
        function: the class.
        required_states: the names of the states that it takes.
    """

    function: type[torch.autograd.Function]
    required_states: Sequence[str]

    def apply(self, *arguments: Any) -> Tensor:
        """The spikes."""
        return self.function.apply(*arguments)


def _adapt_sinabs(module: nn.Module, name: str, adaptation: Adaptation) -> None:
    function = vars(module).get("spike_fn")
    if isinstance(function, type) and issubclass(function, torch.autograd.Function):
        states = tuple(getattr(function, "required_states", ()))
        adaptation.set(module, "spike_fn", SpikeFunction(function, states))
        adaptation.changed.append(f"{name}.spike_fn")
    if callable(getattr(type(module), "reset_states", None)):
        adaptation.set(module, "reset_states", MethodType(_reset_states, module))
        adaptation.changed.append(f"{name}.reset_states")


def _reset_states(
    module: Any, randomize: bool = False, value_ranges: dict[str, Any] | None = None
) -> None:
    """Sinabs's `StatefulLayer.reset_states`, with new buffers where it would zero its own."""
    if randomize:
        type(module).reset_states(module, randomize, value_ranges)
    elif module.is_state_initialised():
        for name, buffer in list(module.named_buffers()):
            setattr(module, name, torch.zeros_like(buffer))


# snnTorch


def _adapt_snntorch(module: nn.Module, name: str, adaptation: Adaptation) -> None:
    del module, name
    utils = sys.modules.get("snntorch.utils")
    reset = getattr(utils, "reset", None)
    if not isinstance(reset, FunctionType):
        return
    for flag in _globals_stored_by(reset):
        if flag not in vars(utils):
            adaptation.set(utils, flag, False)
            adaptation.changed.append(f"snntorch.utils.{flag}")


def _globals_stored_by(function: FunctionType) -> Iterator[str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names


_ADAPTERS: dict[str, Adapter] = {
    "norse": _adapt_norse,
    "sinabs": _adapt_sinabs,
    "snntorch": _adapt_snntorch,
}

__all__ = ["Adaptation", "SpikeFunction", "adapt"]
