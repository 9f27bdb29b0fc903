"""What is alive when: measured by the allocator, and by storages that have or have not died."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from snnfx.checkpointing import GCContainer, input_compressed_gc
from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    BooleanSpikeCompressor,
    CompressedSpikes,
    NullSpikeCompressor,
)
from snnfx.neurons import LIFNode

from examples.measure import allocation_events, peak_bytes
from tests.checkpoint_neurons import Loop
from tests.checkpointed import spikes

SMALL = 16 << 10
"""Bytes for what is not of the size of an activation: random state, scalars, tokens."""


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Nothing here may need the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Noting:
    """Weak references to storages, and how many are alive at each backward of `Noted`."""

    def __init__(self) -> None:
        self.storages: list[StorageWeakRef] = []
        self.at_backward: list[int] = []

    def note(self, tensor: Tensor) -> None:
        self.storages.append(StorageWeakRef(tensor.untyped_storage()))

    def alive(self) -> int:
        return sum(not storage.expired() for storage in self.storages)


NOTINGS: list[Noting] = []


class Saving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noting: Noting) -> Tensor:
        saved = x + 1
        noting.note(saved)
        ctx.save_for_backward(saved)
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (saved,) = ctx.saved_tensors
        assert saved.shape == gradient.shape
        NOTINGS[-1].at_backward.append(NOTINGS[-1].alive())
        return gradient * 2, None


class Noted(nn.Module):
    """Saves one tensor of the size of its input."""

    def __init__(self, noting: Noting) -> None:
        super().__init__()
        self._noting = noting

    def forward(self, x: Tensor) -> Tensor:
        return Saving.apply(x, self._noting)


@pytest.fixture
def noting() -> Iterator[Noting]:
    NOTINGS.append(Noting())
    yield NOTINGS[-1]
    NOTINGS.pop()


def held_after(run: Callable[[], Any]) -> int:
    """Bytes that `run` leaves allocated, its result among them."""
    results: list[Any] = []
    held: dict[int, int] = {}
    for address, size in allocation_events(lambda: results.append(run())):
        if size > 0:
            held[address] = size
        else:
            held.pop(address, None)  # it may have been there before
    return sum(held.values())


@pytest.mark.parametrize(
    ("compressor", "share"),
    [(NullSpikeCompressor(), 0), (BitSpikeCompressor(), 1 / 32), (BooleanSpikeCompressor(), 1 / 4)],
)
def test_after_the_forward_pass_only_the_packed_input_is_alive(
    compressor: BaseSpikeCompressor, share: float
) -> None:
    x = spikes(4, 64, 256)
    layers = [nn.Linear(256, 256), nn.BatchNorm1d(64), LIFNode(step_mode="m"), nn.Sigmoid()]
    plain, model = nn.Sequential(*layers), GCContainer(compressor, *layers)

    def run(module: nn.Module) -> Tensor:
        layers[2].reset()
        return module(x)

    for module in (plain, model):
        run(module)  # libraries set themselves up
    expected = x.nbytes * (1 + share) + x.nbytes // 4  # the output, the input, one potential
    assert expected - SMALL < held_after(lambda: run(model)) < expected + SMALL
    assert held_after(lambda: run(plain)) > 2.5 * expected


def test_nested_containers_keep_only_the_outer_input(noting: Noting) -> None:
    x = spikes(64, 1024)
    layers = [Noted(noting) for _ in range(6)]
    inner = [GCContainer(None, *layers[i : i + 2]) for i in (0, 2, 4)]
    outer = GCContainer(BitSpikeCompressor(), *inner).train()
    start = x.requires_grad_()
    outer(start)
    assert noting.alive() == 0
    held = held_after(lambda: outer(start))
    assert held < x.nbytes * (1 + 1 / 32) + SMALL
    parts = nn.Sequential(*inner)
    assert held_after(lambda: parts(start)) > 2.9 * x.nbytes


def test_states_of_nested_single_steps_are_not_kept(noting: Noting) -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v: Any = 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.v = (0.5 * self.v + x).tanh()
            noting.note(self.v)
            return self.v.sigmoid()

    x = torch.randn(8, 32, 32, requires_grad=True)
    outer = GCContainer(None, Loop(GCContainer(None, Step())))
    output = outer(x)
    assert noting.alive() == 1
    output.sum().backward()
    assert noting.alive() == 1


def test_place_holders_give_their_tensors_away_one_by_one(noting: Noting) -> None:
    x = torch.randn(8, requires_grad=True)
    output = GCContainer(None, *[Noted(noting) for _ in range(5)])(x)
    assert noting.alive() == 0
    output.sum().backward()
    assert noting.at_backward == [5, 4, 3, 2, 1]
    assert noting.alive() == 0


def test_place_holders_of_a_graph_that_is_retained_are_empty(noting: Noting) -> None:
    x = torch.randn(8, requires_grad=True)
    output = GCContainer(None, *[Noted(noting) for _ in range(5)])(x)
    for _ in range(2):
        noting.at_backward.clear()
        output.sum().backward(retain_graph=True)
        assert noting.at_backward == [5, 4, 3, 2, 1]
        assert noting.alive() == 0


def test_segments_are_computed_again_one_at_a_time(noting: Noting) -> None:
    x = torch.randn(8, requires_grad=True)
    parts = [GCContainer(None, *[Noted(noting) for _ in range(3)]) for _ in range(3)]
    nn.Sequential(*parts)(x).sum().backward()
    assert noting.at_backward == [3, 2, 1] * 3


def test_the_peak_of_a_step_is_that_of_one_segment() -> None:
    x = torch.randn(64, 1024, requires_grad=True)
    layers = [nn.Sequential(*[nn.Sigmoid() for _ in range(8)]) for _ in range(4)]
    plain = nn.Sequential(*layers)
    model = nn.Sequential(*[GCContainer(None, layer) for layer in layers])
    peaks = []
    for module in (plain, model):
        x.grad = None
        module(x).sum().backward()
        x.grad = None
        peaks.append(peak_bytes(allocation_events(lambda m=module: m(x).sum().backward())))
    assert peaks[0] > 32 * x.nbytes
    assert peaks[1] < (3 + 8 + 3) * x.nbytes + SMALL  # inputs, one segment, gradients


@pytest.mark.parametrize("ended", ["backward", "dropped"])
@pytest.mark.parametrize("nested", [False, True])
def test_nothing_of_a_graph_outlives_it(noting: Noting, nested: bool, ended: str) -> None:
    class Counting(BitSpikeCompressor):
        def compress(self, s_seq: Tensor) -> CompressedSpikes:
            packed = super().compress(s_seq)
            noting.note(packed.data)
            return packed

    layers: list[nn.Module] = [nn.Linear(8, 8), LIFNode(step_mode="m"), Noted(noting)]
    model = GCContainer(Counting(), *layers)
    model = GCContainer(Counting(), model, Noted(noting)) if nested else model
    x = spikes(4, 8, 8)
    noting.note(x)
    output = model(x)
    noting.note(output)
    del x
    assert noting.alive() == 2  # of nested containers the outer input only
    if ended == "backward":
        output.sum().backward()
        layers[1].reset()  # the last potential has a history of its own
        assert noting.alive() == 1
    del output
    layers[1].reset()
    assert noting.alive() == 0


def test_what_was_computed_again_for_nothing_goes_with_the_next_segment(noting: Noting) -> None:
    class Leaving(nn.Module):
        """Leaves a state with a graph that nothing depends on."""

        def __init__(self) -> None:
            super().__init__()
            self.v: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.v = Noted(noting)(x)
            return Noted(noting)(x)

    first, second = Leaving(), Leaving()
    x = torch.randn(8, requires_grad=True)
    output = GCContainer(None, second)(GCContainer(None, first)(x))
    output.sum().backward()
    assert noting.at_backward == [2, 2]
    assert noting.alive() == 1
    first.v.sum().backward()  # is still there
    assert noting.at_backward[2:] == [1]


def test_a_segment_of_which_a_part_is_wanted_stops_early() -> None:
    ran: list[str] = []

    def function(x: Tensor) -> Tensor:
        ran.append("start")
        y = torch.sigmoid(x)
        ran.append("end")
        return y

    x = torch.randn(8, requires_grad=True)
    input_compressed_gc(function, NullSpikeCompressor(), x).sum().backward()
    assert ran == ["start", "end", "start"]


def test_an_outer_segment_is_computed_again_once_for_all_that_are_inside() -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(1)
            return torch.sigmoid(x)

    class Leaving(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.v = x.sin().exp()  # what is computed again for it is left over
            return torch.sigmoid(x)

    runs: list[int] = []
    inner = [GCContainer(None, Leaving()) for _ in range(3)]
    x = torch.randn(8, requires_grad=True)
    GCContainer(None, Counted(), *inner)(x).sum().backward()
    assert len(runs) == 2
