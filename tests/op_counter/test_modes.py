"""Modes hand each operator to each counter, with the modules that were running."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import op_counter as peer
from torch import Tensor, nn

from snnfx.errors import UncountedError
from snnfx.op_counter import BaseCounter, DispatchCounterMode, FunctionCounterMode

from tests.op_counter.nets import build

aten = torch.ops.aten


def elements(args: Any, kwargs: Any, out: Any) -> int:
    return out.numel()


def one(args: Any, kwargs: Any, out: Any) -> int:
    return 1


def counter(**options: Any) -> BaseCounter:
    return BaseCounter({aten.addmm.default: elements, aten.mm.default: elements}, **options)


def net() -> Any:
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 5), nn.ReLU()))


class PeerCounter(peer.BaseCounter):
    """The peer's counter with the rules of `counter`."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = dict(counter().rules)


def as_dicts(records: Any) -> dict[str, dict[Any, int]]:
    return {scope: dict(counts) for scope, counts in records.items()}


def gradients_of(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_each_scope_gets_what_ran_in_it() -> None:
    counted = counter()
    with DispatchCounterMode([counted]):
        net()(torch.ones(2, 4))
    assert as_dicts(counted.records) == {
        "Global": {aten.addmm.default: 6 + 10},
        "Sequential": {aten.addmm.default: 6 + 10},
        "Sequential.0": {aten.addmm.default: 6},
        "Sequential.1": {aten.addmm.default: 10},
        "Sequential.1.0": {aten.addmm.default: 10},
    }
    assert counted.get_total() == 16


def test_a_backward_is_counted_in_the_scopes_of_its_modules() -> None:
    counted = counter()
    with DispatchCounterMode([counted]):
        net()(torch.ones(2, 4, requires_grad=True)).sum().backward()
    grads = {scope: ops.get(aten.mm.default, 0) for scope, ops in counted.records.items()}
    first, second = 2 * 4 + 4 * 3, 2 * 3 + 3 * 5
    assert grads["Sequential.0"] == first
    assert grads["Sequential.1.0"] == second
    assert grads["Global"] == grads["Sequential"] == first + second


@pytest.mark.parametrize("name", ["spikingjelly_vgg", "spikingjelly_spikformer"])
def test_records_of_a_training_step_are_the_peers(name: str) -> None:
    ours, theirs = counter(), PeerCounter()
    for mode, counted in (
        (DispatchCounterMode([ours]), ours),
        (peer.DispatchCounterMode([theirs]), theirs),
    ):
        model = build(name)
        with mode:
            model.step()
        assert counted.get_total() > 0
    assert as_dicts(ours.records) == as_dicts(theirs.records)


def test_records_add_up_until_reset() -> None:
    counted, model = counter(), net()
    for _ in range(2):
        with DispatchCounterMode([counted]):
            model(torch.ones(2, 4))
    assert counted.get_total() == 32
    counted.reset()
    assert counted.get_total() == 0
    assert counted.get_counts() == {}
    with DispatchCounterMode([counted]):
        model(torch.ones(2, 4))
    assert counted.get_total() == 16


def test_a_mode_can_be_entered_again() -> None:
    counted, model = counter(), net()
    mode = DispatchCounterMode([counted])
    for _ in range(3):
        with mode:
            model(torch.ones(2, 4))
    assert counted.get_total() == 48
    assert counted.get_counts()["Sequential.0"] == {aten.addmm.default: 18}


def test_several_counters_count_one_run() -> None:
    sizes, calls = counter(), BaseCounter({aten.addmm.default: one})
    with DispatchCounterMode([sizes, calls]):
        net()(torch.ones(2, 4))
    assert (sizes.get_total(), calls.get_total()) == (16, 2)


def test_nested_modes_each_count() -> None:
    outer, inner, model = counter(), counter(), net()
    with DispatchCounterMode([outer]):
        model(torch.ones(2, 4))
        with DispatchCounterMode([inner]):
            model(torch.ones(2, 4))
    assert (outer.get_total(), inner.get_total()) == (32, 16)
    assert outer.get_counts()["Sequential.0"] == {aten.addmm.default: 12}


def test_strict_names_the_operator_and_the_way_out() -> None:
    model, x = net(), torch.ones(2, 4)
    with (
        pytest.raises(UncountedError, match=r"aten\.relu\.default.*extra_rules.*strict=False") as e,
        DispatchCounterMode([BaseCounter({aten.addmm.default: one, aten.t.default: one})],
                            strict=True),
    ):  # fmt: skip
        model(x)
    assert isinstance(e.value, NotImplementedError)


def test_all_is_as_before_after_an_exception() -> None:
    counted, model = counter(), net()
    strict = DispatchCounterMode([counted], strict=True)
    with pytest.raises(UncountedError), strict:
        model(torch.ones(2, 4))
    before = counted.get_total()
    model(torch.ones(2, 4))
    assert counted.get_total() == before
    assert not model[0]._forward_hooks
    with DispatchCounterMode([counted]):
        model(torch.ones(2, 4))
    assert counted.get_total() == before + 16


def test_what_has_no_rule_is_listed() -> None:
    counted = counter()
    mode, model, x = DispatchCounterMode([counted]), net(), torch.ones(2, 4)
    with mode:
        model(x)
    missed = mode.get_unsupported(counted)
    assert missed == {"aten.t.default": 2, "aten.relu.default": 1, "aten.detach.default": 1}
    with pytest.raises(ValueError, match="no such counter"):
        mode.get_unsupported(counter())


def test_verbose_prints_each_operator(capsys: pytest.CaptureFixture[str]) -> None:
    with DispatchCounterMode([counter()], verbose=True):
        net()(torch.ones(2, 4))
    assert capsys.readouterr().out.splitlines() == [
        "BaseCounter: aten.addmm.default counts 6",
        "BaseCounter: aten.addmm.default counts 10",
    ]


@pytest.mark.parametrize("ignored", ["type", "module"])
def test_nothing_is_counted_inside_ignored_modules(ignored: str) -> None:
    class Block(nn.Sequential):
        pass

    model = nn.Sequential(nn.Linear(4, 3), Block(nn.Linear(3, 5)))
    counted = counter(extra_ignore_modules=[Block if ignored == "type" else model[1]])
    with DispatchCounterMode([counted]):
        model(torch.ones(2, 4))
    assert as_dicts(counted.records)["Global"] == {aten.addmm.default: 6}


def test_extra_rules_win() -> None:
    counted = counter(extra_rules={aten.addmm.default: one, aten.relu.default: elements})
    with DispatchCounterMode([counted]):
        net()(torch.ones(2, 4))
    assert counted.get_counts()["Global"] == {aten.addmm.default: 2, aten.relu.default: 10}


def test_counters_are_told_of_the_modules() -> None:
    told: list[tuple[set[str], set[nn.Module]]] = []

    class Aware(BaseCounter):
        def count(self, func: Any, args: Any, kwargs: Any, out: Any,
                  active_modules: Any = None, parent_names: Any = None) -> int:  # fmt: skip
            told.append((set(parent_names), set(active_modules)))
            return super().count(func, args, kwargs, out)

    model = net()
    with DispatchCounterMode([Aware({aten.relu.default: one})]):
        model(torch.ones(2, 4))
    names = {"Global", "Sequential", "Sequential.1", "Sequential.1.1"}
    assert told == [(names, {model, model[1], model[1][1]})]


def test_functions_are_counted_by_what_was_called() -> None:
    def of_linear(args: Any, kwargs: Any, out: Any) -> int:
        x, weight = args[:2]
        return x.numel() * weight.shape[0]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.layer(x))

    counted = BaseCounter({F.linear: of_linear})
    mode = FunctionCounterMode([counted])
    with mode:
        Net()(torch.ones(2, 4))
    assert as_dicts(counted.records) == {
        "Global": {F.linear: 24}, "Net": {F.linear: 24}, "Net.layer": {F.linear: 24},
    }  # fmt: skip
    assert "torch.nn.functional.relu" in mode.get_unsupported(counted)
    x = torch.ones(2)
    refused = pytest.raises(UncountedError, match=r"torch\.nn\.functional\.relu")
    with refused, FunctionCounterMode([counted], strict=True):
        F.relu(x)


def test_results_are_what_they_are_without_a_mode() -> None:
    torch.manual_seed(0)
    model, x = net(), torch.randn(2, 4)
    plain = model(x)
    plain.sum().backward()
    gradients = gradients_of(model)
    model.zero_grad()
    with DispatchCounterMode([counter()]):
        counted = model(x)
        counted.sum().backward()
    assert torch.equal(plain, counted)
    assert all(map(torch.equal, gradients_of(model), gradients))
