"""What cannot be computed again is an error, never a wrong gradient, and leaves nothing behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.checkpointing import GCContainer, in_gc_1st_forward, input_compressed_gc
from snnfx.compressors import BitSpikeCompressor, NullSpikeCompressor
from snnfx.errors import RecomputationError
from snnfx.neurons import LIFNode

from tests.checkpoint_neurons import reset_all
from tests.checkpointed import checkpointed, compare, observe, one_step, spikes, state_of, weighted

NULL = NullSpikeCompressor()


class Failing(nn.Module):
    """Fails in the given one of its runs, after it has changed its state and settings."""

    def __init__(self, run: int) -> None:
        super().__init__()
        self.run = run
        self.register_buffer("count", torch.zeros(3))
        self.mode = "before"

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(1)
        self.count.add_(1)
        self.mode = "inside"
        torch.rand(3)
        y = torch.sigmoid(x * self.count.sum())
        if len(RUNS) == self.run:
            raise KeyError("inside of the segment")
        self.mode = "after"
        return torch.sin(y)


RUNS: list[int] = []
"""Counted outside of the module, where no run is undone."""


@pytest.fixture(autouse=True)
def no_runs() -> None:
    RUNS.clear()


@pytest.mark.parametrize("nested", [False, True])
def test_an_error_in_the_first_run_leaves_the_thread_as_it_was(nested: bool) -> None:
    model = GCContainer(None, nn.Linear(4, 4), Failing(1))
    model = GCContainer(None, model) if nested else model
    x = torch.randn(3, 4, requires_grad=True)
    with pytest.raises(KeyError, match="inside of the segment"):
        model(x)
    assert not in_gc_1st_forward()
    y = x.sin()  # saved by autograd itself, not by a segment
    y.sum().backward()
    assert torch.equal(x.grad, x.detach().cos())
    compare(model[-1][-1] if nested else model[-1], lambda m: GCContainer(None, m), [x])


@pytest.mark.parametrize("nested", [False, True])
def test_an_error_in_the_second_run_leaves_modules_and_thread_as_they_were(nested: bool) -> None:
    failing = Failing(2)
    model = GCContainer(None, nn.Linear(4, 4), failing)
    model = GCContainer(None, model) if nested else model
    x = torch.randn(3, 4, requires_grad=True)
    output = model(x)
    before, random_state = [t.clone() for t in state_of(model)], torch.get_rng_state()
    with pytest.raises(KeyError, match="inside of the segment"):
        output.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(state_of(model), before, strict=True))
    assert failing.mode == "after"
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not in_gc_1st_forward()
    seen: list[bool] = []
    probe = GCContainer(None, nn.Linear(4, 4), Asking(seen))
    probe(x).sum().backward()
    assert seen == [True, False]
    compare(failing, lambda m: GCContainer(None, m), [x])


class Asking(nn.Module):
    """Asks whether this is the first run."""

    def __init__(self, seen: list[bool]) -> None:
        super().__init__()
        self._note = seen.append

    def forward(self, x: Tensor) -> Tensor:
        self._note(in_gc_1st_forward())
        return torch.sigmoid(x)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("form", ["container", "input_compressed_gc"])
@pytest.mark.parametrize(
    "layer", [lambda: nn.Conv1d(4, 4, 1), lambda: nn.Linear(4, 4), lambda: nn.Bilinear(4, 4, 4)]
)
def test_a_parameter_that_is_changed_between_forward_and_backward(
    layer: Callable[[], nn.Module], form: str, frozen: bool
) -> None:
    model = layer().requires_grad_(not frozen)
    x = torch.randn(5, 4, 4, requires_grad=True)
    args = (x.detach(),) if isinstance(model, nn.Bilinear) else ()
    output = checkpointed(model, form)(x, *args)
    with torch.no_grad():
        model.weight.mul_(2)
    with pytest.raises(RecomputationError, match="changed in place"):
        output.sum().backward()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_that_change_between_forward_and_backward_do_not_matter(
    momentum: float | None,
) -> None:
    def step(model: nn.Module, inputs: Any, loss: Any) -> Any:
        first, second = model(inputs[0]), model(inputs[0] + 1)
        loss((first, second)).backward()
        return first, second

    x = torch.randn(6, 4, requires_grad=True)
    compare(
        nn.Sequential(nn.BatchNorm1d(4, momentum=momentum), nn.Sigmoid()),
        lambda m: GCContainer(None, m),
        [x],
        step=step,
    )


def test_an_input_or_argument_that_is_changed_afterwards() -> None:
    for index in (0, 1):
        inputs = [torch.randn(3, 4, requires_grad=True) * 2 for _ in range(2)]
        output = input_compressed_gc(lambda x, a: (x * a).sin(), NULL, *inputs)
        inputs[index].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_an_input_that_the_segment_writes_to_is_refused_unless_it_is_kept_compressed() -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor, *args: Tensor) -> Tensor:
            return torch.sin((args or (x,))[0].add_(1)) * x

    x = torch.randn(3, 4, requires_grad=True)
    for inputs in ((x * 1,), (x, x * 1)):
        with pytest.raises(RecomputationError, match="changes one of its inputs in place"):
            GCContainer(None, InPlace())(*inputs)

    class Doubled(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x * 1)

    def wrap(model: nn.Module) -> nn.Module:
        model.body = GCContainer(BitSpikeCompressor(), model.body)
        return model

    compare(Doubled(InPlace()), wrap, [spikes(3, 4).requires_grad_()])


def test_a_tensor_that_is_written_to_after_it_was_saved() -> None:
    def function(x: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        y.mul_(2)
        return torch.sin(y)

    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        function(x).sum().backward()
    with pytest.raises(RecomputationError, match="changed in place after it was used"):
        input_compressed_gc(function, NULL, x).sum().backward()


def test_a_weight_outside_of_modules_that_is_changed_afterwards_or_inside() -> None:
    weight, count = torch.randn(3, requires_grad=True), torch.zeros(1)
    x = torch.randn(3, requires_grad=True)
    output = input_compressed_gc(lambda x: (x * weight).sin(), NULL, x)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RecomputationError, match="changed in place after it was used"):
        output.sum().backward()
    with pytest.raises(RecomputationError, match="changed in place after it was used"):
        input_compressed_gc(lambda x: (x * count.add_(1)).sin(), NULL, x)


def test_a_gradient_that_is_asked_for_inside_of_a_segment() -> None:
    def function(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(torch.sigmoid(x).sum(), x, create_graph=True)
        return gradient.sin()

    x = torch.randn(3, requires_grad=True)
    with pytest.raises(RecomputationError, match="a gradient was asked for inside of"):
        input_compressed_gc(function, NULL, x)
    assert not in_gc_1st_forward()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("change", ["kind", "number", "fewer"])
def test_a_second_run_on_another_path(change: str, nested: bool) -> None:
    generator = random.Random(0)
    choices = iter([0, *[generator.choice([1, 2]) for _ in range(9)]])

    def function(x: Tensor) -> Tensor:
        is_first = next(choices) == 0
        if change == "kind":
            return torch.sigmoid(x if is_first else x.double()).float().sin()
        if change == "number":
            return torch.sigmoid(x).sin() if is_first else torch.sigmoid(x[:2]).sum().sin()
        return torch.sigmoid(x).sin() if is_first else torch.sigmoid(x)

    def outer(x: Tensor) -> Tensor:
        return input_compressed_gc(function, NULL, x * 2)

    x = torch.randn(3, requires_grad=True)
    output = input_compressed_gc(outer if nested else function, NULL, x)
    with pytest.raises(RecomputationError, match="took another path when it was computed again"):
        output.sum().backward()
    compare(LIFNode(), lambda m: GCContainer(None, m), [torch.rand(3, requires_grad=True)], steps=1)


@pytest.mark.parametrize("before", [True, False])
def test_train_or_eval_between_forward_and_backward_does_not_matter(before: bool) -> None:
    def step(model: nn.Module, inputs: Any, loss: Any) -> Any:
        model.train(before)
        outputs = model(*inputs)
        model.train(not before)
        loss(outputs).backward()
        assert all(module.training is not before for module in model.modules())
        return outputs

    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Sigmoid())
    for form in ("container", "input_compressed_gc", "wrapping"):
        x = torch.randn(6, 4, requires_grad=True)
        compare(model, lambda m, form=form: checkpointed(m, form), [x], step=step)


def test_threads_train_each_its_own_model() -> None:
    def build(seed: int) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(seed)
        layers = [nn.Linear(8, 8), nn.BatchNorm1d(8), LIFNode(v_threshold=0.3), nn.Linear(8, 8)]
        return nn.Sequential(*layers), torch.randn(16, 8, requires_grad=True)

    def train(model: nn.Module, x: Tensor, wait: Callable[[], Any]) -> Any:
        results = []
        for _ in range(20):
            wait()
            reset_all(model)
            one_step(model, [x], weighted)
            results.append(observe(model, (), [x]))
        return results

    barrier = threading.Barrier(2)
    found: dict[int, Any] = {}

    def work(seed: int, model: nn.Module, x: Tensor) -> None:
        wrapped = nn.Sequential(GCContainer(None, *model[:2]), GCContainer(None, *model[2:]))
        found[seed] = train(wrapped, x, lambda: barrier.wait(timeout=30))

    threads = [threading.Thread(target=work, args=(seed, *build(seed))) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (0, 1):
        expected = train(*build(seed), lambda: None)
        for a, b in zip(found[seed], expected, strict=True):
            names = [name for name in b if name != "random state"]
            assert all(torch.equal(a[name], b[name]) for name in names)
