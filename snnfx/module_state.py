"""What modules hold besides parameters: buffers, neuron state, settings; kept and put back.

A segment that is computed twice must start the second time from what its modules held before the
first time, and must leave behind what they hold now: batch-norm statistics and membrane potentials
move on once. Nothing has to be declared for this. Every entry of a module's attributes, of its
buffers and parameters, and of the dictionaries and lists among its attributes (`_memories` of a
`snnfx.base.MemoryModule` or of SpikingJelly's is one) is a slot. A slot was changed by a run if it
holds another object afterwards, or a tensor that was written to.
"""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snnfx.errors import RecomputationError

Slots = dict[Any, Any] | list[Any]
"""What holds values by name or by place, and can be changed."""

_HOLDERS = (dict, OrderedDict, defaultdict, list)

_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))
"""Attributes that every module has; of their dictionaries two are state."""

_OWN_STATE = ("_parameters", "_buffers")

_STATISTICS = 1 << 16
"""Floating buffers of at most so many elements count as written to: they may be running statistics,
which batch norm updates without a trace, and cost little to keep."""

_COPIED_MEMBERS = 64
"""A longer list or dictionary is taken for a record that grows, and its tensors are not copied."""


class _Absent:
    """Stands for the value of a slot that does not exist."""


_ABSENT = _Absent()


@dataclass(frozen=True)
class ChangedTensor:
    """A tensor that the run wrote to or replaced.

    Attributes:
        places: the slots that held it, more than one if modules share it.
        was_written: whether it must be copied before the modules have it again.
    """

    places: tuple[tuple[Slots, Any], ...]
    was_written: bool

    def put_back(self, value: Tensor) -> None:
        """Let the slots hold `value`, or a copy of it, the same tensor in all of them."""
        tracked = value.requires_grad
        if not tracked:
            value = value.detach().clone()
        elif self.was_written:
            value = value.clone()
        for slots, name in self.places:
            slots[name] = value


@dataclass(frozen=True)
class StateBefore:
    """What modules held before a run.

    Attributes:
        entries: their slots, with all values but those of `changed`.
        changed: where the tensors were that the run changed. Their values are not in here, since
            they are to be kept as autograd keeps tensors.
        versions: of the tensors and parameters that it did not change, with the module's type and
            the name that an error gives.
    """

    entries: tuple[tuple[Slots, Slots], ...]
    changed: tuple[ChangedTensor, ...]
    versions: tuple[tuple[Tensor, int, str], ...]

    @contextmanager
    def restored(self, tensors: Sequence[Tensor]) -> Generator[None]:
        """Let the modules hold again what they held; afterwards what they hold now.

        Args:
            tensors: the values of `self.changed`. Those without a gradient, and those that were
                written to, are copied, since modules write to buffers in place.

        Raises:
            RecomputationError: a parameter or a tensor of the state was written to in between.
        """
        self._check_versions()
        with _kept([slots for slots, _ in self.entries]):
            for slots, before in self.entries:
                _put(slots, before)
            for changed, value in zip(self.changed, tensors, strict=True):
                changed.put_back(value)
            yield

    def _check_versions(self) -> None:
        for tensor, version, name in self.versions:
            if version_of(tensor) != version:
                raise RecomputationError(
                    f"{name} was changed in place between the forward and the backward pass, so "
                    "the segment that uses it cannot be computed again. Call backward before the "
                    "optimizer's step, and change state by assigning a new tensor."
                )


class _Found(NamedTuple):
    """A tensor, or a tuple that may hold some, among the values of modules.

    Attributes:
        slots: what holds it.
        before: the copy of `slots`.
        name: its name or place there.
        value: itself.
        tensors: the tensors in it.
    """

    slots: Slots
    before: Slots
    name: Any
    value: Any
    tensors: tuple[Tensor, ...]


class StateWatch:
    """Notes what modules hold when it is made; `before` says it once they have run.

    Args:
        modules: each once.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = tuple(modules)
        self._entries = tuple((slots, _copied(slots)) for slots in _slots_of(self._modules))
        self._owners = {id(m._parameters): type(m).__name__ for m in self._modules}
        self._dictionaries = {
            key for m in self._modules for key in (id(m.__dict__), id(m._buffers))
        }
        self._versions: dict[int, int] = {}
        self._copies: dict[int, Tensor] = {}
        self._found = [
            _Found(slots, before, name, value, tuple(_tensors_in(value)))
            for slots, before in self._entries
            for name, value in _items(before)
            if isinstance(value, (Tensor, tuple))
        ]
        with torch.no_grad():
            for found in self._found:
                self._note(found)

    def _note(self, found: _Found) -> None:
        is_copied = self._is_copied(found.slots, found.value)
        for tensor in found.tensors:
            self._versions[id(tensor)] = version_of(tensor)
            if is_copied and id(tensor) not in self._copies:
                self._copies[id(tensor)] = tensor.clone()

    def _is_copied(self, slots: Slots, value: Any) -> bool:
        is_parameter = id(slots) in self._owners or isinstance(value, nn.Parameter)
        is_record = id(slots) not in self._dictionaries and len(slots) > _COPIED_MEMBERS
        return isinstance(value, Tensor) and not (is_parameter or is_record)

    def release_histories(self) -> None:
        """Give each new state that is one step of a sequence a storage of its own.

        A neuron that keeps the last of T potentials as a view keeps all T of them in memory.
        """
        before = {id(slots): values for slots, values in self._entries}
        for module in self._modules:
            memories: dict[str, Any] = module.__dict__.get("_memories", {})
            for name, value in list(memories.items()):
                was = _get(before[id(memories)], name) if id(memories) in before else None
                if value is not was and _is_small_part(value):
                    memories[name] = value.clone()

    def before(self) -> tuple[StateBefore, tuple[Tensor, ...]]:
        """The state of the modules before they ran, and the values of its `changed`.

        Raises:
            RecomputationError: the run wrote to a tensor of which there is no copy, or to two that
                share their memory.
        """
        written = self._written()
        values: dict[int, Tensor] = {}
        places: dict[int, list[tuple[Slots, Any]]] = {}
        versions: list[tuple[Tensor, int, str]] = []
        for slots, before, name, value, tensors in self._found:
            if isinstance(value, Tensor) and self._was_changed(slots, name, value, written):
                values[id(value)] = value
                places.setdefault(id(value), []).append((slots, name))
                before[name] = None  # keeps the place in the order
            else:
                described = self._described(slots, name)
                versions += [(tensor, version_of(tensor), described) for tensor in tensors]
        changed = tuple(ChangedTensor(tuple(places[key]), key in written) for key in values)
        olds = tuple(self._old(value, key in written) for key, value in values.items())
        return StateBefore(self._entries, changed, tuple(versions)), olds

    def _was_changed(self, slots: Slots, name: Any, value: Tensor, written: set[int]) -> bool:
        if isinstance(value, nn.Parameter):
            return False
        # What stands for a parameter is there for one call, as in torch.func.functional_call.
        is_lent = id(slots) in self._owners
        return is_lent or id(value) in written or _get(slots, name) is not value

    def _written(self) -> set[int]:
        """The ids of the tensors that were written to, or may have been."""
        addresses: dict[int, int] = {}
        for slots, _, name, value, tensors in self._found:
            for tensor in () if isinstance(value, nn.Parameter) else tensors:
                key = id(tensor)
                if version_of(tensor) == self._versions[key]:
                    if key in self._copies and _may_be_statistics(tensor):
                        addresses.setdefault(key, 0)
                    continue
                address = _address(tensor)
                if key not in self._copies or _shares_memory(key, address, addresses):
                    raise RecomputationError(
                        f"{self._described(slots, name)} is changed in place by the segment that "
                        "uses it, and cannot be put back to compute it again. Change state by "
                        "assigning a new tensor."
                    )
                addresses[key] = address
        return set(addresses)

    def _old(self, value: Tensor, was_written: bool) -> Tensor:
        if not was_written:
            return value
        return self._copies[id(value)].requires_grad_(value.requires_grad)

    def _described(self, slots: Slots, name: Any) -> str:
        owner = self._owners.get(id(slots))
        return (
            f"tensor '{name}' of a module" if owner is None else f"parameter '{name}' of a {owner}"
        )


def kept_state(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Let the slots of `modules` hold afterwards what they hold now; tensors are not copied."""
    return _kept(_slots_of(modules))


@contextmanager
def _kept(holders: Iterable[Slots]) -> Generator[None]:
    now = [(slots, _copied(slots)) for slots in holders]
    try:
        yield
    finally:
        for slots, values in now:
            _put(slots, values)


def _slots_of(modules: Iterable[nn.Module]) -> Iterator[Slots]:
    """What holds the state of modules: their attributes, and dictionaries and lists among them."""
    seen: set[int] = set()
    for module in modules:
        attributes = module.__dict__
        yield attributes
        waiting = [attributes[name] for name in _OWN_STATE]
        waiting += [value for name, value in attributes.items() if name not in _OWN_ATTRIBUTES]
        while waiting:
            value = waiting.pop()
            if type(value) in _HOLDERS and id(value) not in seen:
                seen.add(id(value))
                yield value
                waiting += (member for _, member in _items(value) if type(member) in _HOLDERS)


def _copied(slots: Slots) -> Slots:
    return list(slots) if isinstance(slots, list) else dict(slots)


def _items(slots: Slots) -> list[tuple[Any, Any]]:
    return list(enumerate(slots)) if isinstance(slots, list) else list(slots.items())


def _get(slots: Slots, name: Any) -> Any:
    if isinstance(slots, list):
        return slots[name] if name < len(slots) else _ABSENT
    return slots.get(name, _ABSENT)


def _put(slots: Slots, values: Slots) -> None:
    """Make `slots` equal to `values`, in their order."""
    if isinstance(slots, list) or isinstance(values, list):
        slots[:] = values
        return
    if list(slots) != list(values):
        slots.clear()
    elif all(map(operator.is_, slots.values(), values.values())):
        return
    for name, value in _items(values):
        if slots.get(name, _ABSENT) is not value:
            slots[name] = value


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value that cannot be changed: itself, or the members of a tuple."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for member in value:
            yield from _tensors_in(member)


def _shares_memory(key: int, address: int, found: dict[int, int]) -> bool:
    return any(other != key and known == address for other, known in found.items())


def _is_small_part(value: Any) -> bool:
    return isinstance(value, Tensor) and value.untyped_storage().nbytes() >= 2 * value.nbytes > 0


def _may_be_statistics(value: Tensor) -> bool:
    return value.is_floating_point() and value.numel() <= _STATISTICS and value.grad_fn is None


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # fake tensors have no data to point to


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to; 0 for an inference tensor, which does not say."""
    return 0 if tensor.is_inference() else tensor._version


def tensor_places(modules: Iterable[nn.Module]) -> Iterator[tuple[Slots, Any, Tensor]]:
    """Each slot of `modules` that holds a tensor: what has it, its name or place there, itself."""
    for slots in _slots_of(modules):
        for name, value in _items(slots):
            if isinstance(value, Tensor):
                yield slots, name, value


@contextmanager
def changed_tensors(model: nn.Module) -> Generator[list[tuple[str, Tensor]]]:
    """Gives a list that at the end holds each tensor that was replaced, with its place in `model`.

    Parameters, and what holds their place, do not count.
    """
    changed: list[tuple[str, Tensor]] = []
    own = {id(module._parameters) for module in model.modules()}
    before = [
        (f"{path}.{name}".lstrip("."), slots, name, value)
        for path, module in model.named_modules()
        for slots, name, value in tensor_places([module])
        if id(slots) not in own
    ]
    yield changed
    changed += [
        (place, value) for place, slots, name, value in before if _get(slots, name) is not value
    ]
