"""Neurons keep the state of the plain model through checkpointing, whatever holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.base import MemoryModule
from snnfx.checkpointing import GCContainer

from tests.checkpoint_neurons import NEURONS, Loop, detach_all, reset_all
from tests.checkpointed import FORMS, SPIKE_COMPRESSORS, checkpointed, compare, spikes
from tests.models import Triangle

Change = Callable[[nn.Module], None]


def nothing(model: nn.Module) -> None:
    """The state goes on, with its history."""


def net(name: str) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(4, 6), NEURONS[name](), nn.Linear(6, 6), NEURONS[name]())
    with torch.no_grad():
        for linear, scale in ((layers[0], 2.5), (layers[2], 4.0)):
            linear.weight.mul_(scale).add_(0.15)
            linear.bias.add_(0.3)
    return layers


def in_two(model: nn.Module, form: str = "container", compressor: str = "bit") -> nn.Module:
    held = SPIKE_COMPRESSORS[compressor]
    return nn.Sequential(checkpointed(model[:2], form, held), checkpointed(model[2:], form, held))


def two_calls(between: Change, before_backward: Change = nothing) -> Callable[..., Any]:
    def step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
        first = model(*inputs)
        between(model)
        second = model(*inputs)
        before_backward(model)
        loss((first, second)).backward()
        reset_all(model)
        return first, second

    return step


def assert_fires(observed: dict[str, Tensor]) -> None:
    for name, tensor in observed.items():
        if name.startswith("output"):
            assert 0.02 < tensor.mean() < 0.98
        if name.startswith("gradient"):
            assert tensor.any()


@pytest.mark.parametrize("between", [nothing, detach_all, reset_all])
@pytest.mark.parametrize("name", NEURONS)
def test_state_that_is_carried_detached_or_reset_between_calls(name: str, between: Change) -> None:
    x = spikes(4, 5, 4).requires_grad_()
    assert_fires(compare(net(name), in_two, [x], step=two_calls(between)))


@pytest.mark.parametrize("change", [detach_all, reset_all])
@pytest.mark.parametrize("name", [n for n in NEURONS if n not in ("in place", "silent")])
def test_state_that_is_detached_or_reset_before_the_backward_pass(
    name: str, change: Change
) -> None:
    x = spikes(4, 5, 4).requires_grad_()
    compare(net(name), in_two, [x], step=two_calls(nothing, change))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compressor", SPIKE_COMPRESSORS)
def test_every_form_and_compressor(form: str, compressor: str) -> None:
    x = spikes(4, 5, 4).requires_grad_()
    for name in ("lif", "attribute"):
        compare(net(name), lambda m: in_two(m, form, compressor), [x], step=two_calls(nothing))


def test_state_is_left_as_one_step_and_not_as_the_whole_sequence() -> None:
    model = in_two(net("lif"))
    model(spikes(8, 5, 4))
    sizes = [n.v.untyped_storage().nbytes() for n in model.modules() if hasattr(n, "v_threshold")]
    assert sizes == [5 * 6 * 4, 5 * 6 * 4]


class KeepsAView(MemoryModule):
    """Computes all potentials at once, and keeps the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_memory("v", 0.0)

    def single_step_forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        potentials = self.v + x.cumsum(0)
        self.v = potentials[-1]
        return Triangle.apply(potentials - 0.5)


def test_state_that_is_a_view_of_the_sequence_gets_memory_of_its_own() -> None:
    model, x = GCContainer(None, nn.Linear(4, 6), KeepsAView()), spikes(8, 5, 4)
    model(x)
    assert model[1].v.untyped_storage().nbytes() == 5 * 6 * 4
    plain = nn.Sequential(nn.Linear(4, 6), KeepsAView())
    compare(plain, lambda m: GCContainer(None, *m), [x], step=two_calls(nothing))


def test_a_large_state_that_inference_left() -> None:
    def start(wrap: Callable[[nn.Module], nn.Module]) -> Tensor:
        torch.manual_seed(0)
        x = torch.rand(300, 300)
        node = NEURONS["lif single-step"]().step
        with torch.inference_mode():
            node(x)
        x.requires_grad_()
        wrap(node)(x * 2).cos().sum().backward()
        return x.grad

    expected = start(lambda node: node)
    assert expected.any()
    assert torch.equal(start(lambda node: GCContainer(None, node)), expected)


def test_single_steps_each_in_a_container_of_its_own() -> None:
    x = spikes(4, 5, 4).requires_grad_()

    def wrap(model: nn.Module) -> nn.Module:
        for index in (1, 3):
            model[index].step = GCContainer(None, model[index].step)
        return model

    for name in ("lif single-step", "attribute", "in place", "snntorch leaky"):
        assert isinstance(NEURONS[name](), Loop)
        compare(net(name), wrap, [x], step=two_calls(nothing))
        compare(net(name), lambda m: GCContainer(None, wrap(m)), [x], step=two_calls(nothing))
        compare(net(name), lambda m: in_two(wrap(m)), [x], step=two_calls(detach_all))
