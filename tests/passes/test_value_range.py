"""What the value-range analysis proves about spiking networks, and what it leaves alone."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch._inductor.lowering
import torch.nn.functional as F
from torch._decomp import core_aten_decompositions
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import default_partition
from torch._inductor.decomposition import select_decomp_table
from torch.func import functionalize
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from snnfx.kernels.ops import pack_bits, unpack_bits
from snnfx.passes.analysis.dataflow import written_nodes
from snnfx.passes.analysis.grid import BINARY, Grid
from snnfx.passes.analysis.value_range import Encoding, ValueRanges, analyse_value_ranges

aten = torch.ops.aten
DIALECTS: dict[str, Callable[[], dict[Any, Any]]] = {
    "raw": dict,
    "core": core_aten_decompositions,
    "inductor": select_decomp_table,
}
TERNARY = Grid(Fraction(1), -1, 1)
QUARTERS = Grid(Fraction(1, 4), 0, 4)


@pytest.fixture(params=list(DIALECTS))
def dialect(request: pytest.FixtureRequest) -> dict[Any, Any]:
    """A table of decompositions: none, the core ATen ones, or Inductor's."""
    return DIALECTS[request.param]()


def trace(
    function: Callable[..., Any], *inputs: torch.Tensor, table: dict[Any, Any], mode: str = "fake"
) -> GraphModule:
    return make_fx(functionalize(function), decomposition_table=table, tracing_mode=mode)(*inputs)


def results_of(graph: Graph) -> list[Node]:
    (output,) = graph.find_nodes(op="output")
    value = output.args[0]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def ranges_of_results(
    function: Callable[..., Any], *inputs: torch.Tensor, table: dict[Any, Any] | None = None
) -> tuple[ValueRanges, list[Node]]:
    graph = trace(function, *inputs, table=table or {}).graph
    return analyse_value_ranges(graph), results_of(graph)


def grids(
    function: Callable[..., Any], *inputs: torch.Tensor, table: dict[Any, Any] | None = None
) -> list[Grid | None]:
    ranges, results = ranges_of_results(function, *inputs, table=table)
    return [ranges.grid(node) for node in results]


def spike(x: torch.Tensor) -> torch.Tensor:
    return (x >= 0).to(x)


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, dtype=dtype)


class Surrogate(torch.autograd.Function):
    """A spike with a gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] / (1 + x.abs()) ** 2


def surrogate_spike(x: torch.Tensor) -> torch.Tensor:
    return Surrogate.apply(x)


Fire = Callable[[torch.Tensor], torch.Tensor]


def neuron(x: torch.Tensor, *, hard: bool, fire: Fire = surrogate_spike) -> torch.Tensor:
    """Leaky neurons over ``x [T, ...]`` with hard or soft reset."""
    v = torch.zeros_like(x[0])
    spikes = []
    for step in x.unbind(0):
        h = v + (step - v) / 2.0
        s = fire(h - 1.0)
        v = h * (1.0 - s) if hard else h - s * 1.0
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
def test_spikes_of_neurons_are_binary_and_potentials_unknown(
    hard: bool, dialect: dict[Any, Any]
) -> None:
    def states(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        h = x[0] / 2.0
        s = spike(h - 1.0)
        v = h * (1.0 - s) if hard else h - s
        return torch.stack([s, spike(v)]), s, v

    assert grids(states, torch.randn(2, 5), table=dialect) == [BINARY, BINARY, None]


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*:DeprecationWarning")  # Dynamo's
@pytest.mark.parametrize("decomposed", [False, True], ids=["raw", "inductor"])
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
def test_spikes_are_proven_in_the_joint_graph_of_a_training_step(
    hard: bool, decomposed: bool
) -> None:
    graphs: list[Graph] = []

    def partition(module: GraphModule, inputs: Any, **options: Any) -> Any:
        graphs.append(module.graph)
        return default_partition(module, inputs, **options)

    def network(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = neuron(x @ w, hard=hard)
        return first, neuron(F.avg_pool1d(first, 2) + F.max_pool1d(first, 2), hard=hard)

    backend = aot_autograd(
        fw_compiler=lambda module, _: module,
        partition_fn=partition,
        decompositions=select_decomp_table() if decomposed else {},
    )
    x, w = torch.randn(4, 3, 8), torch.randn(8, 8, requires_grad=True)
    torch.compile(network, backend=backend, fullgraph=True)(x, w)
    (graph,) = graphs
    ranges = analyse_value_ranges(graph)
    assert [ranges.grid(node) for node in results_of(graph)[:2]] == [BINARY, BINARY]
    assert Grid(Fraction(1, 2), 0, 4) in [ranges.grid(node) for node in graph.nodes]
    for node in graph.find_nodes(op="placeholder"):
        assert ranges.grid(node) is None


def test_residual_sums_of_spikes_count_them(dialect: dict[Any, Any]) -> None:
    def blocks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = spike(x) + spike(x - 1)
        return first, first + spike(x + 1), first + first

    expected = [Grid(Fraction(1), 0, hi) for hi in (2, 3, 4)]
    assert grids(blocks, images(), table=dialect) == expected


def test_average_pooling_is_known_where_it_divides_by_a_power_of_two(
    dialect: dict[Any, Any],
) -> None:
    def pools(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = spike(x)
        return (
            F.avg_pool2d(s, 2),
            F.avg_pool2d(s, 4, padding=1),
            F.adaptive_avg_pool2d(s, 1),
            F.avg_pool2d(s, 3),
            F.avg_pool2d(s, 4, padding=1, count_include_pad=False),
            s.mean((2, 3)),
            s.mean((1, 2, 3)),
        )

    sixteenths, pixels = Grid(Fraction(1, 16), 0, 16), Grid(Fraction(1, 64), 0, 64)
    assert grids(pools, images(), table=dialect) == [
        *(QUARTERS, sixteenths, pixels),
        *(None, None, pixels, None),
    ]


def test_max_pooling_keeps_spikes(dialect: dict[Any, Any]) -> None:
    def pools(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = spike(x)
        return F.max_pool2d(s, 2), F.max_pool2d(s, 3, 2, 1), F.max_pool2d(x, 2)

    assert grids(pools, images(), table=dialect) == [BINARY, BINARY, None]


@pytest.mark.parametrize("probability", [0.5, 0.2, 0.1, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_dropout_of_spikes_has_two_levels(
    probability: float, dtype: torch.dtype, dialect: dict[Any, Any]
) -> None:
    def drop(x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.native_dropout(spike(x), probability, True)[0]

    kept = drop(torch.ones(256, dtype=dtype)).max().item()
    assert grids(drop, images(dtype), table=dialect) == [Grid(Fraction(kept), 0, 1)]


def test_dropout_as_mask_and_quotient_has_two_levels(dialect: dict[Any, Any]) -> None:
    def drop(x: torch.Tensor) -> torch.Tensor:
        return F.dropout(spike(x), 0.1, True)

    kept = drop(torch.ones(256)).max().item()
    assert grids(drop, images(), table=dialect) == [Grid(Fraction(kept), 0, 1)]


def test_dropout_elsewhere_is_known_where_its_kernels_agree() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, dtype=torch.bool, device="meta")
    s = graph.call_function(aten._to_copy.default, (x,), {"dtype": torch.float32})
    s.meta["val"] = torch.empty(4, device="meta")
    expected: dict[float, Grid | None] = {0.5: Grid(Fraction(2), 0, 1), 0.15: None}
    drops = {p: graph.call_function(aten.native_dropout.default, (s, p, True)) for p in expected}
    items = {}
    for p, drop in drops.items():
        drop.meta["val"] = [s.meta["val"], x.meta["val"]]
        items[p] = graph.call_function(operator.getitem, (drop, 0))
        items[p].meta["val"] = s.meta["val"]
    ranges = analyse_value_ranges(graph)
    assert {p: ranges.grid(item) for p, item in items.items()} == expected


def test_ternary_spikes(dialect: dict[Any, Any]) -> None:
    def ternary(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            spike(x - 1) - spike(-1 - x),
            torch.sign(x),
            torch.where(x > 1, 1.0, torch.where(x < -1, -1.0, 0.0)),
            spike(x) * 2 - 1,
        )

    ranges, results = ranges_of_results(ternary, images(), table=dialect)
    assert [ranges.grid(node) for node in results[:3]] == [TERNARY] * 3
    assert ranges.grid(results[3]) == TERNARY
    assert [ranges.encoding(node, strict=True) for node in results] == [Encoding(2, 1.0, -1)] * 4


def test_integer_valued_spikes_say_what_they_assume(dialect: dict[Any, Any]) -> None:
    def levels(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            torch.round(torch.clamp(x, 0, 4)),
            torch.floor(torch.clamp(x, 0, 4) + 0.5),
            torch.clamp(x, 1, 15).round(),
            torch.clamp(x, 0, 7).to(torch.uint8),
            torch.round(torch.clamp(x, min=0)),
        )

    ranges, results = ranges_of_results(levels, images(), table=dialect)
    assert [ranges.grid(node) for node in results] == [
        Grid(Fraction(1), 0, 4),
        None,
        Grid(Fraction(1), 1, 15),
        Grid(Fraction(1), 0, 7),
        None,
    ]
    claimed = [results[0], results[2], results[3]]
    assert [ranges.encoding(node) for node in claimed] == [
        Encoding(4, 1.0, 0),
        Encoding(4, 1.0, 1),
        Encoding(4, 1.0, 0),
    ]
    assert all(ranges.assumes_finite(node) for node in claimed)
    assert [ranges.loses_zero_sign(node) for node in claimed] == [True, False, False]
    assert [ranges.encoding(node, strict=True) for node in claimed] == [None] * 3


def test_products_of_spikes_are_spikes(dialect: dict[Any, Any]) -> None:
    def gates(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return spike(x) * spike(x - 1), spike(x) * (1 - spike(x - 1)), spike(x) * x

    assert grids(gates, images(), table=dialect) == [BINARY, BINARY, None]


def test_bool_tensors_are_binary_whatever_computes_them(dialect: dict[Any, Any]) -> None:
    def bools(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second = x > 0, x.isnan()
        return first + second, first ^ second, torch.isfinite(x), first.any(0), x.bool()

    assert grids(bools, images(), table=dialect) == [BINARY] * 5


def test_a_negated_spike_may_be_negative_zero(dialect: dict[Any, Any]) -> None:
    ranges, results = ranges_of_results(
        lambda x: (-spike(x), spike(x) * -1.0), images(), table=dialect
    )
    for node in results:
        assert ranges.grid(node) == Grid(Fraction(1), -1, 0)
        assert ranges.loses_zero_sign(node)
        assert ranges.encoding(node, strict=True) is None


def test_spike_beside_float_is_unknown(dialect: dict[Any, Any]) -> None:
    def join(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = spike(x)
        return torch.cat([s, x]), torch.stack([s, x]), torch.where(x > 0, s, x), torch.cat([s, s])

    assert grids(join, images(), table=dialect) == [None, None, None, BINARY]


def test_a_float_that_happens_to_hold_zeros_and_ones_is_unknown(dialect: dict[Any, Any]) -> None:
    buffer, looks_binary = torch.ones(3), torch.tensor([0.0, 1.0, 1.0])
    graph = trace(
        lambda x: (x * 1.0, x.clone(), buffer + 0), looks_binary, table=dialect, mode="real"
    ).graph
    ranges = analyse_value_ranges(graph)
    assert [ranges.grid(node) for node in results_of(graph)] == [None] * 3


def test_a_straight_through_estimate_is_unknown(dialect: dict[Any, Any]) -> None:
    def estimate(x: torch.Tensor) -> torch.Tensor:
        soft = torch.sigmoid(x)
        return (spike(x) - soft) + soft

    assert grids(estimate, images(), table=dialect) == [None]


def test_literals_are_constants(dialect: dict[Any, Any]) -> None:
    def literals(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.where(x > 0, torch.tensor(1.0), torch.tensor(0.0)), torch.tensor(0.1) * spike(
            x
        )

    tenth = Fraction(torch.tensor(0.1).item())
    assert grids(literals, images(), table=dialect) == [BINARY, Grid(tenth, 0, 1)]


def test_attention_between_spikes_counts_coincidences(dialect: dict[Any, Any]) -> None:
    def attention(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k = spike(x).flatten(2), spike(x - 1).flatten(2)
        scores = q[:, 0] @ k[:, 0].transpose(0, 1)
        return scores, scores * 0.125, scores @ x[:, 0].flatten(1)

    whole, eighths = Grid(Fraction(1), 0, 64), Grid(Fraction(1, 8), 0, 64)
    assert grids(attention, images(), table=dialect) == [whole, eighths, None]


def test_symbolic_sizes_do_not_stop_the_analysis() -> None:
    def network(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = spike(x).flatten(0, 1)
        return s.view(x.shape[0], -1), F.max_pool2d(s, 2), F.avg_pool2d(s, 2), s.sum(0)

    graph = trace(network, images(), table={}, mode="symbolic").graph
    ranges = analyse_value_ranges(graph)
    assert [ranges.grid(n) for n in results_of(graph)] == [BINARY, BINARY, QUARTERS, None]


def test_unpacking_is_known_from_its_arguments(dialect: dict[Any, Any]) -> None:
    def unpack(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        packed = pack_bits(x, 2, "flat", 0.25, -1)
        return packed, unpack_bits(packed, list(x.shape), x.dtype, 2, "flat", 0.25, -1)

    graph = make_fx(unpack, decomposition_table=dialect, tracing_mode="fake")(images()).graph
    ranges = analyse_value_ranges(graph)
    assert ranges.grid(results_of(graph)[1]) == Grid(Fraction(1, 4), -1, 2)


def test_seeds_are_taken_where_they_fit() -> None:
    graph = trace(lambda x, y: (x + 1, y + 1), torch.randn(3), torch.randn(3), table={}).graph
    x, y = graph.find_nodes(op="placeholder")
    seeds = {x: Grid(Fraction(1), 0, 3), y: Grid(Fraction(1, 3), 0, 1)}
    ranges = analyse_value_ranges(graph, seeds)
    assert ranges.encoding(x) == Encoding(2, 1.0, 0)
    assert [ranges.grid(node) for node in results_of(graph)] == [Grid(Fraction(1), 1, 4), None]


def test_what_is_written_in_place_is_unknown_with_its_aliases() -> None:
    def write(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s, other = spike(x), spike(x - 1)
        before = s.view(-1)
        s.mul_(x)
        return s, before, other

    graph = make_fx(write, tracing_mode="fake")(torch.randn(3)).graph
    assert written_nodes(graph)
    ranges = analyse_value_ranges(graph)
    assert [ranges.grid(node) for node in results_of(graph)] == [None, None, BINARY]


def test_calls_that_are_no_aten_ops_may_write_their_inputs() -> None:
    graph = trace(lambda x: spike(x), torch.randn(3), table={}).graph
    (result,) = results_of(graph)
    with graph.inserting_after(result):
        method = graph.call_method("add_", (result, result))
    assert result in written_nodes(graph)
    assert analyse_value_ranges(graph).grid(result) is None
    graph.erase_node(method)
    assert analyse_value_ranges(graph).grid(result) == BINARY


def test_wide_grids_have_no_encoding() -> None:
    def counts(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        s = spike(x)
        return s.sum((0, 1)), s.sum((0, 1, 2))

    ranges, results = ranges_of_results(counts, torch.randn(4, 16, 16))
    assert [ranges.encoding(node) for node in results] == [Encoding(8, 1.0, 0), None]
    assert ranges.grid(results[1]) == Grid(Fraction(1), 0, 1024)


def test_nodes_of_another_graph_are_unknown() -> None:
    ranges, _ = ranges_of_results(spike, torch.randn(3))
    _, (other,) = ranges_of_results(spike, torch.randn(3))
    assert ranges.grid(other) is None
    assert ranges.encoding(other) is None
    assert not ranges.assumes_finite(other)


def test_the_graph_is_not_written_to() -> None:
    module = trace(lambda x: spike(x) + 1, torch.randn(3), table={})
    before = module.code, [dict(node.meta) for node in module.graph.nodes]
    analyse_value_ranges(module.graph)
    assert (module.code, [dict(node.meta) for node in module.graph.nodes]) == before


def test_five_thousand_nodes_take_less_than_a_second() -> None:
    def layer(x: torch.Tensor) -> torch.Tensor:
        return neuron(x, hard=True, fire=spike) + neuron(x + 0.5, hard=False, fire=spike)

    layer_graph, graph = trace(layer, torch.randn(16, 4), table={}).graph, Graph()
    (source,) = layer_graph.find_nodes(op="placeholder")
    node = graph.node_copy(source)
    while len(graph.nodes) < 5000:
        node = graph.graph_copy(layer_graph, {source: node})
        assert isinstance(node, Node)
    graph.output(node)
    start = time.process_time()
    ranges = analyse_value_ranges(graph)
    assert time.process_time() - start < 1.0
    assert ranges.grid(node) == Grid(Fraction(1), 0, 2)
