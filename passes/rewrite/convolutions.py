"""Convolutions in the form that needs the least memory at once.

- The two gradients of a convolution are two kernels in one operator, which holds the output's
  gradient, the input and the input's gradient together. Taken apart, the input can die before its
  gradient is made: the weight's gradient comes first, and the input's gradient is a transposed
  convolution, which does not read the input at all (Dumoulin and Visin, "A guide to convolution
  arithmetic for deep learning", 2016; on the CPU oneDNN runs the same kernel for both forms).
- oneDNN reorders the weights in each call, in memory that nobody sees. Where the weights are far
  larger than the images, the convolution is a matrix product over `im2col` rows instead.

For the compiled lowering on the CPU only: sums may be taken in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from snnfx.passes.fxgraph import is_getitem, numel, tensor_value
from snnfx.passes.rewrite.builder import GraphBuilder

aten = torch.ops.aten

ROWS_RATIO = 2
"""A product of rows needs this many times the rows' bytes: `im2col`'s result and its transpose."""


@dataclass(frozen=True)
class ConvolutionsResult:
    """How many convolutions were rewritten."""

    changed: int


@dataclass(frozen=True)
class _Form:
    """The numbers of a convolution; lists have one entry for each spatial dim."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int

    @property
    def is_plain(self) -> bool:
        return not self.transposed and self.groups == 1 and not any(self.output_padding)


def split_convolution_backwards(graph: Graph) -> ConvolutionsResult:
    """Take the gradients of weight and input apart, the weight's first.

    Left alone: transposed convolutions, and symbolic sizes.
    """
    changed = 0
    for node in graph.find_nodes(op="call_function", target=aten.convolution_backward.default):
        masks: Any = node.args[10]
        form = _form(node.args[4:10])
        sizes = [tensor_value(n) for n in node.args[:3] if isinstance(n, Node)]
        if not (masks[0] and masks[1]) or form.transposed or not all(map(_is_static, sizes)):
            continue
        if all(is_getitem(user) for user in node.users):
            _split(graph, node, form)
            changed += 1
    return ConvolutionsResult(changed)


def _form(args: tuple[Any, ...]) -> _Form:
    stride, padding, dilation, transposed, output_padding, groups = args
    return _Form(
        list(stride), list(padding), list(dilation), transposed, list(output_padding), groups
    )


def _is_static(value: Tensor | None) -> bool:
    return value is not None and all(isinstance(size, int) for size in value.shape)


def _split(graph: Graph, node: Node, form: _Form) -> None:
    grad, operand, weight = (node.args[i] for i in range(3))
    assert isinstance(grad, Node)
    assert isinstance(operand, Node)
    assert isinstance(weight, Node)
    masks: Any = node.args[10]
    build = GraphBuilder(graph, grad)
    with graph.inserting_before(node):
        wanted = [False, True, masks[2]]
        both = build.call(node.target, *node.args[:10], wanted)
        nothing, weight_grad, bias_grad = build.items(both, 3)
        extra = _output_padding(tensor_value(operand), tensor_value(grad), weight, form)
        operand_grad = build.call(
            aten.convolution.default, grad, weight, None, form.stride, form.padding,
            form.dilation, True, extra, form.groups,
        )  # fmt: skip
    for user in list(node.users):
        position = user.args[1]
        assert isinstance(position, int)
        user.replace_all_uses_with((operand_grad, weight_grad, bias_grad)[position])
        graph.erase_node(user)
    graph.erase_node(node)
    for result in (nothing, weight_grad, bias_grad, both):
        if not result.users:
            graph.erase_node(result)


def _output_padding(
    operand: Tensor | None, grad: Tensor | None, weight: Node, form: _Form
) -> list[int]:
    """What a transposed convolution adds to each spatial size to give the operand's."""
    kernel = tensor_value(weight)
    assert operand is not None
    assert grad is not None
    assert kernel is not None
    return [
        int(operand.shape[2 + d])
        - ((int(grad.shape[2 + d]) - 1) * form.stride[d] - 2 * form.padding[d]
           + form.dilation[d] * (int(kernel.shape[2 + d]) - 1) + 1)
        for d in range(len(form.stride))
    ]  # fmt: skip


def multiply_weight_bound(graph: Graph) -> ConvolutionsResult:
    """Turn two-dimensional convolutions of large weights on small images into matrix products.

    All three forms: forward, gradient of the weight, gradient of the input (transposed). Left
    alone: groups, symbolic sizes, other devices than the CPU, and where rows are not smaller.
    """
    changed = 0
    for node in list(graph.nodes):
        rule = _PRODUCTS.get(node.target) if node.op == "call_function" else None
        changed += rule is not None and rule(graph, node)
    return ConvolutionsResult(changed)


def _product_of_convolution(graph: Graph, node: Node) -> bool:
    operand, weight = node.args[:2]
    form = _form(node.args[3:9])
    kernel = _kernel(weight)
    biased = node.args[2] is not None
    if kernel is None or form.groups != 1 or (form.transposed and biased):
        return False
    if any(extra >= s for extra, s in zip(form.output_padding, form.stride, strict=True)):
        return False  # `col2im` would count a window that the convolution does not have
    assert isinstance(operand, Node)
    rows, image = (operand, node) if form.transposed else (node, operand)
    if not _is_weight_bound(rows, kernel):
        return False
    build = GraphBuilder(graph, operand)
    with graph.inserting_before(node):
        if form.transposed:
            result = _fold(build, operand, weight, kernel, form, tensor_value(image))
        else:
            result = _multiply(build, operand, node, weight, kernel, form)
            if biased:
                bias = build.as_channels(node.args[2], 4)  # type: ignore[arg-type]
                result = build.call(aten.add.Tensor, result, bias)
    _take_place(graph, node, result)
    return True


def _product_of_gradient(graph: Graph, node: Node) -> bool:
    grad, operand, weight = node.args[:3]
    masks: Any = node.args[10]
    form = _form(node.args[4:10])
    kernel = _kernel(weight)
    if kernel is None or list(masks) != [False, True, False] or not form.is_plain:
        return False
    assert isinstance(grad, Node)
    users = list(node.users)
    if not all(is_getitem(user) for user in users) or not _is_weight_bound(grad, kernel):
        return False
    build = GraphBuilder(graph, grad)
    with graph.inserting_before(node):
        rows = _rows(build, operand, kernel, form)
        value = tensor_value(grad)
        assert value is not None
        turned = build.call(aten.permute.default, grad, [1, 0, 2, 3])
        flat = _reshaped(build, turned, [int(value.shape[1]), -1])
        product = build.call(aten.mm.default, flat, rows)
        result = build.call(aten.view.default, product, list(kernel.shape))
    for user in users:
        _take_place(graph, user, result)
    graph.erase_node(node)
    return True


_PRODUCTS = {
    aten.convolution.default: _product_of_convolution,
    aten.convolution_backward.default: _product_of_gradient,
}


def _kernel(weight: Any) -> Tensor | None:
    """The weight's value, if it is one that products are known for."""
    value = tensor_value(weight) if isinstance(weight, Node) else None
    if value is None or value.dim() != 4 or value.device.type != "cpu" or not _is_static(value):
        return None
    return value if value.is_contiguous() else None


def _is_weight_bound(rows: Node, kernel: Tensor) -> bool:
    """Whether the rows of all output positions are far smaller than the weights."""
    value = tensor_value(rows)
    if value is None or not _is_static(value):
        return False
    count = numel(value) // int(value.shape[1])
    return ROWS_RATIO * count * prod(kernel.shape[1:]) <= numel(kernel)


def _rows(build: GraphBuilder, operand: Any, kernel: Tensor, form: _Form) -> Node:
    """The operand's patches, one row ``[C*kh*kw]`` for each position of the output."""
    columns = build.call(
        aten.im2col.default, operand, list(kernel.shape[2:]), form.dilation, form.padding,
        form.stride,
    )  # fmt: skip
    turned = build.call(aten.permute.default, columns, [0, 2, 1])
    return _reshaped(build, turned, [-1, prod(kernel.shape[1:])])


def _reshaped(build: GraphBuilder, node: Node, shape: list[int]) -> Node:
    """A view of this shape, of a row-major copy if need be."""
    value = tensor_value(node)
    assert value is not None
    if not value.is_contiguous():
        memory_format = {"memory_format": torch.contiguous_format}
        node = build.call(aten.clone.default, node, **memory_format)
    return build.call(aten.view.default, node, shape)


def _flat_weight(build: GraphBuilder, weight: Any, kernel: Tensor) -> Node:
    return build.call(aten.view.default, weight, [kernel.shape[0], prod(kernel.shape[1:])])


def _multiply(
    build: GraphBuilder, operand: Node, node: Node, weight: Any, kernel: Tensor, form: _Form
) -> Node:
    value = tensor_value(node)
    assert value is not None
    rows = _rows(build, operand, kernel, form)
    turned = build.call(aten.permute.default, _flat_weight(build, weight, kernel), [1, 0])
    product = build.call(aten.mm.default, rows, turned)
    images, channels, height, width = value.shape
    shaped = build.call(aten.view.default, product, [images, height, width, channels])
    return build.call(aten.permute.default, shaped, [0, 3, 1, 2])


def _fold(
    build: GraphBuilder, grad: Node, weight: Any, kernel: Tensor, form: _Form, image: Tensor | None
) -> Node:
    assert image is not None
    value = tensor_value(grad)
    assert value is not None
    last = build.call(aten.permute.default, grad, [0, 2, 3, 1])
    flat = _reshaped(build, last, [-1, int(value.shape[1])])
    product = build.call(aten.mm.default, flat, _flat_weight(build, weight, kernel))
    patches = build.call(aten.view.default, product, [value.shape[0], -1, prod(kernel.shape[1:])])
    columns = build.call(aten.permute.default, patches, [0, 2, 1])
    return build.call(
        aten.col2im.default, columns, list(image.shape[2:]), list(kernel.shape[2:]),
        form.dilation, form.padding, form.stride,
    )  # fmt: skip


def _take_place(graph: Graph, node: Node, result: Node) -> None:
    """Put `result` where `node` was, under its name."""
    name = node.name
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    result.name = name
