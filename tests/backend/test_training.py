"""Ways of training that the backend must follow as the plain model does."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.base import MemoryModule
from snnfx.errors import SnnfxWarning
from snnfx.neurons import LIFNode, detach_net, reset_net

from tests.backend import nets
from tests.backend.harness import (
    Probe,
    Results,
    Training,
    both_lowerings,
    compare,
    dtype_of,
    ignore_dynamo_warnings,
)

pytestmark = ignore_dynamo_warnings

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "momentum": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=1e-2),
}


@both_lowerings
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_parameters_follow_the_plain_model_over_optimizer_steps(
    optimizer: str, lowering: str
) -> None:
    x = nets.features(dtype_of(lowering))
    session = Training([(x,), (x + 0.3,), (-x,)], nets.weighted, optimizer=OPTIMIZERS[optimizer])
    comparison = compare(nets.mlp().to(x.dtype), session, lowering)
    comparison.assert_packed()
    assert len(comparison.plans) == 1


def test_two_forwards_before_two_backwards_match_the_plain_model() -> None:
    """Each backward computes again what its own forward saw, running statistics included."""

    def session(model: nn.Module, run: Callable[..., Any]) -> Results:
        losses = [nets.weighted(run(x)) for x in (first, second)]
        for loss in losses:
            loss.backward()
        state = dict(model.named_buffers()) | {k: p.grad for k, p in model.named_parameters()}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    first, second = nets.images(torch.float32), nets.images(torch.float32)
    for model in (nets.convolutional(), nets.InPlace()):
        compare(model, session).assert_packed(8)


def test_backward_twice_through_a_retained_graph_gives_the_same() -> None:
    def session(model: nn.Module, run: Callable[..., Any]) -> Results:
        loss = nets.weighted(run(x))
        loss.backward(retain_graph=True)
        loss.backward()
        return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}

    x = nets.features(torch.float32)
    compare(nets.mlp(), session).assert_packed()


@both_lowerings
def test_frozen_first_layer_gets_no_gradient_and_the_rest_match(lowering: str) -> None:
    model, x = nets.convolutional(), nets.images(dtype_of(lowering))
    model[0].requires_grad_(False)
    comparison = compare(model.to(x.dtype), Training([(x,)], nets.weighted), lowering)
    if lowering == "eager":
        comparison.assert_packed(8)
    else:  # columns of a float64 convolution are the peak with any plan, so none is applied
        assert "does not beat the baseline" in comparison.plans[0].notes[-1]
    gradients = [name for name in comparison.expected if "gradient" in name]
    assert gradients
    assert not any(" 0." in name or "model.0." in name for name in gradients)


@both_lowerings
def test_batch_norm_in_eval_mode_inside_training_matches(lowering: str) -> None:
    """Frozen statistics: read in forward and in the recomputation, changed by neither."""
    model, x = nets.convolutional().train(), nets.images(dtype_of(lowering))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
            module.eval()
    compare(model.to(x.dtype), Training([(x,)], nets.weighted), lowering).assert_packed(8)


@both_lowerings
def test_input_that_requires_grad_gets_the_gradient_of_the_plain_model(lowering: str) -> None:
    x = nets.images(dtype_of(lowering)).requires_grad_()
    comparison = compare(
        nets.convolutional().to(x.dtype), Training([(x,)], nets.weighted), lowering
    )
    comparison.assert_packed(8)
    assert comparison.expected["step 0 input gradient 0"].abs().max() > 0


@both_lowerings
def test_several_inputs_and_outputs_match_the_plain_model(lowering: str) -> None:
    dtype = dtype_of(lowering)
    inputs = (nets.features(dtype).requires_grad_(), torch.randn(nets.N, 5, dtype=dtype))
    session = Training([inputs, inputs], nets.weighted)
    compare(nets.TwoInputs().to(dtype), session, lowering).assert_packed()


def test_loss_of_one_of_several_outputs_matches_the_plain_model() -> None:
    inputs = (nets.features(torch.float32), torch.randn(nets.N, 5))
    session = Training([inputs], lambda output: output["logits"].square().sum())
    compare(nets.TwoInputs(), session).assert_packed()


@pytest.mark.parametrize("build", [nets.convolutional, nets.mlp])
def test_autocast_to_bfloat16_has_the_bits_of_the_plain_model(
    build: Callable[[], nn.Module],
) -> None:
    make = nets.features if build is nets.mlp else nets.images
    x = make(torch.float32)
    session = Training([(x,), (x,)], lambda y: nets.weighted(y.float()), autocast=True)
    comparison = compare(build(), session)
    assert comparison.expected["step 0 output 0"].dtype is torch.bfloat16
    comparison.assert_packed(*([8] if build is nets.convolutional else []))


@both_lowerings
def test_another_batch_size_gives_its_own_gradients(lowering: str) -> None:
    """Dynamo compiles for one size first, then for any; so does the backend."""
    dtype = dtype_of(lowering)
    # PyTorch itself compiles convolutions of 16 and more images apart from fewer.
    batches = [(nets.images(dtype, batch=n),) for n in (4, 3, 5, 2, 4)]
    session = Training(batches, nets.weighted)
    comparison = compare(nets.convolutional().to(dtype), session, lowering)
    assert len(comparison.plans) == 2
    for plan in comparison.plans:
        assert plan.applied, plan.notes
        spikes = [s for s in plan.saved if s.reason.startswith("threshold")]
        assert {(s.storage, s.bits) for s in spikes} == {("packed", 1)}


def test_one_time_step_matches_the_plain_model() -> None:
    for build, make in ((nets.convolutional, nets.images), (nets.mlp, nets.features)):
        x = make(torch.float32, steps=1)
        comparison = compare(build(), Training([(x,), (x,)], nets.weighted))
        assert all(p.applied for p in comparison.plans)


class Stateful(nn.Module):
    """Neurons that keep their potentials from call to call, whose own reset is the user's."""

    def __init__(self) -> None:
        super().__init__()
        nodes = [LIFNode(decay_input=False, v_threshold=0.5, step_mode="m") for _ in range(2)]
        self.body = nn.Sequential(
            nn.Linear(nets.FEATURES, 16), nodes[0], nn.Linear(16, 16), nodes[1], nets.Readout(16)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@both_lowerings
@pytest.mark.parametrize("between", [detach_net, reset_net])
def test_states_carried_over_calls_match_the_plain_model(
    between: Callable[[nn.Module], None], lowering: str
) -> None:
    x = nets.features(dtype_of(lowering))
    session = Training([(x,), (x - 0.2,), (x,)], nets.weighted, before_step=between)
    comparison = compare(Stateful().to(x.dtype), session, lowering)
    comparison.assert_packed()
    states = [v for k, v in comparison.expected.items() if "state" in k]
    assert len(states) == 6
    assert all(state.any() for state in states)


def test_backward_through_the_states_of_two_calls_matches() -> None:
    """Truncated nowhere: the second call's gradient flows into the first through the states."""

    def session(model: nn.Module, run: Callable[..., Any]) -> Results:
        (nets.weighted(run(x)) + 2 * nets.weighted(run(-x))).backward()
        reset_net(model)
        return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}

    x = nets.features(torch.float32)
    compare(Stateful(), session).assert_packed()


@both_lowerings
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "eval"])
def test_inference_matches_the_plain_model_and_makes_no_plan(mode: str, lowering: str) -> None:
    x = nets.images(dtype_of(lowering))
    model = nets.convolutional().to(x.dtype)
    context = torch.inference_mode if mode == "inference_mode" else torch.no_grad

    def session(module: nn.Module, run: Callable[..., Any]) -> Results:
        module.train(mode != "eval")
        with context():
            output = run(x)
        output, spikes = output if isinstance(module, Probe) else (output, [])
        found = {"output": output, **{f"spikes {i}": s for i, s in enumerate(spikes)}}
        found |= {name: buffer.clone() for name, buffer in module.named_buffers()}
        return {name: tensor.clone() for name, tensor in found.items()}

    comparison = compare(model, session, lowering)
    assert not comparison.plans
    assert comparison.expected["output"].any()


def test_eval_and_training_alternate_like_in_the_plain_model() -> None:
    x = nets.images(torch.float32)
    train = Training([(x,)], nets.weighted)

    def session(module: nn.Module, run: Callable[..., Any]) -> Results:
        found = {f"first {k}": v for k, v in train(module.train(), run).items()}
        module.eval()
        with torch.no_grad():
            found["validation"] = run(x).clone()
        return found | {f"second {k}": v for k, v in train(module.train(), run).items()}

    compare(nets.convolutional(), session).assert_packed(8)


class OwnLoss(nn.Module):
    """A model whose loss is part of the compiled graph."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nets.mlp()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.body(x), torch.arange(nets.N))


@both_lowerings
def test_loss_inside_the_graph_matches(lowering: str) -> None:
    x = nets.features(dtype_of(lowering))
    session = Training([(x,), (x,)], lambda loss: loss)
    compare(OwnLoss().to(x.dtype), session, lowering).assert_packed()


def test_a_literal_tensor_in_forward_is_read_while_a_graph_is_partitioned() -> None:
    class Literal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nets.mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x * torch.as_tensor(0.5))

    x = nets.features(torch.float32)
    compare(Literal(), Training([(x,), (x,)], nets.weighted)).assert_packed()


def test_graph_breaks_leave_every_part_right_and_planned() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nets.mlp()[:-1], nets.mlp()
            self.adapt = nn.Linear(16, nets.FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(self.adapt(x))

    x = nets.features(torch.float32)
    with pytest.warns(SnnfxWarning, match="compiles this model as 2 graphs"):
        comparison = compare(Broken(), Training([(x,), (x,)], nets.weighted), fullgraph=False)
    assert len(comparison.plans) == 2
    comparison.assert_packed()


def test_a_copied_model_is_what_the_tests_compare_with() -> None:
    """The stateful net starts from the same state in both runs, else equality would be luck."""
    model = Stateful()
    nodes = [m for m in copy.deepcopy(model).modules() if isinstance(m, MemoryModule)]
    assert all(value == 0.0 for node in nodes for value in node.memories())
