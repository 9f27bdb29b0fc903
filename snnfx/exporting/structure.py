"""The arguments and results of a model, taken apart into tensors and a description of the rest.

The description is data that JSON can hold, and nothing in it names a class or a function: putting
a value together from an untrusted description makes tuples, lists, dictionaries, named tuples and
plain values, and nothing else.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from snnfx.errors import ExportError

Structure = list[Any]
"""``["tensor"]``, ``["value", v]``, ``["tuple", [...]]``, ``["list", [...]]``,
``["dict", [[key, ...], ...]]`` or ``["named", type name, [field, ...], [...]]``."""

ALLOWED = "tensors, None, bool, int, float and str in tuples, lists, dicts and named tuples"


def flatten(value: Any) -> tuple[list[Tensor], Structure]:
    """The tensors of a value in order, and what is around them.

    Raises:
        ExportError: the value holds something that cannot be described.
    """
    tensors: list[Tensor] = []
    return tensors, _describe(value, tensors)


def _describe(value: Any, tensors: list[Tensor]) -> Structure:
    if isinstance(value, Tensor):
        tensors.append(value)
        return ["tensor"]
    if value is None or type(value) in (bool, int, float, str):
        return ["value", value]
    if type(value) in (tuple, list):
        return [type(value).__name__, [_describe(item, tensors) for item in value]]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields: tuple[str, ...] = value._fields  # type: ignore[attr-defined]
        items = [_describe(item, tensors) for item in value]
        return ["named", type(value).__name__, list(fields), items]
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        return ["dict", [[key, _describe(item, tensors)] for key, item in value.items()]]
    raise ExportError(
        f"arguments and results of an exported model are {ALLOWED}, but there is a "
        f"{type(value).__name__}: {str(value)[:80]}"
    )


def unflatten(structure: Structure, tensors: Iterator[Any]) -> Any:
    """The value again, with `tensors` in it; the description was checked by `check_structure`."""
    kind, *rest = structure
    if kind == "tensor":
        return next(tensors)
    if kind == "value":
        return rest[0]
    if kind == "dict":
        return {key: unflatten(item, tensors) for key, item in rest[0]}
    items = [unflatten(item, tensors) for item in rest[-1]]
    if kind == "named":
        made: Any = namedtuple(rest[0], rest[1])  # pyright: ignore[reportUntypedNamedTuple]
        return made._make(items)
    return tuple(items) if kind == "tuple" else items


def count_tensors(structure: Structure) -> int:
    """The number of tensors that a description has a place for."""
    if structure[0] == "tensor":
        return 1
    if structure[0] == "value":
        return 0
    items = structure[-1]
    return sum(count_tensors(i[1] if structure[0] == "dict" else i) for i in items)


def check_structure(data: Any) -> Structure:
    """A description from a file.

    Raises:
        ExportError: it has another form.
    """
    if not _is_structure(data):
        raise ExportError(f"not a description of arguments or results: {str(data)[:80]}")
    return data


def _is_structure(data: Any) -> bool:
    if not isinstance(data, list) or not data or not isinstance(data[0], str):
        return False
    checks: Mapping[str, Any] = {
        "tensor": lambda: len(data) == 1,
        "value": lambda: (
            len(data) == 2 and (data[1] is None or type(data[1]) in (bool, int, float, str))
        ),
        "tuple": lambda: len(data) == 2 and _all_structures(data[1]),
        "list": lambda: len(data) == 2 and _all_structures(data[1]),
        "dict": lambda: len(data) == 2 and _all_items(data[1]),
        "named": lambda: len(data) == 4 and _is_named(*data[1:]),
    }
    check = checks.get(data[0])
    return check is not None and check()


def _all_structures(items: Any) -> bool:
    return isinstance(items, list) and all(map(_is_structure, items))


def _all_items(items: Any) -> bool:
    return isinstance(items, list) and all(map(_is_item, items))


def _is_item(item: Any) -> bool:
    is_pair = isinstance(item, list) and len(item) == 2
    return is_pair and type(item[0]) in (str, int) and _is_structure(item[1])


def _is_named(name: Any, fields: Any, items: Any) -> bool:
    texts = [name, *fields] if isinstance(fields, list) else [None]
    if not all(isinstance(text, str) and text.isidentifier() for text in texts):
        return False
    return _all_structures(items) and len(items) == len(fields)
