"""The measurement that all claims rest on, against sequences whose peak is known."""

from __future__ import annotations

import torch
from torch import nn

from examples.measure import (
    allocation_events,
    largest_relative_error,
    measure_memory,
    peak_bytes,
    storage_bytes,
)
from tests.models import vgg_small
from tests.oracles import measured_activation_bytes, measured_added_bytes, training_step

MIB = 1 << 20


def buffer(mebibytes: int) -> torch.Tensor:
    return torch.empty(mebibytes * MIB, dtype=torch.uint8)


def test_the_peak_of_a_known_sequence_is_exact() -> None:
    def sequence() -> None:
        first = buffer(3)
        second = buffer(5)
        del first
        third = buffer(2)
        del second, third
        buffer(6)

    assert measured_added_bytes(sequence) == 8 * MIB


def test_what_stays_after_the_step_counts_and_what_was_there_before_does_not() -> None:
    kept = [buffer(7)]
    events = allocation_events(lambda: kept.append(buffer(1)))
    assert peak_bytes(events) == MIB
    assert sum(size for _, size in events) == MIB


def test_a_release_of_older_memory_is_not_credited() -> None:
    kept = [buffer(4)]

    def step() -> None:
        kept.clear()
        kept.append(buffer(5))

    assert measured_added_bytes(step) == 5 * MIB


def test_a_chain_of_linear_layers_has_the_peak_that_can_be_counted_by_hand() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))
    x = torch.randn(1024, 64, requires_grad=False)
    activation, weight = 1024 * 64 * 4, 64 * 64 * 4
    memory = measure_memory(lambda: model(x).sum().backward(), model, (x,))
    assert memory.parameter_bytes == memory.gradient_bytes == 3 * weight
    assert memory.input_bytes == activation
    # Two saved inputs, the last output, or in their place its gradient made dense, and the
    # gradient of what goes before: at most one more tensor than the two that backward keeps.
    assert 3 * activation <= memory.activation_bytes <= 4 * activation + 8
    assert memory.peak_bytes >= memory.peak_less_all + 3 * weight + activation


def test_gradients_are_not_activations() -> None:
    model = nn.Linear(512, 512, bias=False)
    x = torch.randn(1, 512)
    memory = measure_memory(lambda: model(x).sum().backward(), model, (x,))
    assert memory.gradient_bytes == 512 * 512 * 4
    assert memory.activation_bytes < 64 * 1024


def test_the_figure_repeats_and_grows_with_the_batch() -> None:
    workload = vgg_small()
    first = measured_activation_bytes(workload)
    assert first == measured_activation_bytes(workload)
    larger = tuple(torch.cat([x, x], dim=1) for x in workload.inputs)
    target = torch.arange(larger[0].shape[1])
    twice = type(workload)(
        workload.model,
        larger,
        lambda output: nn.functional.cross_entropy(output, target),
        (),
        lambda: None,
    )
    assert 1.6 * first < measured_activation_bytes(twice) < 2.1 * first


def test_a_step_reaches_every_parameter() -> None:
    workload = vgg_small()
    training_step(workload)()
    assert all(parameter.grad is not None for parameter in workload.model.parameters())


def test_views_of_one_storage_count_once() -> None:
    x = torch.zeros(100)
    assert storage_bytes([x, x[:10], x.view(10, 10)]) == 400


def test_the_error_of_gradients_is_relative_to_each_gradient() -> None:
    reference = [torch.full((4,), 100.0), torch.full((4,), 0.5)]
    found = [torch.full((4,), 100.0), torch.full((4,), 0.505)]
    assert largest_relative_error(reference, reference) == 0
    assert abs(largest_relative_error(found, reference) - 0.01) < 1e-6


def test_a_gradient_that_is_only_noise_is_not_held_against_a_method() -> None:
    reference = [torch.full((4,), 1.0), torch.full((4,), 1e-12)]
    found = [torch.full((4,), 1.0), torch.full((4,), -1e-12)]
    assert largest_relative_error(found, reference) < 1e-5
