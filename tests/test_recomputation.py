"""A checkpointed function is the plain one: outputs, gradients, buffers and random state."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snnfx.checkpointing import GCContainer, input_compressed_gc
from snnfx.compressors import NullSpikeCompressor

from tests.checkpointed import (
    FORMS,
    SPIKE_COMPRESSORS,
    checkpointed,
    compare,
    one_step,
    spikes,
    weighted,
)

NULL = NullSpikeCompressor()


def linear_stack() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 8), nn.Tanh())


def conv_stack() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3))


STACKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (linear_stack, (6, 8)),
    "convolution": (conv_stack, (2, 8, 6, 6)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.SiLU()), (6, 8)),
    "cumulative batch norm": (lambda: nn.BatchNorm1d(8, momentum=None), (6, 8)),
    "batch norm without statistics": (
        lambda: nn.BatchNorm1d(8, track_running_stats=False),
        (6, 8),
    ),
    "batch norm of sequences": (lambda: nn.BatchNorm1d(8), (6, 8, 5)),
    "batch norm twice": (lambda: nn.Sequential(*[nn.BatchNorm1d(8)] * 2), (6, 8)),
    "dropout": (
        lambda: nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 8), nn.Dropout(0.5), nn.Sigmoid()),
        (6, 8),
    ),
    "recurrent": (lambda: nn.GRU(8, 5), (4, 6, 8)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2), (4, 6, 8)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", STACKS)
def test_layers_train_as_without_checkpointing(name: str, form: str) -> None:
    build, shape = STACKS[name]
    compare(build(), lambda m: checkpointed(m, form), [torch.randn(shape, requires_grad=True)])


@pytest.mark.parametrize("compressor", SPIKE_COMPRESSORS)
@pytest.mark.parametrize("name", STACKS)
def test_layers_on_compressed_spikes(name: str, compressor: str) -> None:
    build, shape = STACKS[name]
    held = SPIKE_COMPRESSORS[compressor]
    for tracked, form in itertools.product((True, False), ("input_compressed_gc", "container")):
        x = spikes(*shape).requires_grad_(tracked)
        compare(build(), lambda m, form=form: checkpointed(m, form, held), [x])


@pytest.mark.parametrize("compressor", SPIKE_COMPRESSORS)
def test_strides_of_the_input_are_those_of_the_first_run(compressor: str) -> None:
    x = spikes(2, 8, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    held = SPIKE_COMPRESSORS[compressor]
    compare(conv_stack(), lambda m: checkpointed(m, "container", held), [x])
    for given in (x, x.detach()):
        strides: list[tuple[int, ...]] = []
        weight = torch.ones(6, requires_grad=True)

        def noting(x: Tensor, weight: Tensor, note: Callable[..., None] = strides.append) -> Tensor:
            note(x.stride())
            return x.sin() * weight.exp()

        input_compressed_gc(noting, held, given, weight).sum().backward()
        assert strides == [x.stride()] * 2


@pytest.mark.parametrize("form", FORMS)
def test_batch_norm_in_eval_mode_and_frozen(form: str) -> None:
    x = torch.randn(6, 8, requires_grad=True)
    for name in ("batch norm", "cumulative batch norm"):
        build, _ = STACKS[name]
        compare(build().eval(), lambda m: checkpointed(m, form), [x])
        compare(build().requires_grad_(False), lambda m: checkpointed(m, form), [x])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(form: str, dtype: torch.dtype) -> None:
    def step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
        with torch.autocast("cpu", dtype):
            outputs = model(*inputs)
        loss(outputs).backward()
        return outputs

    for build, shape in (STACKS["linear"], STACKS["convolution"], STACKS["batch norm"]):
        x = torch.randn(shape, requires_grad=True)
        observed = compare(build(), lambda m: checkpointed(m, form), [x], step=step)
        assert observed["output 0"].dtype in (dtype, torch.float32)


def test_backward_inside_of_autocast_does_not_change_what_was_computed_outside() -> None:
    def step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
        outputs = model(*inputs)
        value = loss(outputs)
        with torch.autocast("cpu", torch.bfloat16):
            value.backward()
        return outputs

    compare(
        conv_stack(),
        lambda m: checkpointed(m, "container"),
        [torch.randn(2, 8, 6, 6, requires_grad=True)],
        step=step,
    )


class Many(nn.Module):
    """Arguments and results of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x: Tensor, factor: float, nested: Any, shift: Tensor | None = None) -> Any:
        (a, b), options = nested
        hidden = torch.tanh(x * self.scale * factor) * a.sin()
        if options["shift"] and shift is not None:
            hidden = hidden + shift.exp()
        return hidden, (hidden * b).sigmoid(), hidden.detach().clone()


@pytest.mark.parametrize("form", FORMS)
def test_arguments_of_every_kind_and_several_outputs(form: str) -> None:
    a, b = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8)
    shift = torch.randn(8, requires_grad=True)
    x = torch.randn(6, 8, requires_grad=True)
    for given in (x, x.detach()):
        inputs = [given, 0.7, ((a, b), {"shift": True}), shift]
        observed = compare(Many(), lambda m: checkpointed(m, form), inputs)
        assert sum(name.startswith("gradient of input") for name in observed) >= 2


@pytest.mark.parametrize("form", FORMS)
def test_outputs_that_are_not_used(form: str) -> None:
    inputs = [torch.randn(6, 8, requires_grad=True), 0.7, ((torch.ones(8), torch.ones(8)), {})]
    inputs[2][1]["shift"] = False
    for index in (0, 1):
        compare(
            Many(),
            lambda m: checkpointed(m, form),
            inputs,
            loss=lambda outputs, index=index: weighted(outputs[index]),
        )


@pytest.mark.parametrize("form", FORMS)
def test_frozen_parameters_and_nothing_that_needs_a_gradient(form: str) -> None:
    x = torch.randn(2, 8, 6, 6)
    compare(conv_stack().requires_grad_(False), lambda m: checkpointed(m, form), [
        x.clone().requires_grad_()
    ])  # fmt: skip
    half = conv_stack()
    half[0].requires_grad_(False)
    compare(half, lambda m: checkpointed(m, form), [x])
    compare(
        conv_stack().requires_grad_(False),
        lambda m: checkpointed(m, form),
        [x],
        step=lambda model, inputs, loss: model(*inputs),
    )


def test_the_first_input_may_be_a_parameter() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(spikes(2, 8, 6, 6))
            self.body = conv_stack()

        def forward(self) -> Tensor:
            return self.body(self.x)

    def wrap(model: nn.Module) -> nn.Module:
        model.body = checkpointed(model.body, "container", SPIKE_COMPRESSORS["bit"])
        return model

    compare(Learned(), wrap, [], steps=1)


def test_lists_among_the_arguments_that_the_function_changes() -> None:
    class Recording(nn.Module):
        def forward(self, x: Tensor, record: list[Tensor]) -> Tensor:
            record.append(x.sin())
            return torch.stack(record).prod(0).exp()

    inputs = [torch.randn(6, 8, requires_grad=True), []]
    compare(Recording(), lambda m: checkpointed(m, "container"), inputs, steps=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["linear", "batch norm", "dropout"])
def test_several_backward_calls_and_gradients_of_chosen_tensors(name: str, form: str) -> None:
    def step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
        outputs = model(*inputs)
        value = loss(outputs)
        for _ in range(3):
            value.backward(retain_graph=True)
        first = next(model.parameters())
        chosen = torch.autograd.grad(value, [inputs[0]], retain_graph=True)
        both = torch.autograd.grad(value, [first, inputs[0]])
        return outputs, chosen, both

    build, shape = STACKS[name]
    x = torch.randn(shape, requires_grad=True)
    compare(build(), lambda m: checkpointed(m, form), [x], step=step)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["linear", "batch norm", "dropout"])
def test_double_backward(name: str, form: str) -> None:
    def step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
        outputs = model(*inputs)
        (gradient,) = torch.autograd.grad(loss(outputs), inputs, create_graph=True)
        gradient.square().sum().backward()
        return outputs, gradient

    build, shape = STACKS[name]
    x = torch.randn(shape, requires_grad=True)
    compare(build(), lambda m: checkpointed(m, form), [x], step=step)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_accumulate_over_three_steps_with_the_same_bits(form: str) -> None:
    def step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
        outputs = []
        for index in range(3):
            outputs.append(one_step(model, [inputs[0] + index], loss))
        return outputs

    for build, shape in STACKS.values():
        x = torch.randn(shape, requires_grad=True)
        compare(build(), lambda m: checkpointed(m, form), [x], step=step, steps=1)


@pytest.mark.parametrize("calls", [2, 3])
def test_the_same_container_several_times_in_one_graph(calls: int) -> None:
    def step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
        x = inputs[0]
        for _ in range(calls):
            x = model(x)
        loss(x).backward()
        return x

    shape = {"linear": (6, 8), "dropout": (6, 8), "batch norm twice": (6, 8)}
    for name, size in shape.items():
        x = torch.randn(size, requires_grad=True)
        compare(STACKS[name][0](), lambda m: checkpointed(m, "container"), [x], step=step)


def test_parameters_that_containers_share() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.sigmoid(self.first(x)).tanh())

    def wrap(model: nn.Module) -> nn.Module:
        model.first = GCContainer(None, model.first, nn.Identity())
        model.second = GCContainer(None, model.second)
        return model

    compare(Tied(), wrap, [torch.randn(6, 8, requires_grad=True)])


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_segments_inside_of_segments(form: str, depth: int) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        parts: list[nn.Module] = [checkpointed(part, form) for part in model]
        for _ in range(depth - 1):
            parts = [
                checkpointed(nn.Sequential(*pair), form)
                for pair in (parts[: len(parts) // 2], parts[len(parts) // 2 :])
            ]
        return checkpointed(nn.Sequential(*parts), form)

    layers = [
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Dropout(0.4),
        nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.4), nn.Tanh(),
    ]  # fmt: skip
    compare(nn.Sequential(*layers), wrap, [torch.randn(6, 8, requires_grad=True)])


def test_a_container_inside_of_a_function_that_torch_checkpoints() -> None:
    class Outer(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)

    build, shape = STACKS["dropout"]
    x = torch.randn(shape, requires_grad=True)
    compare(build(), lambda m: Outer(GCContainer(None, m)), [x])


def test_hooks_of_parameters_and_tensors_fire_as_often_as_without() -> None:
    def fired(wrap: Callable[[nn.Module], nn.Module], leaf: bool) -> list[str]:
        calls: list[str] = []
        linear = nn.Linear(8, 8)
        linear.weight.register_hook(lambda g: calls.append("parameter"))
        linear.weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))

        def body(x: Tensor) -> Tensor:
            x.register_hook(lambda g: calls.append("input"))
            hidden = linear(x)
            hidden.register_hook(lambda g: calls.append("hidden"))
            return hidden.sigmoid().tanh()

        start = torch.ones(3, 8, requires_grad=True)
        x = start if leaf else start * 2
        x.register_hook(lambda g: calls.append("outside"))
        output = wrap(body)(x)
        output.register_hook(lambda g: calls.append("output"))
        output.sum().backward()
        return calls

    for leaf in (True, False):
        expected = fired(lambda body: body, leaf)
        assert len(expected) == 6
        for compressor in (NULL, SPIKE_COMPRESSORS["uint8"]):

            def wrap(body: Any, compressor: Any = compressor) -> Any:
                return lambda x: input_compressed_gc(body, compressor, x)

            assert fired(wrap, leaf) == expected


def test_full_backward_hooks_of_modules_inside() -> None:
    def grads(wrap: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
        torch.manual_seed(0)
        found: list[Tensor] = []
        model = conv_stack()[:1]
        model[0].register_full_backward_hook(lambda m, gi, go: found.extend([*gi, *go]))
        x = torch.randn(2, 8, 6, 6, requires_grad=True)
        weighted(wrap(model)(x)).backward()
        return found

    expected = grads(lambda model: model)
    found = grads(lambda model: GCContainer(None, model))
    assert len(found) == len(expected) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_random_numbers_of_the_second_run_leave_the_generator_alone() -> None:
    x = torch.randn(6, 8, requires_grad=True)
    model = GCContainer(None, nn.Dropout(0.5), nn.Sigmoid())
    output = model(x)
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(torch.get_rng_state(), expected)
    kept = (F.sigmoid(torch.tensor(0.0)) != output).float()
    assert torch.equal(x.grad != 0, kept.bool() & (x != 0))
