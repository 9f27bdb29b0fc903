"""A model with and without checkpointing, trained from the same start and compared bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snnfx.checkpointing import GCContainer, input_compressed_gc, to_gc_function
from snnfx.compressors import (
    BaseSpikeCompressor,
    BitSpikeCompressor,
    BooleanSpikeCompressor,
    GridSpikeCompressor,
    NullSpikeCompressor,
    SparseSpikeCompressor,
    Uint8SpikeCompressor,
)

SPIKE_COMPRESSORS: dict[str, BaseSpikeCompressor] = {
    "null": NullSpikeCompressor(),
    "bit": BitSpikeCompressor(check=True),
    "boolean": BooleanSpikeCompressor(check=True),
    "uint8": Uint8SpikeCompressor(check=True),
    "sparse": SparseSpikeCompressor(check=True),
    "grid": GridSpikeCompressor(2, check=True),
}
FORMS = ("input_compressed_gc", "to_gc_function", "decorator", "container", "wrapping")

Observed = dict[str, Tensor]


class Called(nn.Module):
    """Runs its module through a function, as a user's own model does."""

    def __init__(self, inner: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = inner
        self._call = call

    def forward(self, x: Tensor, *args: Any) -> Any:
        return self._call(self.inner, x, *args)


def checkpointed(
    module: nn.Module, form: str, compressor: BaseSpikeCompressor | None = None
) -> nn.Module:
    """`module` with its input kept compressed, in one of the `FORMS`."""
    held = NullSpikeCompressor() if compressor is None else compressor
    if form == "container":
        return GCContainer(compressor, module)
    if form == "wrapping":
        return GCContainer.wrapping(module, compressor)
    if form == "to_gc_function":
        return Called(module, lambda m, x, *args: to_gc_function(held, m.forward)(x, *args))
    if form == "decorator":

        def decorated(m: nn.Module, x: Tensor, *args: Any) -> Any:
            @to_gc_function(held)
            def function(x: Tensor, *args: Any) -> Any:
                return m(x, *args)

            return function(x, *args)

        return Called(module, decorated)
    return Called(module, lambda m, x, *args: input_compressed_gc(m, held, x, *args))


def spikes(*shape: int, rate: float = 0.4) -> Tensor:
    return (torch.rand(shape) < rate).float()


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from tensors_of(member)
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from tensors_of(member)


def state_of(model: nn.Module) -> Iterator[Tensor]:
    """Buffers, and tensors among the attributes of all modules that are not containers."""
    yield from model.buffers()
    for module in model.modules():
        if not isinstance(module, (GCContainer, Called)):
            own = vars(nn.Module())
            yield from tensors_of([v for k, v in vars(module).items() if k not in own])


def observe(model: nn.Module, outputs: Any, inputs: Sequence[Any]) -> Observed:
    """What a training step leaves, by name."""
    found = {f"output {i}": t for i, t in enumerate(tensors_of(outputs))}
    found |= {
        f"gradient of input {i}": t.grad
        for i, t in enumerate(tensors_of(list(inputs)))
        if t.is_leaf and t.grad is not None
    }
    found |= {
        f"gradient of parameter {i}": p.grad
        for i, p in enumerate(model.parameters())
        if p.grad is not None
    }
    found |= {f"parameter {i}": p for i, p in enumerate(model.parameters())}
    found |= {f"state {i}": t for i, t in enumerate(state_of(model))}
    found["random state"] = torch.get_rng_state()
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def assert_same(found: Observed, expected: Observed) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def weighted(outputs: Any) -> Tensor:
    """A loss with another gradient for each element of each output that has a gradient."""
    loss = torch.zeros(())
    for output in tensors_of(outputs):
        if output.requires_grad:
            weight = torch.linspace(-1, 2, output.numel()).reshape(output.shape)
            loss = loss + (output.float().cos() * weight).sum()
    return loss


def one_step(model: nn.Module, inputs: Sequence[Any], loss: Callable[[Any], Tensor]) -> Any:
    outputs = model(*inputs)
    loss(outputs).backward()
    return outputs


def compare(
    plain: nn.Module,
    wrap: Callable[[nn.Module], nn.Module],
    inputs: Sequence[Any],
    *,
    loss: Callable[[Any], Tensor] = weighted,
    step: Callable[[nn.Module, Sequence[Any], Callable[[Any], Tensor]], Any] = one_step,
    steps: int = 2,
    observed: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Observed:
    """Hold that `wrap(plain)` trains as `plain` does; returns what `plain` gave.

    Args:
        plain: the reference; each of the two is a deep copy of it.
        wrap: puts checkpointing into a model.
        inputs: of the model, copied too.
        loss: a scalar of the model's outputs.
        step: one forward and backward.
        steps: how many of these, each followed by a step of SGD.
        observed: the part of the model that is compared.
    """
    results: list[list[Observed]] = []
    for change in (lambda model: model, wrap):
        model, given = change(copy.deepcopy(plain)), copy.deepcopy(list(inputs))
        torch.manual_seed(11)
        results.append([])
        for _ in range(steps):
            for tensor in (*model.parameters(), *tensors_of(given)):
                tensor.grad = None
            outputs = step(model, given, loss)
            results[-1].append(observe(observed(model), outputs, given))
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.05 * parameter.grad)
    for found, expected in zip(results[1], results[0], strict=True):
        assert_same(found, expected)
    return results[0][0]
