"""Containers under compilers, in data parallel training, and with parameters from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snnfx.checkpointing import GCContainer
from snnfx.compressors import BitSpikeCompressor, NullSpikeCompressor
from snnfx.neurons import LIFNode

from tests.backend.harness import ignore_dynamo_warnings
from tests.checkpoint_neurons import reset_all
from tests.checkpointed import FORMS, checkpointed, compare, one_step, spikes, weighted

pytestmark = ignore_dynamo_warnings


def layers() -> nn.Sequential:
    first, second = nn.Linear(4, 6), nn.Linear(6, 6)
    with torch.no_grad():
        second.weight.mul_(3).add_(0.2)
    return nn.Sequential(
        first, nn.BatchNorm1d(6), LIFNode(v_threshold=0.3), second, LIFNode(v_threshold=0.3)
    )


def in_containers(model: nn.Module) -> nn.Module:
    return nn.Sequential(
        GCContainer(NullSpikeCompressor(), *model[:3]),
        GCContainer(BitSpikeCompressor(), *model[3:]),
    )


def reset_first(model: nn.Module, inputs: Sequence[Any], loss: Callable[..., Any]) -> Any:
    reset_all(model)
    return one_step(model, inputs, loss)


@pytest.mark.parametrize(
    ("backend", "options"), [("aot_eager", None), ("snnmem", {"lowering": "eager"})]
)
def test_a_compiled_model_with_containers_is_the_model_without(
    backend: str, options: dict[str, Any] | None
) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        contained = in_containers(model)
        contained.compile(backend=backend, options=options, fullgraph=True)
        return contained

    compare(layers(), wrap, [spikes(8, 4).requires_grad_()], step=reset_first)


@pytest.mark.parametrize("form", ["input_compressed_gc", "to_gc_function"])
def test_a_checkpointed_function_in_a_compiled_model(form: str) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        contained = checkpointed(model, form, BitSpikeCompressor())
        contained.compile(backend="aot_eager")
        return contained

    model = layers()[:3]
    compare(model, wrap, [spikes(8, 4).requires_grad_()], step=reset_first)


@pytest.mark.parametrize("form", FORMS)
def test_function_transforms_run_the_plain_modules(form: str) -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())
    model, x = checkpointed(plain, form), torch.randn(5, 4)

    def total(module: nn.Module, x: Tensor) -> Tensor:
        return module(x).cos().sum()

    for transform in (torch.func.grad, torch.func.vmap, torch.func.jacrev):
        expected = transform(lambda x: total(plain, x))(x)
        assert torch.equal(transform(lambda x: total(model, x))(x), expected)


def test_lazy_modules_take_their_first_input_unchecked() -> None:
    def train(wrap: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
        torch.manual_seed(0)
        model = wrap(nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Sigmoid()))
        x = torch.randn(5, 4, requires_grad=True)
        for _ in range(2):
            one_step(model, [x], weighted)
        return [x.grad, *(p.grad for p in model.parameters()), *model.buffers()]

    expected = train(lambda model: model)
    found = train(lambda model: GCContainer(None, model))
    assert len(expected) == 8
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_container_around_compiled_modules() -> None:
    def wrap(model: nn.Module) -> nn.Module:
        for part in (model[0], model[3]):
            part.compile(backend="aot_eager")
        return in_containers(model)

    compare(layers(), wrap, [spikes(8, 4).requires_grad_()], step=reset_first)


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("options", [{}, {"static_graph": True}, {"find_unused_parameters": True}])
def test_data_parallel_training(options: dict[str, bool]) -> None:
    def wrap(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(in_containers(model), **options)

    observed = compare(
        layers(),
        wrap,
        [spikes(8, 4).requires_grad_()],
        step=reset_first,
        observed=without_internals,
    )
    assert len([name for name in observed if name.startswith("gradient of parameter")]) == 6


def without_internals(model: nn.Module) -> nn.Module:
    """The model that data parallel training wraps."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("leaf", [True, False])
def test_parameters_and_buffers_from_outside(form: str, leaf: bool) -> None:
    def gradients(wrap: Callable[[nn.Module], nn.Module]) -> list[Tensor]:
        torch.manual_seed(0)
        model = wrap(nn.Sequential(nn.Conv1d(4, 6, 1), nn.BatchNorm1d(6), nn.Conv1d(6, 3, 1)))
        x = torch.randn(5, 4, 7, requires_grad=True)
        own = [t.clone() for t in model.parameters()]
        given = [(3 * p.detach()).requires_grad_() for p in model.parameters()]
        names = [name for name, _ in model.named_parameters()]
        values = dict(zip(names, given if leaf else [2 * p for p in given], strict=True))
        values |= {name: buffer + 1 for name, buffer in model.named_buffers()}
        output = torch.func.functional_call(model, values, (x,))
        weighted(output).backward()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), own, strict=True))
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(not buffer.any() or bool((buffer == 1).all()) for buffer in model.buffers())
        return [output, x.grad, *[p.grad for p in given]]

    expected = gradients(lambda model: model)
    found = gradients(lambda model: checkpointed(model, form))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(tensor.any() for tensor in [expected[1], expected[2], expected[4]])


def test_parameters_from_outside_that_change_before_the_backward_pass() -> None:
    model = GCContainer(None, nn.Linear(4, 4), nn.Sigmoid())
    weight = torch.randn(4, 4, requires_grad=True)
    output = torch.func.functional_call(model, {"0.weight": weight}, (torch.randn(3, 4),))
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()
