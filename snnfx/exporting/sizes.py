"""Sizes that may vary: what the user asks for, and for which numbers a traced graph holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snnfx._torch_compat import FakeTensorMode, is_about_layout, symbolic_size
from snnfx.errors import ExportError

DynamicShapes = Sequence[Mapping[int, str] | None]
"""For each tensor among the inputs, None or the names of its sizes that may vary."""

LEAST = 2
"""Tracing takes sizes of 0 and 1 for special: a graph of any size holds from 2 on."""

PROBED = 4096
"""Up to here a condition on a size is tried number by number."""

Shape = tuple[int | str, ...]


def named_shapes(tensors: Sequence[Tensor], dynamic: DynamicShapes | None) -> tuple[Shape, ...]:
    """The shapes of the inputs, with names for the sizes that may vary.

    Raises:
        ExportError: the names do not fit the tensors.
    """
    if dynamic is None:
        return tuple(tuple(tensor.shape) for tensor in tensors)
    dynamic = (dynamic,) if isinstance(dynamic, Mapping) else tuple(dynamic)
    if len(dynamic) != len(tensors):
        raise ExportError(
            f"dynamic_shapes has {len(dynamic)} entries, but there are {len(tensors)} tensors "
            "among the inputs; give each one None, or a mapping such as {1: 'N'}"
        )
    sizes: dict[str, int] = {}
    return tuple(
        _named_shape(tensor, names or {}, sizes)
        for tensor, names in zip(tensors, dynamic, strict=True)
    )


def _named_shape(tensor: Tensor, names: Mapping[int, str], sizes: dict[str, int]) -> Shape:
    shape: list[int | str] = list(tensor.shape)
    for dim, name in names.items():
        if type(dim) is not int or not 0 <= dim < tensor.dim() or not _is_name(name):
            raise ExportError(
                f"dynamic_shapes has {dim!r}: {name!r} for an input of {tuple(tensor.shape)}; "
                f"allowed: a dimension from 0 to {tensor.dim() - 1}, and a name such as 'N'"
            )
        size = tensor.shape[dim]
        if size < LEAST or sizes.setdefault(name, size) != size:
            raise ExportError(
                f"size '{name}' is {size} in an example input of {tuple(tensor.shape)}; one that "
                f"may vary must be {LEAST} or more there, and the same wherever it has its name"
            )
        shape[dim] = name
    return tuple(shape)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()


class Symbols:
    """The symbols that stand for named sizes while a graph is traced."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._symbols: dict[str, Any] = {}
        self._expressions: dict[str, Any] = {}  # as they were before anything was found out

    def fake(
        self, shape: Shape, tensor: Tensor, order: Sequence[int], device: str | None = None
    ) -> Tensor:
        """A fake input.

        Args:
            shape: with names.
            tensor: what it stands for; its sizes are those that tracing takes for examples.
            order: its dimensions from the largest stride to the smallest.
            device: where it is; by default where `tensor` is.
        """
        device = str(tensor.device) if device is None else device
        sizes = [
            self._symbol(size, example) if isinstance(size, str) else size
            for size, example in zip(shape, tensor.shape, strict=True)
        ]
        strides: list[Any] = [1] * len(sizes)
        step: Any = 1
        for dim in reversed(order):
            strides[dim] = step
            step = step * sizes[dim]
        with self._mode:
            fake = torch.empty_strided(sizes, strides, dtype=tensor.dtype, device=device)
        return fake.requires_grad_(tensor.requires_grad)

    def _symbol(self, name: str, size: int) -> Any:
        if name not in self._symbols:
            self._symbols[name] = symbolic_size(self._mode, name, size)
            self._expressions[name] = self._symbols[name].node.expr
        return self._symbols[name]

    def ranges(self) -> dict[str, tuple[int, int | None]]:
        """For each size, the numbers around its example for which what was traced holds.

        Raises:
            ExportError: the model fixes a size, or compares two of them.
        """
        env: Any = self._mode.shape_env
        symbols = self._expressions
        for name, symbol in symbols.items():
            if env.simplify(symbol) != symbol:
                raise ExportError(
                    f"the model fixes the size '{name}' to {env.simplify(symbol)}, so it cannot "
                    "vary: leave it out of dynamic_shapes, or give sizes that are always the same "
                    "one name"
                )
        guards = [guard.expr for guard in env.guards if not is_about_layout(guard)]
        names = {symbol: name for name, symbol in symbols.items()}
        for guard in guards:
            if len(guard.free_symbols) != 1 or not guard.free_symbols <= set(names):
                raise ExportError(
                    f"the model depends on {guard} of its sizes: let one of them vary"
                )
        return {
            name: _range(symbol, self._symbols[name].node.hint,
                         [g for g in guards if symbol in g.free_symbols])
            for name, symbol in symbols.items()
        }  # fmt: skip


def _range(symbol: Any, example: int, guards: Sequence[Any]) -> tuple[int, int | None]:
    if not guards:
        return LEAST, None

    def holds(size: int) -> bool:
        return all(bool(guard.subs(symbol, size)) for guard in guards)

    low = high = example
    while low > LEAST and holds(low - 1):
        low -= 1
    while high < PROBED and holds(high + 1):
        high += 1
    return low, high
