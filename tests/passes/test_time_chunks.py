"""Proofs that modules run chunk by chunk, against really running them so."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based import layer
from spikingjelly.activation_based import neuron as peer
from torch import Tensor, nn
from torch.fx import Graph

from snnfx import neurons
from snnfx.base import MemoryModule
from snnfx.passes.analysis.time_chunks import NotChunkable, StepRun, check_chunks

from tests.passes.step_modules import Delay, Function, random_module
from tests.passes.step_runs import check, differs, states_of, trace

SIZES = [(4,), (2, 2), (3, 1), (1, 1, 1, 1)]

NEURONS: dict[str, Callable[[], nn.Module]] = {
    "if": lambda: neurons.IFNode(step_mode="m"),
    "if-soft": lambda: neurons.IFNode(v_reset=None, step_mode="m"),
    "lif": lambda: neurons.LIFNode(v_reset=-0.1, detach_reset=True, step_mode="m"),
    "lif-soft": lambda: neurons.LIFNode(v_reset=None, decay_input=False, step_mode="m"),
    "plif": lambda: neurons.ParametricLIFNode(step_mode="m"),
    "peer-if": lambda: peer.IFNode(step_mode="m"),
    "peer-if-soft": lambda: peer.IFNode(v_reset=None, detach_reset=True, step_mode="m"),
    "peer-lif": lambda: peer.LIFNode(step_mode="m"),
    "peer-lif-soft": lambda: peer.LIFNode(v_reset=None, decay_input=False, step_mode="m"),
    "peer-plif": lambda: peer.ParametricLIFNode(step_mode="m"),
    "peer-klif": lambda: peer.KLIFNode(step_mode="m"),
}


def images(steps: int = 4, batch: int = 2) -> Tensor:
    return torch.randn(steps, batch, 3, 4, 4, dtype=torch.float64)


def per_step(*modules: nn.Module) -> nn.Module:
    return layer.SeqToANNContainer(*modules)


def proven(module: nn.Module, *sequences: Tensor, sizes: Sequence[int]) -> bool:
    """Whether the proof is found; if it is, the numbers agree too."""
    module = module.double()
    found = check(module, sequences, sizes)
    assert found is not None or differs(module, sequences, sizes) <= 1e-12
    return found is None


def refused(module: nn.Module, *sequences: Tensor, sizes: Sequence[int] = (2, 2)) -> str:
    found = check(module.double(), sequences, sizes)
    assert isinstance(found, NotChunkable)
    assert found.node
    return found.reason


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", NEURONS)
def test_a_neuron_carries_its_state_from_chunk_to_chunk(name: str, sizes: Sequence[int]) -> None:
    assert proven(NEURONS[name](), images(), sizes=sizes)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sizes", [*SIZES, (1, 3)])
def test_layers_with_weights_keep_steps_apart(sizes: Sequence[int], batch: int) -> None:
    module = nn.Sequential(
        per_step(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)),
        neurons.LIFNode(step_mode="m"),
        per_step(nn.MaxPool2d(2)),
        layer.Conv2d(4, 4, 1, step_mode="m"),
        layer.BatchNorm2d(4, step_mode="m"),
        peer.IFNode(step_mode="m"),
        per_step(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 5)),
        nn.LayerNorm(5),
        nn.Linear(5, 1),
        neurons.IFNode(step_mode="m"),
    ).eval()
    assert proven(module, images(batch=batch), sizes=sizes)


@pytest.mark.parametrize("sizes", [(1, 1), (2,)])
def test_two_steps_are_enough(sizes: Sequence[int]) -> None:
    assert proven(nn.Sequential(nn.Linear(4, 4), NEURONS["lif"]()), images(2, 1), sizes=sizes)


def attention(x: Tensor) -> Tensor:
    y = x.flatten(3).transpose(-1, -2)
    return (y @ y.transpose(-1, -2)).softmax(-1) @ y


APART: dict[str, Callable[..., Any]] = {
    "residual": lambda x: x + x.relu(),
    "attention": attention,
    "loop": lambda x: torch.stack([torch.cat([a, a.relu()], 1).relu() for a in x]),
    "loop-cat": lambda x: torch.cat([a.flatten(1) * 2 for a in x]).unflatten(0, x.shape[:2]),
    "loop-select": lambda x: torch.stack([x[t] - 1 for t in range(len(x))]),
    "loop-slice": lambda x: torch.cat([x[t : t + 1].exp() for t in range(len(x))]),
    "chunked": lambda x: torch.cat([a + 1 for a in x.flatten(0, 1).split(x.shape[1])]).view_as(x),
    "last-axis": lambda x: x.movedim(0, -1).contiguous().relu().movedim(-1, 0),
    "bias": lambda x: x + torch.ones(3, 4, 4).expand_as(x) + torch.full_like(x, 0.5),
    "zeros": lambda x: torch.zeros_like(x),
    "repeated": lambda x: x + torch.ones(1, 1, 3, 4, 4).repeat(len(x), 1, 1, 1, 1),
    "features": lambda x: torch.cat([x[:, :, :1], x[:, :, 1:2]], 2).relu(),
    "several": lambda x: (x * 2, x.flatten(2).sum(-1), torch.stack([x, x.relu()], -1)),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", APART)
def test_functions_of_each_step_by_itself_are_proven(name: str, sizes: Sequence[int]) -> None:
    assert proven(Function(APART[name]), images(), sizes=sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_several_sequences_and_outputs_run_side_by_side(sizes: Sequence[int]) -> None:
    module = Function(lambda x, y: (x + y, torch.cat([x, y], 2), x.flatten(2) @ y.flatten(2).mT))
    assert proven(module, images(), images(), sizes=sizes)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_step_may_read_an_earlier_one_that_the_state_holds(sizes: Sequence[int]) -> None:
    assert proven(nn.Sequential(Delay(), NEURONS["if"]()), images(), sizes=sizes)


MIXED: dict[str, tuple[Callable[..., Any], str]] = {
    "flip": (lambda x: x.flip(0), "'flip' mixes time steps"),
    "roll": (lambda x: x.roll(-1, 0), "'roll' may mix time steps"),
    "cumsum": (lambda x: x.cumsum(0), "'cumsum' mixes time steps"),
    "mean": (lambda x: x - x.mean(0), "'mean' mixes time steps"),
    "future": (lambda x: torch.cat([x[1:], x[:1]]), "'cat' mixes time steps"),
    "past": (lambda x: torch.cat([torch.zeros_like(x[:1]), x[:-1]]), "in another order"),
    "attention": (
        lambda x: x.flatten(1).softmax(0) @ (x.flatten(1).mT @ x.flatten(1)),
        "'_softmax' mixes time steps",
    ),
    "weights": (
        lambda x: (torch.ones(len(x), len(x)).double() @ x.flatten(1)).view_as(x),
        "'mm' mixes time steps",
    ),
    "swapped": (lambda x: x.transpose(0, 1).reshape(x.shape), "mixes time steps"),
    "length": (lambda x: x / len(x), "'div' computes something else"),
    "dropout": (nn.functional.dropout, "draws random numbers"),
    "noise": (lambda x: x + torch.randn_like(x), "draws random numbers"),
    "step-bias": (
        lambda x: x + torch.arange(len(x)).view(-1, 1, 1, 1, 1),
        "'add' mixes time steps",
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_steps_is_refused_and_named(name: str) -> None:
    function, reason = MIXED[name]
    found = refused(Function(function), images())
    assert reason in found


@pytest.mark.parametrize("sizes", [(2, 2), (1, 1, 1, 1)])
def test_batch_statistics_are_refused(sizes: Sequence[int]) -> None:
    module = nn.Sequential(per_step(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), NEURONS["lif"]())
    assert refused(module, images(), sizes=sizes) == "'native_batch_norm' mixes time steps"


def test_the_first_layer_that_mixes_steps_is_named() -> None:
    layers = per_step(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module = nn.Sequential(layers, NEURONS["lif"](), Function(lambda x: x.cumsum(0).flip(0)))
    assert refused(module.eval(), images()) == "'cumsum' mixes time steps"


def test_neurons_that_see_all_steps_at_once_are_refused() -> None:
    x = images()
    whole = trace(peer.PSN(T=4).double(), (x,), [])
    half = trace(peer.PSN(T=2).double(), (x[:2].contiguous(),), [])
    assert check_chunks(whole, [half, half]) is not None
    assert refused(peer.SlidingPSN(k=2, step_mode="m"), x)


def test_one_chunk_is_the_whole_whatever_it_mixes() -> None:
    assert proven(Function(lambda x: x.cumsum(0)), images(), sizes=(4,))
    assert proven(Function(lambda x: x.mean(0, keepdim=True)), images(1), sizes=(1,))


class Hidden(nn.Module):
    """Keeps a state that nobody is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        steps: list[Tensor] = []
        for step in x:
            self.total = step if self.total is None else self.total + step
            steps.append(self.total.relu())
        return torch.stack(steps)


def test_state_that_is_not_registered_is_refused() -> None:
    assert "something else" in refused(Hidden(), images())


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    calls: Tensor

    def __init__(self, scaling: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.scaling = scaling

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.calls if self.scaling else x


@pytest.mark.parametrize("scaling", [False, True])
def test_a_buffer_that_is_written_is_refused(scaling: bool) -> None:
    assert "the run writes into" in refused(Counting(scaling), images())


class Truncating(peer.IFNode):
    """Cuts the state off its history before each call."""

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        if isinstance(self.v, Tensor):
            self.v = self.v.detach()
        return super().multi_step_forward(x_seq)


def test_a_state_whose_gradient_is_cut_between_chunks_is_refused() -> None:
    assert "something else" in refused(Truncating(step_mode="m"), images())


def test_a_placeholder_that_nobody_knows_is_equal_to_nothing() -> None:
    x = images()
    run = trace(Scaled().double(), (x,), [])
    half = trace(Scaled().double(), (x[:2].contiguous(),), [])
    assert check_chunks(run, [half, half]) is None
    found = check_chunks(replace(run, constants={}), [replace(half, constants={})] * 2)
    assert found is not None
    assert "neither an input nor a state" in found.reason


class Scaled(nn.Module):
    """Multiplies with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def runs_of(module: nn.Module, *steps: int) -> list[StepRun]:
    x = images(max(steps))
    return [trace(module, (x[:n].contiguous(),), states_of(module)) for n in steps]


def test_runs_that_do_not_belong_together_are_refused() -> None:
    whole, half, long = runs_of(Function(lambda x: x * 2), 4, 2, 3)
    (several,) = runs_of(Function(lambda x: (x, x.relu())), 2)
    for chunks, reason in [
        ([half], "2 time steps in all"),
        ([half, long], "5 time steps in all"),
        ([], "0 time steps in all"),
        ([half, several], "a chunk has 2 outputs"),
    ]:
        found = check_chunks(whole, chunks)
        assert found is not None
        assert reason in found.reason


class Warm(MemoryModule):
    """Keeps a state from short runs only."""

    def __init__(self) -> None:
        super().__init__()
        self.step_mode = "m"
        self.register_memory("last", 0.0)

    def multi_step_forward(self, x_seq: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(x_seq) < 4:
            self.last = x_seq[-1]
        return x_seq.relu()


def test_a_state_that_only_chunks_have_is_refused() -> None:
    found = check(Warm(), (images(),), (2, 2))
    assert found is not None
    assert "a state is a number in the whole run" in found.reason


def test_a_state_of_another_kind_is_refused() -> None:
    whole, half = runs_of(neurons.IFNode(step_mode="m"), 4, 2)
    found = check_chunks(whole, [half, half])
    assert found is not None
    assert "another kind of value before a chunk" in found.reason


def test_an_operator_of_unknown_nature_is_refused() -> None:
    graphs: list[StepRun] = []
    for steps in (4, 2):
        graph = Graph()
        x = graph.placeholder("x")
        y = graph.call_function(torch.ops.aten.as_strided.default, (x, [steps, 2], [2, 1]))
        x.meta["val"] = y.meta["val"] = torch.empty(steps, 2, device="meta")
        graphs.append(StepRun(graph, steps, (x,), (), (y,), ()))
    found = check_chunks(graphs[0], [graphs[1]] * 2)
    assert found == NotChunkable("'as_strided' may mix time steps", "as_strided_default")


@settings(max_examples=25)
@given(st.randoms(use_true_random=False))
def test_what_is_proven_of_random_modules_holds_in_numbers(source: random.Random) -> None:
    module, x, sizes = random_module(source)
    proven(module, x, sizes=sizes)


def test_most_random_modules_that_can_run_in_chunks_are_proven() -> None:
    yes = can = 0
    for seed in range(25):
        module, x, sizes = random_module(random.Random(seed))
        can += differs(module.double(), (x,), sizes) <= 1e-12
        yes += proven(module, x, sizes=sizes)
    assert can >= 10
    assert yes >= 0.9 * can, (yes, can)
