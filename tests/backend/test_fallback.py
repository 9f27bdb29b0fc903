"""What the backend leaves as it is, and how it says so."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import snnfx
from snnfx.errors import SnnfxWarning
from snnfx.passes.plan.memory_plan import MemoryPlan

from tests.backend import nets
from tests.backend.harness import (
    Training,
    both_lowerings,
    compare,
    dtype_of,
    ignore_dynamo_warnings,
)
from tests.models import NETS

pytestmark = ignore_dynamo_warnings


@torch.library.custom_op("snnfx_tests::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    """An operator that the compiler cannot look into."""
    return x * 0.5


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _square_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(output)  # type: ignore[attr-defined]


def _square_gradient(ctx: object, grad: Tensor) -> Tensor:
    (output,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return 0.5 * grad * (1 + 0 * output)


halve.register_autograd(_square_gradient, setup_context=_square_context)


class Opaque(nn.Module):
    """A spiking net with an unknown operator between its layers; its backward reads the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nets.mlp()[:2], nets.mlp()[2:]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(halve(self.first(x)))


@both_lowerings
def test_an_unknown_operator_is_named_in_one_warning_and_results_are_equal(lowering: str) -> None:
    x = nets.features(dtype_of(lowering))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        comparison = compare(Opaque().to(x.dtype), Training([(x,)] * 2, nets.weighted), lowering)
    texts = [str(w.message) for w in caught if issubclass(w.category, SnnfxWarning)]
    assert len(texts) == 1
    assert re.search(r"'halve(_default)?' \(snnfx_tests\.halve\.default\)", texts[0])
    comparison.assert_packed()
    (plan,) = comparison.plans
    assert [s.storage for s in plan.saved if s.name.startswith("halve")] == ["kept"]


@both_lowerings
def test_a_network_without_spikes_is_left_as_it_is_and_the_plan_says_so(lowering: str) -> None:
    workload = NETS["plain_mlp"]()
    dtype = dtype_of(lowering)
    session = Training([tuple(x.to(dtype) for x in workload.inputs)], workload.loss_fn)
    comparison = compare(workload.model.to(dtype), session, lowering)
    (plan,) = comparison.plans
    assert not plan.applied
    assert not plan.saved
    assert any("no tensor of this graph is proven to be spikes" in note for note in plan.notes)


def test_level_0_leaves_a_spiking_network_as_it_is() -> None:
    x = nets.features(torch.float32)
    comparison = compare(nets.mlp(), Training([(x,)], nets.weighted), level=0)
    (plan,) = comparison.plans
    assert (plan.level, plan.applied) == (0, False)
    assert plan.notes == ("level 0 leaves the graph as it is",)
    assert plan.predicted_peak_bytes == plan.baseline_peak_bytes > 0


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_every_level_packs_spikes_and_has_nothing_to_excuse(level: int) -> None:
    x = nets.features(torch.float32)
    comparison = compare(nets.mlp(), Training([(x,)], nets.weighted), level=level)
    comparison.assert_packed()
    assert (comparison.plans[0].level, comparison.plans[0].notes) == (level, ())


@both_lowerings
def test_without_compression_spikes_are_kept_as_bools_and_gradients_are_equal(
    lowering: str,
) -> None:
    x = nets.features(dtype_of(lowering))
    session = Training([(x,)], nets.weighted)
    comparison = compare(nets.mlp().to(x.dtype), session, lowering, compress=False)
    (plan,) = comparison.plans
    assert plan.applied
    assert not plan.packed
    spikes = [s for s in plan.saved if s.reason.startswith("threshold")]
    assert spikes
    for tensor in spikes:
        assert tensor.stored_bytes == tensor.original_bytes == nets.N * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levle": 1}, "unknown option 'levle' of backend 'snnmem'.*Did you mean 'level'"),
        ({"level": 7}, "level=7; allowed: an integer from 0 to 4"),
        ({"lowering": "c++"}, r"lowering='c\+\+'; allowed: 'inductor', 'eager'"),
        ({"compress": 1}, "compress=1; allowed: True, False"),
    ],
)
def test_the_text_of_an_option_error_reaches_the_user(
    options: dict[str, object], message: str
) -> None:
    compiled = torch.compile(nets.mlp(), backend="snnmem", options=options)
    with pytest.raises(Exception, match=message):
        compiled(nets.features(torch.float32))


def test_verbose_prints_the_summary_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    x = nets.features(torch.float32)
    (plan,) = compare(nets.mlp(), Training([(x,)], nets.weighted), verbose=True).plans
    assert capsys.readouterr().out == plan.summary() + "\n"


def test_last_plan_is_the_plan_of_the_graph_compiled_last() -> None:
    def compiled_plan(build: Callable[[], nn.Module]) -> MemoryPlan | None:
        x = nets.features(torch.float32)
        compiled = torch.compile(build(), backend="snnmem", options={"lowering": "eager"})
        nets.weighted(compiled(x)).backward()
        return snnfx.last_plan()

    spiking = compiled_plan(nets.mlp)
    assert spiking is not None
    assert spiking.applied
    plain = compiled_plan(lambda: nn.Linear(nets.FEATURES, 5))
    assert plain is not None
    assert not plain.applied


def test_the_same_graph_gives_the_same_plan() -> None:
    x = nets.features(torch.float32)
    plans = [compare(nets.mlp(), Training([(x,)], nets.weighted)).plans[0] for _ in range(2)]
    assert plans[0].to_json() == plans[1].to_json()
