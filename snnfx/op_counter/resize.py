"""Example inputs of other numbers of time steps and batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snnfx._torch_compat import FakeTensorMode, pytree
from snnfx.eager.storages import tensors_in
from snnfx.errors import OptionError

Dim = int | Sequence[int | None] | None
"""A dimension of all tensors among the inputs, or one for each of them; None for no dimension."""


@dataclass(frozen=True)
class NamedDims:
    """Which dimensions of the inputs are time and batch.

    Attributes:
        of: for each symbol, ``"T"`` and ``"N"``, the dimension of each tensor among the inputs.
        sizes: of these dimensions.
    """

    of: Mapping[str, tuple[int | None, ...]]
    sizes: Mapping[str, int]

    @classmethod
    def find(cls, args: Sequence[Any], time_dim: Dim, batch_dim: Dim) -> NamedDims:
        """Read the arguments of `snnfx.op_counter.count`.

        Raises:
            OptionError: an input has no such dimension, or its size differs from another's.
        """
        tensors = list(tensors_in(args))
        of: dict[str, tuple[int | None, ...]] = {}
        sizes: dict[str, int] = {}
        for symbol, name, dim in (("T", "time_dim", time_dim), ("N", "batch_dim", batch_dim)):
            if dim is not None:
                of[symbol] = _dims(name, dim, tensors)
                sizes[symbol] = _size(name, of[symbol], tensors)
        if len(of) == 2 and any(
            t is not None and t == n for t, n in zip(*of.values(), strict=True)
        ):
            raise OptionError("time_dim and batch_dim name the same dimension: name two, or one")
        return cls(of, sizes)

    def resized(self, args: Sequence[Any], sizes: Mapping[str, int]) -> tuple[Any, ...]:
        """The arguments with fake tensors of other sizes in the place of tensors."""
        mode = FakeTensorMode()
        order = {id(tensor): index for index, tensor in enumerate(tensors_in(args))}

        def resized(tensor: Tensor) -> Tensor:
            shape = list(tensor.shape)
            for symbol, dims in self.of.items():
                dim = dims[order[id(tensor)]]
                if dim is not None:
                    shape[dim] = sizes[symbol]
            device = "cpu" if tensor.device.type == "meta" else tensor.device
            with mode:
                fake = torch.empty(shape, dtype=tensor.dtype, device=device)
            return fake.requires_grad_(tensor.requires_grad and tensor.is_leaf)

        return pytree.tree_map_only(Tensor, resized, tuple(args))


def _dims(name: str, dim: int | Sequence[int | None], tensors: Sequence[Tensor]) -> Any:
    dims = [dim] * len(tensors) if isinstance(dim, int) else list(dim)
    if len(dims) != len(tensors):
        raise OptionError(
            f"{name} has {len(dims)} entries, but the inputs have {len(tensors)} tensors: give one "
            "for each, None for a tensor without that dimension"
        )
    for tensor, one in zip(tensors, dims, strict=True):
        if one is not None and not -tensor.dim() <= one < tensor.dim():
            raise OptionError(
                f"{name}={one} is no dimension of an input of {tuple(tensor.shape)}: give a number "
                f"from 0 to {tensor.dim() - 1}, or None"
            )
    return tuple(
        None if one is None else one % tensor.dim()
        for tensor, one in zip(tensors, dims, strict=True)
    )


def _size(name: str, dims: Sequence[int | None], tensors: Sequence[Tensor]) -> int:
    found = {
        tensor.shape[dim] for tensor, dim in zip(tensors, dims, strict=True) if dim is not None
    }
    if len(found) != 1:
        raise OptionError(
            f"{name} must name dimensions of one size, not of {sorted(found) or 'none'}: give one "
            "dimension for each tensor among the inputs, None for those that have none"
        )
    return found.pop()
