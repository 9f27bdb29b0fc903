"""What rules ask of the operands of a call: how many elements, how many bytes, which option.

Everything here looks at shapes, dtypes and numbers that were given, never at the values of a
tensor, so that it holds for tensors without memory (fake ones) as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from snnfx.eager.storages import tensors_in

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def elements(value: Any) -> int:
    """The elements of all tensors in a value."""
    return sum(x.numel() for x in tensors_in(value))


def size_in_bytes(value: Any) -> int:
    """The bytes of all elements of all tensors in a value; of an expanded tensor, too."""
    return sum(x.numel() * x.element_size() for x in tensors_in(value))


def results(args: Args, out: Any) -> Any:
    """What a call returned, or wrote to if it returned nothing, as ``_foreach_add_`` does."""
    return args[0] if out is None else out


def main_result(args: Args, out: Any) -> Tensor:
    """The first of several results."""
    value = results(args, out)
    return value[0] if isinstance(value, (list, tuple)) else value


def argument(args: Args, kwargs: Kwargs, position: int, name: str, default: Any = None) -> Any:
    """An argument that may have been given by its position or by its name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def operands(args: Args, kwargs: Kwargs, out: Any) -> list[Any]:
    """The arguments of a call, without the keywords that say where to write (``out=``)."""
    written = {id(x) for x in tensors_in(out)}
    kept = [v for v in kwargs.values() if not any(id(x) in written for x in tensors_in(v))]
    return [*args, *kept]


def window(size: int | Sequence[int], dimensions: int) -> int:
    """The positions under a pooling window, whose size may be given once for all dimensions."""
    sizes = [size] if isinstance(size, int) else list(size)
    return prod(sizes * dimensions if len(sizes) == 1 else sizes)


def sum_of_terms(terms: int, sums: int) -> int:
    """The additions that make `sums` sums of `terms` terms: one less than terms, for each.

    With more sums than terms there are sums without a term, which take no addition.
    """
    return max(terms - sums, 0)


def places(args: Args) -> int:
    """The elements of x that a call ``(x, dim, index, values)`` of its family writes to.

    ``scatter`` and its like have an index for each, ``index_copy`` and its like one for each slice
    along a dimension.
    """
    x, dim, index = args[:3]
    if index.dim() == x.dim() and x.dim() > 1:
        return index.numel()
    others = prod(size for d, size in enumerate(x.shape) if d != dim % x.dim()) if x.dim() else 1
    return index.numel() * others
