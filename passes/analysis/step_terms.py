"""Terms: what a tensor was computed from, shared so that equal terms are the same number.

A term stands for one tensor: a leaf, or an operator applied to terms, all sizes and numbers
included. Terms are kept in a table by what they are made of (hash-consing: Ershov, "On programming
of arithmetic operations", CACM 1(8), 1958), so two terms are equal only if the same functional
operators were applied to the same leaves, and then the tensors are equal.

The converse does not hold: equal tensors may have different terms. What moves no numbers is
therefore brought into one form, since PyTorch chooses between several spellings by sizes and
strides: anything that leaves the row-major order of the elements as it is, is one view of what it
views, and a tensor full of one number is that number and a shape.

Each term also knows the latest time step that it depends on. That is no part of its meaning: it
tells the steps of a loop, put together, from features that are put side by side.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NewType

from snnfx.passes.analysis.placement import Placement, Shape

Term = NewType("Term", int)

BEFORE = -1
"""The step of what depends on no step of a sequence."""


@dataclass(frozen=True)
class _Entry:
    """What a term is made of.

    Attributes:
        name: operator with its numbers; for a leaf its identity.
        operands: the terms that it reads.
        shape: of the tensor; with the name and the operands the term's identity.
        latest: the latest step that it depends on.
    """

    name: Hashable
    operands: tuple[Term, ...]
    shape: Shape
    latest: int


class Terms:
    """A table of terms; terms of two tables have nothing to do with each other."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self._known: dict[Hashable, Term] = {}

    def shape(self, term: Term) -> Shape:
        """The sizes of the tensor."""
        return self._entries[term].shape

    def latest(self, term: Term) -> int:
        """The latest step that the tensor depends on; `BEFORE` if it depends on none."""
        return self._entries[term].latest

    def leaf(self, name: Hashable, shape: Shape, step: int = BEFORE) -> Term:
        """A tensor that is given; leaves of one name and shape are the same tensor."""
        return self._intern(("leaf", name), (), shape, step)

    def unknown(self, shape: Shape) -> Term:
        """A tensor that is equal to no other one."""
        return self._intern(("unknown", len(self._entries)), (), shape, BEFORE)

    def is_unknown(self, term: Term) -> bool:
        """Whether the term came from `unknown`."""
        name = self._entries[term].name
        return isinstance(name, tuple) and name[0] == "unknown"

    def call(self, name: Hashable, operands: Sequence[Term], shape: Shape) -> Term:
        """An operator applied to terms; `name` holds everything that it reads besides them."""
        latest = max((self.latest(operand) for operand in operands), default=BEFORE)
        return self._intern(("call", name), tuple(operands), shape, latest)

    def filled(self, number: Hashable, shape: Shape) -> Term:
        """A tensor all of whose elements are one number."""
        return self._intern(("filled", number), (), shape, BEFORE)

    def number(self, term: Term) -> Hashable | None:
        """The number of a filled tensor; None for any other one."""
        name = self._entries[term].name
        return name[1] if isinstance(name, tuple) and name[0] == "filled" else None

    def view(self, term: Term, shape: Shape) -> Term:
        """The same elements in the same row-major order."""
        if self.number(term) is not None:
            return self.filled(self.number(term), shape)
        entry = self._entries[term]
        base = entry.operands[0] if entry.name == _VIEW else term
        if self.shape(base) == shape:
            return base
        return self._intern(_VIEW, (base,), shape, entry.latest)

    def permute(self, term: Term, dims: Sequence[int]) -> Term:
        """The dimensions in another order: dimension d of the result is ``dims[d]``."""
        old = self.shape(term)
        shape = tuple(old[d] for d in dims)
        moving = [d for d in dims if old[d] != 1]
        if self.number(term) is not None or moving == sorted(moving):
            return self.view(term, shape)
        return self.call(("permute", tuple(dims)), (term,), shape)

    def expand(self, term: Term, shape: Shape) -> Term:
        """Dimensions of size 1, and new ones in front, repeated."""
        if self.number(term) is not None:
            return self.filled(self.number(term), shape)
        old = self.shape(term)
        if shape[: len(shape) - len(old)] == (1,) * (len(shape) - len(old)) and (
            shape[len(shape) - len(old) :] == old
        ):
            return self.view(term, shape)
        return self._intern(_EXPAND, (term,), shape, self.latest(term))

    def pick(self, term: Term, dim: int, index: int) -> Term:
        """One index, not negative, of a dimension, which goes."""
        old = self.shape(term)
        shape = (*old[:dim], *old[dim + 1 :])
        if old[dim] == 1 or self.number(term) is not None:
            return self.view(term, shape)
        return self.call(("pick", dim, index), (term,), shape)

    def cut(self, term: Term, dim: int, kept: range) -> Term:
        """Some indices of a dimension."""
        old = self.shape(term)
        shape = (*old[:dim], len(kept), *old[dim + 1 :])
        if self.number(term) is not None:
            return self.filled(self.number(term), shape)
        if kept == range(old[dim]):
            return term
        return self.call(("cut", dim, kept), (term,), shape)

    def join(self, pieces: Sequence[Term], dim: int) -> Term:
        """One after another along a dimension."""
        if len(pieces) == 1:
            return pieces[0]
        old = self.shape(pieces[0])
        length = sum(self.shape(piece)[dim] for piece in pieces)
        shape = (*old[:dim], length, *old[dim + 1 :])
        numbers = {self.number(piece) for piece in pieces}
        if len(numbers) == 1 and None not in numbers:
            return self.filled(numbers.pop(), shape)
        return self.call(("join", dim), pieces, shape)

    def assemble(self, slices: Sequence[Term], place: Placement) -> Term:
        """The tensor that has these slices there."""
        if place.outer == 1:
            return self.join(slices, place.dim)
        shape = list(self.shape(slices[0]))
        shape[place.dim] *= len(slices)
        return self.call(("assemble", place), slices, tuple(shape))

    def pieces(self, term: Term, dim: int) -> tuple[Term, ...]:
        """What was joined along a dimension; the term alone if nothing was."""
        entry = self._entries[term]
        return entry.operands if entry.name == ("call", ("join", dim)) else (term,)

    def repeats(self, term: Term) -> bool:
        """Whether some dimension of the tensor repeats one index of it."""
        return self.number(term) is not None or self._entries[term].name == _EXPAND

    def narrowed(self, term: Term, dim: int, length: int) -> Term | None:
        """Any `length` indices of a dimension along which all are equal; None if it is not one."""
        old = self.shape(term)
        shape = (*old[:dim], length, *old[dim + 1 :])
        if self.number(term) is not None:
            return self.filled(self.number(term), shape)
        entry = self._entries[term]
        if entry.name != _EXPAND:
            return None
        base = self.shape(entry.operands[0])
        own = dim - (len(old) - len(base))
        return None if own >= 0 and base[own] != 1 else self.expand(entry.operands[0], shape)

    def _intern(
        self, name: Hashable, operands: tuple[Term, ...], shape: Shape, latest: int
    ) -> Term:
        key = (name, operands, shape)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Term(len(self._entries))
            self._entries.append(_Entry(name, operands, shape, latest))
        return found


_VIEW = ("view",)
_EXPAND = ("expand",)
