"""Backends, step modes and the memories of one module, as the documented API describes them."""

from __future__ import annotations

import copy
import importlib.util
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from snnfx import base

from tests.stateful import Counter, Integrator

# ---------------------------------------------------------------- backends


def test_torch_is_an_installed_backend_library() -> None:
    assert base.check_backend_library("torch") is None


@pytest.mark.parametrize("backend", ["cupy", "triton", "lava"])
def test_a_backend_whose_library_is_missing_is_an_import_error(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=backend):
        base.check_backend_library(backend)


def test_an_unknown_backend_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(NotImplementedError, match=r"'tpu'.*torch, cupy, triton, lava"):
        base.check_backend_library("tpu")


def test_a_module_takes_the_backends_it_supports_only() -> None:
    module = Counter()
    assert module.backend == "torch"
    assert module.supported_backends == ("torch",)
    module.backend = "torch"
    with pytest.raises(NotImplementedError, match=r"Counter.*'cupy'"):
        module.backend = "cupy"


def test_a_supported_backend_without_its_library_is_an_import_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Counter, "supported_backends", ("torch", "cupy"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    module = Counter()
    with pytest.raises(ImportError, match="cupy"):
        module.backend = "cupy"
    assert module.backend == "torch"


# ---------------------------------------------------------------- step modes


@pytest.mark.parametrize(
    ("cls", "modes"),
    [(base.StepModule, "sm"), (base.SingleStepModule, "s"), (base.MultiStepModule, "m")],
)
def test_step_modes_are_limited_to_the_supported_ones(
    cls: type[base.StepModule], modes: str
) -> None:
    module = cls()
    assert module.supported_step_mode() == tuple(modes)
    for mode in modes:
        module.step_mode = mode
        assert module.step_mode == mode
    for mode in {"s", "m", "x", ""} - set(modes):
        with pytest.raises(ValueError, match=cls.__name__):
            module.step_mode = mode
    assert module.step_mode == modes[-1]


def test_a_memory_module_starts_in_single_step_mode_and_runs_both() -> None:
    module = Counter()
    x_seq = torch.randn(3, 2, 4)
    assert module.step_mode == "s"
    one_by_one = torch.stack([module(x, shift=0.5) for x in x_seq])
    module.reset()
    module.step_mode = "m"
    at_once = module(x_seq, shift=0.5)
    assert at_once.shape == (3, 2, 4)
    assert torch.equal(at_once, one_by_one)
    assert torch.equal(at_once[2], x_seq[2] * 2.0 * 3 + 0.5)
    assert module.count == 3.0


def test_forward_refuses_a_step_mode_that_came_in_unchecked() -> None:
    module = Counter()
    module._step_mode = "x"
    with pytest.raises(ValueError, match="'x'"):
        module(torch.ones(1))


def test_outputs_that_do_not_stack_raise_the_error_of_stack() -> None:
    class Growing(Counter):
        def single_step_forward(self, x: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
            self.count = self.count + 1
            return x.new_zeros(int(self.count))

    module = Growing()
    module.step_mode = "m"
    with pytest.raises(RuntimeError, match="equal size"):
        module(torch.zeros(2, 1))


def test_a_module_without_its_own_step_says_so() -> None:
    class Stepless(base.MemoryModule):
        pass

    with pytest.raises(NotImplementedError, match="Stepless"):
        Stepless()(torch.ones(1))


# ---------------------------------------------------------------- one module's memories


def test_a_memory_reads_writes_lists_and_deletes_like_an_attribute() -> None:
    module = Counter(3)
    assert module.count == 3
    module.count = 5
    assert list(module.memories()) == [5]
    assert list(module.named_memories()) == [("count", 5)]
    assert "count" in dir(module)
    assert {"scale", "forward"} <= set(dir(module))
    assert list(module.state_dict()) == ["scale"]
    del module.count
    assert not hasattr(module, "count")
    assert list(module.named_memories()) == []
    module.reset()
    del module.scale
    with pytest.raises(AttributeError, match="scale"):
        _ = module.scale


@pytest.mark.parametrize("name", ["count", "scale", "forward", "step_mode", "training"])
def test_a_memory_may_not_hide_an_attribute(name: str) -> None:
    with pytest.raises(AssertionError, match=name):
        Counter().register_memory(name, 0.0)


@pytest.mark.parametrize("start", [0.0, 3, None, "rest", [1, [2]], {"k": [1]}])
def test_reset_restores_any_value_and_never_hands_out_the_reset_value_itself(start: Any) -> None:
    module = Counter(start)
    expected = copy.deepcopy(start)
    for _ in range(2):
        module.count = torch.ones(2)
        module.reset()
        assert module.count == expected
        if isinstance(start, list):
            module.count[1].append(3)
        if isinstance(start, dict):
            module.count["k"].append(3)
        module.reset()
        assert module.count == expected


def test_reset_writes_a_tensor_state_in_place_where_nothing_forbids_it() -> None:
    module = Counter(torch.tensor([1.0, 2.0]))
    state = module.count
    module.count.mul_(3)
    module.reset()
    assert module.count is state
    assert torch.equal(state, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    "state",
    [
        torch.ones(3),
        torch.ones(2, dtype=torch.float64),
        torch.ones(2, device="meta"),
        torch.ones(1).expand(2),
        torch.ones(2, requires_grad=True) * 2,
        None,
        7.0,
    ],
    ids=["shape", "dtype", "device", "expanded", "in-graph", "none", "number"],
)
def test_reset_replaces_a_state_that_cannot_be_overwritten(state: Any) -> None:
    module = Counter(torch.tensor([1.0, 2.0]))
    module.count = state
    module.reset()
    assert module.count is not state
    assert torch.equal(module.count, torch.tensor([1.0, 2.0]))
    assert not module.count.requires_grad
    module.count.zero_()
    module.reset()
    assert torch.equal(module.count, torch.tensor([1.0, 2.0]))


def test_reset_replaces_a_state_that_inference_mode_made() -> None:
    module = Counter(torch.zeros(2))
    with torch.inference_mode():
        module(torch.ones(2))
    module.reset()
    assert torch.equal(module.count, torch.zeros(2))
    module(torch.ones(2)).sum().backward()
    assert module.scale.grad is not None


def test_reset_between_forward_and_backward_leaves_the_gradient_as_it_was() -> None:
    grads = []
    for reset_first in (False, True):
        module = Integrator()
        x = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
        loss = (module(x, x)[0] + module(x, x * 2)[0]).sum()
        if reset_first:
            module.reset()
        (grad,) = torch.autograd.grad(loss, x)
        grads.append(grad)
    assert torch.equal(grads[0], grads[1])


def test_set_reset_value_changes_the_next_reset_and_keeps_a_copy() -> None:
    module = Counter(0.0)
    value = torch.tensor([4.0])
    module.set_reset_value("count", value)
    assert module.count == 0.0
    value.fill_(9.0)
    module.reset()
    assert torch.equal(module.count, torch.tensor([4.0]))
    with pytest.raises(KeyError, match="'missing'"):
        module.set_reset_value("missing", 0.0)


def test_detach_cuts_the_state_and_not_what_was_extracted_before() -> None:
    module = Integrator()
    x = torch.ones(3, requires_grad=True)
    module(x, x)
    before = module.total
    module.detach()
    assert not module.total.requires_grad
    assert before.requires_grad
    assert torch.equal(module.total, before)
    module(x, x)[0].sum().backward()
    assert x.grad is not None


def test_truncated_backpropagation_is_that_of_two_separate_chunks() -> None:
    x = torch.randn(4, 3)
    module = Integrator()
    w = torch.ones(3, requires_grad=True)
    module(x[0] * w, x[1])
    module.detach()
    (grad,) = torch.autograd.grad(module(x[2] * w, x[3])[0].sum(), w)
    fixed = 0.5 * (x[0] * x[1])
    expected = (1 - (fixed + x[2] * x[3]).tanh() ** 2) * x[2] * x[3]
    torch.testing.assert_close(grad, expected)


def test_state_and_reset_value_follow_the_module_to_another_dtype() -> None:
    module = Integrator().double()
    assert module.total.dtype == torch.float64
    module.total = torch.ones(5)
    module.reset()
    assert module.total.dtype == torch.float64
    assert module.to("meta").total.device.type == "meta"


def test_copies_pickles_and_replicas_do_not_share_state() -> None:
    module = Integrator()
    module.last = torch.ones(2)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    replica = module._replicate_for_data_parallel()
    for other in (copy.deepcopy(module), loaded, replica):
        assert torch.equal(other.last, torch.ones(2))
        other.last = None
        other.set_reset_value("total", torch.ones(3))
        other.reset()
        assert torch.equal(other.total, torch.ones(3))
        assert torch.equal(module.last, torch.ones(2))
        module.reset()
        assert torch.equal(module.total, torch.zeros(3))
        module.last = torch.ones(2)


def test_repr_shows_the_step_mode() -> None:
    assert "step_mode=s" in repr(Counter())


# ---------------------------------------------------------------- constants


@given(value=st.floats() | st.none() | st.integers(-(2**53), 2**53))
def test_a_constant_float_is_exact_and_survives_copies(value: float | None) -> None:
    class Holder(nn.Module):
        value = base.ConstantFloat[float | None]()

    holder = Holder()
    holder.value = value
    for kept in (holder.value, copy.deepcopy(holder).value):
        if value is None:
            assert kept is None
        else:
            assert isinstance(kept, float)
            assert kept == value or (math.isnan(kept) and math.isnan(value))


# ---------------------------------------------------------------- tracing


@pytest.mark.parametrize("where", ["start", "end"])
def test_a_tensor_memory_resets_inside_one_compiled_graph(where: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.counter = Counter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if where == "start":
                self.counter.reset()
            y = self.counter(x) + self.counter(x)
            if where == "end":
                self.counter.reset()
            return y

    net = Net()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    x = torch.tensor([1.0, -1.0])
    for _ in range(3):
        assert torch.equal(compiled(x), x * 2.0 * 3)
    assert backend.frame_count == 1
    assert torch.equal(net.counter.count, torch.full((2,), 2.0 if where == "start" else 0.0))
