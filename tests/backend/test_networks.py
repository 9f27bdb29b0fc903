"""Kinds of networks that the backend must train as the plain model does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from torch import Tensor, nn

from tests.backend import nets
from tests.backend.harness import (
    LOWERINGS,
    Comparison,
    Training,
    compare,
    dtype_of,
    ignore_dynamo_warnings,
)

pytestmark = ignore_dynamo_warnings

Case = tuple[Callable[[], nn.Module], Callable[..., Tensor], tuple[int, ...]]


def norm(kind: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nets.convolutional(norm=kind)


def between(module: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nets.convolutional(between=module)


def own(fire: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: nets.mlp(lambda: nets.OwnNode(fire))


# The mean of 64 spikes that the readout takes has 65 levels: it is packed too, in 8 bits.
MEAN = 8
# Each is trained in both lowerings.
CASES: dict[str, Case] = {
    "linear": (nets.mlp, nets.features, ()),
    "batch norm": (nets.convolutional, nets.images, (MEAN,)),
    "max pooling of spikes": (between(nn.MaxPool2d(2)), nets.images, (MEAN,)),
    "ternary spikes": (own(nets.TernarySTE.apply), partial(nets.features, batch=512), ()),
    "heaviside": (
        lambda: nets.convolutional(lambda: nets.OwnNode(nets.HeavisideSTE.apply)),
        nets.images,
        (MEAN,),
    ),
    "sums of spikes": (lambda: nets.Added(2), nets.images, (MEAN,)),
    "spikes next to floats": (nets.Concatenated, nets.images, (MEAN,)),
    "spiking attention": (lambda: nets.Attention(False), nets.tokens, (4, 8)),
    "in-place operators": (nets.InPlace, nets.images, (MEAN,)),
}
# Further kinds.
FURTHER: dict[str, Case] = {
    "group norm": (norm(lambda: nn.GroupNorm(2, nets.CHANNELS)), nets.images, (MEAN,)),
    "layer norm": (norm(lambda: nn.LayerNorm((nets.SIZE, nets.SIZE))), nets.images, (MEAN,)),
    "instance norm": (norm(lambda: nn.InstanceNorm2d(nets.CHANNELS)), nets.images, (MEAN,)),
    "average pooling of spikes": (between(nn.AvgPool2d(2)), nets.images, (MEAN,)),
    "average pooling by nine": (between(nn.AvgPool2d(3, 1, 1)), nets.images, (MEAN,)),
    "max pooling of overlapping windows": (between(nn.MaxPool2d(3, 2, 1)), nets.images, (MEAN,)),
    "where": (own(nets.WhereSTE.apply), partial(nets.features, batch=512), ()),
    "attention with softmax": (lambda: nets.Attention(True), nets.tokens, ()),
    "detach trick": (
        lambda: nets.convolutional(lambda: nets.OwnNode(nets.detach_trick)),
        nets.images,
        (),
    ),
    "analog front": (nets.AnalogFront, nets.images, (MEAN,)),
    "shared weights": (nets.Shared, nets.images, (MEAN,)),
}
RUNS = [(name, lowering) for name in CASES for lowering in LOWERINGS]
RUNS += [(name, "eager") for name in FURTHER]
# The detach trick computes spikes as h + s - s: rounding makes them other floats when compiled.
RUNS += [(name, "inductor") for name in FURTHER if name != "detach trick"]


def train(
    model: nn.Module, *inputs: Tensor, lowering: str, steps: int = 2, **options: object
) -> Comparison:
    session = Training([inputs] * steps, nets.weighted)
    return compare(model.train().to(inputs[0].dtype), session, lowering, **options)


@pytest.mark.parametrize(("name", "lowering"), RUNS)
def test_trains_like_the_plain_model(name: str, lowering: str) -> None:
    build, make, others = (CASES | FURTHER)[name]
    comparison = train(build(), make(dtype_of(lowering)), lowering=lowering)
    assert_trains(comparison)
    comparison.assert_packed(*others)


def assert_trains(comparison: Comparison) -> None:
    """Every parameter has a gradient, and most of them are not zero."""
    gradients = [v for k, v in comparison.expected.items() if "step 0 gradient" in k]
    assert gradients
    assert sum(bool(g.any()) for g in gradients) > 0.8 * len(gradients)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_integer_valued_spikes_train_like_the_plain_model(lowering: str) -> None:
    """Five levels are packed in four bits, and a note says that NaN has no code."""
    x = nets.images(dtype_of(lowering))
    model = nets.convolutional(lambda: nets.OwnNode(nets.RoundedSTE.apply))
    comparison = train(model, x, lowering=lowering)
    assert_trains(comparison)
    (plan,) = comparison.plans
    assert plan.applied
    spikes = [s for s in plan.saved if s.reason.startswith("threshold")]
    assert {(s.storage, s.bits) for s in spikes} == {("packed", 4)}
    assert any("NaN" in note for note in plan.notes)
    counts = [v for k, v in comparison.expected.items() if "spikes" in k]
    assert all(v.max() > 1 for v in counts[:1])
