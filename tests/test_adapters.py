"""Adapters change no number, can be taken back, and leave what they do not know."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import snntorch
import torch
from sinabs.activation import MaxSpike, MultiSpike
from sinabs.layers import ALIF, IAF, LIF
from snntorch import utils as snntorch_utils
from torch import Tensor, nn

from models_frameworks import FRAMEWORKS, build_framework, norse
from snnfx.adapters import Adaptation, adapt
from snnfx.neurons import LIFNode

from tests.backend.harness import ignore_dynamo_warnings, same_bits

pytestmark = ignore_dynamo_warnings

CELLS: dict[str, Callable[[], nn.Module]] = {
    "LIFCell": norse.LIFCell,
    "LIFBoxCell": norse.LIFBoxCell,
    "LICell": norse.LICell,
    "LILinearCell": lambda: norse.LILinearCell(6, 6),
    "LIFRecurrentCell": lambda: norse.LIFRecurrentCell(6, 6),
    "LIFAdExCell": norse.LIFAdExCell,
    "LIF": norse.LIF,
    "LI": norse.LI,
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "LIF": lambda: LIF(tau_mem=10.0),
    "IAF of several spikes": lambda: IAF(spike_fn=MultiSpike),
    "IAF of few spikes": lambda: IAF(spike_fn=MaxSpike(max_num_spikes_per_bin=2)),
    "ALIF": lambda: ALIF(tau_mem=10.0, tau_adapt=20.0),
}


def result(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output of a call from a fresh state, and all gradients."""
    x = x.clone().requires_grad_()
    output = model(x)
    output = output[0] if isinstance(output, tuple) else output
    (output.square() + output).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert x.grad is not None
    assert x.grad.any()
    return [output.detach(), x.grad, *gradients]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(same_bits("", a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_an_adapted_network_computes_the_same_bits(name: str) -> None:
    work = build_framework(name, "tiny")
    results: list[list[Tensor]] = []
    for changed in (False, True):
        torch.manual_seed(0)  # of dropout
        work.before_step()
        if changed:
            adapt(work.model)
        results.append(result(work.model, *work.inputs))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_of_norse_starts_from_the_same_state_and_makes_one_graph(name: str) -> None:
    torch.manual_seed(0)
    cell, x = CELLS[name](), 50 * torch.rand(4, 6)
    expected = result(cell, x)
    assert adapt(cell).changed
    assert_same(result(cell, x), expected)
    assert_same(result(torch.compile(cell, backend="aot_eager", fullgraph=True), x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_of_sinabs_spikes_the_same_and_makes_one_graph(name: str) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name](), 4 * torch.rand(2, 5, 6)
    expected = result(layer, x)
    assert adapt(layer).changed
    layer.reset_states()
    assert_same(result(layer, x), expected)
    layer.reset_states()
    assert_same(result(torch.compile(layer, backend="aot_eager", fullgraph=True), x), expected)


def test_states_of_sinabs_can_be_reset_in_forward_and_at_random() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = LIF(tau_mem=10.0)

        def forward(self, x: Tensor) -> Tensor:
            self.lif.reset_states()
            return self.lif(x)

    net, x = Net(), 4 * torch.rand(2, 5, 6)
    expected = result(net, x)
    adapt(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert_same(result(compiled, x), expected)
    net.lif.reset_states(randomize=True, value_ranges={"v_mem": (2.0, 3.0)})
    assert net.lif.v_mem.ge(2).all()
    assert net.lif.v_mem.grad_fn is None


def test_reset_of_snntorch_finds_its_globals_before_it_has_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = [name for name in vars(snntorch_utils) if name.startswith("is_")]
    for name in flags:
        monkeypatch.delattr(snntorch_utils, name)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaky = snntorch.Leaky(beta=0.5, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            snntorch_utils.reset(self)
            return torch.stack([self.leaky(step) for step in x])

    net, x = Net(), torch.rand(4, 2, 6)
    with adapt(net) as adaptation:
        assert "snntorch.utils.is_leaky" in adaptation.changed
        found = result(torch.compile(net, backend="aot_eager", fullgraph=True), x)
        assert_same(found, result(net, x))
    assert not hasattr(snntorch_utils, "is_leaky")


@pytest.mark.parametrize("name", ["norse", "sinabs"])
def test_what_was_changed_is_put_back(name: str) -> None:
    model = build_framework(name, "tiny").model
    before = [dict(vars(module)) for module in model.modules()]
    with adapt(model) as adaptation:
        assert adaptation.changed
        assert [vars(module) for module in model.modules()] != before
    assert [vars(module) for module in model.modules()] == before
    adaptation.undo()
    assert [vars(module) for module in model.modules()] == before


def test_other_modules_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), LIFNode())
    before = [dict(vars(module)) for module in model.modules()]
    assert adapt(model) == Adaptation()
    assert [vars(module) for module in model.modules()] == before


def test_no_framework_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alien(nn.Module):
        pass

    Alien.__module__ = "snntorch.elsewhere"
    monkeypatch.delitem(sys.modules, "snntorch.utils")
    assert adapt(Alien()).changed == []
    assert "snntorch.utils" not in sys.modules
