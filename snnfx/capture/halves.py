"""The two halves of a planned step, and how they run: what levels 2 to 4 measure and change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch.fx import Graph, GraphModule, Node

import snnfx.kernels.ops  # noqa: F401  # pyright: ignore[reportUnusedImport]  # registers operators
from snnfx.capture.timeline import recorded, step_timeline
from snnfx.lowering.outer import Outline, outline
from snnfx.passes.analysis.drivers import find_drivers
from snnfx.passes.analysis.value_range import Encoding
from snnfx.passes.cost.roofline import device_of, graph_seconds
from snnfx.passes.fxgraph import (
    copied_module,
    has_static_shape,
    is_symbol,
    last_placeholders,
    node_value,
    output_args,
    set_value,
    stride_order,
    tensor_value,
)
from snnfx.passes.plan.memory_plan import Timeline
from snnfx.passes.rewrite.builder import GraphBuilder


@dataclass(frozen=True)
class Halves:
    """A forward and a backward, as they are compiled.

    Attributes:
        forward: its results after the first `outputs` are saved: tensors, then symbols.
        backward: its placeholders are saved symbols, saved tensors, then `tangents` gradients.
        outputs: results of the forward that go to the caller.
        tangents: gradients that the backward starts from.
        origins: for the name of a node of the backward that computes a value of the forward again,
            the name of that value.
        fused: whether pointwise work will be compiled as regions.
        encodings: for the name of a value that is computed again, how it can be packed.
    """

    forward: GraphModule
    backward: GraphModule
    outputs: int
    tangents: int
    origins: Mapping[str, str]
    fused: bool
    encodings: Mapping[str, Encoding] = field(default_factory=dict)

    @property
    def is_static(self) -> bool:
        """Whether all sizes are numbers."""
        nodes = (n for half in (self.forward, self.backward) for n in half.graph.nodes)
        return all(has_static_shape(n) for n in nodes if tensor_value(n) is not None)

    def driving(self, half: GraphModule) -> list[Node]:
        """The placeholders whose dependents set the pace of a half."""
        if half is self.forward:
            return half.graph.find_nodes(op="placeholder")
        return find_drivers(half.graph, last_placeholders(half.graph, self.tangents))

    def copy(self, *, forward: bool = True) -> Halves:
        """The same with graphs of its own, to try something on.

        Names that the backward no longer has are free in the copy: whoever takes one there is not
        what it stood for.

        Args:
            forward: False shares the forward, which is then not to be changed.
        """
        names = {node.name for node in self.backward.graph.nodes}
        origins = {name: value for name, value in self.origins.items() if name in names}
        first = copied_module(self.forward) if forward else self.forward
        return replace(self, forward=first, backward=copied_module(self.backward), origins=origins)


@dataclass(frozen=True)
class Schedule:
    """How two halves run.

    Attributes:
        forward: operators and regions in the order in which they run.
        backward: the same of the backward.
        outlines: of both, where there are regions.
        timeline: predicted bytes at each point.
        seconds: predicted time of a step.
    """

    forward: Graph
    backward: Graph
    outlines: tuple[Outline, Outline] | None
    timeline: Timeline
    seconds: float

    def recorded(self, halves: Halves) -> Timeline:
        """The timeline with a record of each storage."""
        ends = (halves.outputs, halves.tangents)
        return recorded(self.timeline, self.forward, self.backward, *ends)


def schedule_halves(halves: Halves, like: Schedule | None = None) -> Schedule:
    """Decide how two halves run, and predict what that needs; compiles nothing.

    Args:
        halves: what is to run.
        like: the schedule of halves from which these were made, which saves time.
    """
    graphs = (halves.forward.graph, halves.backward.graph)
    outlines = None
    if halves.fused:
        before = like.outlines if like is not None and like.outlines else (None, None)
        first = before[0]
        if first is None or first.source is not halves.forward.graph:
            first = outline(halves.forward.graph, halves.driving(halves.forward), first)
        second = outline(halves.backward.graph, halves.driving(halves.backward), before[1])
        outlines = (first, second)
        graphs = (first.graph, second.graph)
    device = device_of(halves.forward.graph)
    timeline = step_timeline(*graphs, halves.outputs, halves.tangents)
    seconds = sum(graph_seconds(graph, device) for graph in graphs)
    return Schedule(*graphs, outlines, timeline, seconds)


def keep_values(halves: Halves, names: tuple[str, ...]) -> None:
    """Save values of the forward, so that the backward does not compute them again.

    Args:
        halves: changed in place.
        names: values of the forward of which the backward has clones.
    """
    forward = {node.name: node for node in halves.forward.graph.nodes}
    kept = [forward[name] for name in names]
    saved = _add_placeholders(halves.backward.graph, kept)
    _pass_on(halves, kept, dict(zip(names, saved, strict=True)))


def keep_packed(halves: Halves, name: str, encoding: Encoding) -> None:
    """Save one value of the forward packed, so that the backward does not compute it again.

    Args:
        halves: changed in place.
        name: a value of the forward of which the backward has clones.
        encoding: that is proven of it.
    """
    value = next(node for node in halves.forward.graph.nodes if node.name == name)
    fake = tensor_value(value)
    assert fake is not None
    order = stride_order(fake)
    codes = (encoding.bits, "flat", encoding.scale, encoding.lo)
    build = GraphBuilder(halves.forward.graph, value)
    with halves.forward.graph.inserting_after(value):
        dense = build.call(torch.ops.aten.permute.default, value, list(order))
    with halves.forward.graph.inserting_after(dense):
        packed = build.call(torch.ops.snnfx.pack_bits.default, dense, *codes)
    graph = halves.backward.graph
    (saved,) = _add_placeholders(graph, [packed])
    build = GraphBuilder(graph, saved)
    clone = next(n for n in graph.nodes if halves.origins.get(n.name) == name)
    with graph.inserting_before(clone):
        shape = [int(fake.shape[d]) for d in order]
        args = (saved, shape, fake.dtype, *codes)
        unpacked = build.call(torch.ops.snnfx.unpack_bits.default, *args)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        restored = build.call(torch.ops.aten.permute.default, unpacked, inverse)
    _pass_on(halves, [packed], {name: restored})


def _pass_on(halves: Halves, kept: Sequence[Node], instead: Mapping[str, Node]) -> None:
    """Return further values from the forward; the backward reads them instead of clones."""
    graph = halves.backward.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and halves.origins.get(node.name) in instead:
            node.replace_all_uses_with(instead[halves.origins[node.name]])
    results = output_args(halves.forward.graph)
    own, passed = results[: halves.outputs], results[halves.outputs :]
    _set_results(halves.forward.graph, [*own, *kept, *passed])
    graph.eliminate_dead_code()
    _drop_unread(halves)
    for half in (halves.forward, halves.backward):
        half.graph.lint()


def _add_placeholders(graph: Graph, sources: Sequence[Node]) -> list[Node]:
    """Further saved tensors of the backward: behind its symbols, in front of its tensors.

    There they keep AOTAutograd's order of saved tensors, in which special ones come last.
    """
    first = next(n for n in graph.nodes if not (n.op == "placeholder" and is_symbol(n)))
    added: list[Node] = []
    for source in sources:
        with graph.inserting_before(first):
            added.append(graph.placeholder(source.name))
        set_value(added[-1], node_value(source))
    return added


def _drop_unread(halves: Halves) -> None:
    """Save nothing that the backward no longer reads."""
    graph = halves.backward.graph
    placeholders = graph.find_nodes(op="placeholder")
    saved = placeholders[: len(placeholders) - halves.tangents]
    unread = {node.name for node in saved if not node.users and tensor_value(node) is not None}
    for node in saved:
        if node.name in unread:
            graph.erase_node(node)
    results = output_args(halves.forward.graph)
    own, passed = results[: halves.outputs], results[halves.outputs :]
    kept = [r for r in passed if not (isinstance(r, Node) and r.name in unread)]
    _set_results(halves.forward.graph, [*own, *kept])
    halves.forward.graph.eliminate_dead_code()


def _set_results(graph: Graph, results: list[object]) -> None:
    graph.output_node().args = (tuple(results),)  # type: ignore[assignment]
