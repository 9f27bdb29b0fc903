"""ATen operators by their names, so that tables of them can be read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def names(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def packets(names: Iterable[str]) -> list[Any]:
    """The ATen operators of these names that this version of PyTorch has.

    Args:
        names: of packets (``"add"``), or of one overload (``"max.other"``).
    """
    found: list[Any] = []
    for name in names:
        packet, _, overload = name.partition(".")
        operator = getattr(torch.ops.aten, packet, None)
        if overload and operator is not None:
            operator = getattr(operator, overload, None)
        if operator is not None:
            found.append(operator)
    return found


def variants(names: Iterable[str]) -> list[str]:
    """Each name, and that of its in-place variant."""
    return [name + end for name in names for end in ("", "_")]


def foreach(names: Iterable[str]) -> list[str]:
    """The names of the operators that do the same to each tensor of a list."""
    return variants(f"_foreach_{name}" for name in names)
