"""The terms of the results of one call, given those of the tensors that it reads."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from snnfx.passes.analysis.axes_rules import (
    FILLS,
    MOVES,
    Arguments,
    arguments_of,
    tensor_operands,
)
from snnfx.passes.analysis.opkinds import is_known, packet
from snnfx.passes.analysis.placement import Shape
from snnfx.passes.analysis.step_terms import Term, Terms
from snnfx.passes.fxgraph import node_value, schema_of, tensor_value
from snnfx.passes.optable import OpTable

aten, prims = torch.ops.aten, torch.ops.prims

Results = tuple[Term, ...]


@dataclass(frozen=True)
class Call:
    """A call of an operator, on whole tensors or on one slice of each.

    Attributes:
        node: says which operator, and what kinds of tensors it reads and computes.
        args: those of the node, with the sizes of the slices.
        kwargs: the same for keyword arguments.
        operands: terms of the tensors among the arguments.
        shapes: sizes of the results.
    """

    node: Node
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    operands: Mapping[Node, Term]
    shapes: tuple[Shape, ...]

    @property
    def first(self) -> Term:
        """The term of the first argument."""
        source = self.node.args[0]
        assert isinstance(source, Node)
        return self.operands[source]


CallRule = Callable[[Terms, Call, Arguments], Results]

NORMAL_FORMS: OpTable[CallRule] = OpTable("normal forms")
"""Operators that move elements, brought into the forms that `Terms` has for them."""


def is_traceable(node: Node) -> bool:
    """Whether the results are a function of the numbers in the arguments, and of nothing else.

    Left out: writing, unknown and random operators, memory that is not initialised, and results
    that depend on how a tensor lies in memory.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not is_known(node):
        return False
    name = target.overloadpacket.__name__
    return not (_UNTRACEABLE & set(target.tags) or any(part in name for part in _LAYOUT_NAMES))


_UNTRACEABLE = frozenset(
    {
        torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output,
        torch.Tag.dynamic_output_shape,
    }
)  # fmt: skip
_LAYOUT_NAMES = ("empty", "as_strided", "_reshape_alias", "set_", "resize")


def filled_results(terms: Terms, node: Node) -> Results | None:
    """The result of an operator that fills a tensor with a number; None if it is none.

    Of the tensor in whose likeness it fills it reads only sizes.
    """
    value = tensor_value(node)
    if packet(node) not in FILLS or value is None:
        return None
    arguments = arguments_of(node)
    fallback = 1 if "ones" in str(packet(node)) else 0
    number = arguments.get("fill_value", arguments.get("s", fallback))
    if isinstance(number, Node):
        return None
    return (terms.filled(_number(number, value), tuple(value.shape)),)


def _number(number: Any, value: Tensor) -> Hashable:
    """A number as the elements of a tensor hold it."""
    item: Any = torch.tensor(number, dtype=value.dtype).item()
    return (repr(item), value.dtype, value.device)


def results_of(terms: Terms, call: Call) -> Results:
    """The terms of the results of a call that is traceable."""
    node, target = call.node, call.node.target
    rule = NORMAL_FORMS.find(target)
    if rule is not None:
        arguments = arguments_of(node)
        given = dict(zip((a.name for a in schema_of(node).arguments), call.args, strict=False))
        return rule(terms, call, {**arguments, **given, **call.kwargs})
    operands = [call.operands[operand] for operand in dict.fromkeys(tensor_operands(node))]
    name, single = call_name(call), tensor_value(node) is not None
    number = _number_of_result(terms, node, name, operands) if single else None
    if number is not None:
        return (terms.filled(number, call.shapes[0]),)
    if single:
        return (terms.call(name, operands, call.shapes[0]),)
    whole = terms.call(name, operands, ())
    return tuple(terms.call(("item", i), (whole,), s) for i, s in enumerate(call.shapes))


def _number_of_result(
    terms: Terms, node: Node, name: Hashable, operands: Sequence[Term]
) -> Hashable | None:
    """The number that fills the result, where numbers fill all operands; None if none has to."""
    numbers = tuple(terms.number(operand) for operand in operands)
    if not numbers or None in numbers:
        return None
    target = node.target
    if target in MOVES:
        return numbers[0]
    pointwise = isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags
    return (name, numbers) if pointwise else None


def call_name(call: Call) -> Hashable:
    """Everything that a call reads besides its tensors, which count by their positions."""
    positions = {operand: i for i, operand in enumerate(dict.fromkeys(tensor_operands(call.node)))}
    named = tuple((k, _frozen(v, positions)) for k, v in sorted(call.kwargs.items()))
    return (call.node.target, _frozen(call.args, positions), named, _kinds(call.node))


def _kinds(node: Node) -> Hashable:
    value = node_value(node)
    values = value if isinstance(value, (tuple, list)) else (value,)
    return tuple((v.dtype, v.device) if isinstance(v, Tensor) else None for v in values)


def _frozen(value: object, positions: Mapping[Node, int]) -> Hashable:
    """An argument as a key; as text, since 1, 1.0 and True are equal, and nan is not."""
    if isinstance(value, Node):
        return ("operand", positions[value])
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item, positions) for item in value)
    return (type(value).__name__, repr(value))


@NORMAL_FORMS.rule(
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default),
    *(aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
)
def viewed(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """The same elements in the same row-major order."""
    del arguments
    return (terms.view(call.first, call.shapes[0]),)


@NORMAL_FORMS.rule(
    *(aten.clone.default, aten.alias.default, aten.contiguous.default),
    *(aten.lift_fresh.default, aten.lift_fresh_copy.default),
)
def copied(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """The same tensor, somewhere else in memory at the most."""
    del terms, arguments
    return (call.first,)


@NORMAL_FORMS.rule(aten._to_copy.default, prims.convert_element_type.default)
def converted(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """A tensor of another dtype or on another device."""
    del arguments
    before, after = tensor_value(call.node.all_input_nodes[0]), tensor_value(call.node)
    assert before is not None
    assert after is not None
    if (before.dtype, before.device) == (after.dtype, after.device):
        return (call.first,)
    name = ("convert", before.dtype, after.dtype, after.device)
    number = terms.number(call.first)
    if number is not None:
        return (terms.filled((name, number), call.shapes[0]),)
    return (terms.call(name, (call.first,), call.shapes[0]),)


@NORMAL_FORMS.rule(aten.expand.default)
def expanded(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """Dimensions of size 1 repeat."""
    del arguments
    return (terms.expand(call.first, call.shapes[0]),)


@NORMAL_FORMS.rule(aten.repeat.default)
def repeated(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """Every dimension repeats as a whole; as expanded, where only those of size 1 do."""
    old, copies = terms.shape(call.first), tuple(arguments["repeats"])
    sizes = (*[1] * (len(copies) - len(old)), *old)
    if all(count == 1 or size == 1 for count, size in zip(copies, sizes, strict=True)):
        return (terms.expand(call.first, call.shapes[0]),)
    number = terms.number(call.first)
    if number is not None:
        return (terms.filled(number, call.shapes[0]),)
    return (terms.call(("repeat", copies), (call.first,), call.shapes[0]),)


@NORMAL_FORMS.rule(aten.permute.default, aten.transpose.int, aten.t.default)
def permuted(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """The dimensions in another order."""
    rank = len(terms.shape(call.first))
    dims = list(range(rank))
    if call.node.target is aten.permute.default:
        dims = [d % rank for d in arguments["dims"]]
    elif call.node.target is aten.t.default:
        dims.reverse()
    elif rank:
        first, second = arguments["dim0"], arguments["dim1"]
        dims[first], dims[second] = dims[second], dims[first]
    return (terms.permute(call.first, dims),)


@NORMAL_FORMS.rule(aten.select.int)
def picked(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """One index of a dimension."""
    shape = terms.shape(call.first)
    dim = arguments["dim"] % len(shape)
    return (terms.pick(call.first, dim, arguments["index"] % shape[dim]),)


@NORMAL_FORMS.rule(aten.unbind.int)
def unbound(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """Every index of a dimension."""
    shape = terms.shape(call.first)
    dim = arguments["dim"] % len(shape)
    return tuple(terms.pick(call.first, dim, index) for index in range(shape[dim]))


@NORMAL_FORMS.rule(
    *(aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default),
)
def cut(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """Some indices of a dimension."""
    shape = terms.shape(call.first)
    dim = arguments["dim"] % len(shape)
    kept = kept_indices(call.node, arguments, shape[dim], [s[dim] for s in call.shapes])
    return tuple(terms.cut(call.first, dim, indices) for indices in kept)


def kept_indices(
    node: Node, arguments: Arguments, length: int, lengths: Sequence[int]
) -> tuple[range, ...]:
    """The indices of a dimension that each result of a slice or a split holds.

    Args:
        node: the call.
        arguments: of it.
        length: of the dimension.
        lengths: of the dimension in the results.
    """
    if node.target is aten.slice.Tensor:
        ends = slice(arguments.get("start"), arguments.get("end"), arguments["step"])
        return (range(length)[ends],)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return tuple(range(start, start + n) for start, n in zip(starts, lengths, strict=True))


@NORMAL_FORMS.rule(aten.stack.default)
def stacked(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """Side by side along a new dimension: joined, once each has that dimension."""
    shape = call.shapes[0]
    dim = arguments["dim"] % len(shape)
    single = (*shape[:dim], 1, *shape[dim + 1 :])
    pieces = [terms.view(call.operands[piece], single) for piece in arguments["tensors"]]
    if not joins_one_kind(call.node):
        return (terms.call(("cat", dim, _kinds(call.node)), pieces, shape),)
    return (terms.join(pieces, dim),)


@NORMAL_FORMS.rule(aten.cat.default)
def concatenated(terms: Terms, call: Call, arguments: Arguments) -> Results:
    """One after another along a dimension; those without elements add nothing."""
    shape = call.shapes[0]
    dim = arguments["dim"] % len(shape) if shape else 0
    pieces = [call.operands[piece] for piece in arguments["tensors"]]
    kept = [piece for piece in pieces if 0 not in terms.shape(piece)]
    if not kept or not joins_one_kind(call.node):
        return (terms.call(("cat", dim, _kinds(call.node)), pieces, shape),)
    return (terms.join(kept, dim),)


def joins_one_kind(node: Node) -> bool:
    """Whether all the tensors that are put together have the dtype of the result."""
    result, values = tensor_value(node), [tensor_value(n) for n in tensor_operands(node)]
    return result is not None and all(v is not None and v.dtype == result.dtype for v in values)
