"""Value-range rules of ops that move, select and combine elements without computing."""

from __future__ import annotations

import torch

from snnfx.passes.analysis.value_range_rules import (
    TOP,
    VALUE_RANGES,
    ZERO_FACT,
    Call,
    Fact,
    join_facts,
)

aten = torch.ops.aten
prims = torch.ops.prims


@VALUE_RANGES.rule(
    # The same elements in another shape or order.
    *(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.view_as.default),
    *(aten.flatten.using_ints, aten.unflatten.int, aten.permute.default, aten.transpose.int),
    *(aten.t.default, aten.movedim.intlist, aten.unsqueeze.default, aten.squeeze.default),
    *(aten.squeeze.dim, aten.squeeze.dims, aten.flip.default, aten.roll.default),
    *(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.channel_shuffle.default),
    # The same tensor.
    *(aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default),
    *(aten.lift_fresh.default, prims.view_of.default),
    # Some elements, or some of them several times.
    *(aten.expand.default, aten.expand_as.default, aten.repeat.default),
    *(aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.diagonal.default),
    *(aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_select.default),
    *(aten.gather.default, aten.take.default, aten.unfold.default),
    *(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default),
    *(aten.replication_pad1d.default, aten.replication_pad2d.default),
    *(aten.replication_pad3d.default, aten.upsample_nearest1d.default),
    *(aten.upsample_nearest2d.default, aten.upsample_nearest3d.default),
    # The same, in several results.
    *(aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default),
    *(aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.unsafe_chunk.default),
)
def moved_range(call: Call) -> Fact:
    """Elements of the first argument; of several results, each."""
    return call.fact(call.first)


@VALUE_RANGES.rule(aten.cat.default, aten.stack.default)
def cat_range(call: Call) -> Fact:
    """Elements of all tensors: a spike beside a float is unknown."""
    return join_facts(call.operands("tensors"))


@VALUE_RANGES.rule(aten.constant_pad_nd.default)
def constant_pad_range(call: Call) -> Fact:
    """The tensor's elements and the padding's."""
    if all(isinstance(size, int) and size <= 0 for size in call.arg("pad")):
        return call.operand("self")
    return join_facts([call.operand("self"), call.stored("value")])


@VALUE_RANGES.rule(
    *(aten.slice_scatter.default, aten.select_scatter.default, aten.diagonal_scatter.default),
    *(aten.scatter.src, aten.index_copy.default),
)
def scatter_range(call: Call) -> Fact:
    """A tensor of which some elements are replaced by another's."""
    source = "source" if call.arg("source") is not None else "src"
    return join_facts([call.operand("self"), call.operand(source)])


@VALUE_RANGES.rule(aten.scatter.value, aten.index_fill.int_Scalar)
def scatter_value_range(call: Call) -> Fact:
    """A tensor of which some elements are replaced by a scalar."""
    return join_facts([call.operand("self"), call.stored("value")])


@VALUE_RANGES.rule(aten.index_put.default, aten._unsafe_index_put.default)
def index_put_range(call: Call) -> Fact:
    """A tensor of which some elements are replaced; unknown where they are added up."""
    if call.arg("accumulate"):
        return TOP
    return join_facts([call.operand("self"), call.operand("values")])


@VALUE_RANGES.rule(aten._unsafe_masked_index.default)
def unsafe_masked_index_range(call: Call) -> Fact:
    """Selected elements, and a scalar where the mask is off."""
    return join_facts([call.operand("self"), call.stored("fill")])


@VALUE_RANGES.rule(aten.tril.default, aten.triu.default)
def triangle_range(call: Call) -> Fact:
    """The tensor's elements and zero."""
    return join_facts([call.operand("self"), ZERO_FACT])
