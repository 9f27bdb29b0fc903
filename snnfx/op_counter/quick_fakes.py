"""Operators on fake tensors, each kind of call worked out once.

A network of a hundred layers calls a few hundred kinds of operators ten thousand times. What
`FakeTensorMode` takes for a call is mostly checks of things that cannot have changed since a call
of the same operator with arguments of the same description. Here such calls skip them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from snnfx._torch_compat import FakeTensor, FakeTensorMode, fake_of_description
from snnfx.eager.storages import tensors_in

_UNSAFE_TAGS = (
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.inplace_view,
)


@dataclass(frozen=True, slots=True)
class Described:
    """What tells one fake tensor from another, but for its memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class QuickFakes:
    """Calls operators on fake tensors.

    A call is repeated from its description if its operator returns new memory: nothing in the
    schema aliases an argument, and no result of the first call did.

    Args:
        mode: of the fake tensors; it makes the first call of each kind.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[Hashable, tuple[Described, ...] | Described | None] = {}

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operator returns."""
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if not _returns_new_memory(func):
            return func(*args, **kwargs)
        try:
            key = (func, _key(args), _key(kwargs), torch.is_inference_mode_enabled())
        except _NotDescribableError:
            return func(*args, **kwargs)
        if key in self._known:
            known = self._known[key]
            return func(*args, **kwargs) if known is None else self._made(known)
        result = func(*args, **kwargs)
        self._known[key] = _described_result(result, args, kwargs)
        return result

    def _made(self, known: tuple[Described, ...] | Described) -> Any:
        if isinstance(known, tuple):
            return tuple(self._made(one) for one in known)
        return fake_of_description(self._mode, known.shape, known.stride, known.dtype, known.device)


@cache
def _returns_new_memory(func: Any) -> bool:
    """Whether an operator computes new tensors from others, by its schema."""
    schema = func._schema
    return (
        func.namespace == "aten"
        and not schema.is_mutable
        and all(value.alias_info is None for value in (*schema.arguments, *schema.returns))
        and not any(tag in func.tags for tag in _UNSAFE_TAGS)
    )


class _NotDescribableError(Exception):
    """An argument is none that a description holds for."""


def _key(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return _described(value)
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in value.items())
    if value is None or type(value) in (int, float, bool, str):
        return (type(value), value, str(value))  # -0.0 and 0.0 are one number, but not one key
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return value
    raise _NotDescribableError


def _described(tensor: Tensor) -> tuple[Hashable, ...]:
    if type(tensor) is not FakeTensor or tensor.constant is not None:
        raise _NotDescribableError
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        raise _NotDescribableError
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.fake_device)


def _described_result(
    result: Any, args: Any, kwargs: Any
) -> tuple[Described, ...] | Described | None:
    """How to make the result again; None if that is not possible."""
    items = result if isinstance(result, tuple) else (result,)
    given = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
    seen: list[Described] = []
    for item in items:
        if type(item) is not FakeTensor or item.constant is not None:
            return None
        memory = item.untyped_storage()
        if item.layout is not torch.strided or memory._cdata in given or item.storage_offset():
            return None
        given.add(memory._cdata)
        seen.append(Described(tuple(item.shape), item.stride(), item.dtype, item.fake_device))
    return tuple(seen) if isinstance(result, tuple) else seen[0]
