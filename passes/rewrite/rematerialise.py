"""Anchored rematerialisation: the backward computes values again from the kept, packed ones.

Works on a joint graph. Kept values are packed where a `Pack` says so (the pack is a node of the
forward); each value that the backward demands is either kept, unpacked, or a clone of the forward's
node in the backward, with the kept values in the place of their originals. The clones are placed
right before their first use. Forward and backward share no node but what is kept.

A clone calls the operator of its original, so in the eager lowering its bits are the forward's.
Where the original read a buffer that the forward overwrites (the running statistics of a batch
norm), the clone reads the new content instead: the operator's output does not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node

from snnfx.passes.analysis.opkinds import BATCH_NORMS, POOLINGS, is_elementwise, packet
from snnfx.passes.analysis.packs import Pack, memory_format_of
from snnfx.passes.fxgraph import (
    JointRoles,
    dependents,
    is_getitem,
    node_value,
    producer,
    set_value,
    tensor_value,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class RematerialiseResult:
    """What the rewrite did.

    Attributes:
        saved: the nodes that pass from forward to backward, in graph order.
        backward: all nodes of the backward, clones included.
        clones: how many nodes were cloned.
        packs: how many packed tensors are saved.
        origins: for the name of each clone, that of the forward's node.
    """

    saved: tuple[Node, ...]
    backward: frozenset[Node]
    clones: int
    packs: int
    origins: Mapping[str, str]


def rematerialise(
    graph: Graph,
    roles: JointRoles,
    recomputed: Iterable[Node],
    packs: Iterable[Pack],
    fused: bool = False,
) -> RematerialiseResult:
    """Rewrite the joint graph so that its backward reads only what is to be saved.

    Args:
        graph: changed in place.
        roles: its ends.
        recomputed: forward values that the backward computes again.
        packs: how kept values are packed; kept values in no pack are saved as they are.
        fused: whether regions will be compiled, which pool what they unpack for nothing.
    """
    work = _Rematerialiser(graph, roles, frozenset(recomputed), tuple(packs), fused)
    return work.run()


@dataclass
class _Rematerialiser:
    """The state of one rewrite.

    A *context* is a consumer for which its input is computed apart from that of other consumers:
    the float spikes that a weight reads are large, and unpacking them twice is cheaper than
    keeping them from the first reader to the last. None is the context that all others share.
    """

    graph: Graph
    roles: JointRoles
    recomputed: frozenset[Node]
    packs: tuple[Pack, ...]
    fused: bool
    index: dict[Node, int] = field(default_factory=dict)
    clones: dict[tuple[Node | None, Node], Node] = field(default_factory=dict)
    unpacked: dict[tuple[Node | None, Node, torch.dtype], Node] = field(default_factory=dict)
    packed: dict[Node, Node] = field(default_factory=dict)
    sizes: dict[Node, list[int | Node]] = field(default_factory=dict)
    cheap: dict[Node, bool] = field(default_factory=dict)
    steps: dict[Node, tuple[Pack, int]] = field(default_factory=dict)
    whole: dict[Node, Pack] = field(default_factory=dict)
    held: dict[Node, Node] = field(default_factory=dict)

    def run(self) -> RematerialiseResult:
        self.index = {node: i for i, node in enumerate(self.graph.nodes)}
        tangent_side = dependents(self.graph, self.roles.tangents) - {self.graph.output_node()}
        for pack in self.packs:
            self.whole[pack.source] = pack
            self.steps |= {member: (pack, t) for t, member in enumerate(pack.members)}
        self.held = {n: self._hold(n) for n in self.roles.mutated}
        originals = list(self.graph.nodes)
        for pack in self.packs:
            self.packed[pack.source] = self._insert_pack(pack)
        forward = set(self.graph.nodes) - tangent_side
        for node in originals:
            if node in tangent_side:
                self._rewire(node)
        backward = frozenset(set(self.graph.nodes) - forward - {self.graph.output_node()})
        saved = _inputs_from_outside(self.graph, backward, self.roles)
        origins = {
            clone.name: node.name
            for (_, node), clone in self.clones.items()
            if node not in self.whole and node not in self.steps  # those are unpacked, not cloned
        }
        return RematerialiseResult(saved, backward, len(self.clones), len(self.packs), origins)

    def _hold(self, primal: Node) -> Node:
        """A copy of an input's content from before the forward overwrites it."""
        anchor = self.roles.tangents[0] if self.roles.tangents else self.roles.primals[-1]
        with self.graph.inserting_after(anchor):
            copy = self.graph.call_function(aten.clone.default, (primal,))
        copy.meta = dict(primal.meta)
        return copy

    def _rewire(self, node: Node) -> None:
        """Give a node of the backward its inputs from the kept values."""
        replacements = {
            source: self._available(source, node) for source in list(node.all_input_nodes)
        }
        for old, new in replacements.items():
            if new is not old:
                node.replace_input_with(old, new)

    def _available(self, value: Node, consumer: Node) -> Node:
        """The node that gives the backward `value`, created before `consumer` if need be."""
        if not self._is_restored(value):
            return self.held.get(value, value)
        context = None if is_elementwise(consumer) or not self._is_cheap(value) else consumer
        self._restore_all(value, context, consumer)
        return self.clones[context, value]

    def _is_restored(self, value: Node) -> bool:
        return value in self.recomputed or value in self.steps or value in self.whole

    def _restore_all(self, value: Node, context: Node | None, before: Node) -> None:
        """Create what `value` needs in the backward, in the order of the forward."""
        missing: set[Node] = set()
        stack = [value]
        while stack:
            node = stack.pop()
            known = node in missing or (context, node) in self.clones
            if known or not self._is_restored(node):
                continue
            missing.add(node)
            if node not in self.steps and node not in self.whole:
                stack.extend(node.all_input_nodes)
        for node in sorted(missing, key=self.index.__getitem__):
            with self.graph.inserting_before(before):
                self.clones[context, node] = self._restore(node, context, before)

    def _restore(self, node: Node, context: Node | None, before: Node) -> Node:
        if node in self.whole:
            return self._unpack(self.whole[node], node, context)
        if node in self.steps:
            pack, step = self.steps[node]
            whole = self._unpack(pack, node, context)
            if pack.source is node:
                return whole
            return self._step(whole, step, node)
        return self._clone(node, context, before)

    def _step(self, whole: Node, step: int, member: Node) -> Node:
        """One step of an unpacked stack, with the strides of the value that it restores."""
        value, stack = tensor_value(member), tensor_value(whole)
        assert value is not None
        assert stack is not None
        if stack.stride()[1:] == value.stride():
            return _call(self.graph, aten.select.int, (whole, 0, step), member.meta)
        part = _call(self.graph, aten.select.int, (whole, 0, step), value=stack[step])
        copy = self.graph.call_function(
            aten.clone.default, (part,), {"memory_format": memory_format_of(value)}
        )
        copy.meta = dict(member.meta)
        return copy

    def _clone(self, node: Node, context: Node | None, before: Node) -> Node:
        """The same operator on restored inputs; a weight may restore its inputs for itself."""
        split = context is None and not is_elementwise(node)
        sources: dict[Node, Node] = {}
        for source in node.all_input_nodes:
            if split and self._is_restored(source) and self._is_cheap(source):
                self._restore_all(source, node, before)
                sources[source] = self.clones[node, source]
            elif self._is_restored(source):
                sources[source] = self.clones[context, source]
            else:
                sources[source] = self._overwritten(node).get(source, self.held.get(source, source))
        return self.graph.node_copy(node, lambda n: sources[n])

    def _overwritten(self, node: Node) -> Mapping[Node, Node]:
        """For a batch norm: its updated running statistics in the place of the old ones."""
        if packet(node) not in BATCH_NORMS:
            return {}
        updates = {
            user.args[1]: user for user in node.users if is_getitem(user) and user in self.index
        }
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        outputs = len(node.target._schema.returns)  # type: ignore[union-attr]
        found: dict[Node, Node] = {}
        for name, position in (("running_mean", outputs - 2), ("running_var", outputs - 1)):
            old = node.args[names.index(name)] if name in names else None
            if isinstance(old, Node) and position in updates:
                found[old] = updates[position]
        return found

    def _unpack(self, pack: Pack, node: Node, context: Node | None) -> Node:
        """The unpacked source of `pack` in the dtype of `node`, in the source's own strides."""
        value, source = tensor_value(node), tensor_value(pack.source)
        assert value is not None
        assert source is not None
        key = (context, pack.source, value.dtype)
        if key not in self.unpacked:
            shape = [source.shape[d] for d in pack.order]
            encoding, sizes = pack.encoding, self.sizes[pack.source]
            args = (self.packed[pack.source], sizes, value.dtype, encoding.bits, pack.layout,
                    encoding.scale, encoding.lo)  # fmt: skip
            fake = source.new_empty(shape, dtype=value.dtype)
            dense = _call(self.graph, torch.ops.snnfx.unpack_bits.default, args, value=fake)
            self.unpacked[key] = self._permute(dense, _inverse(pack.order))
        return self.unpacked[key]

    def _size(self, source: Node, dim: int) -> int | Node:
        """One of the sizes of `source`: a number, or a node of the forward that holds it."""
        value = tensor_value(source)
        assert value is not None
        size = value.shape[dim]
        if isinstance(size, int):
            return size
        for primal in self.roles.primals:
            if str(node_value(primal)) == str(size):
                return primal
        return _call(self.graph, aten.sym_size.int, (source, dim), value=size)

    def _permute(self, node: Node, order: tuple[int, ...]) -> Node:
        if order == tuple(range(len(order))):
            return node
        value = tensor_value(node)
        assert value is not None
        return _call(
            self.graph, aten.permute.default, (node, list(order)), value=value.permute(order)
        )

    def _insert_pack(self, pack: Pack) -> Node:
        source, encoding = tensor_value(pack.source), pack.encoding
        assert source is not None
        with self.graph.inserting_after(pack.source):
            dense = self._permute(pack.source, pack.order)
        with self.graph.inserting_after(dense):
            args = (dense, encoding.bits, pack.layout, encoding.scale, encoding.lo)
            fake = torch.ops.snnfx.pack_bits.default(tensor_value(dense), *args[1:])
            packed = _call(self.graph, torch.ops.snnfx.pack_bits.default, args, value=fake)
        with self.graph.inserting_after(packed):
            self.sizes[pack.source] = [self._size(pack.source, d) for d in pack.order]
        return packed

    def _is_cheap(self, value: Node) -> bool:
        """Whether `value` comes from kept ones by work that is done again for each reader."""
        if value not in self.cheap:
            stack = [value]
            seen: set[Node] = set()
            cheap = True
            while stack and cheap:
                node = stack.pop()
                if node in seen or node in self.steps or node in self.whole:
                    continue
                seen.add(node)
                if node in self.recomputed:
                    cheap = is_elementwise(node) or (self.fused and _pools(node))
                    stack.extend(node.all_input_nodes)
            self.cheap[value] = cheap
        return self.cheap[value]


def _pools(node: Node) -> bool:
    return packet(producer(node)) in POOLINGS


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def _call(
    graph: Graph,
    target: torch._ops.OpOverload,
    args: tuple[object, ...],
    meta: Mapping[str, object] | None = None,
    value: object = None,
) -> Node:
    node = graph.call_function(target, args)  # type: ignore[arg-type]
    if meta is not None:
        node.meta = dict(meta)
    else:
        set_value(node, value)
    return node


def _inputs_from_outside(
    graph: Graph, backward: frozenset[Node], roles: JointRoles
) -> tuple[Node, ...]:
    """What the backward reads and does not compute, in graph order."""
    used = {s for node in backward for s in node.all_input_nodes if s not in backward}
    used |= {n for n in roles.backward_outputs if n is not None and n not in backward}
    tangents = set(roles.tangents)
    return tuple(node for node in graph.nodes if node in used and node not in tangents)
