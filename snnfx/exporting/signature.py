"""What goes into a rewritten step and what comes out: all that its two graphs do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor

from snnfx.errors import ExportError
from snnfx.exporting.structure import Structure, check_structure
from snnfx.passes.fxgraph import is_dense, stride_order

Size = int | str
DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values()
          if isinstance(d, torch.dtype)}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that a step takes.

    Attributes:
        kind: ``"parameter"``, ``"buffer"`` or ``"input"``.
        name: in the model; of an input, a name for messages.
        dtype: without ``torch.``.
        device: its type.
        shape: sizes; the name of a size that may vary.
        order: its dimensions from the largest stride to the smallest, without gaps.
        requires_grad: whether the step gives a gradient for it.
    """

    kind: str
    name: str
    dtype: str
    device: str
    shape: tuple[Size, ...]
    order: tuple[int, ...]
    requires_grad: bool


@dataclass(frozen=True)
class Tangent:
    """A gradient that the backward starts from.

    Attributes:
        output: the position of the result that it belongs to, among the model's tensors.
        order: its dimensions from the largest stride to the smallest.
    """

    output: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class StepSignature:
    """The ends of a step.

    The forward returns the new values of `mutated`, then the tensors of `outputs`, then what the
    backward reads. The backward takes sizes, tensors, then `tangents`.

    Attributes:
        primals: what the forward takes, in order.
        mutated: positions of the primals that a call overwrites.
        arguments: names of the model's arguments, in order.
        inputs: their structure.
        outputs: the structure of the results.
        tangents: none where there is no backward.
        sizes: for each size that may vary, the least and the largest that the graphs hold for.
    """

    primals: tuple[TensorSpec, ...]
    mutated: tuple[int, ...]
    arguments: tuple[str, ...]
    inputs: Structure
    outputs: Structure
    tangents: tuple[Tangent, ...]
    sizes: dict[str, tuple[int, int | None]]

    def to_data(self) -> dict[str, Any]:
        """As data that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Any) -> StepSignature:
        """The signature from a file.

        Raises:
            ExportError: something is missing, or is not what it should be.
        """
        values = _members(data, cls)
        return cls(
            tuple(_tensor_spec(item) for item in _list(values["primals"])),
            tuple(_checked(int, item) for item in _list(values["mutated"])),
            tuple(_checked(str, item) for item in _list(values["arguments"])),
            check_structure(values["inputs"]),
            check_structure(values["outputs"]),
            tuple(_tangent(item) for item in _list(values["tangents"])),
            {name: _range(item) for name, item in _checked(dict, values["sizes"]).items()},
        )


def dense_order(tensor: Tensor) -> tuple[int, ...]:
    """The order of dimensions in memory; the natural one for a tensor with gaps or overlaps."""
    order = stride_order(tensor)
    return order if is_dense(tensor, order) else tuple(range(tensor.dim()))


def laid_out(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """The tensor, or a copy of it that fills memory with its dimensions in this order."""
    if is_dense(tensor, order):
        return tensor
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(inverse)


def _members(data: Any, kind: type[Any]) -> Mapping[str, Any]:
    names = {field.name for field in fields(kind)}
    if not isinstance(data, dict) or set(data) != names:
        raise ExportError(f"a {kind.__name__} has exactly {', '.join(sorted(names))}")
    return data


def _checked(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise ExportError(f"expected {kind.__name__} in the signature, not {str(value)[:80]}")
    return value


def _list(value: Any) -> list[Any]:
    return _checked(list, value)


def _tensor_spec(data: Any) -> TensorSpec:
    values = _members(data, TensorSpec)
    shape = tuple(_list(values["shape"]))
    if any(type(size) not in get_args(Size) for size in shape):
        raise ExportError(f"the shape {shape} has sizes that are neither numbers nor names")
    if values["kind"] not in ("parameter", "buffer", "input") or values["dtype"] not in DTYPES:
        raise ExportError(f"unknown kind or dtype of tensor: {values['kind']}, {values['dtype']}")
    return TensorSpec(
        values["kind"],
        _checked(str, values["name"]),
        values["dtype"],
        _checked(str, values["device"]),
        shape,
        read_order(values["order"], len(shape)),
        _checked(bool, values["requires_grad"]),
    )


def read_order(value: Any, dims: int | None = None) -> tuple[int, ...]:
    """An order of dimensions from a file.

    Raises:
        ExportError: it is none, or not one of `dims` dimensions.
    """
    order = tuple(_checked(int, item) for item in _list(value))
    if sorted(order) != list(range(len(order) if dims is None else dims)):
        raise ExportError(f"{order} is not an order of the dimensions of a tensor")
    return order


def _tangent(data: Any) -> Tangent:
    values = _members(data, Tangent)
    return Tangent(_checked(int, values["output"]), read_order(values["order"]))


def _range(value: Any) -> tuple[int, int | None]:
    low, high = _list(value) if len(_list(value)) == 2 else (None, None)
    return _checked(int, low), None if high is None else _checked(int, high)
