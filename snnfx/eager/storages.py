"""Which tensors of a running step lie in which storage, when it dies, and what it holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from snnfx.eager.step import OUTSIDE

Geometry = tuple[object, ...]


@dataclass(eq=False)
class Storage:
    """A storage that is alive.

    Attributes:
        number: its number in the record; `OUTSIDE` if the record does not follow it.
        nodes: what is known of its contents: the node that computed them, by the geometry of the
            tensor that shows them. Emptied by each write.
        reference: weak; kept for its callback.
    """

    number: int
    nodes: dict[Geometry, Node] = field(default_factory=dict[Geometry, Node])
    reference: object = None


class Storages:
    """The storages that are alive, found by the tensors in them.

    PyTorch keeps the Python object of a storage for as long as the storage lives, also where only
    C++ refers to it, so a weak reference to that object tells when the memory is released.
    """

    def __init__(self) -> None:
        self._alive: dict[int, Storage] = {}

    def find(self, tensor: Tensor) -> Storage | None:
        """The storage of a tensor, if it has been added."""
        if tensor.layout is not torch.strided:
            return None
        return self._alive.get(tensor.untyped_storage()._cdata)

    def add(
        self, tensor: Tensor, number: int, on_death: Callable[[], None] | None = None
    ) -> Storage:
        """Follow the storage of a strided tensor; `on_death` is called when it is released."""
        memory = tensor.untyped_storage()
        key = memory._cdata
        storage = Storage(number)

        def died(_: object) -> None:
            self._alive.pop(key, None)
            if on_death is not None:
                on_death()

        storage.reference = weakref.ref(memory, died)
        self._alive[key] = storage
        return storage

    def find_or_add_outside(self, tensor: Tensor) -> Storage | None:
        """The storage of a tensor; where it is unknown, one that the record does not follow."""
        if tensor.layout is not torch.strided:
            return None
        return self.find(tensor) or self.add(tensor, OUTSIDE)

    def forget_contents(self) -> None:
        """Forget what is known of the contents of all storages."""
        for storage in self._alive.values():
            storage.nodes.clear()


def geometry(tensor: Tensor) -> Geometry:
    """What tells one tensor from another in the same storage."""
    return (
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in a value, and in lists, tuples and dicts of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
