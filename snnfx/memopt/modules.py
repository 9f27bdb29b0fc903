"""Modules by their path."""

from __future__ import annotations

from torch import nn

from snnfx.errors import ModulePathError

_MAX_NAMES = 20
"""How many names an error lists."""


def get_module_and_parent(net: nn.Module, module_name: str) -> tuple[nn.Module, nn.Module, str]:
    """A module, the module that holds it, and its name there.

    ``setattr(parent, name, other)`` then replaces the module.

    Args:
        net: the model.
        module_name: the path of the module as in `named_modules`, such as ``"layer1.0.conv1"``:
            the parts of lists are numbers, those of a `ModuleDict` its keys.

    Returns:
        ``(module, parent, name)`` with `name` the last part of the path.

    Raises:
        ModulePathError: there is no such module, or the path is empty: the model has no parent.
            It is an AttributeError.
    """
    if not module_name:
        raise ModulePathError(
            f"the empty path is the model itself ({type(net).__name__}), which has no parent; "
            f"give the path of a module in it: {_names(net)}"
        )
    *parts, name = module_name.split(".")
    parent = net
    for depth, part in enumerate(parts):
        parent = _child(parent, part, module_name, depth)
    return _child(parent, name, module_name, len(parts)), parent, name


def _child(parent: nn.Module, part: str, path: str, depth: int) -> nn.Module:
    """The module that `parent` registers as `part`, which is number `depth` of the parts of `path`.

    `named_children` would leave out a module that is registered under a second name.
    """
    child = parent._modules.get(part)
    if child is None:
        above = ".".join(path.split(".")[:depth])
        place = f"'{above}'" if above else "the model"
        raise ModulePathError(
            f"there is no module '{path}': {place} ({type(parent).__name__}) has no part '{part}'; "
            f"it has {_names(parent)}"
        )
    return child


def _names(module: nn.Module) -> str:
    names = [repr(name) for name, child in module._modules.items() if child is not None]
    more = [f"and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return ", ".join([*names[:_MAX_NAMES], *more]) or "no modules"
