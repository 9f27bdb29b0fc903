"""Axis rules: the table, elementwise operators, and those that move elements.

A rule gives the `Relation` of one call, or None where nothing is known of it, which costs a tile
and never a wrong number. It reads shapes and arguments of its call, no facts: the same table says
what is independent along an axis and where an axis lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import Node

import snnfx.kernels.ops  # pyright: ignore[reportUnusedImport]  # registers
import snnfx.kernels.pool  # noqa: F401  # pyright: ignore[reportUnusedImport]  # likewise
from snnfx.passes.analysis.placement import Flat, Label, Labelled, Port, Relation, Shape
from snnfx.passes.fxgraph import node_value, schema_of, tensor_value
from snnfx.passes.optable import OpTable

aten, prims, snn = torch.ops.aten, torch.ops.prims, torch.ops.snnfx

Arguments = dict[str, Any]
AxisRule = Callable[[Node, Arguments], Relation | None]

RELATIONS: OpTable[AxisRule] = OpTable("axes")

FILLS = frozenset(
    {
        aten.full, aten.zeros, aten.ones, aten.scalar_tensor, aten.new_full, aten.new_zeros,
        aten.new_ones, aten.full_like, aten.zeros_like, aten.ones_like,
    }
)  # fmt: skip
"""Operators that fill a tensor with one number; of their first argument they read only the size."""

MOVES = frozenset(
    {
        aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
        aten._to_copy.default, prims.convert_element_type.default, aten.view.default,
        aten._unsafe_view.default, aten.reshape.default, aten.permute.default, aten.transpose.int,
        aten.t.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim,
        aten.squeeze.dims, aten.expand.default, aten.repeat.default, aten.select.int,
        aten.unbind.int, aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default,
        aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.flip.default,
    }
)  # fmt: skip
"""Operators whose results hold elements of their one tensor and nothing else."""

SIZE_ARGUMENTS: dict[object, str] = {
    aten.view.default: "size",
    aten._unsafe_view.default: "size",
    aten.reshape.default: "shape",
    aten.expand.default: "size",
    aten.select_backward.default: "input_sizes",
    aten.slice_backward.default: "input_sizes",
    snn.unpack_bits.default: "shape",
    snn.avg_pool2d_backward.default: "shape",
    snn.max_pool2d_backward.default: "shape",
}
"""Arguments that repeat the sizes of the result."""

OPERAND_SIZES: dict[object, tuple[str, str]] = {snn.pool_packed.default: ("shape", "packed")}
"""Arguments that repeat the sizes of an operand, except for the dimension that is packed."""


def relation_of(node: Node) -> Relation | None:
    """How the tensors of a call relate; None if nothing is known, or if a size is symbolic."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return None
    tensors = (*node.all_input_nodes, node)
    if target._schema.is_mutable or not node.args:
        return None
    if not all(has_numbers_for_sizes(n) for n in tensors):
        return None
    rule = RELATIONS.find(target)
    if rule is not None:
        return rule(node, arguments_of(node))
    return pointwise(node) if torch.Tag.pointwise in target.tags else None


def arguments_of(node: Node) -> Arguments:
    """The arguments of a call by their names in the schema, defaults included."""
    declared = schema_of(node).arguments
    found: Arguments = {a.name: a.default_value for a in declared if a.has_default_value()}
    found.update(zip((a.name for a in declared), node.args, strict=False))
    found.update(node.kwargs)
    return found


def has_numbers_for_sizes(node: Node) -> bool:
    """Whether all tensors that the node computes have sizes that are numbers."""
    value = node_value(node)
    values = value if isinstance(value, (tuple, list)) else (value,)
    tensors = [item for item in values if isinstance(item, torch.Tensor)]
    return all(isinstance(size, int) for tensor in tensors for size in tensor.shape)


def shape_of(node: object) -> Shape:
    """The sizes of the tensor that a node computes; () for anything else."""
    value = tensor_value(node) if isinstance(node, Node) else None
    return () if value is None else tuple(value.shape)


def result_shapes(node: Node) -> tuple[Shape, ...]:
    """The sizes of each result; () for one that is no tensor."""
    value = node_value(node)
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(tuple(v.shape) if isinstance(v, torch.Tensor) else () for v in values)


def tensor_operands(node: Node) -> tuple[Node, ...]:
    """The tensors among the arguments, in order, as often as they occur."""
    found: list[Node] = []

    def collect(value: object) -> None:
        if isinstance(value, Node):
            found.extend([value] if tensor_value(value) is not None else [])
        elif isinstance(value, (list, tuple)):
            for item in value:
                collect(item)

    collect([*node.args, *node.kwargs.values()])
    return tuple(found)


def aligned(shape: Shape, rank: int) -> Labelled:
    """A tensor that broadcasts to `rank` dimensions, which are labelled by their position."""
    return Labelled(tuple(range(rank - len(shape), rank)), shape)


def pointwise(node: Node) -> Relation | None:
    """Each element of the one result is a function of the elements in its place."""
    operands, result = tensor_operands(node), shape_of(node)
    shapes = [shape_of(operand) for operand in operands]
    if tensor_value(node) is None or not all(_broadcasts(shape, result) for shape in shapes):
        return None
    rank = len(result)
    inputs = tuple(aligned(shape, rank) for shape in shapes)
    return Relation(operands, inputs, (aligned(shape_of(node), rank),))


def _broadcasts(shape: Shape, result: Shape) -> bool:
    pairs = zip(reversed(shape), reversed(result), strict=False)
    return len(shape) <= len(result) and all(size in (1, whole) for size, whole in pairs)


def numbered(shape: Shape, mixed: Sequence[int] = ()) -> Labelled:
    """A tensor whose dimensions are labelled by their position, but for those that are mixed."""
    return Labelled(tuple(None if d in mixed else d for d in range(len(shape))), shape)


def moved(node: Node, labels: Sequence[Label | None], mixed: Sequence[int] = ()) -> Relation:
    """An operator on its first argument, the dimensions of which end up as `labels`."""
    source = node.args[0]
    assert isinstance(source, Node)
    results = tuple(Labelled(tuple(labels), shape) for shape in result_shapes(node))
    return Relation((source,), (numbered(shape_of(source), mixed),), results)


def rank_of(node: Node) -> int:
    """The number of dimensions of the first argument."""
    return len(shape_of(node.args[0]))


@RELATIONS.rule(
    *(aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default),
    *(aten._to_copy.default, prims.convert_element_type.default, aten.lift_fresh_copy.default),
    *(aten.full_like, aten.zeros_like, aten.ones_like),
)
def same_place(node: Node, arguments: Arguments) -> Relation:
    """Every element stays where it is."""
    del arguments
    return moved(node, range(rank_of(node)))


@RELATIONS.rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default)
def reshaped(node: Node, arguments: Arguments) -> Relation:
    """The same elements in row-major order."""
    source = arguments["self"]
    return Relation((source,), (Flat(shape_of(source)),), (Flat(shape_of(node)),))


@RELATIONS.rule(aten.permute.default)
def permuted(node: Node, arguments: Arguments) -> Relation:
    """Dimension d of the result is dimension ``dims[d]`` of the argument."""
    rank = rank_of(node)
    return moved(node, [d % rank for d in arguments["dims"]])


@RELATIONS.rule(aten.transpose.int)
def transposed(node: Node, arguments: Arguments) -> Relation:
    """Two dimensions change places."""
    labels = list(range(rank_of(node)))
    if labels:
        first, second = arguments["dim0"], arguments["dim1"]
        labels[first], labels[second] = labels[second], labels[first]
    return moved(node, labels)


@RELATIONS.rule(aten.t.default)
def matrix_transposed(node: Node, arguments: Arguments) -> Relation:
    """The dimensions in reverse; there are two at the most."""
    del arguments
    return moved(node, range(rank_of(node))[::-1])


@RELATIONS.rule(aten.unsqueeze.default)
def unsqueezed(node: Node, arguments: Arguments) -> Relation:
    """A new dimension of size 1."""
    labels: list[Label | None] = list(range(rank_of(node)))
    labels.insert(arguments["dim"] % (len(labels) + 1), None)
    return moved(node, labels)


@RELATIONS.rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeezed(node: Node, arguments: Arguments) -> Relation:
    """Dimensions of size 1 go.

    One that is named and larger stays here, but a tile of size 1 would lose it, so it is mixed.
    """
    shape = shape_of(node.args[0])
    dim = arguments.get("dim")
    if dim is None:
        named = range(len(shape))
    else:
        named = [d % len(shape) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
    mixed = [d for d in named if shape and shape[d] != 1]
    labels = [None if d in mixed else d for d in range(len(shape))]
    kept = [d for d in range(len(shape)) if d not in named or shape[d] != 1]
    return moved(node, [labels[d] for d in kept], mixed)


@RELATIONS.rule(aten.expand.default)
def expanded(node: Node, arguments: Arguments) -> Relation:
    """Dimensions of size 1 repeat."""
    source, rank = arguments["self"], len(shape_of(node))
    inputs = (aligned(shape_of(source), rank),)
    return Relation((source,), inputs, (aligned(shape_of(node), rank),))


@RELATIONS.rule(aten.repeat.default)
def repeated(node: Node, arguments: Arguments) -> Relation:
    """Every dimension repeats as a whole."""
    source, copies = arguments["self"], tuple(arguments["repeats"])
    rank, shape = len(copies), shape_of(node)
    result = Labelled(tuple(range(rank)), shape, copies)
    return Relation((source,), (aligned(shape_of(source), rank),), (result,))


@RELATIONS.rule(aten.select.int)
def selected(node: Node, arguments: Arguments) -> Relation:
    """One index of a dimension, which goes."""
    return _without(node, arguments["dim"])


def _without(node: Node, dim: int) -> Relation:
    rank = rank_of(node)
    return moved(node, [d for d in range(rank) if d != dim % rank])


@RELATIONS.rule(aten.unbind.int)
def unbound(node: Node, arguments: Arguments) -> Relation:
    """Every index of a dimension, which goes."""
    return _without(node, arguments["dim"])


@RELATIONS.rule(aten.slice.Tensor)
def sliced(node: Node, arguments: Arguments) -> Relation:
    """Some indices of a dimension; all of them is the dimension itself.

    The end of all is the size or beyond, which a tile's own size cuts down.
    """
    shape = shape_of(node.args[0])
    dim = arguments["dim"] % len(shape)
    whole = arguments.get("start") in (None, 0) and arguments["step"] == 1
    mixed = () if whole and shape_of(node) == shape else (dim,)
    return moved(node, [None if d in mixed else d for d in range(len(shape))], mixed)


@RELATIONS.rule(
    *(aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default),
)
def split(node: Node, arguments: Arguments) -> Relation:
    """Ranges of a dimension."""
    rank = rank_of(node)
    dim = arguments["dim"] % rank
    return moved(node, [None if d == dim else d for d in range(rank)], (dim,))


@RELATIONS.rule(aten.flip.default)
def flipped(node: Node, arguments: Arguments) -> Relation:
    """Some dimensions in reverse."""
    rank = rank_of(node)
    mixed = [d % rank for d in arguments["dims"]]
    return moved(node, [None if d in mixed else d for d in range(rank)], mixed)


@RELATIONS.rule(aten.constant_pad_nd.default)
def padded(node: Node, arguments: Arguments) -> Relation:
    """The last dimensions with more or fewer indices at their ends."""
    rank = rank_of(node)
    mixed = range(rank - len(arguments["pad"]) // 2, rank)
    return moved(node, [None if d in mixed else d for d in range(rank)], mixed)


@RELATIONS.rule(aten.stack.default)
def stacked(node: Node, arguments: Arguments) -> Relation:
    """Tensors of one shape, side by side along a new dimension."""
    operands = tuple(arguments["tensors"])
    rank = len(shape_of(node)) - 1
    labels: list[Label | None] = list(range(rank))
    labels.insert(arguments["dim"] % (rank + 1), None)
    inputs = tuple(numbered(shape_of(operand)) for operand in operands)
    return Relation(operands, inputs, (Labelled(tuple(labels), shape_of(node)),))


@RELATIONS.rule(aten.cat.default)
def concatenated(node: Node, arguments: Arguments) -> Relation | None:
    """Tensors one after another along a dimension; those of one size are copies of its label."""
    operands, shape = tuple(arguments["tensors"]), shape_of(node)
    shapes = [shape_of(operand) for operand in operands]
    if any(len(s) != len(shape) for s in shapes):
        return None
    dim = arguments["dim"] % len(shape)
    mixed = () if len(set(shapes)) == 1 else (dim,)
    copies = tuple(len(operands) if d == dim else 1 for d in range(len(shape)))
    result = Labelled(numbered(shape, mixed).labels, shape, copies)
    return Relation(operands, tuple(numbered(s, mixed) for s in shapes), (result,))


@RELATIONS.rule(aten.select_backward.default, aten.slice_backward.default)
def scattered(node: Node, arguments: Arguments) -> Relation:
    """Zeros, with the argument at some indices of a dimension."""
    source, shape = arguments["grad_output"], shape_of(node)
    dim = arguments["dim"] % len(shape)
    labels: list[Label | None] = [None if d == dim else d for d in range(len(shape))]
    result = Labelled(tuple(labels), shape)
    if node.target is aten.select_backward.default:
        labels.pop(dim)
    return Relation((source,), (Labelled(tuple(labels), shape_of(source)),), (result,))


@RELATIONS.rule(snn.pack_bits.default)
def packed(node: Node, arguments: Arguments) -> Relation | None:
    """See `_bytes_beside_elements`."""
    inputs = _bytes_beside_elements(shape_of(arguments["x"]), shape_of(node), arguments)
    return None if inputs is None else Relation((arguments["x"],), inputs[:1], inputs[1:])


@RELATIONS.rule(snn.unpack_bits.default)
def unpacked(node: Node, arguments: Arguments) -> Relation | None:
    """See `_bytes_beside_elements`."""
    source = arguments["packed"]
    ports = _bytes_beside_elements(shape_of(node), shape_of(source), arguments)
    return None if ports is None else Relation((source,), ports[1:], ports[:1])


def _bytes_beside_elements(
    elements: Shape, stored: Shape, arguments: Arguments
) -> tuple[Port, Port] | None:
    """Ports of a tensor and of its bytes.

    Packed along time, steps of the first dimension share bytes and nothing else does. Packed flat,
    slices of whole bytes follow one another in the order of the elements.
    """
    if arguments["layout"] == "time":
        return numbered(elements, (0,)), numbered(stored, (0,))
    per_byte = 8 // int(arguments["bits"])
    if math.prod(elements) % per_byte:
        return None
    return Flat(elements), Flat(stored, per_byte)
