"""Which modules are running is known at any moment, in forwards and backwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikingjelly.activation_based import op_counter as peer
from torch import Tensor, nn

from snnfx._torch_compat import TorchDispatchMode
from snnfx.op_counter import ActiveModuleTracker

from tests.op_counter.nets import build


class Scopes(TorchDispatchMode):
    """Notes the operators that run, and the scopes that a tracker names for each."""

    def __init__(self, tracker: Any) -> None:
        super().__init__()
        self.tracker = tracker
        self.seen: list[tuple[str, frozenset[str]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((str(func), frozenset(self.tracker.parents)))
        return func(*args, **(kwargs or {}))


def scopes_of(tracker: Any, name: str) -> list[tuple[str, frozenset[str]]]:
    net = build(name)
    with tracker, Scopes(tracker) as noted:
        net.step()
    return noted.seen


def two_layers() -> Any:
    return nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


@pytest.mark.parametrize(
    "name",
    ["spikingjelly_vgg", "spikingjelly_sew_resnet", "spikingjelly_spikformer", "ours_hand_written"],
)
def test_scopes_are_those_of_the_peer(name: str) -> None:
    assert scopes_of(ActiveModuleTracker(), name) == scopes_of(peer.ActiveModuleTracker(), name)


def test_modules_and_names_agree() -> None:
    net = two_layers()
    tracker = ActiveModuleTracker()
    inside: list[tuple[set[nn.Module], set[str], tuple[str, ...]]] = []
    net[1][0].register_forward_hook(
        lambda *_: inside.append((tracker.active_modules, tracker.parents, tracker.path))
    )
    with tracker:
        net(torch.ones(2, 4))
    # Hooks of one module run after those of all modules, so the module itself has just ended.
    assert inside == [
        (
            {net, net[1]},
            {"Global", "Sequential", "Sequential.1"},
            ("Sequential", "Sequential.1"),
        )
    ]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def test_a_module_that_is_called_twice_runs_in_both_backwards() -> None:
    net, tracker = Twice(), ActiveModuleTracker()
    with tracker, Scopes(tracker) as noted:
        net(torch.ones(2, 3, requires_grad=True)).sum().backward()
    # Two gradients of two calls each; the peer ends the module with the first call's input.
    matmuls = [scopes for name, scopes in noted.seen if name == "aten.mm.default"]
    assert len(matmuls) == 4
    assert all("Twice.layer" in scopes for scopes in matmuls)


def test_nothing_runs_after_an_exception() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    net, tracker = nn.Sequential(nn.Linear(2, 2), Broken()), ActiveModuleTracker()
    with tracker:
        with pytest.raises(ZeroDivisionError):
            net(torch.ones(1, 2))
        assert (tracker.parents, tracker.active_modules) == ({"Global"}, set())
        assert tracker.path == ()


def test_hooks_are_gone_afterwards() -> None:
    net, tracker = two_layers(), ActiveModuleTracker()
    with tracker:
        output = net(torch.ones(2, 4, requires_grad=True)).sum()
    output.backward()
    net(torch.ones(2, 4))
    assert tracker.parents == {"Global"}


def test_a_backward_inside_a_forward_leaves_the_forward_running() -> None:
    seen: list[tuple[str, ...]] = []
    tracker = ActiveModuleTracker()

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.layer(x).sum().backward()
            seen.append(tracker.path)
            return x

    with tracker:
        Inner()(torch.ones(1, 2))
    assert seen == [("Inner",)]


def test_backward_is_told_from_forward() -> None:
    seen: list[bool] = []
    tracker = ActiveModuleTracker()
    x = torch.ones(2, 4, requires_grad=True)
    x.register_hook(lambda grad: seen.append(tracker.is_backward))
    with tracker:
        output = two_layers()(x).sum()
        seen.append(tracker.is_backward)
        output.backward()
    assert seen == [False, True]


def test_a_module_that_hands_its_input_on_has_no_backward() -> None:
    net, tracker = nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.ReLU()), ActiveModuleTracker()
    with tracker, Scopes(tracker) as noted:
        net(torch.ones(2, 3, requires_grad=True)).sum().backward()
    # For the peer the identity runs until the end of the backward.
    assert not any("Sequential.1" in scopes for _, scopes in noted.seen)
    matmuls = [scopes for name, scopes in noted.seen if name == "aten.mm.default"]
    assert all("Sequential.0" in scopes for scopes in matmuls)
