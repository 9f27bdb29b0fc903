"""Random programs of ATen ops, with a generator of calls for every value-range rule."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.inductor_prims
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node

import snnfx.kernels.ops  # registers the ops
import snnfx.passes.analysis.value_range  # noqa: F401  # fills the table of rules
from snnfx.passes.analysis.value_range_rules import VALUE_RANGES

aten, prims, snn = torch.ops.aten, torch.ops.prims, torch.ops.snnfx

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPE = (2, 4, 4, 4)
FINITE = (-0.0, 0.0, 1.0, 0.5, -2.5, 1e-30, 65504.0)
SPECIAL = (float("nan"), float("inf"), -float("inf"), *FINITE)
SCALARS = (0, 1, -1, 2, 3, True, 0.5, -2.0, 0.25, 0.1, 1.25, 1 / 3, -0.0, 7.0, 1e-40, 300)


class Program:
    """A graph of ATen ops under construction, run on real tensors as it grows."""

    def __init__(self, source: random.Random, dtype: torch.dtype) -> None:
        self.random, self.dtype = source, dtype
        self.graph, self.root = Graph(), torch.nn.Module()
        self.values: dict[Node, Any] = {}
        self.inputs: list[Callable[[], torch.Tensor]] = []
        self.fake = FakeTensorMode()
        self.plain, self.finite = False, False
        self.emitted: set[object] = set()
        self.kinds, self.wanted = list[Node](), list[Node]()

    def any(self, *options: Any) -> Any:
        return options[0] if self.plain else self.random.choice(options)

    def input(self, make: Callable[[], torch.Tensor]) -> Node:
        node = self.graph.placeholder(f"input_{len(self.inputs)}")
        self.inputs.append(make)
        self._set(node, make())
        return node

    def float_input(self, shape: tuple[int, ...]) -> Node:
        return self.input(lambda: _floats(shape, self.dtype, FINITE if self.finite else SPECIAL))

    def spike(self, shape: tuple[int, ...] = SHAPE) -> Node:
        node = self.call(aten.gt.Scalar, self.float_input(shape), 0)
        assert node is not None
        spike = self.call(aten._to_copy.default, node, dtype=self.dtype)
        assert spike is not None
        return spike

    def _set(self, node: Node, value: Any) -> None:
        self.values[node] = value
        fake = self.fake.from_tensor
        many = isinstance(value, (tuple, list))
        node.meta["val"] = [fake(v) for v in value] if many else fake(value)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node | None:
        real = torch.fx.node.map_arg((args, kwargs), lambda n: self.values[n])
        try:
            value = target(*real[0], **real[1])
        except (RuntimeError, TypeError, IndexError, ValueError, NotImplementedError):
            return None
        node = self.graph.call_function(target, args, kwargs)
        self._set(node, value)
        if not isinstance(value, (tuple, list)):
            return node
        for index in range(len(value)):
            item = self.graph.call_function(operator.getitem, (node, index))
            self._set(item, value[index])
        return node

    def palette(self) -> None:
        """Start with one tensor of each kind that rules tell apart."""
        spike, unknown = self.spike(), self.float_input(SHAPE)
        negative = self.call(aten.neg.default, spike)
        kinds = [
            *(spike, unknown, negative),
            self.call(aten.sub.Tensor, spike, self.spike()),
            self.call(aten.sub.Scalar, spike, 3),
            self.call(aten.mul.Tensor, negative, 0.25),
            self.call(aten.round.default, self.call(aten.clamp.default, unknown, -2, 5)),
            self.call(aten.clamp_min.default, unknown, 1),
            self.call(aten.gt.Scalar, unknown, 0),
            self.call(aten.full.default, list(SHAPE), 3, dtype=self.dtype),
            self.call(aten.mul.Tensor, spike, 300),
        ]
        self.kinds = [kind for kind in kinds if kind is not None]

    def pick(self, suits: Callable[[torch.Tensor], bool], shape: tuple[int, ...] = SHAPE) -> Node:
        if self.plain:
            return self.spike(shape)
        if self.wanted and suits(self.values[self.wanted[0]]):
            return self.wanted.pop(0)
        nodes = self.kinds if self.random.random() < 0.5 else list(self.values)[-12:]
        tensors = [node for node in nodes if isinstance(self.values[node], torch.Tensor)]
        found = [n for n in tensors if self.values[n].numel() < 3000 and suits(self.values[n])]
        return self.random.choice(found) if found else self.spike(shape)

    def tensor(self) -> Node:
        return self.pick(lambda v: v.numel() > 0)

    def full(self) -> Node:
        return self.pick(lambda v: v.shape == SHAPE)

    def like(self, node: Node) -> Node:
        shape = tuple(self.values[node].shape)
        return self.pick(lambda v: tuple(v.shape) == shape, shape)

    def twin(self, node: Node) -> Node:
        """A node of the same shape and dtype."""
        shape, dtype = tuple(self.values[node].shape), self.values[node].dtype
        found = self.pick(lambda v: tuple(v.shape) == shape and v.dtype == dtype, shape)
        cast = self.call(aten._to_copy.default, found, dtype=dtype)
        return cast if cast is not None and self.values[found].dtype != dtype else found

    def index(self, shape: tuple[int, ...], limit: int) -> Node:
        return self.input(lambda: torch.randint(0, limit, shape))

    def mask(self) -> Node:
        return self.input(lambda: torch.rand(SHAPE) > 0.5)

    def integer(self) -> Node:
        dtype = self.any(torch.int64, torch.uint8, torch.int8, torch.int32)
        found = self.call(aten._to_copy.default, self.full(), dtype=dtype)
        assert found is not None
        return found

    def emit(self, key: object) -> Node | None:
        target = VARIANTS.get(key, key)
        args, kwargs = EMITTERS[key](self)
        node = self.call(target, *args, **kwargs)
        if node is not None:
            self.emitted.add(key)
        return node


def _floats(shape: tuple[int, ...], dtype: torch.dtype, hard: tuple[float, ...]) -> torch.Tensor:
    """Random numbers, some of them of a list of those that are hard on claims."""
    special = torch.tensor(hard)[torch.randint(0, len(hard), shape)]
    return torch.where(torch.rand(shape) < 0.15, special, 3 * torch.randn(shape)).to(dtype)


def _a(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


Emitter = Callable[[Program], tuple[tuple[Any, ...], dict[str, Any]]]
EMITTERS: dict[object, Emitter] = {}
VARIANTS: dict[object, Any] = {
    "prims::_low_memory_max_pool_with_offsets": prims._low_memory_max_pool_with_offsets.default,
    "snnfx::unpack_bits": snn.unpack_bits.default,
}


def _for(emitter: Emitter, *keys: object) -> None:
    for key in keys:
        assert key not in EMITTERS, key
        EMITTERS[key] = emitter


def _binary(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first = b.tensor()
    return _a(first, b.any(b.like(first), b.any(*SCALARS)))


def _additive(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, _ = _binary(b)
    return args, b.any({}, {}, {"alpha": b.any(2, -1, 0.5, 3)})


def _twins(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    first = b.tensor()
    return _a(first, b.twin(first))


def _scalar(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _a(b.tensor(), b.any(1, *SCALARS))


def _unary(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _a(b.tensor())


def _pool(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    kernel = b.any(2, 1, 3, 4)
    padding = b.any(0, kernel // 2)
    return _a(
        b.full(), [kernel, kernel], [b.any(2, 1)], [padding], b.any(1, 1, 2), b.any(False, True)
    )


def _avg(dimensions: int) -> Emitter:
    def emit(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kernel = b.any(2, 1, 3, 4)
        x = b.full() if dimensions > 1 else b.pick(lambda v: v.dim() == 3, (2, 4, 4))
        args = [x, [kernel] * dimensions, [b.any(2, 1, 3)], [b.any(0, kernel // 2)]]
        override = [b.any(None, None, 2, 3)] if dimensions > 1 else []
        return _a(*args, b.any(False, True), b.any(True, False), *override)

    return emit


def _reduce(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _a(b.full(), [b.any(1, 0, -1)], b.any(False, True))


_for(_additive, aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor)
_for(_scalar, aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar, aten.mul.Scalar)
_for(_binary, aten.mul.Tensor)
_for(lambda b: _a(x := b.tensor(), b.any(2, 0.8, b.like(x), *SCALARS)), aten.div.Tensor)
_for(lambda b: _a(b.tensor(), b.any(2, 0.8, -0.3, *SCALARS)), aten.div.Scalar)
_for(
    _unary,
    *(aten.neg.default, aten.abs.default, aten.relu.default, aten.round.default),
    *(aten.floor.default, aten.ceil.default, aten.trunc.default, aten.sign.default),
    *(aten.sgn.default, aten.max.default, aten.min.default, aten.zeros_like.default),
    *(aten.ones_like.default, aten.clone.default, aten.alias.default, aten.detach.default),
    *(aten.contiguous.default, aten.lift_fresh.default, prims.view_of.default),
    *(aten.empty_like.default, aten.sum.default, aten.mean.default),
)
_for(_twins, aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other)
_for(lambda b: _a(b.full(), b.any(0, -1, 0.1), b.any(4, 2.3, None)), aten.clamp.default)
_for(lambda b: _a(b.full(), b.any(0, -1, 0.1), b.any(4, 2.3)), aten.hardtanh.default)
_for(lambda b: _a(x := b.full(), b.twin(x), b.twin(x)), aten.clamp.Tensor)
_for(_twins, aten.clamp_min.Tensor, aten.clamp_max.Tensor, aten.heaviside.default)
_for(_scalar, aten.clamp_min.default, aten.clamp_max.default)
_for(lambda b: _a(b.mask(), x := b.full(), b.like(x)), aten.where.self)
_for(lambda b: _a(b.mask(), b.full(), b.any(0, *SCALARS)), aten.where.ScalarOther)
_for(lambda b: _a(b.mask(), b.any(0, *SCALARS), b.full()), aten.where.ScalarSelf)
_for(lambda b: _a(b.mask(), b.any(1, *SCALARS), b.any(0, *SCALARS)), aten.where.Scalar)
_for(lambda b: _a(b.full(), b.mask(), b.any(0, *SCALARS)), aten.masked_fill.Scalar)
_for(
    lambda b: _a(
        x := b.full(),
        b.mask(),
        b.call(aten.select.int, b.call(aten.view.default, b.twin(x), [-1]), 0, 0),
    ),
    aten.masked_fill.Tensor,
)
_for(
    lambda b: _a(x := b.integer(), b.twin(x)),
    aten.bitwise_and.Tensor,
    aten.bitwise_or.Tensor,
    aten.bitwise_xor.Tensor,
)
_for(
    lambda b: _a(b.integer(), b.any(1, 6, 255, -2)),
    aten.bitwise_and.Scalar,
    aten.bitwise_or.Scalar,
    aten.bitwise_xor.Scalar,
)
_for(lambda b: _a(b.integer()), aten.bitwise_not.default)
_for(lambda b: _a([2, 4], b.any(1, *SCALARS), dtype=b.any(b.dtype, torch.int32)), aten.full.default)
_for(_scalar, aten.full_like.default, aten.fill.Scalar)
_for(lambda b: _a(b.tensor(), [2, 4], b.any(1, *SCALARS)), aten.new_full.default)
_for(lambda b: _a(b.any(1, *SCALARS), dtype=b.dtype), aten.scalar_tensor.default)
_for(lambda b: _a(b.full(), b.call(aten.select.int, b.spike((3,)), 0, 0)), aten.fill.Tensor)
_for(lambda b: _a([2, 3], dtype=b.dtype), aten.zeros.default, aten.ones.default)
_for(
    lambda b: _a(b.full(), [2, 3]),
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_empty.default,
)
_for(lambda b: _a(b.any(5, 300)), aten.arange.default)
_for(lambda b: _a(b.any(-2, 3), 9, dtype=b.any(torch.int64, b.dtype)), aten.arange.start)
_for(lambda b: _a(b.any(4, 10, -3), b.any(17, -20), b.any(2, 3, -2)), aten.arange.start_step)
_for(
    lambda b: _a(
        5,
        start=b.any(1, 6),
        step=b.any(1, 2, -3),
        dtype=torch.int64,
        device=torch.device("cpu"),
        requires_grad=False,
    ),
    prims.iota.default,
)
_for(lambda b: _a(b.spike()), aten.bernoulli.default)
_for(lambda b: _a(b.full(), 0.3), aten.bernoulli.p)
_for(lambda b: _a(b.full(), b.spike()), aten.bernoulli.Tensor)
_DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
)
_for(lambda b: _a(b.tensor(), dtype=b.any(*_DTYPES)), aten._to_copy.default)
_for(lambda b: _a(b.tensor(), b.any(*_DTYPES)), aten.to.dtype, prims.convert_element_type.default)
_for(lambda b: _a(b.tensor(), dtype=b.any(*_DTYPES)), aten.to.dtype_layout)
_for(lambda b: _a(b.tensor(), torch.device("cpu"), b.any(*_DTYPES)), aten.to.device)
_for(lambda b: _a(b.tensor(), b.spike()), aten.to.other, aten.type_as.default)
_for(lambda b: _a(b.tensor(), torch.device("cpu")), prims.device_put.default)
_for(lambda b: _a(b.full(), b.full()), aten.copy.default)


def _literal(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    name = f"_tensor_constant{len(b.values)}"
    literal = torch.tensor(b.any(1.0, 0.0, -0.0, 0.1, 3, float("nan")))
    setattr(b.root, name, literal)
    node = b.graph.get_attr(name)
    b._set(node, literal)
    return _a(node)


_for(_literal, aten.lift_fresh_copy.default)
_for(
    lambda b: _a(b.full(), b.any(0.2, 0.5, 0.1, 0.0, 1.0), b.any(True, False, None)),
    aten.native_dropout.default,
)
_for(lambda b: _a([2, 3], dtype=torch.bool), aten.empty.memory_format)
_for(lambda b: _a([2, 3], [3, 1], dtype=torch.bool), aten.empty_strided.default)
_for(lambda b: _a([2, 3], [1, 0], dtype=torch.bool), aten.empty_permuted.default)
_for(lambda b: _a(b.full(), [2, 3], [3, 1]), aten.new_empty_strided.default)
_for(
    lambda b: _a(b.call(aten._to_copy.default, b.full(), dtype=torch.int8), torch.bool),
    *(aten.view.dtype, aten.view_copy.dtype, prims.view_of_dtype.default),
)
_for(lambda b: _a(b.full(), [4], [1]), aten.as_strided.default)
_for(
    lambda b: _a(
        b.input(lambda: torch.randint(0, 256, (6,), dtype=torch.uint8)),
        [11],
        b.dtype,
        b.any(4, 4),
        "flat",
        b.any(1.0, 0.5),
        b.any(0, -3),
    ),
    "snnfx::unpack_bits",
)
_for(
    lambda b: _a(b.full(), [8, 16]),
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
)
_for(lambda b: _a(b.full(), b.full()), aten.view_as.default, aten.expand_as.default)
_for(lambda b: _a(b.full(), 1, 2), aten.flatten.using_ints)
_for(lambda b: _a(b.full(), 1, [2, 2]), aten.unflatten.int)
_for(lambda b: _a(b.full(), [0, 2, 3, 1]), aten.permute.default)
_for(lambda b: _a(b.full(), 1, 2), aten.transpose.int)
_for(lambda b: _a(b.pick(lambda v: v.dim() == 2, (3, 5))), aten.t.default)
_for(lambda b: _a(b.full(), [1], [2]), aten.movedim.intlist)
_for(lambda b: _a(b.full(), 1), aten.unsqueeze.default, aten.squeeze.dim)
_for(lambda b: _a(b.full(), [1]), aten.squeeze.dims, aten.flip.default)
_for(_unary, aten.squeeze.default)
_for(lambda b: _a(b.full(), [1], [2]), aten.roll.default)
_for(
    lambda b: _a(b.full(), 2),
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
)
_for(lambda b: _a(b.full(), [3, *SHAPE]), aten.expand.default)
_for(lambda b: _a(b.full(), [1, 2, 1, 1]), aten.repeat.default)
_for(lambda b: _a(b.full(), 2, b.any(1, 0), 3), aten.slice.Tensor, aten.narrow.default)
_for(lambda b: _a(b.full(), 1, 2), aten.select.int)
_for(_unary, aten.diagonal.default)
_for(lambda b: _a(b.full(), [None, b.index((3,), 4)]), aten.index.Tensor, aten._unsafe_index.Tensor)
_for(lambda b: _a(b.full(), 1, b.index((3,), 4)), aten.index_select.default)
_for(lambda b: _a(b.full(), 1, b.index(SHAPE, 4)), aten.gather.default)
_for(lambda b: _a(b.full(), b.index((5,), 100)), aten.take.default)
_for(lambda b: _a(b.full(), 2, 2, 1), aten.unfold.default)
_for(
    lambda b: _a(b.pick(lambda v: v.dim() == 3, (2, 4, 4)), [1, 1]),
    aten.reflection_pad1d.default,
    aten.replication_pad1d.default,
)
_for(
    lambda b: _a(b.full(), [1, 1, 1, 0]),
    aten.reflection_pad2d.default,
    aten.replication_pad2d.default,
)
_for(
    lambda b: _a(b.full(), [1, 1, 1, 0, 0, 1]),
    aten.reflection_pad3d.default,
    aten.replication_pad3d.default,
)
_for(lambda b: _a(b.pick(lambda v: v.dim() == 3, (2, 4, 4)), [6]), aten.upsample_nearest1d.default)
_for(lambda b: _a(b.full(), [6, 5]), aten.upsample_nearest2d.default)
_for(
    lambda b: _a(b.pick(lambda v: v.dim() == 5, (1, 2, 2, 2, 2)), [4, 3, 2]),
    aten.upsample_nearest3d.default,
)
_for(lambda b: _a(b.full(), 1), aten.unbind.int)
_for(
    lambda b: _a(b.full(), 2, 1),
    aten.split.Tensor,
    aten.unsafe_split.Tensor,
    aten.chunk.default,
    aten.unsafe_chunk.default,
)
_for(
    lambda b: _a(b.full(), [1, 3], 1),
    aten.split_with_sizes.default,
    aten.unsafe_split_with_sizes.default,
)
_for(
    lambda b: _a([x := b.full(), b.like(x), b.like(x)], b.any(0, 1)),
    aten.cat.default,
    aten.stack.default,
)
_for(
    lambda b: _a(b.full(), b.any([1, 1], [-1, 0], [0, 2, 1, 0]), b.any(0, *SCALARS)),
    aten.constant_pad_nd.default,
)
_for(
    lambda b: _a(x := b.full(), b.call(aten.slice.Tensor, b.twin(x), 1, 1, 3), 1, 1, 3),
    aten.slice_scatter.default,
)
_for(
    lambda b: _a(x := b.full(), b.call(aten.select.int, b.twin(x), 1, 1), 1, 0),
    aten.select_scatter.default,
)
_for(
    lambda b: _a(x := b.full(), b.call(aten.diagonal.default, b.twin(x))),
    aten.diagonal_scatter.default,
)
_for(lambda b: _a(x := b.full(), 1, b.index(SHAPE, 4), b.twin(x)), aten.scatter.src)
_for(lambda b: _a(x := b.full(), 1, b.index((4,), 4), b.twin(x)), aten.index_copy.default)
_for(lambda b: _a(b.full(), 1, b.index(SHAPE, 4), b.any(1, *SCALARS)), aten.scatter.value)
_for(lambda b: _a(b.full(), 1, b.index((2,), 4), b.any(1, *SCALARS)), aten.index_fill.int_Scalar)
_for(
    lambda b: _a(x := b.full(), [b.index((2,), 2)], b.twin(x), b.any(False, True)),
    *(aten.index_put.default, aten._unsafe_index_put.default),
)
_for(
    lambda b: _a(
        b.full(),
        b.mask(),
        [b.index(SHAPE, 2), *(b.index(SHAPE, 4) for _ in range(3))],
        b.any(0, 0.5, -0.0),
    ),
    aten._unsafe_masked_index.default,
)
_for(_unary, aten.tril.default, aten.triu.default)
_for(_pool, aten.max_pool2d_with_indices.default, aten.max_pool2d.default)
_for(
    lambda b: _a(b.full(), [2, 2, 2], [1], [b.any(0, 1)], b.any(1, 2), b.any(False, True)),
    *(aten.max_pool3d_with_indices.default, aten.max_pool3d.default),
)
_for(
    lambda b: _a(b.pick(lambda v: v.dim() == 3, (2, 4, 4)), [2], [1], [b.any(0, 1)]),
    aten.max_pool1d.default,
)
_for(lambda b: _a(b.full(), [2, 3]), aten.adaptive_max_pool2d.default)
_for(lambda b: _a(b.full(), [2, 2, 3]), aten.adaptive_max_pool3d.default)
_for(lambda b: _a(b.full(), b.any(1, 0), b.any(False, True)), aten.max.dim, aten.min.dim)
_for(
    lambda b: _a(
        b.full(), [k := b.any(2, 3), k], [2, 2], [b.any(0, 1)] * 2, [1, 1], b.any(False, True)
    ),
    "prims::_low_memory_max_pool_with_offsets",
)
_for(
    lambda b: _a(b.full(), [k := b.any(2, 3), k], [b.any(2, 1)] * 2, [b.any(0, 1)] * 2),
    *(snn.max_pool2d.default, snn.max_pool2d_offsets.default),
)
_for(_reduce, aten.amax.default, aten.amin.default, aten.sum.dim_IntList, aten.mean.dim)
_for(lambda b: _a(b.full(), b.any(1, 0)), aten.cumsum.default)
_for(_avg(1), aten.avg_pool1d.default)
_for(_avg(2), aten.avg_pool2d.default)
_for(_avg(3), aten.avg_pool3d.default)
_for(lambda b: _a(b.full(), [b.any(2, 3, 1)] * 2), aten._adaptive_avg_pool2d.default)
_for(lambda b: _a(b.full(), [b.any(2, 3, 1)] * 3), aten._adaptive_avg_pool3d.default)


def _matrices(*shapes: tuple[int, ...]) -> Emitter:
    def emit(b: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
        views = [b.call(aten.view.default, b.full(), [-1, *shape[1:]]) for shape in shapes]
        parts = [
            b.call(aten.slice.Tensor, v, 0, 0, s[0]) for v, s in zip(views, shapes, strict=True)
        ]
        return _a(*parts)

    return emit


_for(_matrices((4, 4), (4, 4)), aten.mm.default)
_for(_matrices((2, 4, 4), (2, 4, 4)), aten.bmm.default)
_for(_matrices((4, 4), (4,)), aten.mv.default)
_for(_matrices((8,), (8,)), aten.dot.default)


def test_the_generator_covers_every_rule() -> None:
    assert set(VALUE_RANGES) == set(EMITTERS)
