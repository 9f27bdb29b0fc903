"""What modules hold besides parameters: buffers, neuron state, settings; kept and put back.

A segment that is computed twice must start the second time from what its modules held before the
first time, and must leave behind what they hold now: batch-norm statistics and membrane potentials
move on once. Nothing has to be declared for this. Every entry of a module's attributes, of its
buffers and of its dictionary of memories (`snnfx.base.MemoryModule` has one, as has SpikingJelly's)
is a slot. A slot was changed by a run if it holds another object afterwards, or a tensor that was
written to, or a list with other members.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snnfx.errors import RecomputationError

Slots = MutableMapping[str, Any]

_DICTIONARIES = ("_buffers", "_memories")

_STATISTICS = 1 << 16
"""Floating buffers of at most so many elements count as written to: they may be running statistics,
which batch norm updates without a trace, and cost little to keep."""


class _Absent:
    """Stands for the value of a slot that does not exist."""


_ABSENT = _Absent()


@dataclass(frozen=True)
class ChangedTensor:
    """A slot whose tensor the run replaced or wrote to, and that tensor as it was before."""

    slots: Slots
    name: str
    value: Tensor


@dataclass(frozen=True)
class StateBefore:
    """What modules held before a run.

    Attributes:
        modules: whose state it is.
        entries: their slots, with all values but those of `tensors`.
        tensors: the tensors that the run changed; to be kept as autograd keeps tensors.
        versions: of the tensors and parameters that it did not change, with the module's type and
            the name that an error gives.
    """

    modules: tuple[nn.Module, ...]
    entries: tuple[tuple[Slots, Slots], ...]
    tensors: tuple[ChangedTensor, ...]
    versions: tuple[tuple[Tensor, int, str], ...]

    @contextmanager
    def restored(self, tensors: Sequence[Tensor]) -> Generator[None]:
        """Let the modules hold again what they held; afterwards what they hold now.

        Args:
            tensors: the values of `self.tensors`. Those without a gradient are copied, since
                modules write to buffers in place.

        Raises:
            RecomputationError: a parameter or a tensor of the state was written to in between.
        """
        self._check_versions()
        now = _shallow(self.modules)
        try:
            for slots, before in self.entries:
                _put(slots, {n: _without_later_members(value) for n, value in before.items()})
            for changed, value in zip(self.tensors, tensors, strict=True):
                tracked = value.requires_grad
                changed.slots[changed.name] = value if tracked else value.detach().clone()
            yield
        finally:
            for slots, values in now:
                _put(slots, values)

    def _check_versions(self) -> None:
        for tensor, version, name in self.versions:
            if _version(tensor) != version:
                raise RecomputationError(
                    f"{name} was changed in place between the forward and the backward pass, so "
                    "the segment that uses it cannot be computed again. Call backward before the "
                    "optimizer's step, and change state by assigning a new tensor."
                )


class StateWatch:
    """Notes what modules hold when it is made; `before` says it once they have run.

    Args:
        modules: each once.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = tuple(modules)
        self._entries = tuple(
            (slots, {name: _without_later_members(value) for name, value in values.items()})
            for slots, values in _shallow(self._modules)
        )
        self._copies: dict[int, tuple[int, Tensor]] = {}
        with torch.no_grad():
            for value in self._tensors():
                self._copies[id(value)] = (_version(value), value.clone())

    def _tensors(self) -> Iterator[Tensor]:
        for _, before in self._entries:
            yield from (value for value in before.values() if isinstance(value, Tensor))

    def release_histories(self) -> None:
        """Give each new state that is one step of a sequence a storage of its own.

        A neuron that keeps the last of T potentials as a view keeps all T of them in memory.
        """
        for slots, before in self._entries:
            for name, value in slots.items() if _holds_memories(slots, self._modules) else ():
                if value is not before.get(name) and _is_small_part(value):
                    slots[name] = value.clone()

    def before(self) -> StateBefore:
        """The state of the modules before they ran."""
        tensors: list[ChangedTensor] = []
        versions: list[tuple[Tensor, int, str]] = []
        for slots, before in self._entries:
            for name, value in list(before.items()):
                if not isinstance(value, Tensor):
                    continue
                version, copied = self._copies[id(value)]
                was_written = _version(value) != version or _may_be_statistics(value)
                if was_written or slots.get(name, _ABSENT) is not value:
                    old = copied.requires_grad_(value.requires_grad) if was_written else value
                    tensors.append(ChangedTensor(slots, name, old))
                    before[name] = None  # keeps the place in the order
                else:
                    versions.append((value, _version(value), f"tensor '{name}' of a module"))
        for module in self._modules:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    place = f"parameter '{name}' of a {type(module).__name__}"
                    versions.append((parameter, _version(parameter), place))
        return StateBefore(self._modules, self._entries, tuple(tensors), tuple(versions))


def _shallow(modules: Iterable[nn.Module]) -> tuple[tuple[Slots, Slots], ...]:
    """The slots of modules, and a copy of each."""
    return tuple((slots, dict(slots)) for module in modules for slots in _slots_of(module))


def _slots_of(module: nn.Module) -> Iterator[Slots]:
    yield module.__dict__
    for name in _DICTIONARIES:
        values = module.__dict__.get(name)
        if isinstance(values, dict):
            yield values


def _without_later_members(value: Any) -> Any:
    """The value itself; of a list, which a module may append to, a copy."""
    return list(value) if type(value) is list else value


def _put(slots: Slots, values: Slots) -> None:
    """Make `slots` equal to `values`, in their order."""
    if list(slots) != list(values):
        slots.clear()
    for name, value in values.items():
        if slots.get(name, _ABSENT) is not value:
            slots[name] = value


def _holds_memories(slots: Slots, modules: Iterable[nn.Module]) -> bool:
    return any(module.__dict__.get("_memories") is slots for module in modules)


def _is_small_part(value: Any) -> bool:
    return isinstance(value, Tensor) and value.untyped_storage().nbytes() >= 2 * value.nbytes > 0


def _may_be_statistics(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() <= _STATISTICS and value.grad_fn is None


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
