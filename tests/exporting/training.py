"""Training steps of a model and of what it was rewritten to, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnfx.neurons import reset_net

Record = dict[str, Tensor]


def weighted(output: Tensor) -> Tensor:
    """A loss that each element of the output enters differently."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return (output.square() * weights).sum() + output.sum()


def train(
    model: nn.Module, batches: Sequence[Sequence[Any]], loss_fn: Callable[[Any], Tensor] = weighted
) -> Record:
    """Losses, gradients, parameters and buffers of SGD steps from a fixed random state."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(3)
    record: Record = {}
    for step, batch in enumerate(batches):
        reset_net(model)
        optimizer.zero_grad()
        loss = loss_fn(model(*batch))
        loss.backward()
        optimizer.step()
        record[f"{step} loss"] = loss.detach()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                record[f"{step} gradient of {name}"] = parameter.grad.clone()
        state = (*model.named_parameters(), *model.named_buffers())
        record |= {f"{step} {name}": tensor.detach().clone() for name, tensor in state}
    return record


def assert_same(actual: Record, expected: Record, tolerance: float = 0.0) -> None:
    """Hold that two records have the same bits, or differ by a fraction of the largest value."""
    assert list(actual) == list(expected)
    assert any("gradient" in name and tensor.any() for name, tensor in expected.items())
    for name, tensor in expected.items():
        if tolerance == 0.0:
            assert torch.equal(actual[name], tensor), name
        else:
            scale = max(1.0, float(tensor.abs().max()))
            assert float((actual[name] - tensor).abs().max()) <= tolerance * scale, name
