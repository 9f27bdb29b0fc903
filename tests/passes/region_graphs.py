"""Graphs built by hand, run op by op and through regions whose programs torch evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

from snnfx.kernels.region_ir import Buffer, ChannelSum, Program
from snnfx.kernels.region_layout import Layout
from snnfx.kernels.region_reference import run_reference
from snnfx.lowering import outer
from snnfx.passes.fxgraph import set_value, tensor_value
from snnfx.passes.rewrite.builder import GraphBuilder
from snnfx.passes.rewrite.layout import prefer_channels_last
from snnfx.passes.rewrite.regions import Region, find_regions

aten = torch.ops.aten
T = 3
SHAPE = (2, 4, 5, 16)


class HandMade:
    """A graph under construction, with the tensors that its placeholders stand for."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.inputs: list[Tensor] = []
        self.mode = FakeTensorMode()

    def input(self, tensor: Tensor) -> Node:
        node = self.graph.placeholder(f"in{len(self.inputs)}")
        set_value(node, self.mode.from_tensor(tensor))
        self.inputs.append(tensor)
        return node

    def call(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        first = next(iter(self.graph.nodes))
        return GraphBuilder(self.graph, first).call(target, *args, **kwargs)

    def finish(self, *results: Node | Sequence[Node]) -> GraphModule:
        self.graph.output(results)
        self.graph.lint()
        return GraphModule(nn.Module(), self.graph)


class TorchKernel:
    """A region's program, evaluated by torch; called as `region_build.RegionKernel` is."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __call__(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        base_sizes: tuple[int, ...],
        input_layouts: Sequence[Layout],
        output_layouts: Sequence[Layout],
        extents: Sequence[Sequence[int]] = (),
    ) -> None:
        program = self.program
        own = extents or [()] * len(program.inputs)
        sums = {i.output for i in program.instructions if isinstance(i, ChannelSum)}
        sources = [
            _slices(t, layout, program.input_steps(i), _own_sizes(buffer, base_sizes, sizes))
            for i, (t, layout, buffer, sizes) in enumerate(
                zip(inputs, input_layouts, program.inputs, own, strict=True)
            )
        ]
        targets = [
            _slices(t, layout, (0,) if i in sums else program.output_steps(i), base_sizes)
            for i, (t, layout) in enumerate(zip(outputs, output_layouts, strict=True))
        ]
        run_reference(program, sources, targets, base_sizes)


def _own_sizes(
    buffer: Buffer, base_sizes: tuple[int, ...], extents: Sequence[int]
) -> tuple[int, ...]:
    own = dict(zip(buffer.windowed, extents, strict=True))
    return tuple(own.get(dim, size) for dim, size in enumerate(base_sizes))


def _slices(
    tensor: Tensor, layout: Layout, steps: Sequence[int], base_sizes: tuple[int, ...]
) -> Tensor:
    """The view ``[steps, *base]`` that a layout describes."""
    step, strides = layout
    return tensor.as_strided((max(steps, default=0) + 1, *base_sizes), (step, *strides))


@contextmanager
def evaluated_by_torch() -> Iterator[list[Program]]:
    """Regions are evaluated by torch, so that nothing is compiled; gives the programs asked for."""
    asked: list[Program] = []

    def compile_many(programs: Sequence[Program]) -> list[TorchKernel]:
        asked.extend(programs)
        return [TorchKernel(program) for program in programs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outer, "compile_many", compile_many)
        patch.setattr(outer, "_kernels", {})
        yield asked


def lowered(module: GraphModule, driving: Sequence[Node] | None = None) -> GraphModule:
    """The outer graph of a graph that follows from all its inputs."""
    placeholders = module.graph.find_nodes(op="placeholder")
    prefer_channels_last(module.graph)
    outlined = outer.outline(module.graph, placeholders if driving is None else driving)
    return outer.compile_outline(module, outlined)


def regions_of(module: GraphModule) -> tuple[Region, ...]:
    return find_regions(module.graph, module.graph.find_nodes(op="placeholder")).regions


def targets_inside(module: GraphModule) -> set[object]:
    """The operators that regions took in."""
    return {node.target for region in regions_of(module) for node in region.nodes}


def run_both(module: GraphModule, inputs: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Results of the graph op by op, and of its outer graph, from the same random state."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    expected = module(*[_copy(x) for x in inputs])
    torch.manual_seed(0)
    found = lowered(module)(*[_copy(x) for x in inputs])
    torch.random.set_rng_state(state)
    return _flat(expected), _flat(found)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [tensor for item in results for tensor in _flat(item) if tensor is not None]


def spikes(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros and ones, about as many of each."""
    return (torch.rand(shape) < 0.5).to(dtype)


def value_of(node: Node) -> Tensor:
    value = tensor_value(node)
    assert value is not None
    return value


Wrapper = Callable[[HandMade, Sequence[Node], Callable[[Sequence[Node]], Node]], Node]


def in_one(net: HandMade, operands: Sequence[Node], apply: Callable[..., Node]) -> Node:
    """All time steps at once; one slice is taken elsewhere, so that steps are slices."""
    return apply(operands)


def by_step(net: HandMade, operands: Sequence[Node], apply: Callable[..., Node]) -> Node:
    """Step by step, put together again."""
    steps = [
        apply([net.call(aten.select.int, operand, 0, t) for operand in operands]) for t in range(T)
    ]
    return net.call(aten.stack.default, steps)


def merged(net: HandMade, operands: Sequence[Node], apply: Callable[..., Node]) -> Node:
    """With time and batch in one dimension."""
    flat = [T * SHAPE[0], *SHAPE[1:]]
    whole = apply([net.call(aten.view.default, operand, flat) for operand in operands])
    return net.call(aten.view.default, whole, [T, *SHAPE])


FORMS: dict[str, Wrapper] = {"split": in_one, "steps": by_step, "merged": merged}
