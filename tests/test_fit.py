"""The largest batch that fits: against brute force, on lines and other needs, at its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import snnfx
from snnfx import fit
from snnfx.fit import METHODS, Fit, find_fits, fixed_need
from snnfx.target import Built

from tests.models import HandWrittenNode

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


class Spiking(nn.Module):
    """Two spiking layers and a readout, on `[T, N, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 64)
        self.second = nn.Linear(64, 64)
        self.node = HandWrittenNode()
        self.readout = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.node(self.second(self.node(self.first(x))))
        return self.readout(spikes).mean(0)


def spiking(batch: int) -> Built:
    with torch.device("meta"):
        return Built(Spiking(), (torch.empty(2, batch, 8),))


def brute_need(batch: int, level: int | None) -> int:
    """Bytes of one step with Adam, added up here; None is eager training."""
    model = spiking(batch).model
    plan = snnfx.plan(model, torch.empty(2, batch, 8, device="meta"), lowering="eager",
                      level=0 if level is None else level)  # fmt: skip
    peak = max(*plan.predicted.forward, *plan.predicted.backward)
    weights = sum(p.numel() * 4 for p in model.parameters())
    return 4 * weights + 2 * batch * 8 * 4 + peak


def test_each_answer_fits_and_the_next_batch_does_not() -> None:
    memory = 2_000_000
    fits = find_fits(spiking, memory, options={"lowering": "eager"}, methods=("eager", "level 1"))
    assert [f.method for f in fits] == ["eager", "level 1"]
    assert 10 < fits[0].batch < 0.8 * fits[1].batch
    for found, level in zip(fits, (None, 1), strict=True):
        assert found.need.total == brute_need(found.batch, level) <= memory
        assert brute_need(found.batch + 1, level) > memory
        assert not found.limited
    assert [f.applied for f in fits] == [False, True]


@dataclass
class FakePlan:
    baseline_peak_bytes: int
    predicted_peak_bytes: int
    applied: bool = True


def search(
    monkeypatch: pytest.MonkeyPatch, need: Callable[[int], int], memory: int, limit: int = 1000
) -> tuple[Fit, list[int]]:
    """A search where a batch needs what `need` says; and the batches that were captured."""
    tried: list[int] = []

    class FakeCapture:
        def __init__(self, batch: int) -> None:
            self.batch = batch

        def plan(self, **options: Any) -> FakePlan:
            return FakePlan(need(self.batch), need(self.batch))

    def captured(model: nn.Module, inputs: tuple[Any, ...]) -> FakeCapture:
        tried.append(inputs[0])
        return FakeCapture(inputs[0])

    monkeypatch.setattr(fit, "capture", captured)
    found = find_fits(
        lambda n: Built(nn.Identity(), (n,)), memory, max_batch=limit, methods=("level 4",)
    )
    return found[0], tried


@given(
    st.integers(0, 500), st.integers(1, 60), st.integers(0, 30_000), st.sampled_from([7, 100, 1000])
)
@settings(max_examples=150)
def test_on_a_line_the_search_ends_after_four_captures(
    start: int, slope: int, memory: int, limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found, tried = search(patch, lambda n: start + slope * n, memory, limit)
    fitting = [n for n in range(1, limit + 1) if start + slope * n <= memory]
    assert found.batch == max(fitting, default=0)
    assert found.limited == (found.batch == limit)
    assert len(tried) == len(set(tried)) <= 4


@given(st.lists(st.integers(0, 900), min_size=60, max_size=60), st.integers(0, 30_000))
@settings(max_examples=150)
def test_needs_that_grow_in_any_way_are_searched_exactly(steps: list[int], memory: int) -> None:
    needs = [sum(steps[: i + 1]) for i in range(len(steps))]
    with pytest.MonkeyPatch.context() as patch:
        found, tried = search(patch, lambda n: needs[n - 1], memory, len(needs))
    assert found.batch == max((n for n in range(1, 61) if needs[n - 1] <= memory), default=0)
    assert len(tried) == len(set(tried)) <= 24


def test_if_nothing_fits_the_need_is_that_of_batch_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = search(monkeypatch, lambda n: 100 * n, 99)
    assert (found.batch, found.need.total, found.limited) == (0, 100, False)
    assert tried == [2, 1]


def test_the_limit_is_the_answer_if_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = search(monkeypatch, lambda n: n, 10**9, 1)
    assert (found.batch, found.limited) == (1, True)
    assert tried == [1]


@pytest.mark.parametrize(
    ("optimizer", "times"), [("none", 0), ("sgd", 0), ("momentum", 1), ("adam", 2)]
)
def test_the_fixed_need_counts_each_tensor_once(optimizer: str, times: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[0].weight = model[1].weight
    model[2].requires_grad_(False)
    inputs = (torch.empty(3, 4), {"scale": torch.empty(5, dtype=torch.float16)}, 7)
    need = fixed_need(Built(model, inputs), optimizer)
    trained = (16 + 4) * 4
    assert need.parameters == trained + 8 * 4
    assert (need.gradients, need.optimizer) == (trained, times * trained)
    assert need.buffers == 8 * 4 + 8
    assert need.inputs == 12 * 4 + 5 * 2
    assert need.total == need.parameters + (1 + times) * trained + need.buffers + need.inputs


def test_all_methods_share_captures_and_tell_their_progress() -> None:
    told: list[tuple[str, int]] = []
    batches: list[int] = []

    def build(batch: int) -> Built:
        batches.append(batch)
        return spiking(batch)

    fits = find_fits(build, 150_000, options={"lowering": "eager"},
                     say=lambda text, done: told.append((text, done)))  # fmt: skip
    assert tuple(f.method for f in fits) == METHODS
    assert fits[0].batch == fits[1].batch < fits[2].batch <= fits[5].batch
    assert len(batches) == len(set(batches))
    assert told[0] == ("batch 2: capturing", 0)
    assert told[-1] == (f"level 4: batch {fits[-1].batch}", 6)
    assert [done for _, done in told] == sorted(done for _, done in told)
