"""Modules traced over time steps, and run chunk by chunk for real.

State variables are those that a module keeps in `_memories`, as snnfx and SpikingJelly both do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from snnfx.passes.analysis.time_chunks import NotChunkable, StepRun, check_chunks

Tensors = tuple[Tensor, ...]


def slots(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Where the state variables of a module tree are."""
    stores = [m.__dict__["_memories"] for m in module.modules() if "_memories" in m.__dict__]
    return [(store, name) for store in stores for name in store]


def states_of(module: nn.Module) -> list[Any]:
    return [store[name] for store, name in slots(module)]


def set_states(module: nn.Module, values: Sequence[Any]) -> None:
    for (store, name), value in zip(slots(module), values, strict=True):
        store[name] = value


def as_tuple(outputs: Any) -> Tensors:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def trace(module: nn.Module, sequences: Tensors, states: Sequence[Any]) -> StepRun:
    """One run of the module from the given state; parameters and buffers count as constants."""
    module = copy.deepcopy(module)
    fixed = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    held = [state for state in states if isinstance(state, Tensor)]
    counts: list[int] = []
    left: list[bool] = []

    def run(constants: dict[str, Tensor], inputs: Tensors, tensors: list[Tensor]) -> Any:
        given = iter(tensors)
        set_states(module, [next(given) if isinstance(s, Tensor) else s for s in states])
        outputs = as_tuple(torch.func.functional_call(module, constants, inputs))
        after = states_of(module)
        counts.append(len(outputs))
        left[:] = [isinstance(state, Tensor) for state in after]
        return [*outputs, *(state for state in after if isinstance(state, Tensor))]

    graph = make_fx(run, tracing_mode="fake")(fixed, sequences, held).graph
    nodes = iter(graph.find_nodes(op="placeholder"))
    constants = {next(nodes): name for name in fixed}
    placed = tuple(next(nodes) for _ in sequences)
    states_in = tuple(next(nodes) if isinstance(s, Tensor) else None for s in states)
    found: list[Node] = list(graph.output_node().args[0])  # type: ignore[arg-type]
    after = iter(found[counts[-1] :])
    states_out = tuple(next(after) if is_tensor else None for is_tensor in left)
    steps = len(sequences[0])
    outputs = tuple(found[: counts[-1]])
    return StepRun(graph, steps, placed, states_in, outputs, states_out, constants)


def empty_states(run: StepRun, before: Sequence[Any]) -> list[Any]:
    """Tensors of the sizes of the state that a run leaves."""
    pairs = zip(run.states_out, before, strict=True)
    return [
        s if n is None else torch.zeros(n.meta["val"].shape, dtype=n.meta["val"].dtype)
        for n, s in pairs
    ]


def cut(sequences: Tensors, sizes: Sequence[int]) -> list[Tensors]:
    ends = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    return [tuple(x[start:stop].contiguous() for x in sequences) for start, stop in pairwise(ends)]


def check(module: nn.Module, sequences: Tensors, sizes: Sequence[int]) -> NotChunkable | None:
    """Whether the module is proven to run in chunks of these sizes."""
    states = states_of(module)
    whole, chunks = trace(module, sequences, states), []
    for chunk in cut(sequences, sizes):
        chunks.append(trace(module, chunk, states))
        states = empty_states(chunks[-1], states)
    return check_chunks(whole, chunks)


def differs(module: nn.Module, sequences: Tensors, sizes: Sequence[int]) -> float:
    """How far the outputs and states of really running chunk by chunk are from the whole's."""
    start = states_of(module)
    with torch.no_grad():
        return _distance(module, sequences, sizes, start)


def _distance(
    module: nn.Module, sequences: Tensors, sizes: Sequence[int], start: Sequence[Any]
) -> float:
    expected = [*as_tuple(module(*sequences)), *states_of(module)]
    set_states(module, start)
    parts = [as_tuple(module(*chunk)) for chunk in cut(sequences, sizes)]
    found = [*(torch.cat(part) for part in zip(*parts, strict=True)), *states_of(module)]
    set_states(module, start)
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs if isinstance(a, Tensor))
