"""Where an axis (time, batch) lies in a tensor, and how an operator relates its dimensions.

T is the number of time steps, N the batch. A dimension that holds an axis of size `a` together with
others merged around it has size ``outer * a * inner``; its index is ``(o * a + s) * inner + i`` for
slice s. Batch in ``[T, N, C]`` is ``Placement(1, 1, 1)``, in ``[T*N, C]`` it is
``Placement(0, T, 1)``; time in ``[T*N, C]`` is ``Placement(0, 1, N)``. A placement does not depend
on the size of the axis, so a tile has the placements of the whole.

An operator's `Relation` says the same about all of its tensors at once, in the manner of an einsum:
dimensions that carry the same label run along together. Labels, not placements, are what rules
write down; `Port` translates between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Protocol

from torch.fx import Node

FLAT = "flat"
"""The label of the row-major index of all elements."""

Shape = tuple[int, ...]
Label = int | str


@dataclass(frozen=True)
class Placement:
    """Dimension `dim` has size ``outer * a * inner``: slice s is at ``(o*a + s) * inner + i``."""

    dim: int
    outer: int
    inner: int

    def fits(self, shape: Sequence[object], size: int) -> bool:
        """Whether a tensor of this shape can hold an axis of `size` here."""
        expected = self.outer * size * self.inner
        return 0 <= self.dim < len(shape) and shape[self.dim] == expected

    def split_shape(self, shape: Sequence[int], size: int) -> list[int]:
        """The shape with `dim` taken apart: the axis is dimension ``dim + 1`` of it."""
        parts = (self.outer, size, self.inner)
        return [*shape[: self.dim], *parts, *shape[self.dim + 1 :]]


def tile_shape(shape: Sequence[int], placement: Placement, tile: int) -> list[int]:
    """The shape of a tile of `tile` slices of a tensor of `shape`."""
    sizes = list(shape)
    sizes[placement.dim] = placement.outer * tile * placement.inner
    return sizes


class Spot(NamedTuple):
    """A placement in an operator's own terms: at a label instead of a dimension of one tensor."""

    label: Label
    outer: int
    inner: int


class Port(Protocol):
    """One tensor of an operator."""

    def lift(self, placement: Placement) -> Spot | None:
        """The spot of a placement in this tensor; None where the operator mixes indices."""
        ...

    def lower(self, spot: Spot, size: int) -> Placement | None:
        """Where an axis of `size` at `spot` lies in this tensor; None where it has no such part."""
        ...


@dataclass(frozen=True)
class Labelled:
    """A tensor with a label for each dimension.

    Attributes:
        labels: one for each dimension, no two the same; None: indices of it are mixed.
        shape: sizes; 1 under a label of size over 1 is a dimension that broadcasts.
        copies: a dimension of a result that holds this many copies of its label, outermost.
    """

    labels: tuple[Label | None, ...]
    shape: Shape
    copies: tuple[int, ...] | None = None

    def lift(self, placement: Placement) -> Spot | None:
        label = self.labels[placement.dim]
        copies = self._copies(placement.dim)
        if label is None or placement.outer % copies:
            return None
        return Spot(label, placement.outer // copies, placement.inner)

    def lower(self, spot: Spot, size: int) -> Placement | None:
        del size
        if spot.label not in self.labels:
            return None
        dim = self.labels.index(spot.label)
        if self.shape[dim] == 1:
            return None
        return Placement(dim, self._copies(dim) * spot.outer, spot.inner)

    def _copies(self, dim: int) -> int:
        return 1 if self.copies is None else self.copies[dim]


@dataclass(frozen=True)
class Flat:
    """A tensor of which only the row-major order of the elements counts.

    Attributes:
        shape: sizes.
        per_element: how many elements of the operator's other tensor one of this one holds.
    """

    shape: Shape
    per_element: int = 1

    def lift(self, placement: Placement) -> Spot | None:
        before, after = self.shape[: placement.dim], self.shape[placement.dim + 1 :]
        inner = placement.inner * prod(after) * self.per_element
        return Spot(FLAT, prod(before) * placement.outer, inner)

    def lower(self, spot: Spot, size: int) -> Placement | None:
        """The one dimension that holds the whole axis, if there is one.

        With P the product of the sizes before it and Q of those after it: P divides the spot's
        outer part, Q its inner one, and ``outer/P * size * inner/Q`` is the dimension's size.
        """
        if spot.inner % self.per_element or 0 in self.shape:
            return None
        inner, before = spot.inner // self.per_element, 1
        for dim, length in enumerate(self.shape):
            if before * length > spot.outer:
                after = prod(self.shape[dim + 1 :])
                placement = Placement(dim, spot.outer // before, inner // after)
                whole = spot.outer % before == 0 and inner % after == 0
                return placement if whole and placement.fits(self.shape, size) else None
            before *= length
        return None


@dataclass(frozen=True)
class Relation:
    """How the dimensions of an operator's tensors correspond.

    For every label: slice s of the results that carry it is the operator applied to slice s of
    the operands that carry it (unless `mixing`).

    Attributes:
        operands: the tensors that the operator reads; one may occur several times.
        inputs: their ports.
        results: ports of the results.
        sums: results that add up over the labels that they lack.
        fixed: results that depend on no operand with a label.
        mixing: dimensions correspond, but slices are not computed independently.
    """

    operands: tuple[Node, ...]
    inputs: tuple[Port, ...]
    results: tuple[Port, ...]
    sums: frozenset[int] = frozenset()
    fixed: frozenset[int] = frozenset()
    mixing: bool = False


@dataclass(frozen=True)
class Constant:
    """Does not depend on the axis: the same whole tensor for every slice."""


@dataclass(frozen=True)
class Filled(Constant):
    """A constant all of whose elements are equal: any part of it serves as any slice."""


@dataclass(frozen=True)
class Along:
    """Slice s is the operator applied to slice s of the inputs, and to the constants as they are.

    Attributes:
        placement: where the slices lie.
    """

    placement: Placement


@dataclass(frozen=True)
class Partial:
    """The sum, over the slices, of the operator applied to slices."""


@dataclass(frozen=True)
class Mixed:
    """May be anything."""


AxisValue = Constant | Along | Partial | Mixed
"""A flat lattice: `Mixed` is top, and above each of the others, which exclude one another, except
that `Filled` is below `Constant`. There is no bottom, since every node of a graph is computed."""

CONSTANT, FILLED, PARTIAL, MIXED = Constant(), Filled(), Partial(), Mixed()
