"""Which tensors are spikes, what they are called, and the rates of what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.neurons import LIFNode
from snnfx.op_counter import count

THIRD, HALF = Fraction(1, 3), Fraction(1, 2)


class TwoNeurons(nn.Module):
    """Spikes of two neurons, `[6, 6]` each, through `mix` into a linear layer `[*, 6]`."""

    def __init__(self, mix: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.mix = LIFNode(), LIFNode(), mix
        self.linear = nn.Linear(6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.a.reset()
        self.b.reset()
        return self.linear(self.mix(self.a(x), self.b(x)))


RATES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Fraction, int]] = {
    "one of them": (lambda a, b: a, THIRD, 36),
    "transposed": (lambda a, b: a.t(), THIRD, 36),
    "a part": (lambda a, b: a[1:4], THIRD, 18),
    "one of many": (lambda a, b: a.unbind(0)[2].unsqueeze(0), THIRD, 6),
    "half precision and back": (lambda a, b: a.half().float(), THIRD, 36),
    "repeated": (lambda a, b: a.repeat(3, 1), THIRD, 108),
    "stacked": (lambda a, b: torch.stack((a, b)), (THIRD + HALF) / 2, 72),
    "unevenly joined": (lambda a, b: torch.cat((a, b[:2])), (36 * THIRD + 12 * HALF) / 48, 48),
    "the complement": (lambda a, b: 1 - a, 1 - THIRD, 36),
    "zeros": (lambda a, b: torch.zeros_like(a), Fraction(0), 36),
    "ones": (lambda a, b: torch.ones_like(a), Fraction(1), 36),
}


@pytest.mark.parametrize("how", RATES)
def test_what_is_made_of_spikes_has_their_rate(how: str) -> None:
    mix, rate, numel = RATES[how]
    names = {"a": THIRD, "b": HALF}
    symbols = count(TwoNeurons(mix), torch.rand(6, 6))
    used = {spikes.name for spikes in symbols.spike_tensors}
    report = count(
        TwoNeurons(mix), torch.rand(6, 6), rates={n: r for n, r in names.items() if n in used}
    )
    assert report.total("synops") == rate * numel


MIXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "and": lambda a, b: a * b,
    "or": lambda a, b: torch.maximum(a, b),
}


@pytest.mark.parametrize("how", MIXED)
def test_spikes_that_a_module_makes_of_others_are_its_own(how: str) -> None:
    report = count(TwoNeurons(MIXED[how]), torch.rand(6, 6), rates={"TwoNeurons": HALF})
    assert [spikes.name for spikes in report.spike_tensors] == ["TwoNeurons"]
    assert report.total("synops") == 18


NUMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sums": lambda a, b: a + b,
    "differences": lambda a, b: a - b,
    "scaled": lambda a, b: a * 0.5,
    "sums of products": lambda a, b: a @ b,
    "halves": lambda a, b: torch.full_like(a, 0.5),
    "minus one or zero": lambda a, b: a - 1,
}


@pytest.mark.parametrize("how", NUMBERS)
def test_numbers_are_no_spikes(how: str) -> None:
    report = count(TwoNeurons(NUMBERS[how]), torch.rand(6, 6))
    assert report.total("mac", scope="TwoNeurons.linear") == 36
    assert report.total("synops", scope="TwoNeurons.linear") == 0


class Repeated(nn.Module):
    """One neuron, called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron, self.linear = LIFNode(), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        self.neuron.reset()
        return torch.stack([self.linear(self.neuron(frame)) for frame in x])


def test_a_neuron_that_is_called_again_has_one_rate() -> None:
    report = count(Repeated(), torch.rand(5, 3, 6))
    (spikes,) = report.spike_tensors
    assert (spikes.name, spikes.numel) == ("neuron", 5 * 3 * 6)
    assert report.total("synops") == 5 * 3 * 6 * 2 * spikes.rate


def test_two_kinds_of_spikes_of_one_module_are_told_apart() -> None:
    def mix(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack(((a * b) @ torch.eye(6), torch.maximum(a, b) @ torch.eye(6)))

    names = [spikes.name for spikes in count(TwoNeurons(mix), torch.rand(6, 6)).spike_tensors]
    assert names[0] == "TwoNeurons"
    assert names[1] == "TwoNeurons (maximum)"


def test_two_operands_of_spikes_coincide_by_both_rates() -> None:
    class Attends(TwoNeurons):
        def forward(self, x: Tensor) -> Any:
            return self.a(x) @ self.b(x)

    report = count(Attends(lambda a, b: a), torch.rand(6, 6), rates={"a": THIRD, "b": HALF})
    assert report.total("synops") == 6**3 * THIRD * HALF
