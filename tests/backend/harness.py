"""Train a model plainly and compiled by the backend, and compare all that came of it.

In the eager lowering every number must have the bits of the plain model's. In the compiled one the
spikes must be equal, and then every gradient within 1e-10 of its norm in float64 (1e-5 in float32,
for networks that know no other precision); nothing is left to a spike that might flip.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.base import named_memories
from snnfx.passes.plan.memory_plan import MemoryPlan

LOWERINGS = ("eager", "inductor")
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
Results = dict[str, Tensor]
Session = Callable[[nn.Module, Callable[..., Any]], Results]

both_lowerings = pytest.mark.parametrize("lowering", LOWERINGS)
# Dynamo itself makes an instance of a Function to trace it, and looks at `.grad` of states that are
# no leaves; importing Inductor uses parts of torch that are deprecated.
_WARNINGS = (
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
)
ignore_dynamo_warnings = [pytest.mark.filterwarnings(text) for text in _WARNINGS]


class Probe(nn.Module):
    """A model that also returns the spikes of its neurons, in the order in which they ran."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.spikes: list[Tensor] = []
        for module in model.modules():
            if type(module).__name__.endswith(("Node", "Leaky")):
                module.register_forward_hook(self._record)

    def _record(self, _module: nn.Module, _args: object, result: Any) -> None:
        spikes = result[0] if isinstance(result, tuple) else result
        self.spikes.append(spikes.detach().to(torch.int8))

    def forward(self, *inputs: Tensor) -> tuple[Any, list[Tensor]]:
        self.spikes = []
        output = self.model(*inputs)
        spikes, self.spikes = self.spikes, []
        return output, spikes


@dataclass
class Training:
    """A training loop, as a user would write it; called with a model and what runs it.

    Attributes:
        batches: the inputs of each step.
        loss_fn: of the model's output.
        before_step: called with the model before each step.
        optimizer: made from the parameters; None leaves them and adds the gradients up.
        autocast: whether forward runs under bfloat16 autocast.
    """

    batches: Sequence[tuple[Tensor, ...]]
    loss_fn: Callable[[Any], Tensor] = lambda output: output.square().sum()
    before_step: Callable[[nn.Module], None] = lambda model: None
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None
    autocast: bool = False

    def __call__(self, model: nn.Module, run: Callable[..., Any]) -> Results:
        found: Results = {}
        optimizer = self.optimizer(model.parameters()) if self.optimizer else None
        for step, batch in enumerate(self.batches):
            torch.manual_seed(step)  # for dropout: the same masks whatever ran before
            inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in batch]
            self.before_step(model)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                output = run(*inputs)
                output, spikes = output if isinstance(model, Probe) else (output, [])
                loss = self.loss_fn(output)
            loss.backward()
            found |= _named(f"step {step} output", _tensors(output))
            found |= _named(f"step {step} spikes", spikes)
            found |= _named(f"step {step} input gradient", (x.grad for x in inputs))
            found |= _state(f"step {step}", model)
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
                found |= {f"step {step} new {k}": p.detach().clone()
                          for k, p in model.named_parameters()}  # fmt: skip
        return found


@dataclass
class Comparison:
    """What `compare` saw: the plain model's results, and the plan of each compiled graph."""

    expected: Results
    plans: list[MemoryPlan] = field(default_factory=list)

    def assert_packed(self, *others: int) -> None:
        """Each graph is planned and keeps every spike tensor in one bit a spike.

        Args:
            others: how many bits an element the further packed values have, such as sums of spikes.
        """
        assert self.plans
        for plan in self.plans:
            assert plan.applied, plan.notes
            assert plan.predicted_peak_bytes < plan.baseline_peak_bytes
            spikes = [s for s in plan.saved if s.reason.startswith("threshold")]
            assert spikes
            assert {(s.storage, s.bits) for s in spikes} == {("packed", 1)}
            assert {s.bits for s in plan.packed} == {1, *others}


def compare(
    model: nn.Module,
    session: Session,
    lowering: str = "eager",
    *,
    fullgraph: bool = True,
    reference: str | None = None,
    **options: Any,
) -> Comparison:
    """Hold that `session` gives the same with `model` as it is and compiled by the backend.

    Args:
        model: in the precision that `dtype_of` gives for the lowering.
        session: what is done with the model; returns named tensors.
        lowering: of the backend.
        fullgraph: whether a graph break is an error.
        reference: another backend, whose results are expected instead of the plain model's.
        options: further ones of the backend.
    """
    plain, other = (
        copy.deepcopy(model) if lowering == "eager" else Probe(copy.deepcopy(model))
        for _ in range(2)
    )
    expected = session(plain, torch.compile(plain, backend=reference) if reference else plain)
    comparison = Comparison(expected)
    compiled = torch.compile(
        other,
        backend="snnmem",
        fullgraph=fullgraph,
        options={"lowering": lowering, "plan_callback": comparison.plans.append, **options},
    )
    found = session(other, compiled)
    assert list(found) == list(expected)
    same = same_bits if lowering == "eager" else close_to
    different = [name for name in found if not same(name, found[name], expected[name])]
    assert not different, f"these differ from the plain model's: {different}"
    return comparison


def dtype_of(lowering: str) -> torch.dtype:
    """The precision in which a lowering is compared."""
    return torch.float32 if lowering == "eager" else torch.float64


def same_bits(_name: str, found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors hold the same bits; zeros of different signs are different."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    return torch.equal(
        found.contiguous().flatten().view(torch.uint8),
        expected.contiguous().flatten().view(torch.uint8),
    )


def close_to(_name: str, found: Tensor, expected: Tensor) -> bool:
    """Whether spikes are equal, and anything else within a tolerance of its norm."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    tolerance = TOLERANCES[expected.dtype]
    # What is zero but for rounding, such as the gradient of a bias before a norm, has no digits.
    error, size = (found - expected).norm(), expected.norm()
    return bool(error <= tolerance * size or max(error, size) <= tolerance)


def _state(prefix: str, model: nn.Module) -> Results:
    """Gradients, buffers and neuron states of the moment."""
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    memories = {k: v for k, v in _memories(model) if isinstance(v, Tensor)}
    parts = {"gradient": gradients, "buffer": dict(model.named_buffers()), "state": memories}
    return {
        f"{prefix} {part} {name}": value.detach().clone()
        for part, values in parts.items()
        for name, value in values.items()
    }


def _memories(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """States of our own neurons and of SpikingJelly's."""
    yield from named_memories(model)
    for name, module in model.named_modules():
        if type(module).__module__.startswith("spikingjelly"):
            yield from ((f"{name}.{k}", v) for k, v in getattr(module, "_memories", {}).items())


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    items = output.values() if isinstance(output, dict) else output
    return [tensor for item in items for tensor in _tensors(item)]


def _named(prefix: str, tensors: Any) -> Results:
    return {f"{prefix} {i}": t.detach().clone() for i, t in enumerate(tensors) if t is not None}
