"""Channels-last activations for convolutions and pooling on the CPU.

oneDNN works on channels-last tensors; given row-major ones it copies the input and the output of
each convolution, in memory that nobody sees and in time. So what such operators read is converted,
by a `clone` that a fused region takes in for nothing, and the new strides are followed through the
graph. Results of the graph keep the strides that they had; packed tensors, which only `unpack_bits`
reads, take those of their source.

For the compiled lowering only: other strides mean other orders of summation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

import snnfx.kernels.ops  # pyright: ignore[reportUnusedImport]  # registers
import snnfx.kernels.pool  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers
from snnfx.passes.analysis.opkinds import is_elementwise, packet
from snnfx.passes.analysis.packs import memory_format_of
from snnfx.passes.fxgraph import (
    node_value,
    numel,
    output_args,
    set_value,
    stride_order,
    tensor_value,
)
from snnfx.passes.rewrite.builder import Known, call_key

aten = torch.ops.aten
PACK, UNPACK = torch.ops.snnfx.pack_bits.default, torch.ops.snnfx.unpack_bits.default
POOL_PACKED = torch.ops.snnfx.pool_packed.default
CHANNELS_LAST = torch.channels_last
READS_CHANNELS_LAST: dict[Any, tuple[int, ...]] = {
    aten.convolution.default: (0,),
    aten.convolution_backward.default: (0, 1),
    aten.avg_pool2d.default: (0,),
    aten.avg_pool2d_backward.default: (0, 1),
    aten.max_pool2d_with_indices.default: (0,),
    aten.max_pool2d_with_indices_backward.default: (0, 1),
    torch.ops.snnfx.avg_pool2d_backward.default: (0,),
    torch.ops.snnfx.max_pool2d.default: (0,),
    torch.ops.snnfx.max_pool2d_offsets.default: (0,),
    torch.ops.snnfx.max_pool2d_backward.default: (0,),
}
"""Operators that are at their best on channels-last inputs, and which arguments those are."""

WEIGHTS: dict[Any, int] = {
    aten.convolution.default: 1,
    aten.convolution_backward.default: 2,
}
"""Which argument is the weight."""

DTYPES = (torch.float32, torch.float64)
REDUCTIONS = frozenset({aten.sum, aten.mean, torch.ops.snnfx.batch_norm_statistics})
"""Operators that read elements in any layout."""

ACTIVATION_RATIO = 2
"""A convolution is converted if its activations hold this many times the elements of its weight."""


@dataclass(frozen=True)
class LayoutResult:
    """How many conversions were inserted."""

    changed: int


def prefer_channels_last(graph: Graph) -> LayoutResult:
    """Convert what convolutions and pooling read, and propagate the new strides.

    Left alone: graphs without a convolution of float images, with symbolic sizes, or with
    operators that fix strides by themselves.
    """
    if not _is_supported(graph):
        return LayoutResult(0)
    changed = 0
    known: Known = {}
    before = {n: value for n in graph.nodes if (value := tensor_value(n)) is not None}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        wanted = CHANNELS_LAST if _is_activation_bound(node) else torch.contiguous_format
        for position in READS_CHANNELS_LAST.get(node.target, ()):
            changed += _convert(graph, node, position, wanted)
        if not _takes_any_layout(node):
            _keep_layout(graph, node, before)
        _propagate(graph, node, known)
    for result in output_args(graph):
        if isinstance(result, Node) and result.target is not PACK:
            _restore(graph, result, before.get(result))
    graph.lint()
    return LayoutResult(changed)


def _is_supported(graph: Graph) -> bool:
    has_convolution = False
    for node in graph.nodes:
        value = tensor_value(node)
        if node.target is aten.as_strided.default:
            return False
        if value is not None and not all(isinstance(size, int) for size in value.shape):
            return False
        if node.target is aten.convolution.default:
            has_convolution |= value is not None and _is_image(value)
        elif node.target is aten.convolution_backward.default:
            operand = tensor_value(node.all_input_nodes[0])
            has_convolution |= operand is not None and _is_image(operand)
    return has_convolution


def _is_image(value: Tensor) -> bool:
    return value.dim() == 4 and value.dtype in DTYPES and value.device.type == "cpu"


def _is_activation_bound(node: Node) -> bool:
    """Not a convolution of large weights on small images: oneDNN would reorder the weights."""
    if node.target not in WEIGHTS:
        return True
    weight = WEIGHTS[node.target]
    sizes = [numel(v) for n in node.args[: weight + 1] if (v := _value(n)) is not None]
    return sum(sizes[:-1]) >= ACTIVATION_RATIO * sizes[-1]


def _value(arg: object) -> Tensor | None:
    return tensor_value(arg) if isinstance(arg, Node) else None


def _convert(graph: Graph, node: Node, position: int, wanted: torch.memory_format) -> int:
    value = _value(node.args[position])
    if value is None or not _is_image(value) or value.is_contiguous(memory_format=wanted):
        return 0
    _insert_copy(graph, node, position, wanted)
    return 1


def _insert_copy(graph: Graph, node: Node, position: int, wanted: torch.memory_format) -> None:
    """Give the node a copy of one of its arguments in another memory format."""
    with graph.inserting_before(node):
        copy = graph.call_function(
            aten.clone.default, (node.args[position],), {"memory_format": wanted}
        )
    set_value(copy, _compute(copy))
    node.update_arg(position, copy)


def _recall(node: Node, known: Known) -> Any:
    """What the node computes; of calls that are alike but for their tensors, one is computed."""
    key = call_key(node)
    if key not in known:
        known[key] = _compute(node)
    return known[key]


def _compute(node: Node) -> Any:
    assert callable(node.target)
    args = map_arg(node.args, node_value)
    kwargs = map_arg(node.kwargs, node_value)
    mode = _fake_mode(node)
    with mode:
        return node.target(*args, **kwargs)


def _fake_mode(node: Node) -> Any:
    for source in (node, *node.all_input_nodes):
        value = tensor_value(source)
        if value is not None:
            return value.fake_mode  # type: ignore[attr-defined]
    return torch.no_grad()


LAID_OUT = frozenset({aten.stack.default, PACK, UNPACK})
"""Operators that regions write in another layout than ATen does."""


def _propagate(graph: Graph, node: Node, known: Known) -> None:
    """Compute again what the node gives, from the new strides of its inputs."""
    if node.target is aten.stack.default:
        value = _stacked(node)
    elif node.target is aten.repeat.default:
        value = _repeated(node)
    elif node.target in (PACK, UNPACK):
        value = _recoded(node)
    else:
        try:
            value = _recall(node, known)
        except (RuntimeError, ValueError):
            # A view that the new strides do not allow: it gets a row-major copy to look at.
            _insert_copy(graph, node, 0, torch.contiguous_format)
            value = _compute(node)
    set_value(node, value)


def _stacked(node: Node) -> Tensor:
    """A stack along dim 0 as a region writes it: each slice with the strides that it has."""
    value = _compute(node)
    parts = node.args[0]
    assert isinstance(parts, (list, tuple))
    first = tensor_value(parts[0]) if isinstance(parts[0], Node) else None
    dim = node.args[1] if len(node.args) > 1 else 0
    if first is None or dim != 0:
        return value
    return with_order(value, (0, *(d + 1 for d in stride_order(first))))


def _repeated(node: Node) -> Tensor:
    """The same slice at every time step, as a region reads it: laid out as the slice is."""
    value, counts = _compute(node), node.args[1]
    source = tensor_value(node.all_input_nodes[0])
    assert isinstance(counts, (list, tuple))
    if source is None or source.dim() != value.dim() or any(c != 1 for c in counts[1:]):
        return value
    return with_order(value, (0, *(d for d in stride_order(source) if d)))


def _recoded(node: Node) -> Tensor:
    """Packed or unpacked along time, as a region writes it: laid out as what it comes from."""
    value = _compute(node)
    source = tensor_value(node.all_input_nodes[0])
    if source is None or source.dim() != value.dim():
        return value
    order = stride_order(source)
    return with_order(value, order) if order[0] == 0 else value


def with_order(value: Tensor, order: tuple[int, ...]) -> Tensor:
    """A fake tensor like `value`, its dimensions laid out in this order."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    with value.fake_mode:  # type: ignore[attr-defined]
        return value.new_empty([value.shape[d] for d in order]).permute(inverse)


def _takes_any_layout(node: Node) -> bool:
    """Whether strides change nothing but speed and rounding.

    Not so for random numbers, which fill memory in its order, nor for kernels that take their
    inputs to be row-major, as the one of group norm does.
    """
    known = node.target in READS_CHANNELS_LAST or packet(node) in REDUCTIONS
    return known or is_elementwise(node) or node.target in (PACK, UNPACK, POOL_PACKED)


def _keep_layout(graph: Graph, node: Node, before: dict[Node, Tensor]) -> None:
    """Give the node inputs with the strides of the plain model."""
    for position, source in enumerate(node.args):
        old, value = before.get(source), _value(source)  # type: ignore[arg-type]
        if old is None or value is None or old.stride() == value.stride():
            continue
        wanted = memory_format_of(old)
        if wanted is not None:
            _insert_copy(graph, node, position, wanted)


def _restore(graph: Graph, node: Node, old: Tensor | None) -> None:
    """Return a row-major copy where the result used to be row-major."""
    value = tensor_value(node)
    if value is None or old is None or value.stride() == old.stride() or value.numel() <= 1:
        return
    # Right behind the original, so that gradients of weights are not alive twice to the end.
    with graph.inserting_after(node):
        copy = graph.call_function(
            aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
        )
    copy.meta = dict(node.meta)
    set_value(copy, _compute(copy))
    graph.output_node().replace_input_with(node, copy)
    # Halves of a step know what passes between them by its name.
    node.name, copy.name = copy.name, node.name
