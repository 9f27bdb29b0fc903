"""Axis rules of operators that compute across elements: products, pools, norms, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.fx import Node

import snnfx.kernels.norm  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers
from snnfx.passes.analysis.axes_rules import (
    RELATIONS,
    Arguments,
    moved,
    numbered,
    rank_of,
    result_shapes,
    shape_of,
)
from snnfx.passes.analysis.placement import Label, Labelled, Port, Relation, Shape

aten = torch.ops.aten
snn = torch.ops.snnfx

Labels = Sequence[Label | None]
NOTHING = frozenset({0})
SAMPLE = "sample"
CHANNEL = "channel"


def relation(
    node: Node,
    arguments: Arguments,
    operands: dict[str, Labels],
    results: Sequence[Labels],
    sums: frozenset[int] = frozenset(),
    *,
    mixing: bool = False,
) -> Relation:
    """A relation from labels by argument name; arguments that are None are left out."""
    given = {name: v for name in operands if (v := arguments.get(name)) is not None}
    nodes = tuple(value for value in given.values() if isinstance(value, Node))
    inputs: tuple[Port, ...] = tuple(
        Labelled(tuple(operands[name]), shape_of(value))
        for name, value in given.items()
        if isinstance(value, Node)
    )
    ports: tuple[Port, ...] = tuple(
        _port(labels, shape) for labels, shape in zip(results, result_shapes(node), strict=False)
    )
    return Relation(nodes, inputs, ports, sums, mixing=mixing)


def _port(labels: Labels, shape: Shape) -> Labelled:
    """A result; one that an output mask leaves out, or that is empty, has no labels."""
    return Labelled(tuple(labels) if len(labels) == len(shape) else (None,) * len(shape), shape)


def _samples(rank: int) -> Labels:
    """Labels of `[N, ...]`: only samples are independent."""
    return [SAMPLE, *[None] * (rank - 1)]


@RELATIONS.rule(aten.convolution.default)
def convolved(node: Node, arguments: Arguments) -> Relation:
    """`[N, C, *]` with one weight for all samples."""
    image = _samples(rank_of(node))
    weight = [None] * len(shape_of(arguments["weight"]))
    return relation(node, arguments, {"input": image, "weight": weight, "bias": [None]}, [image])


@RELATIONS.rule(aten.convolution_backward.default)
def convolved_back(node: Node, arguments: Arguments) -> Relation:
    """Gradients of the input (a sample each), and of weight and bias (added up over samples)."""
    image = _samples(rank_of(node))
    weight = [None] * len(shape_of(arguments["weight"]))
    operands = {"grad_output": image, "input": image, "weight": weight}
    return relation(node, arguments, operands, [image, weight, [None]], frozenset({1, 2}))


def _pooled(node: Node, arguments: Arguments, names: Sequence[str], spatial: int) -> Relation:
    """Windows over the last `spatial` dimensions of tensors that agree in the others."""
    rank = rank_of(node)
    labels = [d if d < rank - spatial else None for d in range(rank)]
    results = [labels] * len(result_shapes(node))
    return relation(node, arguments, dict.fromkeys(names, labels), results)


@RELATIONS.rule(
    *(aten.avg_pool2d.default, aten._adaptive_avg_pool2d.default),
    *(aten.max_pool2d_with_indices.default,),
)
def pooled_2d(node: Node, arguments: Arguments) -> Relation:
    """Indices count within the plane of one sample and channel."""
    return _pooled(node, arguments, ["self"], 2)


@RELATIONS.rule(aten.avg_pool3d.default, aten.max_pool3d_with_indices.default)
def pooled_3d(node: Node, arguments: Arguments) -> Relation:
    """As in two dimensions."""
    return _pooled(node, arguments, ["self"], 3)


@RELATIONS.rule(aten.avg_pool1d.default)
def pooled_1d(node: Node, arguments: Arguments) -> Relation:
    """As in two dimensions."""
    return _pooled(node, arguments, ["self"], 1)


@RELATIONS.rule(
    *(aten.avg_pool2d_backward.default, aten._adaptive_avg_pool2d_backward.default),
    *(aten.max_pool2d_with_indices_backward.default,),
)
def pooled_back_2d(node: Node, arguments: Arguments) -> Relation:
    """Of the input of the pooling, an average reads only the size."""
    return _pooled(node, arguments, ["grad_output", "self", "indices"], 2)


@RELATIONS.rule(snn.max_pool2d.default, snn.max_pool2d_offsets.default)
def pooled_for_regions(node: Node, arguments: Arguments) -> Relation:
    """Offsets count within a window."""
    return _pooled(node, arguments, ["x"], 2)


@RELATIONS.rule(snn.avg_pool2d_backward.default, snn.max_pool2d_backward.default)
def pooled_back_for_regions(node: Node, arguments: Arguments) -> Relation:
    """Of the input of the pooling there is only the size, in an argument."""
    return _pooled(node, arguments, ["grad", "offsets"], 2)


@RELATIONS.rule(snn.pool_packed.default)
def pooled_packed(node: Node, arguments: Arguments) -> Relation:
    """Bytes `[T/8, N, C, H, W]` to images `[T*N, C, H, W]`: each sample is there T times."""
    source, steps = arguments["packed"], int(arguments["shape"][0])
    operand = Labelled((None, SAMPLE, CHANNEL, None, None), shape_of(source))
    result = Labelled((SAMPLE, CHANNEL, None, None), shape_of(node), (steps, 1, 1, 1))
    return Relation((source,), (operand,), (result,))


@RELATIONS.rule(aten.im2col.default, aten.col2im.default)
def patches(node: Node, arguments: Arguments) -> Relation:
    """Images `[N, C, H, W]` and the columns `[N, C*kh*kw, L]` of their patches."""
    operand, result = _samples(rank_of(node)), _samples(len(shape_of(node)))
    return relation(node, arguments, {"self": operand}, [result])


@RELATIONS.rule(aten.avg_pool3d_backward.default, aten.max_pool3d_with_indices_backward.default)
def pooled_back_3d(node: Node, arguments: Arguments) -> Relation:
    """As in two dimensions."""
    return _pooled(node, arguments, ["grad_output", "self", "indices"], 3)


@RELATIONS.rule(aten.mm.default)
def multiplied(node: Node, arguments: Arguments) -> Relation:
    """`[m, k] @ [k, n]`, the sum over k."""
    return relation(node, arguments, {"self": "mk", "mat2": "kn"}, ["mn"], NOTHING)


@RELATIONS.rule(aten.bmm.default)
def multiplied_by_batch(node: Node, arguments: Arguments) -> Relation:
    """`[b, m, k] @ [b, k, n]`, the sum over k."""
    return relation(node, arguments, {"self": "bmk", "mat2": "bkn"}, ["bmn"], NOTHING)


@RELATIONS.rule(aten.mv.default)
def multiplied_vector(node: Node, arguments: Arguments) -> Relation:
    """`[m, k] @ [k]`, the sum over k."""
    return relation(node, arguments, {"self": "mk", "vec": "k"}, ["m"], NOTHING)


@RELATIONS.rule(aten.addmm.default)
def multiplied_added(node: Node, arguments: Arguments) -> Relation:
    """`[m, k] @ [k, n]` plus something: no sum over tiles of k, each of which would add it."""
    added = "mn"[2 - len(shape_of(arguments["self"])) :]
    operands: dict[str, Labels] = {"self": added, "mat1": "mk", "mat2": "kn"}
    return relation(node, arguments, operands, ["mn"])


@RELATIONS.rule(aten.baddbmm.default)
def multiplied_by_batch_added(node: Node, arguments: Arguments) -> Relation:
    """As `addmm`, with a batch."""
    added = "bmn"[3 - len(shape_of(arguments["self"])) :]
    operands: dict[str, Labels] = {"self": added, "batch1": "bmk", "batch2": "bkn"}
    return relation(node, arguments, operands, ["bmn"])


def _reduced(node: Node, arguments: Arguments, sums: frozenset[int]) -> Relation:
    """Some dimensions reduced, all if none is named."""
    rank = rank_of(node)
    named = arguments.get("dim")
    dims = named if isinstance(named, (list, tuple)) else [] if named is None else [named]
    gone = {d % rank for d in dims} if dims and rank else set(range(rank))
    labels: list[Label | None] = [None if d in gone else d for d in range(rank)]
    kept = labels if arguments.get("keepdim") else [d for d in labels if d is not None]
    results = tuple(_port(kept, shape) for shape in result_shapes(node))
    source = node.args[0]
    assert isinstance(source, Node)
    # Dimensions that a sum adds up keep their label: its parts are what they add up to.
    return Relation(
        (source,), (numbered(shape_of(source), () if sums else tuple(gone)),), results, sums
    )


@RELATIONS.rule(aten.sum.default, aten.sum.dim_IntList)
def summed(node: Node, arguments: Arguments) -> Relation:
    """Added up over some dimensions."""
    return _reduced(node, arguments, NOTHING)


@RELATIONS.rule(
    *(aten.mean.default, aten.mean.dim, aten.amax.default, aten.amin.default),
    *(aten.max.dim, aten.min.dim, aten.argmax.default, aten.argmin.default),
    *(aten.var.correction, aten.var_mean.correction, aten.prod.dim_int),
    *(aten.any.dim, aten.all.dim),
)
def reduced(node: Node, arguments: Arguments) -> Relation:
    """A mean of parts is no sum of means: each divides by its own count."""
    return _reduced(node, arguments, frozenset())


@RELATIONS.rule(
    aten._softmax.default, aten._log_softmax.default, aten.cumsum.default, aten.cumprod.default
)
def along_one_dimension(node: Node, arguments: Arguments) -> Relation:
    """Each line along one dimension by itself."""
    rank = rank_of(node)
    mixed = [arguments["dim"] % rank] if rank else []
    return moved(node, numbered(shape_of(node), mixed).labels, mixed)


@RELATIONS.rule(aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
def softmax_back(node: Node, arguments: Arguments) -> Relation:
    """Each line along one dimension by itself."""
    shape = shape_of(node)
    labels = numbered(shape, [arguments["dim"] % len(shape)] if shape else []).labels
    operands: dict[str, Labels] = dict.fromkeys(["grad_output", "output"], labels)
    return relation(node, arguments, operands, [labels])


def _channels(rank: int) -> list[Label | None]:
    """Labels of `[N, C, *]`: samples, channels, places."""
    return [SAMPLE, CHANNEL, *range(rank - 2)]


CHANNEL_VECTORS = (
    *("weight", "bias", "running_mean", "running_var", "save_mean", "save_invstd", "save_var"),
)


@RELATIONS.rule(
    *(aten._native_batch_norm_legit_functional.default, aten.native_batch_norm.default),
    *(aten._native_batch_norm_legit_no_training.default,),
)
def batch_norm(node: Node, arguments: Arguments) -> Relation:
    """With statistics of its own a batch norm mixes all samples; with stored ones it mixes none.

    Then its other results are those statistics again, or empty.
    """
    return _normalised_channels(node, arguments, training=bool(arguments.get("training")))


@RELATIONS.rule(aten._batch_norm_with_update_functional.default)
def batch_norm_training(node: Node, arguments: Arguments) -> Relation:
    """A batch norm with statistics of its own."""
    return _normalised_channels(node, arguments, training=True)


def _normalised_channels(node: Node, arguments: Arguments, *, training: bool) -> Relation:
    image = _channels(rank_of(node))
    operands: dict[str, Labels] = {"input": image}
    operands |= {name: [CHANNEL] for name in CHANNEL_VECTORS}
    found = relation(node, arguments, operands, [image])
    if training:
        return replace(found, mixing=True)
    return replace(found, fixed=frozenset(range(1, len(result_shapes(node)))))


@RELATIONS.rule(aten.native_batch_norm_backward.default, aten.batch_norm_backward.default)
def batch_norm_back(node: Node, arguments: Arguments) -> Relation:
    """Gradients of the input, and of weight and bias, which are sums over samples and places."""
    image = _channels(rank_of(node))
    operands: dict[str, Labels] = {"grad_out": image, "input": image}
    operands |= {name: [CHANNEL] for name in CHANNEL_VECTORS}
    mixing = bool(arguments.get("train", arguments.get("update")))
    results: list[Labels] = [image, [CHANNEL], [CHANNEL]]
    return relation(node, arguments, operands, results, frozenset({1, 2}), mixing=mixing)


@RELATIONS.rule(aten.native_layer_norm.default)
def layer_norm(node: Node, arguments: Arguments) -> Relation:
    """Result, mean and 1/deviation of the last dimensions, each of the others by itself."""
    image, inner = _normalised(node, arguments)
    operands: dict[str, Labels] = {"input": image, "weight": inner, "bias": inner}
    return relation(node, arguments, operands, [image] * 3)


@RELATIONS.rule(aten.native_layer_norm_backward.default)
def layer_norm_back(node: Node, arguments: Arguments) -> Relation:
    """Gradients of the input, and of weight and bias, which are sums over all but the last dims."""
    image, inner = _normalised(node, arguments)
    operands: dict[str, Labels] = dict.fromkeys(["grad_out", "input", "mean", "rstd"], image)
    operands |= {"weight": inner, "bias": inner}
    return relation(node, arguments, operands, [image, inner, inner], frozenset({1, 2}))


def _normalised(node: Node, arguments: Arguments) -> tuple[Labels, Labels]:
    rank, inner = rank_of(node), len(arguments["normalized_shape"])
    labels = [d if d < rank - inner else None for d in range(rank)]
    return labels, [None] * inner


@RELATIONS.rule(
    *(aten.native_dropout.default, aten.bernoulli.p),
    *(aten.rand_like.default, aten.randn_like.default),
)
def drawn(node: Node, arguments: Arguments) -> Relation:
    """Random numbers fill the whole: slices drawn one by one would be others."""
    del arguments
    return replace(moved(node, range(rank_of(node))), mixing=True)
