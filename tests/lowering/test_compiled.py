"""Compiled regions and the backend around them, against the plain model."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.errors import SnnfxWarning
from snnfx.lowering import outer
from snnfx.neurons import LIFNode
from snnfx.passes.plan.memory_plan import MemoryPlan
from snnfx.surrogates import ATan

from tests.passes.region_graphs import HandMade, lowered, run_both
from tests.passes.test_regions import grown, norm_and_neuron

T, N, FEATURES = 4, 16, 64
# Dynamo itself makes such an instance to trace an autograd.Function.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)


class Net(nn.Module):
    """Linear layers with leaky neurons, for `[T, N, FEATURES]`; returns the last layer's spikes."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(FEATURES, FEATURES) for _ in range(depth))
        self.neurons = nn.ModuleList(
            LIFNode(step_mode="m", surrogate_function=ATan()) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for linear, neuron in zip(self.linears, self.neurons, strict=True):
            x = neuron(linear(x) * 8)
        return x


class Compiled:
    """A model, its twin under the backend, and the plans that were applied."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.plain, self.model = model, copy.deepcopy(model)
        self.plans: list[MemoryPlan] = []
        options = {"lowering": "inductor", "plan_callback": self.plans.append, **options}
        self.run = torch.compile(self.model, backend="snnmem", options=options)

    def train(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Output and gradients of one step: the plain model's, the compiled one's."""
        results = []
        for model, run in ((self.plain, self.plain), (self.model, self.run)):
            for neuron in model.neurons:  # type: ignore[union-attr]
                neuron.reset()
            output = run(x)
            output.float().square().sum().backward()
            grads = [p.grad for p in model.parameters()]
            results.append([output, *(g for g in grads if g is not None)])
        return results[0], results[1]


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is compiled yet, and nothing of this test's stays."""
    monkeypatch.setattr(outer, "_kernels", {})
    monkeypatch.setenv("SNNFX_CACHE_DIR", str(tmp_path))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).double().norm() / expected.double().norm()).item()


def test_a_compiled_neuron_equals_eager_bit_for_bit() -> None:
    module, inputs = norm_and_neuron(4, 32, 64)
    expected, found = run_both(module, inputs)
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("seed", [3, 11])
def test_compiled_random_graphs_equal_eager(seed: int) -> None:
    growing = grown(seed, 25)
    module = growing.finish()
    assert any(n.op == "call_module" for n in lowered(module).graph.nodes)
    for expected, found in zip(*run_both(module, growing.net.inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_compiled_bfloat16_has_the_bits_of_eager() -> None:
    aten = torch.ops.aten
    net = HandMade()
    x, y = (net.input(torch.randn(4, 64, 9).bfloat16()) for _ in range(2))
    total = net.call(aten.add.Tensor, net.call(aten.mul.Tensor, x, 0.3), y)
    spikes = net.call(aten._to_copy.default, net.call(aten.ge.Scalar, total, 0.3),
                      dtype=torch.bfloat16)  # fmt: skip
    rest = net.call(aten.div.Tensor, net.call(aten.sub.Tensor, total, spikes), 1.1)
    module = net.finish(spikes, rest)
    for expected, found in zip(*run_both(module, net.inputs), strict=True):
        assert torch.equal(found, expected)


def test_gradients_equal_eager_in_double_precision() -> None:
    net = Compiled(Net().double())
    expected, found = net.train(torch.randn(T, N, FEATURES, dtype=torch.float64))
    assert net.plans[0].applied
    assert 0.05 < expected[0].mean() < 0.95
    assert torch.equal(found[0], expected[0])
    assert max(relative(f, e) for f, e in zip(found[1:], expected[1:], strict=True)) < 1e-12


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 5e-2), (torch.float16, 1e-2)], ids=str
)
def test_nets_of_half_precision_spike_as_in_eager(dtype: torch.dtype, tolerance: float) -> None:
    net = Compiled(Net(2).to(dtype))
    expected, found = net.train(torch.randn(T, N, FEATURES).to(dtype))
    assert net.plans[0].applied
    assert 0.05 < expected[0].float().mean() < 0.95
    assert found[0].dtype == dtype
    assert torch.equal(found[0], expected[0])
    assert max(relative(f, e) for f, e in zip(found[1:], expected[1:], strict=True)) < tolerance


def test_backward_can_run_twice_and_writes_into_nothing_of_the_user() -> None:
    model = Net(2).double()
    run = Compiled(model).run
    x = torch.randn(T, N, FEATURES, dtype=torch.float64, requires_grad=True)
    output = run(x)
    kept = [t.detach().clone() for t in (x, output)]
    seed = torch.randn_like(output)
    first = torch.autograd.grad(output, x, seed, retain_graph=True)[0]
    snapshot, own = first.clone(), seed.clone()
    second = torch.autograd.grad(output, x, seed)[0]
    assert torch.equal(first, snapshot)
    assert torch.equal(first, second)
    assert torch.equal(seed, own)
    assert all(torch.equal(t, k) for t, k in zip((x, output), kept, strict=True))
    assert first.abs().sum() > 0


def test_an_output_may_be_changed_in_place_before_the_backward() -> None:
    """The spikes that the backward reads are bits of its own, so the user's are free."""
    x = torch.randn(T, N, FEATURES, dtype=torch.float64, requires_grad=True)
    net = Compiled(Net(2).double())
    weight = torch.randn(T, N, FEATURES, dtype=torch.float64)
    gradients = []
    for change in (False, True):
        for neuron in net.model.neurons:  # type: ignore[union-attr]
            neuron.reset()
        output = net.run(x)
        loss = (output * weight).sum()
        if change:
            output.detach().fill_(7.0)
        gradients.append(torch.autograd.grad(loss, x)[0])
    assert torch.equal(*gradients)


@pytest.mark.usefixtures("no_kernels")
def test_without_a_compiler_it_warns_and_runs_op_by_op(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    net = Compiled(Net(2).double())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SnnfxWarning)
        expected, found = net.train(torch.randn(T, N, FEATURES, dtype=torch.float64))
    texts = [str(w.message) for w in caught if issubclass(w.category, SnnfxWarning)]
    assert len(set(texts)) == 1
    assert "op by op" in texts[0]
    assert "/nonexistent" in texts[0]
    assert net.plans[0].applied
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("no_kernels")
def test_equal_layers_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    for depth in (3, 5):
        monkeypatch.setattr(outer, "_kernels", {})
        net = Compiled(Net(depth).double())
        net.train(torch.randn(T, N, FEATURES, dtype=torch.float64))
        numbers.append(len(outer._kernels))
        torch.compiler.reset()
    assert numbers[0] == numbers[1]
