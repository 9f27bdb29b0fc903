"""Pooling in operators that regions take in, see `snnfx.kernels.pool`.

On a joint graph, ATen's backward of average pooling loses the tensor that was pooled, and the pair
of max pooling its indices. Once it is decided what is packed, pooling of values that a packed
tensor holds reads the bytes: in the backward instead of unpacking them at full resolution, in the
forward so that nobody need write the values.

For the compiled lowering on the CPU only. Left as they are: windows with dilation, ragged or of
uneven divisors; other dtypes than float32 and float64; symbolic sizes; indices that the user sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

import snnfx.kernels.pool  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers
from snnfx.kernels.pool import MAX_OFFSETS
from snnfx.passes.analysis.opkinds import packet
from snnfx.passes.analysis.packs import Pack
from snnfx.passes.fxgraph import has_static_shape, is_getitem, is_view, schema_of, tensor_value
from snnfx.passes.rewrite.builder import GraphBuilder

aten = torch.ops.aten
snn = torch.ops.snnfx
MAX_POOL = aten.max_pool2d_with_indices.default
MAX_POOL_BACKWARD = aten.max_pool2d_with_indices_backward.default
AVG_POOL_BACKWARD = aten.avg_pool2d_backward.default
POOL_PACKED = snn.pool_packed.default
KINDS: dict[Any, str] = {
    aten.avg_pool2d.default: "average",
    snn.max_pool2d.default: "maximum",
    snn.max_pool2d_offsets.default: "offsets",
}
"""What `pool_packed` calls the operators that it stands for."""

DTYPES = (torch.float32, torch.float64)
COPIES = frozenset({aten.clone, aten.alias, aten.detach})

Window = tuple[list[int], list[int], list[int]]
"""Kernel, stride and padding, each (height, width)."""


@dataclass(frozen=True)
class PoolingResult:
    """How many pooling operators were replaced, and the names of those that stay and why."""

    changed: int
    declined: tuple[tuple[str, str], ...] = ()


class _Declined(Exception):  # noqa: N818 - control flow, never shown
    """Why a pooling stays as it is."""


def replace_pooling(graph: Graph) -> PoolingResult:
    """Replace ATen's pooling in a joint graph by operators that fuse into regions."""
    rules = {MAX_POOL: _replace_max_pool, AVG_POOL_BACKWARD: _replace_avg_backward}
    changed, declined = 0, list[tuple[str, str]]()
    for node in list(graph.nodes):
        if node.target in rules:
            try:
                rules[node.target](graph, node)
                changed += 1
            except _Declined as reason:
                declined.append((node.name, str(reason)))
    return PoolingResult(changed, tuple(declined))


def _replace_avg_backward(graph: Graph, node: Node) -> None:
    grad, x = node.args[:2]
    assert isinstance(x, Node)
    window = _average_window(node)
    value = _image(x)
    build = GraphBuilder(graph, node)
    with graph.inserting_before(node):
        new = build.call(snn.avg_pool2d_backward.default, grad, list(value.shape), *window)
    _replace(graph, node, new)


def _replace_max_pool(graph: Graph, node: Node) -> None:
    x = node.args[0]
    assert isinstance(x, Node)
    value, window = _image(x), _maximum_window(node)
    values, backwards = _users(node, window)
    build = GraphBuilder(graph, x)
    with graph.inserting_before(node):
        new = build.call(snn.max_pool2d.default, x, *window)
        _require_strides(graph, values[0] if values else None, new)
        offsets = build.call(snn.max_pool2d_offsets.default, x, *window) if backwards else None
    for old in values:
        old.replace_all_uses_with(new)
    for old in backwards:
        with graph.inserting_before(old):
            args = (old.args[0], offsets, list(value.shape), *window)
            gradient = build.call(snn.max_pool2d_backward.default, *args)
        gradient.meta = {**old.meta, **gradient.meta}
        old.replace_all_uses_with(gradient)
        graph.erase_node(old)
    for user in list(node.users):
        graph.erase_node(user)
    graph.erase_node(node)
    if not new.users:
        graph.erase_node(new)


def _users(node: Node, window: Window) -> tuple[list[Node], list[Node]]:
    """The getitems of the values, and the backwards that read the indices."""
    values, backwards = list[Node](), list[Node]()
    for user in node.users:
        if not is_getitem(user):
            raise _Declined("its results are used as a whole")
        if user.args[1] == 0:
            values.append(user)
            continue
        for reader in user.users:
            is_pair = reader.target is MAX_POOL_BACKWARD and reader.args[7] is user
            if not is_pair or _maximum_window(reader) != window:
                raise _Declined(f"'{reader.name}' reads its indices")
            _require_same_strides(reader, reader.args[0])
            backwards.append(reader)
    return values, backwards


def _require_same_strides(node: Node, grad: Any) -> None:
    """The gradient is laid out as `grad` is; so it must be in the plain model."""
    value, other = tensor_value(node), tensor_value(grad)
    formats = [
        v is not None and v.is_contiguous(memory_format=f)
        for v in (value, other)
        for f in (torch.contiguous_format, torch.channels_last)
    ]
    if formats[:2] != formats[2:]:
        raise _Declined("its gradient has another layout than what it comes from")


def _require_strides(graph: Graph, old: Node | None, new: Node) -> None:
    value, made = tensor_value(old) if old is not None else None, tensor_value(new)
    if value is not None and made is not None and value.stride() != made.stride():
        source = new.args[0]
        graph.erase_node(new)
        _erase_dead(graph, source)  # type: ignore[arg-type]
        raise _Declined("it gives a layout of its own")


def _replace(graph: Graph, node: Node, new: Node) -> None:
    _require_strides(graph, node, new)
    new.meta = {**node.meta, **new.meta}
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _image(node: Node) -> torch.Tensor:
    value = tensor_value(node)
    if value is None or value.dim() != 4 or value.dtype not in DTYPES or not has_static_shape(node):
        raise _Declined("it does not pool images of float32 or float64 of known sizes")
    return value


def _named(node: Node) -> dict[str, Any]:
    schema = schema_of(node)
    named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    named |= zip((a.name for a in schema.arguments), node.args, strict=False)
    return named | dict(node.kwargs)


def _window(given: dict[str, Any]) -> Window:
    names = ("kernel_size", "stride", "padding")
    kernel, stride, padding = (_pair(given[name]) for name in names)
    if kernel is None or padding is None or (given["stride"] and stride is None):
        raise _Declined("its windows are not known numbers")
    if given["ceil_mode"]:
        raise _Declined("its last windows may be ragged")
    return kernel, stride or kernel, padding


def _pair(sizes: Any) -> list[int] | None:
    sizes = [sizes] if isinstance(sizes, int) else sizes
    if not isinstance(sizes, (list, tuple)) or not all(isinstance(n, int) for n in sizes):
        return None
    return [sizes[0], sizes[-1]] if sizes else None


def _average_window(node: Node) -> Window:
    given = _named(node)
    window = _window(given)
    is_even = given["count_include_pad"] or window[2] == [0, 0]
    if given["divisor_override"] is not None or not is_even:
        raise _Declined("it divides by other numbers than the window's size")
    return window


def _maximum_window(node: Node) -> Window:
    given = _named(node)
    window = _window(given)
    if _pair(given["dilation"]) != [1, 1]:
        raise _Declined("its windows have holes")
    if math.prod(window[0]) > MAX_OFFSETS:
        raise _Declined(f"its windows have more than {MAX_OFFSETS} elements")
    return window


@dataclass(frozen=True)
class _Coding:
    """Images that a packed tensor holds.

    Attributes:
        stack: the images themselves, ``[T, N, C, H, W]``.
        node: what packs or unpacks them.
        order: the dims of the packed tensor that are T, N, C, H, W.
    """

    stack: Node
    node: Node
    order: tuple[int, ...] = (0, 1, 2, 3, 4)


def pool_packed_bits(graph: Graph, packs: Iterable[Pack]) -> PoolingResult:
    """Let pooling read packed bytes, in a joint graph whose backward is rematerialised.

    Args:
        graph: changed in place.
        packs: of the forward, whose values are those that the bytes hold, NaN included.
    """
    sources = frozenset(pack.source for pack in packs)
    changed, declined = 0, list[tuple[str, str]]()
    for node in list(graph.nodes):
        coding = _coding(node, sources) if node.target in KINDS else None
        if coding is not None:
            try:
                _read_packed(graph, node, coding)
                changed += 1
            except _Declined as reason:
                declined.append((node.name, str(reason)))
    return PoolingResult(changed, tuple(declined))


def _coding(node: Node, sources: frozenset[Node]) -> _Coding | None:
    """How what is pooled is packed, if it is T time steps of N images, merged."""
    x = node.args[0]
    assert isinstance(x, Node)
    images = tensor_value(x)
    for root in _origins(x):
        value = tensor_value(root)
        if value is None or images is None or value.dtype != images.dtype or value.dim() != 5:
            continue
        if tuple(images.shape) == (value.shape[0] * value.shape[1], *value.shape[2:]):
            found = _packing(root) if root in sources else _unpacking(root)
            if found is not None:
                return found
    return None


def _unpacking(root: Node) -> _Coding | None:
    if root.target is snn.unpack_bits.default:
        return _Coding(root, root)
    source = root.args[0] if root.target is aten.permute.default else None
    if isinstance(source, Node) and source.target is snn.unpack_bits.default:
        return _Coding(root, source, tuple(root.args[1]))  # type: ignore[arg-type]
    return None


def _packing(root: Node) -> _Coding | None:
    for user in root.users:
        if user.target is snn.pack_bits.default:
            return _Coding(root, user)
        for packing in user.users if user.target is aten.permute.default else ():
            if packing.target is snn.pack_bits.default:
                dims: Any = user.args[1]
                return _Coding(root, packing, tuple(sorted(range(5), key=dims.__getitem__)))
    return None


def _origins(node: Node) -> Iterator[Node]:
    """The nodes that hold the same elements in the same order: past views and copies."""
    while True:
        yield node
        regroups = packet(node) in COPIES or (
            is_view(node) and packet(node) in (aten.view, aten._unsafe_view, aten.reshape)
        )
        if not regroups:
            return
        node = node.all_input_nodes[0]


def _read_packed(graph: Graph, node: Node, coding: _Coding) -> None:
    """Replace a pooling by one of packed bytes."""
    x, given = node.args[0], _named(coding.node)
    assert isinstance(x, Node)
    images, stack = _image(x), tensor_value(coding.stack)
    assert stack is not None
    if given["layout"] != "time" or coding.order[0] != 0:
        raise _Declined("what it pools is not packed along time")
    if node.target is aten.avg_pool2d.default:
        window = _average_window(node)
        if given["lo"] and window[2] != [0, 0]:
            raise _Declined("padding is zero, for which there is no code")
    else:
        kernel, stride, padding = node.args[1:]
        window = kernel, stride, padding
    packed = given["packed"] if coding.node.target is snn.unpack_bits.default else coding.node
    build = GraphBuilder(graph, coding.stack)
    with graph.inserting_before(node):
        if coding.order != (0, 1, 2, 3, 4):
            packed = build.call(aten.permute.default, packed, list(coding.order))
        new = build.call(
            POOL_PACKED, packed, list(stack.shape), images.dtype, given["bits"], given["scale"],
            given["lo"], KINDS[node.target], *window,
        )  # fmt: skip
    _replace(graph, node, new)
    _erase_dead(graph, x)


def _erase_dead(graph: Graph, node: Node) -> None:
    """Remove what nobody reads any more of a chain of views and copies, and what it unpacked."""
    while not node.users and node.op == "call_function" and node.all_input_nodes:
        source = node.all_input_nodes[0]
        graph.erase_node(node)
        node = source
