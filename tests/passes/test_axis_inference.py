"""Time and batch, found in the example networks' graphs and in small ones made for the purpose."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

import snnfx
from snnfx.capture.offline import Capture, _copied
from snnfx.capture.pipeline import partition_joint
from snnfx.config import Options
from snnfx.passes.analysis.axes import AxisFacts, analyse_axis
from snnfx.passes.analysis.axis_inference import InferredAxis, infer_axes
from snnfx.passes.analysis.placement import Along, Mixed, Partial, Placement
from snnfx.passes.fxgraph import tensor_value
from snnfx.passes.rewrite.layout import prefer_channels_last

from examples.models import build
from tests.passes.axis_tiles import check_facts

aten, snn = torch.ops.aten, torch.ops.snnfx
BATCH = 3
NETWORKS = {
    "vgg8": {"steps": 8, "size": 16, "width": 0.0625},
    "sew_resnet18": {"steps": 4, "size": 32, "width": 0.0625},
    "spikformer": {"steps": 4, "size": 8, "width": 0.25, "depth": 1},
}
KINDS = ("joint", "eager forward", "eager backward", "inductor forward", "inductor backward")


@cache
def graphs(network: str) -> dict[str, tuple[GraphModule, Capture | None]]:
    """The joint graph of a network, and the halves that each lowering gets."""
    work = build(network, batch=BATCH, dtype=torch.float64, **NETWORKS[network])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captured = snnfx.capture(work.model, work.inputs)
    found: dict[str, tuple[GraphModule, Capture | None]] = {
        "joint": (captured.graph_module, captured)
    }
    for lowering in ("eager", "inductor"):
        joint, roles = _copied(captured.graph_module, captured.roles)
        halves = partition_joint(joint, roles, Options.parse({"lowering": lowering, "level": 1}))
        for name, half in (("forward", halves.forward), ("backward", halves.backward)):
            if lowering == "inductor":
                prefer_channels_last(half.graph)
            found[f"{lowering} {name}"] = (half, None)
    return found


def inferred(network: str, kind: str) -> tuple[Graph, InferredAxis]:
    module, captured = graphs(network)[kind]
    axes = infer_axes(module.graph, captured.roles if captured else None)
    assert axes.time is not None
    assert axes.batch is not None
    return module.graph, axes.time, axes.batch


def facts_of(graph: Graph, axis: InferredAxis) -> AxisFacts:
    return analyse_axis(graph, axis.size, axis.seeds)


every_graph = [
    pytest.mark.parametrize("network", NETWORKS),
    pytest.mark.parametrize("kind", KINDS),
]


def on_every_graph(test: Callable[..., None]) -> Callable[..., None]:
    for mark in every_graph:
        test = mark(test)
    return test


@on_every_graph
def test_time_and_batch_are_found_in_every_graph_of_a_network(network: str, kind: str) -> None:
    _, time, batch = inferred(network, kind)
    assert time.size == NETWORKS[network]["steps"]
    assert batch.size == BATCH


@on_every_graph
def test_every_tensor_of_samples_is_sliced_along_the_batch(network: str, kind: str) -> None:
    graph, _, batch = inferred(network, kind)
    facts = facts_of(graph, batch)
    kinds = Counter(
        type(facts.of(node)).__name__
        for node in graph.nodes
        if node.op == "call_function" and has_samples(node)
    )
    assert kinds["Along"] >= 0.99 * sum(kinds.values()) > 100


def has_samples(node: Node) -> bool:
    """Whether some dimension is N or T*N; channels and sizes of the networks are powers of two.

    Not those of weights: kernels are three by three, and so their patches are multiples of nine.
    """
    value = tensor_value(node)
    if value is None or value.shape[-2:] == (3, 3):
        return False
    return any(size % BATCH == 0 and size % 9 for size in value.shape)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", ["joint", "eager backward", "inductor backward"])
def test_convolutions_hand_back_sliced_gradients_and_partial_weights(
    network: str, kind: str
) -> None:
    graph, time, batch = inferred(network, kind)
    calls = graph.find_nodes(op="call_function", target=aten.convolution_backward.default)
    assert len(calls) > 7
    for axis in (time, batch):
        facts = facts_of(graph, axis)
        for call in calls:
            needs_input, needs_weight, _ = call.args[-1]
            timed = axis is batch or call.args[0] in time.placements
            assert not (needs_input and timed) or isinstance(facts.of_result(call, 0), Along)
            assert not (needs_weight and timed) or isinstance(facts.of_result(call, 1), Partial)


@pytest.mark.parametrize("network", NETWORKS)
def test_data_saved_tensors_and_tangents_are_seeds_and_parameters_are_not(network: str) -> None:
    _, captured = graphs(network)["joint"]
    assert captured is not None
    _, _, batch = inferred(network, "joint")
    names = dict(zip(captured.names, captured.roles.primals, strict=True))
    seeded = {node for node in batch.seeds if node.op == "placeholder"}
    data = {names[name] for name in captured.inputs} | set(captured.roles.tangents)
    assert seeded == data
    graph, _, batch = inferred(network, "eager backward")
    packed = [n for n in graph.find_nodes(op="placeholder") if "pack_bits" in n.name]
    assert len(packed) > 7
    assert all(node in batch.seeds for node in packed)
    by_time = [node for node in packed if "time" in {user.args[4] for user in node.users}]
    assert {batch.seeds[node] for node in by_time} == {Placement(1, 1, 1)}


@pytest.mark.parametrize(
    ("network", "kind"),
    [("vgg8", "inductor backward"), ("spikformer", "eager forward"), ("spikformer", KINDS[2])],
)
def test_what_is_claimed_of_a_network_holds_slice_by_slice(network: str, kind: str) -> None:
    graph, time, batch = inferred(network, kind)
    real = with_real_tensors(graph)
    for axis in (batch, time):
        seeds = {real[node]: placement for node, placement in axis.seeds.items()}
        copy = next(iter(real.values())).graph
        facts = analyse_axis(copy, axis.size, seeds)
        check_facts(copy, facts, seeds, 1)


def with_real_tensors(graph: Graph) -> dict[Node, Node]:
    """A copy of a graph that was run on random inputs; its nodes by the originals."""
    copies: dict[Node, Node] = {}
    copy = Graph()
    generator = torch.Generator().manual_seed(0)
    for node in graph.nodes:
        copies[node] = copy.node_copy(node, copies.__getitem__)
        if node.op == "placeholder":
            copies[node].meta["val"] = random_like(node.meta["val"], generator)
        elif node.op == "call_function":
            args, kwargs = torch.fx.node.map_arg(
                (copies[node].args, copies[node].kwargs), lambda n: n.meta["val"]
            )
            copies[node].meta["val"] = node.target(*args, **kwargs)
    return copies


def random_like(fake: Tensor, generator: torch.Generator) -> Tensor:
    if fake.is_floating_point():
        return torch.rand(fake.shape, generator=generator, dtype=fake.dtype)
    return torch.randint(0, 200, fake.shape, generator=generator).to(fake.dtype)


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad / (1 + x * x)


def neurons(x: Tensor) -> Tensor:
    """Leaky neurons over the first dimension."""
    state, spikes = torch.zeros_like(x[0]), []
    for step in x.unbind(0):
        state = 0.5 * state + step
        spikes.append(Spike.apply(state - 0.2))
    return torch.stack(spikes)


def traced(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Graph:
    inputs = [torch.randn(shape) for shape in shapes]
    return make_fx(function, tracing_mode="fake")(*inputs).graph


def test_a_perceptron_has_its_batch_beside_time() -> None:
    def net(x: Tensor, weight: Tensor) -> Tensor:
        return neurons(neurons(x).flatten(0, 1).mm(weight).view(5, 6, 7))

    axes = infer_axes(traced(net, (5, 6, 4), (4, 7)))
    assert axes.time is not None
    assert axes.batch is not None
    assert (axes.time.size, axes.batch.size) == (5, 6)
    assert [p for n, p in axes.batch.seeds.items() if n.op == "placeholder"] == [Placement(1, 1, 1)]


def test_a_loop_around_whole_layers_is_a_time_loop() -> None:
    def net(x: Tensor, weight: Tensor) -> Tensor:
        state, spikes = torch.zeros(6, 3, 8, 8), []
        for t in range(5):
            state = 0.5 * state + torch.conv2d(x[t], weight, None, 1, 1)
            spikes.append((torch.conv2d(state, weight, None, 1, 1) > 0).float())
        return torch.stack(spikes)

    axes = infer_axes(traced(net, (5, 6, 3, 8, 8), (3, 3, 3, 3)))
    assert axes.time is not None
    assert axes.batch is not None
    assert (axes.time.size, axes.batch.size) == (5, 6)


def test_parts_that_do_not_feed_one_another_are_no_time() -> None:
    def colours(x: Tensor) -> Tensor:
        return torch.stack([channel * 2 for channel in x.unbind(1)], 1)

    def attention(x: Tensor) -> Tensor:
        query, key, value = x.unbind(0)
        scores = (query @ key.transpose(1, 2)).softmax(-1)
        return torch.stack([scores @ value, scores @ query, scores @ key])

    for graph in (traced(colours, (4, 3, 8, 8)), traced(attention, (3, 4, 5, 6))):
        assert infer_axes(graph).time is None
        assert infer_axes(graph).batch is None


def test_two_candidates_for_time_are_none() -> None:
    graph = traced(lambda x, y: neurons(x).sum() + neurons(y).sum(), (4, 3), (5, 3))
    assert infer_axes(graph).time is None


def test_convolutions_that_disagree_about_the_batch_leave_it_open() -> None:
    def net(x: Tensor, weight: Tensor) -> Tensor:
        whole = torch.conv2d(neurons(x).flatten(0, 1), weight)
        tiles = torch.conv2d(neurons(x).view(20, 4, 4, 8), weight)
        return neurons(whole.view(5, 2, 4, 8, 8)).sum() + neurons(tiles.view(5, 4, 4, 4, 8)).sum()

    axes = infer_axes(traced(net, (5, 2, 4, 8, 8), (4, 4, 1, 1)))
    assert axes.time is not None
    assert axes.batch is None


def test_symbolic_sizes_are_declined() -> None:
    inputs = (torch.randn(5, 6, 4, 8, 8), torch.randn(4, 4, 1, 1))
    graph = make_fx(
        lambda x, w: neurons(torch.conv2d(neurons(x).flatten(0, 1), w).view(x.shape)),
        tracing_mode="symbolic",
    )(*inputs).graph
    axes = infer_axes(graph)
    assert axes.time is None
    assert axes.batch is None


def test_a_part_is_seeded_with_what_it_reads() -> None:
    graph, _, batch = inferred("vgg8", "eager forward")
    first, second = graph.find_nodes(op="call_function", target=aten.convolution.default)[:2]
    nodes = list(graph.nodes)
    part = nodes[nodes.index(first) + 1 : nodes.index(second) + 1]
    seeds = batch.seeds_for(part)
    assert first in seeds
    facts = analyse_axis(part, batch.size, seeds)
    assert isinstance(facts.of(second), Mixed)  # a batch norm lies between
    after = part[part.index(next(n for n in part if n.target is aten.unbind.int)) :]
    facts = analyse_axis(after, batch.size, batch.seeds_for(after))
    assert facts.of(second) == Along(batch.placements[second])
