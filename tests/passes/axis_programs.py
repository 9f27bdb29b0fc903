"""Random programs of ATen ops on real tensors, some of whose inputs hold an axis somewhere.

The tensors stand in the place of fake ones in the metadata, so that the same graph is analysed and
compared with what it computed.
"""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from snnfx.passes.analysis.placement import Placement

aten, prims, snn = torch.ops.aten, torch.ops.prims, torch.ops.snnfx

MOST_ELEMENTS = 3000


class Program:
    """A graph under construction, run as it grows.

    Args:
        source: of all choices.
        size: of the axis.
    """

    def __init__(self, source: random.Random, size: int) -> None:
        self.random, self.size = source, size
        self.graph = Graph()
        self.seeds: dict[Node, Placement] = {}
        self.tensors: list[Node] = []
        self.generator = torch.Generator().manual_seed(source.randrange(2**30))

    def pick(self, *options: Any) -> Any:
        return self.random.choice(options)

    def constant(self, shape: Sequence[int]) -> Node:
        """An input without the axis."""
        node = self.graph.placeholder(f"input_{len(self.graph.nodes)}")
        return self._keep(node, torch.randn(tuple(shape), generator=self.generator).double())

    def data(self, rank: int) -> Node:
        """An input with the axis in one of its dimensions."""
        shape = [self.pick(1, 2, 3, 4) for _ in range(rank)]
        dim = self.random.randrange(rank)
        placement = Placement(dim, self.pick(1, 1, 2, 3), self.pick(1, 1, 2, 3))
        shape[dim] = placement.outer * self.size * placement.inner
        node = self.constant(shape)
        self.seeds[node] = placement
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node | None:
        """Add a call, if its tensors allow it and its result is not too large."""
        values = torch.fx.node.map_arg((args, kwargs), lambda node: node.meta["val"])
        try:
            value = target(*values[0], **values[1])
        except (RuntimeError, IndexError, ValueError):
            return None
        if not all(is_tame(v) for v in (value if isinstance(value, (tuple, list)) else [value])):
            return None
        return self._keep(self.graph.call_function(target, args, kwargs), value)

    def _keep(self, node: Node, value: Any) -> Node:
        node.meta["val"] = value
        if isinstance(value, Tensor) and value.numel():
            self.tensors.append(node)
        return node

    def items(self, node: Node | None) -> list[Node]:
        """The results of a call that has several."""
        results = () if node is None else node.meta["val"]
        found = [
            self.call(operator.getitem, node, i) for i, r in enumerate(results) if r is not None
        ]
        return [item for item in found if item is not None]

    def any_tensor(self) -> Node:
        """One of the tensors so far, a recent one rather than an old one."""
        recent = self.tensors[-6:]
        return self.random.choice(recent if self.random.random() < 0.7 else self.tensors)

    def floats(self) -> Node:
        found = self.any_tensor()
        return found if shape(found) and value(found).is_floating_point() else self.tensors[0]

    def peer(self, node: Node) -> Node:
        """A tensor that broadcasts with `node`: another one of its size, itself, or a constant."""
        same = [n for n in self.tensors if shape(n) == shape(node) and dtype(n) == dtype(node)]
        if self.random.random() < 0.5:
            return self.random.choice(same)
        sizes = [self.pick(size, 1) for size in shape(node)]
        return self.constant(sizes[self.random.randrange(len(sizes) + 1) :])

    def image(self, rank: int, channels: int | None = None) -> Node | None:
        """A float tensor of `rank` dimensions: as it is, or viewed with some of them merged."""
        node = self.floats()
        sizes = list(shape(node))
        while len(sizes) > rank:
            at = self.random.randrange(len(sizes) - 1)
            sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
        while len(sizes) < rank:
            sizes.insert(self.random.randrange(len(sizes) + 1), 1)
        if channels is not None and sizes[1] != channels:
            return None
        return node if sizes == list(shape(node)) else self.call(aten.reshape.default, node, sizes)


def is_tame(result: Tensor | None) -> bool:
    """Whether a result is small and finite; None is what an operator's mask leaves out."""
    return result is None or bool(result.numel() <= MOST_ELEMENTS and result.isfinite().all())


def value(node: Node) -> Tensor:
    return node.meta["val"]


def shape(node: Node) -> tuple[int, ...]:
    return tuple(value(node).shape)


def dtype(node: Node) -> torch.dtype:
    return value(node).dtype


Step = Callable[[Program], None]
STEPS: list[Step] = []


def step(function: Step) -> Step:
    STEPS.append(function)
    return function


def some_dim(p: Program, node: Node) -> int:
    rank = len(shape(node))
    return p.random.randrange(-rank, rank)


def some_dims(p: Program, node: Node) -> list[int]:
    rank = len(shape(node))
    return sorted(p.random.sample(range(rank), p.random.randint(1, rank)))


@step
def unary(p: Program) -> None:
    p.call(p.pick(aten.neg, aten.relu, aten.clone, aten.alias, aten.detach).default, p.floats())


@step
def with_number(p: Program) -> None:
    p.call(p.pick(aten.mul.Tensor, aten.add.Tensor, aten.div.Tensor), p.floats(), 1.5)


@step
def binary(p: Program) -> None:
    node = p.floats()
    both = [node, p.peer(node)]
    p.random.shuffle(both)
    p.call(p.pick(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.maximum.default), *both)


@step
def spikes(p: Program) -> None:
    node = p.floats()
    spike = p.call(aten.ge.Scalar, node, 0.1)
    p.call(aten.where.self, spike, node, p.peer(node))
    cast = p.pick(
        lambda s: p.call(aten._to_copy.default, s, dtype=torch.float64),
        lambda s: p.call(prims.convert_element_type.default, s, torch.float64),
    )(spike)
    pack(p, cast)


def pack(p: Program, spike: Node | None) -> None:
    layout, bits = p.pick("time", "flat"), p.pick(1, 2, 4, 8)
    packed = None if spike is None else p.call(snn.pack_bits.default, spike, bits, layout)
    if packed is not None and spike is not None:
        sizes = list(shape(spike))
        p.call(snn.unpack_bits.default, packed, sizes, torch.float64, bits, layout)


@step
def filled(p: Program) -> None:
    node = p.floats()
    make = p.pick(
        lambda: p.call(aten.full_like.default, node, 0.5),
        lambda: p.call(aten.new_full.default, node, list(shape(node)), 0.5),
        lambda: p.call(aten.full.default, list(shape(node)), 0.5, dtype=torch.float64),
        lambda: p.call(aten.zeros.default, [shape(node)[-1]], dtype=torch.float64),
    )

    fill = make()
    if fill is not None:
        fill = p.call(aten.mul.Tensor, fill, 2.0)
        p.call(p.pick(aten.add.Tensor, aten.mul.Tensor), node, fill)
        p.call(aten.stack.default, [node, fill], 0)


@step
def viewed(p: Program) -> None:
    node = p.floats()
    sizes, rest = [], value(node).numel()
    while rest > 1 and len(sizes) < 4:
        factor = p.pick(*(f for f in range(1, rest + 1) if rest % f == 0))
        sizes.append(factor)
        rest //= factor
    sizes.append(rest)
    p.call(p.pick(aten.view, aten.reshape, aten._unsafe_view).default, node, sizes)


@step
def merged(p: Program) -> None:
    node = p.floats()
    sizes = list(shape(node))
    if len(sizes) > 1:
        at = p.random.randrange(len(sizes) - 1)
        sizes[at : at + 2] = [sizes[at] * sizes[at + 1]]
        p.call(p.pick(aten.view, aten.reshape).default, node, sizes)


@step
def parted(p: Program) -> None:
    node = p.floats()
    sizes = list(shape(node))
    at = p.random.randrange(len(sizes))
    factor = p.pick(*(f for f in range(1, sizes[at] + 1) if sizes[at] % f == 0))
    sizes[at : at + 1] = [factor, sizes[at] // factor]
    p.call(p.pick(aten.view, aten.reshape).default, node, sizes)


@step
def reordered(p: Program) -> None:
    node = p.floats()
    order = list(range(len(shape(node))))
    p.random.shuffle(order)
    p.call(aten.permute.default, node, order)
    p.call(aten.transpose.int, node, some_dim(p, node), some_dim(p, node))
    p.call(aten.t.default, node)
    p.call(aten.flip.default, node, [some_dim(p, node)])


@step
def ones(p: Program) -> None:
    node = p.call(aten.unsqueeze.default, p.floats(), p.pick(0, -1, 1))
    if node is not None:
        sizes = [p.pick(2, 3) if s == 1 else p.pick(s, -1) for s in shape(node)]
        p.call(aten.expand.default, node, p.pick(sizes, [2, *sizes]))
        p.call(aten.squeeze.default, node)
        p.call(aten.squeeze.dim, node, some_dim(p, node))
        p.call(aten.squeeze.dims, node, some_dims(p, node))


@step
def repeated(p: Program) -> None:
    node = p.floats()
    p.call(aten.repeat.default, node, [p.pick(1, 2), *(p.pick(1, 1, 2) for _ in shape(node))])


@step
def parts(p: Program) -> None:
    node = p.floats()
    dim = some_dim(p, node)
    length = shape(node)[dim]
    p.call(aten.slice.Tensor, node, dim, p.pick(0, 1), p.pick(2, length, 2**62), p.pick(1, 1, 2))
    part = p.call(aten.slice.Tensor, node, dim, 0, 1)
    if part is not None:
        p.call(aten.slice_backward.default, part, list(shape(node)), dim, 0, 1, 1)
    part = p.call(aten.select.int, node, dim, p.random.randrange(-length, length))
    if part is not None:
        p.call(aten.select_backward.default, part, list(shape(node)), dim, 0)
    p.items(p.call(aten.split.Tensor, node, p.pick(1, 2), dim))
    p.items(p.call(aten.split_with_sizes.default, node, [1, length - 1], dim))
    p.call(aten.constant_pad_nd.default, node, [p.pick(0, 1, -1), 1], 0.5)


@step
def loop(p: Program) -> None:
    """A recurrent loop over a dimension."""
    node = p.floats()
    dim = some_dim(p, node)
    state, members = None, []
    for piece in p.items(p.call(aten.unbind.int, node, dim)):
        state = piece if state is None else p.call(aten.add.Tensor, piece, state)
        members.append(state)
    p.call(aten.stack.default, members, p.pick(0, dim, -1))


@step
def joined(p: Program) -> None:
    node = p.floats()
    members = [node, p.peer(node)]
    p.call(aten.stack.default, members, p.pick(0, -1))
    p.call(aten.cat.default, members, some_dim(p, node))
    part = p.call(aten.slice.Tensor, node, 0, 0, 1)
    p.call(aten.cat.default, [node, part], some_dim(p, node))


@step
def convolved(p: Program) -> None:
    rank = p.pick(3, 4)
    image = p.image(rank)
    if image is None:
        return
    ones = [1] * (rank - 2)
    kernel, channels = p.pick(1, 3), p.pick(1, 2)
    weight = p.constant([channels, shape(image)[1], *[kernel] * (rank - 2)])
    bias = p.pick(None, p.constant([channels]))
    rest = (ones, [kernel // 2] * (rank - 2), ones, False, [0] * (rank - 2), 1)
    result = p.call(aten.convolution.default, image, weight, bias, *rest)
    if result is not None:
        mask = [p.pick(True, False), True, bias is not None]
        grad = p.call(aten.mul.Tensor, result, 0.5)
        p.items(
            p.call(aten.convolution_backward.default, grad, image, weight, [channels], *rest, mask)
        )


@step
def pooled(p: Program) -> None:
    image = p.image(4)
    if image is None:
        return
    size, stride = [p.pick(1, 2), p.pick(1, 2)], p.pick([1, 1], [2, 2])
    average = p.call(aten.avg_pool2d.default, image, size, stride)
    if average is not None:
        rest = (size, stride, [0, 0], False, True, None)
        p.call(aten.avg_pool2d_backward.default, average, image, *rest)
    largest = p.items(p.call(aten.max_pool2d_with_indices.default, image, size, stride))
    if largest:
        grad = p.call(aten.mul.Tensor, largest[0], 0.5)
        rest = (size, stride, [0, 0], [1, 1], False, largest[1])
        p.call(aten.max_pool2d_with_indices_backward.default, grad, image, *rest)
    small = p.call(aten._adaptive_avg_pool2d.default, image, [1, 1])
    p.call(aten._adaptive_avg_pool2d_backward.default, small, image)


@step
def pooled_line_or_space(p: Program) -> None:
    p.call(aten.avg_pool1d.default, p.image(3), [p.pick(1, 2)])
    image = p.image(5)
    if image is None:
        return
    average = p.call(aten.avg_pool3d.default, image, [1, 1, 2], [1, 1, 1])
    if average is not None:
        rest = ([1, 1, 2], [1, 1, 1], [0, 0, 0], False, True, None)
        p.call(aten.avg_pool3d_backward.default, average, image, *rest)
    largest = p.items(p.call(aten.max_pool3d_with_indices.default, image, [1, 1, 2], [1, 1, 1]))
    if largest:
        rest = ([1, 1, 2], [1, 1, 1], [0, 0, 0], [1, 1, 1], False, largest[1])
        p.call(aten.max_pool3d_with_indices_backward.default, largest[0], image, *rest)


@step
def multiplied(p: Program) -> None:
    rank = p.pick(2, 3)
    first = p.image(rank)
    if first is None:
        return
    product = aten.mm.default if rank == 2 else aten.bmm.default
    turned = p.call(aten.transpose.int, first, -1, -2)
    other = p.constant([*shape(first)[:-2], shape(first)[-1], 3])
    p.call(product, first, other)
    p.call(product, first, turned)
    twice = p.call(aten.mul.Tensor, first, 2.0)
    p.call(product, turned, twice)
    added = p.constant(p.pick([3], [*shape(first)[:-1], 3]))
    p.call(aten.addmm.default if rank == 2 else aten.baddbmm.default, added, first, other)
    p.call(aten.addmm.default, p.constant([1]), turned, twice)
    p.call(aten.mv.default, first, p.constant([shape(first)[-1]]))


@step
def reduced(p: Program) -> None:
    node = p.floats()
    dims, keep = some_dims(p, node), p.pick(True, False)
    p.call(p.pick(aten.sum.dim_IntList, aten.mean.dim), node, dims, keep)
    p.call(p.pick(aten.amax, aten.amin).default, node, dims, keep)
    p.call(p.pick(aten.sum, aten.mean).default, node)
    p.items(p.call(aten.var_mean.correction, node, dims, correction=0, keepdim=keep))
    p.call(aten.var.correction, node, dims, correction=0, keepdim=keep)
    p.items(p.call(p.pick(aten.max.dim, aten.min.dim), node, dims[0], keep))
    p.call(p.pick(aten.argmax, aten.argmin).default, node, p.pick(None, dims[0]), keep)
    p.call(aten.prod.dim_int, node, dims[0], keep)
    p.call(p.pick(aten.any.dim, aten.all.dim), node, dims[0], keep)


@step
def summed(p: Program) -> None:
    node = p.floats()
    total = p.call(aten.sum.dim_IntList, node, some_dims(p, node), p.pick(True, False))
    again = p.call(p.pick(aten.neg.default, aten.detach.default), total)
    p.call(p.pick(aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor), total, again)
    p.call(aten.add.Tensor, total, p.pick(0.0, 2.0))
    if total is not None and shape(total):
        p.call(p.pick(aten.mul.Tensor, aten.div.Tensor), total, p.constant(shape(total)))
        p.call(aten.stack.default, [total, again])


@step
def along_lines(p: Program) -> None:
    node = p.floats()
    dim = some_dim(p, node)
    soft = p.call(aten._softmax.default, node, dim, False)
    p.call(aten._softmax_backward_data.default, node, soft, dim, torch.float64)
    soft = p.call(aten._log_softmax.default, node, dim, False)
    p.call(aten._log_softmax_backward_data.default, node, soft, dim, torch.float64)
    p.call(p.pick(aten.cumsum, aten.cumprod).default, node, dim)


@step
def batch_normalised(p: Program) -> None:
    image = p.image(p.pick(2, 3, 4))
    if image is None:
        return
    channels, training = shape(image)[1], p.pick(True, False, False)
    weight, bias, mean = (p.constant([channels]) for _ in range(3))
    var = p.call(aten.exp.default, p.constant([channels]))
    name = p.pick(aten._native_batch_norm_legit_functional, aten.native_batch_norm)
    if name is aten.native_batch_norm and training:
        return
    results = p.items(p.call(name.default, image, weight, bias, mean, var, training, 0.1, 1e-5))
    p.items(
        p.call(
            aten._native_batch_norm_legit_no_training.default,
            *(image, weight, bias, mean, var, 0.1, 1e-5),
        )
    )
    if results:
        grad = p.call(aten.mul.Tensor, results[0], image)
        rest = (mean, var, results[1], results[2], training, 1e-5, [True, True, True])
        p.items(p.call(aten.native_batch_norm_backward.default, grad, image, weight, *rest))


@step
def layer_normalised(p: Program) -> None:
    node = p.floats()
    inner = list(shape(node)[p.random.randrange(len(shape(node))) :])
    weight, bias = p.constant(inner), p.constant(inner)
    results = p.items(p.call(aten.native_layer_norm.default, node, inner, weight, bias, 1e-5))
    if results:
        rest = (results[1], results[2], weight, bias, [True, True, True])
        p.items(p.call(aten.native_layer_norm_backward.default, results[0], node, inner, *rest))


@step
def drawn(p: Program) -> None:
    node = p.floats()
    p.call(aten.bernoulli.p, node, 0.5)
    for item in p.items(p.call(aten.native_dropout.default, node, 0.5, True)):
        p.call(aten.mul.Tensor, node, item)


def random_program(source: random.Random, size: int, steps: int) -> Program:
    """A program with two to four inputs, one of which at least holds the axis."""
    program = Program(source, size)
    ranks = [source.randint(2, 5) for _ in range(source.randint(1, 2))]
    for rank in ranks:
        program.data(rank)
    program.constant([program.pick(1, 2, 3) for _ in range(source.randint(1, 3))])
    for _ in range(steps):
        source.choice(STEPS)(program)
    program.graph.output(program.tensors[-1])
    return program


def slices(tensor: Tensor, placement: Placement, size: int, start: int, tile: int) -> Tensor:
    """The elements of `tile` slices from `start` on, by the definition of a placement."""
    indices = [
        (o * size + s) * placement.inner + i
        for o in range(placement.outer)
        for s in range(start, start + tile)
        for i in range(placement.inner)
    ]
    assert math.prod((placement.outer, size, placement.inner)) == tensor.shape[placement.dim]
    return tensor.index_select(placement.dim, torch.tensor(indices))
