"""Expressions in T, N and rates give what a run counts, at each size."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from snnfx.errors import CaptureError, OptionError
from snnfx.neurons import LIFNode
from snnfx.op_counter import count
from snnfx.op_counter.report import CountReport, OperatorCount, frozen
from snnfx.op_counter.symbolic import Resizing, SymbolicCounts, symbolic_counts

from tests.op_counter.counted import counted, totals

SIZES = [(2, 5), (4, 3), (7, 4)]
"""T and N."""


class Dense(nn.Module):
    """Linear layers and neurons on `[T, N, 6]`; each spike is used equally often."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 24), LIFNode(step_mode="m"), nn.Linear(24, 24), LIFNode(step_mode="m")
        )
        self.readout = nn.Linear(24, 4)
        with torch.no_grad():
            self.layers[2].weight.mul_(8)  # so that the second neuron fires

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if isinstance(layer, LIFNode):
                layer.reset()
        return self.readout(self.layers(x)).mean(0)


class Stepwise(nn.Module):
    """A convolutional net that the user's code calls step by step, on `[T, N, 2, 8, 8]`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.neuron = nn.Conv2d(2, 8, 3, padding=1), LIFNode()
        self.second = nn.Conv2d(8, 6, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        self.neuron.reset()
        outputs = [self.second(self.neuron(4 * self.first(frame))) for frame in x]
        return torch.stack(outputs).mean(0)


INPUTS: dict[type[nn.Module], tuple[int, ...]] = {Dense: (6,), Stepwise: (2, 8, 8)}


def example(kind: type[nn.Module], steps: int, batch: int) -> Tensor:
    torch.manual_seed(steps)
    return 3 * torch.rand(steps, batch, *INPUTS[kind])


def symbolic_of(model: nn.Module, train: bool = True) -> SymbolicCounts:
    x = example(type(model), 3, 4)
    return count(model, x, train=train, time_dim=0, batch_dim=1, strict=True).symbolic()


@pytest.mark.parametrize("kind", INPUTS)
def test_operations_and_bytes_are_those_of_a_run_at_three_sizes(kind: type[nn.Module]) -> None:
    model = kind()
    symbolic = symbolic_of(model)
    for steps, batch in SIZES:
        x = example(kind, steps, batch)
        model.zero_grad()
        run = totals(counted(lambda x=x: model(x).sum().backward()))
        found = symbolic.evaluate(T=steps, N=batch)
        for quantity in ("flops", "bytes"):
            assert found[quantity] == run[quantity]


def test_accumulations_are_those_of_a_run_where_spikes_are_used_equally() -> None:
    torch.manual_seed(1)
    model = Dense()
    symbolic = symbolic_of(model)
    assert {str(s) for s in symbolic.free_symbols} == {"T", "N", "r[layers.1]", "r[layers.3]"}
    for steps, batch in SIZES:
        x = example(Dense, steps, batch)
        measured = count(model, x, train=True, rates="measured")
        rates = {spikes.name: spikes.rate for spikes in measured.spike_tensors}
        assert all(0 < rate < 1 for rate in rates.values())
        model.zero_grad()
        run = totals(counted(lambda x=x: model(x).sum().backward()))
        assert measured.warnings == ()
        found = symbolic.evaluate(T=steps, N=batch, rates=rates)
        assert found == run


def test_spikes_of_a_padded_convolution_are_close_to_those_of_a_run() -> None:
    """Spikes at the border are used less often; they are as frequent as others, within 10%."""
    torch.manual_seed(1)
    model = Stepwise()
    symbolic = symbolic_of(model, train=False)
    for steps, batch in SIZES:
        x = example(Stepwise, steps, batch)
        (spikes,) = count(model, x, rates="measured").spike_tensors
        assert 0.05 < spikes.rate < 0.95
        run = totals(counted(lambda x=x: model(x)))["synops"]
        found = symbolic.evaluate(T=steps, N=batch, rates={"neuron": spikes.rate})["synops"]
        assert found == pytest.approx(run, rel=0.1)


def test_expressions_of_scopes_and_stages_add_up() -> None:
    symbolic = symbolic_of(Dense())
    steps, batch = symbolic.sizes["T"], symbolic.sizes["N"]
    rate = symbolic.rates["layers.1"]
    synops = symbolic.expression("synops", "forward", "Dense.layers.2")
    assert sympy.expand(synops - 24 * 24 * rate * steps * batch) == 0
    halves = [symbolic.expression("flops", stage) for stage in ("forward", "backward")]
    assert sympy.expand(sum(halves) - symbolic.expressions["flops"]) == 0
    assert "Dense.readout" in symbolic.scopes


def test_what_is_not_given_stays_a_symbol() -> None:
    symbolic = symbolic_of(Dense(), train=False)
    found = symbolic.evaluate(T=5, rates=0.5)
    assert found["synops"].free_symbols == {symbolic.sizes["N"]}
    assert symbolic.evaluate(T=5, N=2, rates=0.5)["synops"] == 5 * 2 * 24 * (24 + 4) // 2


def test_without_named_dimensions_only_rates_are_symbols() -> None:
    symbolic = count(Dense(), example(Dense, 3, 2)).symbolic()
    assert {str(s) for s in symbolic.free_symbols} == {"r[layers.1]", "r[layers.3]"}
    with pytest.raises(OptionError, match=r"T=3 cannot be evaluated; .* depend on are none"):
        symbolic.evaluate(T=3)


def _report(value: Any) -> CountReport:
    entry = OperatorCount(("Net",), "forward", torch.ops.aten.mm.default, 1, frozen(value))
    return CountReport((entry,), (), {}, ())


COEFFICIENTS = st.lists(st.integers(-9, 9), min_size=9, max_size=9)


@given(COEFFICIENTS, COEFFICIENTS)
@settings(max_examples=25, deadline=None)
def test_each_polynomial_of_degree_two_is_found(plain: list[int], of_rate: list[int]) -> None:
    rate = sympy.Symbol("rate")

    def value(t: Any, n: Any) -> Any:
        powers = [t**i * n**j for i in range(3) for j in range(3)]
        parts = zip(plain, of_rate, powers, strict=True)
        return sum((a + Fraction(b, 7) * rate) * power for a, b, power in parts)

    at = Resizing({"T": 4, "N": 2}, lambda s: _report({"ac": value(s["T"], s["N"])}))
    found = symbolic_counts(CountReport((), (), {}, (), at))
    expected = sympy.sympify(value(found.sizes["T"], found.sizes["N"]))
    assert sympy.expand(found.expression("ac") - expected) == 0


def test_counts_that_are_no_polynomial_are_refused() -> None:
    at = Resizing({"T": 4}, lambda s: _report({"flops": 2 ** s["T"]}))
    with pytest.raises(CaptureError, match=r"no polynomials of degree 2 in T: .* Count it at each"):
        symbolic_counts(CountReport((), (), {}, (), at))


def test_a_report_that_was_read_has_no_expressions() -> None:
    with pytest.raises(OptionError, match=r"symbolic\(\) is for reports that"):
        CountReport((), (), {}, ()).symbolic()


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"time_dim": 3}, r"time_dim=3 is no dimension of an input of \(3, 2, 6\)"),
        ({"time_dim": 0, "batch_dim": -3}, "name the same dimension"),
        ({"batch_dim": [0, 1]}, "batch_dim has 2 entries, but the inputs have 1 tensors"),
        ({"batch_dim": [None]}, "must name dimensions of one size"),
    ],
)
def test_dimensions_that_are_none_are_refused(dims: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        count(Dense(), torch.rand(3, 2, 6), **dims)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return x @ w


def test_inputs_have_dimensions_of_their_own() -> None:
    inputs = (torch.rand(3, 4), torch.rand(4, 5))
    symbolic = count(TwoInputs(), inputs, batch_dim=[0, None], time_dim=[None, 1]).symbolic()
    expected = 4 * symbolic.sizes["T"] * symbolic.sizes["N"]
    assert symbolic.expressions["mac"] == expected
