"""Rewritten modules train as the model does, and say so where they cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import snnfx
from snnfx.errors import ExportError, OptionError
from snnfx.neurons import LIFNode, reset_net

from tests.backend.harness import ignore_dynamo_warnings
from tests.exporting.training import assert_same, train, weighted
from tests.models import NETS
from tests.oracles import measured_activation_bytes

pytestmark = ignore_dynamo_warnings
SMALL = ("spiking_mlp", "spiking_mlp_dropout", "hand_written", "plain_mlp")


class Pair(NamedTuple):
    first: Tensor
    others: list[Tensor]


class Unusual(nn.Module):
    """Tied weights, a counter, a value among the inputs, and results of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.second.weight
        self.plan = nn.BatchNorm1d(16)
        self.nodes = nn.ModuleList(LIFNode(step_mode="m") for _ in range(3))
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        with torch.no_grad():
            self.second.weight.mul_(4)

    def forward(self, x: Tensor, factor: int, other: Tensor | None = None) -> dict[str, Any]:
        reset_net(self)
        self.calls.add_(1)
        hidden = self.nodes[0](self.first(x) if other is None else self.first(x) + other)
        hidden = hidden + self.nodes[1](self.second(hidden) * factor)
        result = self.nodes[2](self.tied(hidden))
        result = self.plan(result.flatten(0, 1)).view_as(result)
        pair = Pair(result.mean(0), [x, result[0], result])
        return {"pair": pair, "factor": factor, "nothing": None, "calls": self.calls}


class Stateful(nn.Module):
    """A layer whose neuron nobody resets."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.node = LIFNode(step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        return self.node(self.layer(x))


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Selects(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x[..., 0] > 0].sum() * 2


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = [torch.ones(8, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights[0]


def unusual_loss(result: dict[str, Any]) -> Tensor:
    pair = result["pair"]
    return weighted(pair[0]) + weighted(pair[1][1]) + weighted(pair[1][2])


def unusual() -> tuple[Unusual, Tensor]:
    torch.manual_seed(0)
    return Unusual(), torch.randn(4, 6, 8)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", SMALL)
def test_a_rewritten_model_trains_with_the_bits_of_the_model(name: str, level: int) -> None:
    work = NETS[name]()
    plain = copy.deepcopy(work.model)
    rewritten = snnfx.rewrite(work.model, work.inputs, level=level)
    assert_same(train(rewritten, [work.inputs] * 3), train(plain, [work.inputs] * 3))
    assert list(rewritten.state_dict()) == list(plain.state_dict())
    work.before_step()
    reset_net(plain)
    with torch.no_grad():
        assert torch.equal(rewritten.eval()(*work.inputs), plain.eval()(*work.inputs))


def test_parameters_and_buffers_are_shared_with_the_model() -> None:
    model, x = unusual()
    rewritten = snnfx.rewrite(model, (x, 3), level=1)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert dict((*rewritten.named_parameters(), *rewritten.named_buffers()))[name] is tensor
    rewritten(x, 3)
    assert model.calls == 1


def test_structures_ties_and_values_are_those_of_the_model() -> None:
    model, x = unusual()
    plain = copy.deepcopy(model)
    rewritten = snnfx.rewrite(model, (x, 3), level=1)
    assert rewritten.plan.applied
    batches = [(x, 3), (-x, 3), (2 * x, 3)]
    assert_same(train(rewritten, batches, unusual_loss), train(plain, batches, unusual_loss))
    assert list(rewritten.state_dict()) == list(plain.state_dict())
    assert rewritten.get_parameter("tied.weight") is rewritten.get_parameter("second.weight")
    result, expected = rewritten(x, factor=3), plain(x, factor=3)
    assert (result["factor"], result["nothing"], result["calls"]) == (3, None, 4)
    assert result["pair"]._fields == expected["pair"]._fields
    assert torch.equal(result["pair"].others[0], x)


def test_two_forwards_before_two_backwards_and_a_retained_graph_match() -> None:
    model, x = unusual()
    runs: list[list[Tensor]] = []
    for run in (copy.deepcopy(model), snnfx.rewrite(model, (x, 3), level=1)):
        losses = [unusual_loss(run(x, 3)), unusual_loss(run(-x, 3))]
        losses[1].backward(retain_graph=True)
        losses[0].backward()
        losses[1].backward()
        runs.append([p.grad for p in run.parameters() if p.grad is not None])
    assert len(runs[0]) == 7
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_activation_memory_is_that_of_the_compiled_model() -> None:
    work = NETS["hand_written"]()
    plain = measured_activation_bytes(work)
    rewritten = measured_activation_bytes(work, snnfx.rewrite(work.model, work.inputs, level=1))
    options = {"lowering": "eager", "level": 1}
    compiled = torch.compile(work.model, backend="snnmem", options=options)
    assert rewritten < 0.7 * plain
    assert rewritten <= 1.02 * measured_activation_bytes(work, compiled)


def test_without_gradients_nothing_is_kept_and_buffers_move_on() -> None:
    model, x = unusual()
    plain = copy.deepcopy(model)
    rewritten = snnfx.rewrite(model, (x, 3), level=1)
    with torch.no_grad():
        result, expected = rewritten(x, 3), plain(x, 3)
    assert torch.equal(result["pair"].first, expected["pair"].first)
    assert not result["pair"].first.requires_grad
    state = rewritten.state_dict()
    assert torch.equal(state["plan.running_mean"], plain.plan.running_mean)
    assert state["plan.num_batches_tracked"] == 1


def test_compiled_regions_agree_with_the_model() -> None:
    work = NETS["hand_written"]()
    work.model.double()
    x = work.inputs[0].double()
    plain = copy.deepcopy(work.model)
    rewritten = snnfx.rewrite(work.model, x, lowering="inductor", dynamic_shapes=[{1: "N"}])
    assert rewritten.steps["train"].outlines is not None
    batches = [(x,), (x.repeat(1, 2, 1, 1, 1),)]
    assert_same(train(rewritten, batches), train(plain, batches), 1e-10)


@pytest.mark.parametrize("name", ["spiking_mlp_dropout", "hand_written"])
def test_a_batch_of_another_size_has_the_bits_of_the_model(name: str) -> None:
    work = NETS[name]()
    x = work.inputs[0]
    plain = copy.deepcopy(work.model)
    rewritten = snnfx.rewrite(work.model, x, level=2, dynamic_shapes=[{1: "N"}])
    assert rewritten.plan.applied
    batches = [(x[:, :1].repeat(1, n, *[1] * (x.dim() - 2)),) for n in (2, 3, 5, 17)]
    assert_same(train(rewritten, batches), train(plain, batches))
    with pytest.raises(ExportError, match=r"with N of 2 or more, but is .* of shape \[4, 1, "):
        rewritten(batches[0][0][:, :1])


def test_two_inputs_share_a_size_that_varies() -> None:
    model, x = unusual()
    other = torch.zeros(6, 16)
    plain = copy.deepcopy(model)
    rewritten = snnfx.rewrite(model, (x, 3, other), level=1, dynamic_shapes=[{1: "N"}, {0: "N"}])
    batches = [(torch.randn(4, n, 8), 3, torch.randn(n, 16)) for n in (2, 9)]
    assert_same(train(rewritten, batches, unusual_loss), train(plain, batches, unusual_loss))
    with pytest.raises(ExportError, match=r"input '1' must be .*\[N, 16\]"):
        rewritten(x, 3, other[:3])


class Narrow(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if x.shape[0] < 5 else 3)


class Fixed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(4, 1)


def test_a_condition_of_the_model_on_a_size_bounds_it() -> None:
    rewritten = snnfx.rewrite(Narrow(8, 8), torch.randn(4, 8), dynamic_shapes=[{0: "N"}])
    assert rewritten.steps["train"].signature.sizes == {"N": (2, 4)}
    with pytest.raises(ExportError, match="with N from 2 to 4"):
        rewritten(torch.randn(5, 8))
    with pytest.raises(ExportError, match="fixes the size 'N' to 4"):
        snnfx.rewrite(Fixed(8, 8), torch.randn(4, 8), dynamic_shapes=[{0: "N"}])


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ([], "has 0 entries, but there are 1 tensors"),
        ([{2: "N"}], "a dimension from 0 to 1, and a name"),
        ([{0: "N M"}], "a dimension from 0 to 1, and a name"),
        ([{0: "N", 1: "N"}], "the same wherever it has its name"),
    ],
)
def test_dynamic_shapes_that_do_not_fit_are_refused(shapes: Any, text: str) -> None:
    with pytest.raises(ExportError, match=text):
        snnfx.rewrite(nn.Linear(8, 8), torch.randn(4, 8), dynamic_shapes=shapes)


def wrong_calls() -> dict[str, tuple[Callable[[nn.Module, Tensor], Any], str]]:
    return {
        "missing": (lambda m, x: m(x), "but the model was rewritten for"),
        "other value": (lambda m, x: m(x, 2), "must have the same value"),
        "size": (
            lambda m, x: m(x[:, :3], 3),
            r"of shape \[4, 6, 8\], but is float32 .*\[4, 3, 8\]",
        ),
        "dtype": (lambda m, x: m(x.double(), 3), "must be float32 on cpu .* but is float64"),
        "name": (lambda m, x: m(x, 3, foo=1), r"unexpected arguments \['foo'\]"),
        "gradient": (lambda m, x: m(x.clone().requires_grad_(), 3), "requires a gradient, but did"),
        "converted": (lambda m, x: m.double()(x, 3), "convert the model before it is rewritten"),
    }


@pytest.fixture(scope="module")
def unusual_rewritten() -> tuple[Any, Tensor]:
    """Made once: tests copy it before they change it."""
    model, x = unusual()
    return snnfx.rewrite(model, (x, 3), level=1), x


@pytest.mark.parametrize("case", wrong_calls())
def test_a_call_that_does_not_fit_says_what_would(
    case: str, unusual_rewritten: tuple[Any, Tensor]
) -> None:
    rewritten, x = unusual_rewritten
    call, text = wrong_calls()[case]
    with pytest.raises(ExportError, match=text):
        call(copy.deepcopy(rewritten), x)
    rewritten(x, 3)  # the next call still works


def test_models_that_cannot_be_rewritten_are_refused_with_a_reason() -> None:
    x = torch.randn(4, 6, 8)
    for model, text in (
        (Decides(), "cannot be traced"),
        (Selects(), "depends on the values of tensors"),
        (Unregistered(), "register it as an nn.Parameter"),
        (torch.sin, "only a torch.nn.Module can be rewritten or exported"),
    ):
        with pytest.raises(ExportError, match=text):
            snnfx.rewrite(model, x)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="allowed: an integer from 0 to 4"):
        snnfx.rewrite(nn.Linear(8, 8), x, level=9)


def test_state_from_an_earlier_call_is_refused_until_the_model_is_reset() -> None:
    model, x = Stateful(), torch.randn(4, 6, 8)
    model(x)
    state = model.node.v
    with pytest.raises(ExportError, match=r"reads 'node\.v' and replaces it"):
        snnfx.rewrite(model, x)
    assert model.node.v is state
    reset_net(model)
    rewritten = snnfx.rewrite(model, x)
    assert torch.equal(rewritten(x), model(x))


def test_a_model_in_evaluation_mode_is_rewritten_in_that_alone() -> None:
    model, x = unusual()
    model.eval()
    rewritten = snnfx.rewrite(model, (x, 3), level=1)
    unusual_loss(rewritten(x, 3)).backward()
    assert model.first.weight.grad is not None
    assert model.first.weight.grad.any()
    with pytest.raises(ExportError, match=r"no step for training.*Call \.eval\(\)"):
        rewritten.train()(x, 3)


def test_inference_alone_has_no_backward_and_no_plan() -> None:
    model, x = unusual()
    rewritten = snnfx.rewrite(model, (x, 3), train=False)
    result = rewritten(x, 3)
    assert torch.equal(result["pair"].first, copy.deepcopy(model).eval()(x, 3)["pair"].first)
    assert rewritten.plan is None
    assert rewritten.steps["eval"].backward is None
    assert model.training


def test_a_gradient_of_a_gradient_is_refused() -> None:
    model, x = unusual()
    loss = unusual_loss(snnfx.rewrite(model, (x, 3), level=1)(x, 3))
    (gradient,) = torch.autograd.grad(loss, model.first.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_the_code_of_both_halves_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    work = NETS["spiking_mlp"]()
    text = snnfx.rewrite(work.model, work.inputs, level=1).print_readable()
    assert capsys.readouterr().out.strip() == text.strip()
    forward, backward = text.split("# backward")
    assert "snnfx.pack_bits" in forward
    assert "snnfx.unpack_bits" in backward


def test_an_input_that_requires_a_gradient_gets_it_in_any_layout() -> None:
    model = Stateful()
    plain = copy.deepcopy(model)
    rewritten = snnfx.rewrite(model, torch.randn(4, 6, 8, requires_grad=True), level=1)
    x = torch.randn(8, 6, 4).permute(2, 1, 0)
    gradients = []
    for run in (plain, rewritten):
        given = x.detach().requires_grad_()
        weighted(run(given)).backward()
        gradients.append(given.grad)
    assert gradients[0] is not None
    assert gradients[0].any()
    assert torch.equal(*gradients)  # type: ignore[arg-type]
