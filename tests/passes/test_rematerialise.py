"""Anchored rematerialisation: what passes from forward to backward, and that no number changes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

import snnfx.kernels.ops  # noqa: F401  # registers the packing
from snnfx.capture.trace import JointTrace, fake_arguments
from snnfx.neurons import IFNode, LIFNode
from snnfx.passes.analysis.packs import Pack, find_packs
from snnfx.passes.analysis.value_range import analyse_value_ranges
from snnfx.passes.cost.graph import build_cost_graph
from snnfx.passes.fxgraph import JointRoles, ancestors, node_value, tensor_value
from snnfx.passes.plan.segments import choose_checkpoints
from snnfx.passes.rewrite.rematerialise import RematerialiseResult, rematerialise

T, N = 4, 8
PACK, UNPACK = torch.ops.snnfx.pack_bits.default, torch.ops.snnfx.unpack_bits.default
# Dynamo itself makes such an instance to trace an autograd.Function.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)


class Layers(nn.Module):
    """Linear layers with neurons, for `[T, N, 12]`; with norms and a residual if asked for."""

    def __init__(self, depth: int, norm: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(12, 12) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(12) if norm else nn.Identity() for _ in range(depth)
        )
        self.neurons = nn.ModuleList(
            (LIFNode if i % 2 else IFNode)(step_mode="m") for i in range(depth)
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm, neuron in zip(self.linears, self.norms, self.neurons, strict=True):
            current = norm(linear(x.flatten(0, 1))).unflatten(0, (T, N))
            spikes = neuron(current * 3)
            x = x + spikes if self.residual else spikes
        return x.sum(0)


class Pooled(nn.Module):
    """Spikes that are averaged two by two, and then read by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 64)
        self.neurons = nn.ModuleList(LIFNode(step_mode="m") for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 3, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, 12]` to `[N, 12]`."""
        spikes = self.neurons[0](3 * self.linear(x))
        pooled = nn.functional.avg_pool2d(spikes.view(T * N, 4, 4, 4), 2)
        first, second = (convolution(pooled) for convolution in self.convolutions)
        return self.neurons[1]((first * second + first).view(T, N, 12) * 9).sum(0)


@dataclass
class Rewritten:
    """A joint graph before and after."""

    joint: GraphModule
    roles: JointRoles
    inputs: list[Any]
    expected: list[Any]
    packs: tuple[Pack, ...]
    result: RematerialiseResult


def traced(model: nn.Module) -> JointTrace:
    with fake_arguments(model, (torch.randn(T, N, 12),), torch.device("cpu")) as args:
        return JointTrace(model, args)


def run(joint: GraphModule, inputs: Sequence[Any]) -> list[Any]:
    copies = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
    return list(Interpreter(joint).run(*copies, enable_io_processing=False))


@functools.cache
def rewritten(net: str, compress: bool = True, fused: bool = False) -> Rewritten:
    """A net of `NETS`, rewritten; what is given must not be changed."""
    trace = traced(NETS[net]())
    joint, roles = trace.joint, trace.roles
    inputs = [stand_in(n) for n in joint.graph.find_nodes(op="placeholder")]
    expected = run(joint, inputs)
    ranges = analyse_value_ranges(joint.graph)
    cost = build_cost_graph(joint.graph, roles, ranges, compress)
    checkpoints = choose_checkpoints(cost)
    nodes = {node.name: node for node in joint.graph.nodes}
    packs = find_packs([nodes[name] for name in checkpoints.kept], ranges) if compress else ()
    recomputed = [nodes[name] for name in checkpoints.recomputed]
    result = rematerialise(joint.graph, roles, recomputed, packs, fused)
    joint.graph.lint()
    return Rewritten(joint, roles, inputs, expected, packs, result)


def stand_in(node: Node) -> Any:
    """Numbers for a placeholder."""
    value = node_value(node)
    if not isinstance(value, Tensor):
        return value
    numbers = torch.randn(tuple(value.shape))
    return numbers.to(value.dtype)


NETS = {
    "two layers": lambda: Layers(2),
    "norms": lambda: Layers(2, norm=True),
    "residuals": lambda: Layers(2, residual=True),
    "norms and residuals": lambda: Layers(3, norm=True, residual=True),
    "pooling": Pooled,
}
every_net = pytest.mark.parametrize("net", NETS)


@every_net
@pytest.mark.parametrize("compress", [True, False])
def test_no_number_changes(net: str, compress: bool) -> None:
    assert_same_numbers(rewritten(net, compress))


def assert_same_numbers(done: Rewritten) -> None:
    assert done.result.clones > 0
    found = run(done.joint, done.inputs)
    for one, other in zip(found, done.expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert any(t is not None and t.abs().sum() > 0 for t in found[1:])


@every_net
def test_forward_and_backward_share_only_what_is_saved(net: str) -> None:
    done = rewritten(net)
    backward, saved = done.result.backward, set(done.result.saved)
    allowed = backward | saved | set(done.roles.tangents)
    for node in done.joint.graph.nodes:
        if node in backward:
            assert allowed.issuperset(node.all_input_nodes), node
        elif node.op != "output":
            assert backward.isdisjoint(node.all_input_nodes), node
    assert saved.isdisjoint(backward)
    assert backward.isdisjoint(n for n in done.roles.forward_outputs if n is not None)


@every_net
def test_spikes_pass_packed_and_only_packed(net: str) -> None:
    done = rewritten(net)
    saved = done.result.saved
    packed = [n for n in saved if n.target is PACK]
    assert len(packed) == len(done.packs) == done.result.packs > 0
    assert {tensor_value(n).dtype for n in packed} == {torch.uint8}  # type: ignore[union-attr]
    hidden = {member for pack in done.packs for member in (pack.source, *pack.members)}
    assert hidden.isdisjoint(saved)
    assert not any(n.target is UNPACK for n in saved)


def pooled_values(done: Rewritten) -> list[Node]:
    """The clones of the pooling that something reads."""
    pool = torch.ops.aten.avg_pool2d.default
    return [n for n in done.result.backward if n.target is pool and n.users]


def test_pooled_values_are_shared_by_their_readers_where_operators_pool() -> None:
    (pooled,) = pooled_values(rewritten("pooling"))
    assert len(pooled.users) == 4  # two convolutions, again, and their gradients


def test_pooled_values_are_pooled_for_each_reader_where_regions_do_it() -> None:
    done = rewritten("pooling", fused=True)
    pooled = pooled_values(done)
    assert len({reader for node in pooled for reader in node.users}) == len(pooled) == 4
    unpacked = [{n for n in ancestors([p]) if n.target is UNPACK} for p in pooled]
    assert len(frozenset[Node]().union(*unpacked)) == 4
    assert_same_numbers(done)


@every_net
def test_the_backward_computes_its_values_after_the_forward(net: str) -> None:
    done = rewritten(net)
    position = {node: i for i, node in enumerate(done.joint.graph.nodes)}
    last = max(position[n] for n in done.roles.forward_outputs if n is not None)
    restored = [n for n in done.result.backward if n.target is UNPACK]
    assert restored
    assert all(position[node] > last for node in restored)


def test_doing_it_again_changes_nothing() -> None:
    done = rewritten.__wrapped__("two layers")
    before = str(done.joint.graph)
    again = rematerialise(done.joint.graph, done.roles, (), ())
    assert str(done.joint.graph) == before
    assert (again.clones, again.packs) == (0, 0)


def test_old_statistics_are_not_saved() -> None:
    done = rewritten("norms")
    assert done.roles.mutated
    assert done.roles.mutated.isdisjoint(done.result.saved)


def describe(node: Node) -> str:
    value = tensor_value(node)
    assert value is not None
    dtype = str(value.dtype).removeprefix("torch.")
    target = node.op if node.op == "placeholder" else str(node.target)
    return f"{target} {dtype}{list(value.shape)}"


def test_two_layers_save_their_inputs_their_weights_and_bits() -> None:
    saved = rewritten("two layers").result.saved
    assert sorted(describe(node) for node in saved) == [
        "placeholder float32[12, 12]",
        "placeholder float32[12, 12]",
        "placeholder float32[12]",
        "placeholder float32[12]",
        "placeholder float32[4, 8, 12]",
        "snnfx.pack_bits.default uint8[1, 8, 12]",
        "snnfx.pack_bits.default uint8[1, 8, 12]",
    ]
