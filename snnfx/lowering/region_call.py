"""Calling a region's kernel on the tensors of a graph: layouts, allocation, donated memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from snnfx.kernels.region_build import RegionKernel
from snnfx.kernels.region_layout import Layout
from snnfx.passes.fxgraph import is_dense, stride_order, tensor_value
from snnfx.passes.rewrite.region_program import OutputSpec, RegionProgram, base_reference


class RegionCall(nn.Module):
    """A region as a module: takes its input tensors, returns a tuple of its results.

    Args:
        region: what is computed; sizes may be symbolic.
        kernel: of the region's program.
        donated: for an output, the input whose memory it is written to.
    """

    def __init__(
        self, region: RegionProgram, kernel: RegionKernel, donated: Mapping[int, int]
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.kinds = tuple(spec.kind for spec in region.inputs)
        self.windowed = tuple(spec.windowed for spec in region.inputs)
        self.outputs = tuple(OutputLayout(spec) for spec in region.outputs)
        self.donated = dict(donated)
        self.base = tuple(s for s in region.base if isinstance(s, int))
        self.reference = None
        if len(self.base) < len(region.base):
            self.reference = base_reference(region.inputs, region.base)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the kernel."""
        base = self.base if self.reference is None else self._base(tensors)
        results = tuple(
            self._result(position, output, base, tensors)
            for position, output in enumerate(self.outputs)
        )
        inputs = [input_layout(t, k, base) for t, k in zip(tensors, self.kinds, strict=True)]
        outputs = [o.layout(t, base) for o, t in zip(self.outputs, results, strict=True)]
        self.kernel(tensors, results, base, tuple(inputs), tuple(outputs), self._extents(tensors))
        return results

    def _extents(self, tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
        """The sizes of windowed inputs in the dims in which they have their own."""
        if not any(self.windowed):
            return ()
        leads = [kind == "split" for kind in self.kinds]
        return tuple(
            tuple(tensor.shape[dim + lead] for dim in dims)
            for tensor, dims, lead in zip(tensors, self.windowed, leads, strict=True)
        )

    def _result(
        self, position: int, output: OutputLayout, base: Sequence[int], tensors: Sequence[Tensor]
    ) -> Tensor:
        donor = tensors[self.donated[position]] if position in self.donated else None
        shape = output.shape(base)
        if donor is not None:
            strides = output.strides(shape)
            if output.is_layout_of(donor, self.kinds[self.donated[position]], base, strides):
                return donor.as_strided(shape, strides)
        return output.allocate(shape)

    def _base(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        assert self.reference is not None
        position, kind, steps = self.reference
        shape = tuple(tensors[position].shape)
        if kind == "split":
            return shape[1:]
        return (shape[0] // steps, *shape[1:]) if kind == "merged" else shape


class OutputLayout:
    """How one result of a region is allocated and addressed."""

    def __init__(self, spec: OutputSpec) -> None:
        value = tensor_value(spec.node)
        assert value is not None
        self.form = spec.form
        self.kept = spec.kept_dims
        self.dtype = value.dtype
        self.device = value.device
        self.order = _dense_order(value)

    def shape(self, base: Sequence[int]) -> tuple[int, ...]:
        """The result's shape over this base space."""
        if self.form is None:
            return tuple(base[d] for d in self.kept)
        if self.form.kind == "plain":
            return tuple(base)
        if self.form.kind == "split":
            return (self.form.steps, *base)
        return (self.form.steps * base[0], *base[1:])

    def strides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Strides without gaps, dimensions in the plain model's order."""
        strides = [1] * len(shape)
        step = 1
        for d in reversed(self.order):
            strides[d] = step
            step *= max(1, shape[d])
        return tuple(strides)

    def allocate(self, shape: Sequence[int]) -> Tensor:
        """Memory for the result."""
        return torch.empty_strided(shape, self.strides(shape), dtype=self.dtype, device=self.device)

    def layout(self, tensor: Tensor, base: Sequence[int]) -> Layout:
        """Strides of the result over time and the base space; 0 where it sums."""
        if self.form is None:
            strides = [0] * len(base)
            for d, stride in zip(self.kept, tensor.stride(), strict=True):
                strides[d] = stride
            return 0, tuple(strides)
        return _layout(tensor.stride(), self.form.kind, base)

    def is_layout_of(
        self, donor: Tensor, kind: str, base: Sequence[int], strides: tuple[int, ...]
    ) -> bool:
        """Whether the donor's elements lie where this result's elements would."""
        if self.form is None or donor.dtype != self.dtype:
            return False
        return input_layout(donor, kind, base) == _layout(strides, self.form.kind, base)


def input_layout(tensor: Tensor, kind: str, base: Sequence[int]) -> Layout:
    """Strides of a tensor over time and the base space, in elements; 0 where it broadcasts."""
    if kind == "merged":
        return _layout(tensor.stride(), kind, base)
    strides = [
        0 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    step = 0
    if kind == "split":
        step, strides = strides[0], strides[1:]
    return step, (*[0] * (len(base) - len(strides)), *strides)


def _layout(strides: tuple[int, ...], kind: str, base: Sequence[int]) -> Layout:
    if kind == "split":
        return strides[0], strides[1:]
    if kind == "merged":
        return base[0] * strides[0], strides
    return 0, strides


def _dense_order(value: Tensor) -> tuple[int, ...]:
    """Dimensions by falling stride, as in the plain model; row-major if that has gaps."""
    dims = tuple(range(value.dim()))
    if not all(isinstance(size, int) for size in value.shape):
        return dims
    order = stride_order(value)
    return order if is_dense(value, order) else dims
