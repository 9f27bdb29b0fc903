"""Fake tensors for the nodes of graphs from a file: regions are compiled from shapes and strides.

A file holds no shapes of inner nodes. They follow from those of the inputs, by running the graphs
on fake tensors; sizes that may vary are symbols again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from snnfx._torch_compat import FakeTensorMode, fake_mode_with_sizes
from snnfx.capture.halves import Halves, schedule_halves
from snnfx.errors import ExportError
from snnfx.exporting.signature import DTYPES, StepSignature
from snnfx.exporting.sizes import Symbols
from snnfx.exporting.step import Step
from snnfx.passes.fxgraph import node_value, output_args, set_value


def with_regions(step: Step) -> Step:
    """A step whose graphs are grouped into regions, as the backend groups them.

    Args:
        step: from a file; its nodes get values.

    Raises:
        ExportError: the graphs do not fit the signature.
    """
    mode = fake_mode_with_sizes()
    symbols = Symbols(mode)
    try:
        _run(step.forward, mode, _inputs(step.signature, symbols))
        if step.backward is not None:
            _run(step.backward, mode, _backward_inputs(step, mode))
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"the graphs of the file do not fit its signature: {error}") from error
    if step.backward is None or step.plan is None or not step.plan.applied:
        return step
    tangents = len(step.signature.tangents)
    halves = Halves(step.forward, step.backward, step.results, tangents, {}, fused=True)
    return dataclasses.replace(step, outlines=schedule_halves(halves).outlines)


def _run(module: GraphModule, mode: FakeTensorMode, inputs: list[Any]) -> None:
    FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
    for node, value in zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True):
        set_value(node, value)


def _inputs(signature: StepSignature, symbols: Symbols) -> list[Any]:
    inputs: list[Any] = []
    for spec in signature.primals:
        sizes = [s if isinstance(s, int) else signature.sizes[s][0] for s in spec.shape]
        example = torch.empty(sizes, dtype=DTYPES[spec.dtype], device="meta")
        inputs.append(symbols.fake(spec.shape, example, spec.order, spec.device))
    return inputs


def _backward_inputs(step: Step, mode: FakeTensorMode) -> list[Any]:
    results: list[Any] = [node_value(node) for node in output_args(step.forward.graph)]
    passed = results[step.results :]
    tensors = [value for value in passed if isinstance(value, Tensor)]
    numbers = [value for value in passed if not isinstance(value, Tensor)]
    first = len(step.signature.mutated)
    with mode:
        tangents = [
            torch.empty_like(results[first + t.output].permute(t.order)).permute(
                sorted(range(len(t.order)), key=t.order.__getitem__)
            )
            for t in step.signature.tangents
        ]
    return [*numbers, *tensors, *tangents]
