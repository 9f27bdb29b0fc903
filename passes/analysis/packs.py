"""Which kept values are packed together, and how.

The T spike tensors of a neuron are T values of the graph, stacked in time for the next layer. They
are packed as that one stack, along time: bit t of a byte is step t, so a fused region reads or
writes its byte once. A kept value that is no part of such a stack is packed by itself, flat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from snnfx.passes.analysis.opkinds import packet
from snnfx.passes.analysis.value_range import Encoding, ValueRanges
from snnfx.passes.fxgraph import node_bytes, size_hint, tensor_value

aten = torch.ops.aten
CASTS = frozenset({aten._to_copy, torch.ops.prims.convert_element_type})


@dataclass(frozen=True)
class Pack:
    """Values that share one packed tensor.

    Attributes:
        source: the value that is packed: a stack along dim 0, or a single value.
        members: member t is step t of the source, or the source itself; most of them are kept.
        encoding: of the source.
        layout: ``"time"`` or ``"flat"``.
        order: the source's dimensions from the largest stride to the smallest; it is packed in
            this order, and comes back with the strides that it had.
    """

    source: Node
    members: tuple[Node, ...]
    encoding: Encoding
    layout: str
    order: tuple[int, ...]

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed tensor."""
        value = tensor_value(self.source)
        assert value is not None
        per_byte = 8 // self.encoding.bits
        elements = node_bytes(self.source) // value.element_size()
        if self.layout == "flat":
            return -(-elements // per_byte)
        steps = int(value.shape[0])
        return -(-steps // per_byte) * (elements // steps)


def find_packs(kept: Iterable[Node], ranges: ValueRanges) -> tuple[Pack, ...]:
    """Group the kept values whose encoding is proven, each into one pack at most."""
    remaining = {node: None for node in kept if ranges.encoding(node) is not None}
    packs: list[Pack] = []
    for node in list(remaining):
        pack = _stack_of(node, remaining, ranges) if node in remaining else None
        if pack is not None:
            packs.append(pack)
            for member in pack.members:
                remaining.pop(member, None)
    singles = (_single(node, ranges) for node in remaining)
    packs.extend(pack for pack in singles if pack is not None)
    return tuple(pack for pack in packs if _is_worth_it(pack))


def _is_worth_it(pack: Pack) -> bool:
    return pack.packed_bytes < sum(node_bytes(member) for member in pack.members)


def _single(node: Node, ranges: ValueRanges) -> Pack | None:
    encoding = ranges.encoding(node)
    order = _dense_order(node)
    if encoding is None or order is None:
        return None
    return Pack(node, (node,), encoding, "flat", order)


def _stack_of(node: Node, kept: dict[Node, None], ranges: ValueRanges) -> Pack | None:
    """The pack of the stack that `node` is one step of, if all its steps are kept."""
    for value in (node, *(user for user in node.users if packet(user) in CASTS)):
        for stack in value.users:
            if packet(stack) is aten.stack and _stack_dim(stack) == 0:
                pack = _pack_of_stack(stack, kept, ranges)
                if pack is not None:
                    return pack
    return None


def _stack_dim(stack: Node) -> object:
    dim = stack.args[1] if len(stack.args) > 1 else stack.kwargs.get("dim", 0)
    value = tensor_value(stack)
    return dim % value.dim() if isinstance(dim, int) and value is not None else dim


def _pack_of_stack(stack: Node, kept: dict[Node, None], ranges: ValueRanges) -> Pack | None:
    steps = stack.args[0]
    assert isinstance(steps, (list, tuple))
    members = tuple(_uncast(step, kept, ranges) for step in steps if isinstance(step, Node))
    encoding = ranges.encoding(stack)
    order = _dense_order(stack)
    distinct = len(set(members)) == len(members)
    if encoding is None or order is None or order[0] != 0 or not distinct:
        return None
    wanted = sum(m in kept for m in members)
    # The last step of a neuron may not be needed; packing it along costs a bit an element.
    if 2 * wanted < len(members) or not all(_is_step_of(m, stack, ranges) for m in members):
        return None
    return Pack(stack, members, encoding, "time", order)


def _uncast(node: Node, kept: dict[Node, None], ranges: ValueRanges) -> Node:
    """The kept value that `node` is a lossless conversion of; itself if it is none."""
    while node not in kept and packet(node) in CASTS:
        (source,) = node.all_input_nodes
        # A conversion to bool or to integers keeps the numbers only if it keeps their grid.
        if ranges.grid(source) != ranges.grid(node):
            break
        node = source
    return node


def _is_step_of(member: Node, stack: Node, ranges: ValueRanges) -> bool:
    """Whether a slice of the unpacked stack is the member: same numbers, strides to be had."""
    own, whole = tensor_value(member), tensor_value(stack)
    grid, stacked = ranges.grid(member), ranges.grid(stack)
    assert own is not None
    assert whole is not None
    if grid is None or stacked is None or grid.scale != stacked.scale:
        return False
    if own.shape != whole.shape[1:]:
        return False
    return own.stride() == whole.stride()[1:] or memory_format_of(own) is not None


def memory_format_of(value: Tensor) -> torch.memory_format | None:
    """The format in which a copy of the tensor has its strides, if there is one."""
    formats = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
    for rank, memory_format in zip((None, 4, 5), formats, strict=True):
        fits = rank is None or value.dim() == rank
        if fits and value.is_contiguous(memory_format=memory_format):
            return memory_format
    return None


def _dense_order(node: Node) -> tuple[int, ...] | None:
    """The dimensions by falling stride, if the tensor fills its memory without gaps."""
    value = tensor_value(node)
    assert value is not None
    if value.is_contiguous():
        return tuple(range(value.dim()))
    strides = [
        (-size_hint(value.stride(d)), -size_hint(value.shape[d])) for d in range(value.dim())
    ]
    order = sorted(range(value.dim()), key=strides.__getitem__)
    return tuple(order) if value.permute(order).is_contiguous() else None
