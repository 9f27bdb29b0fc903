"""Training under the backend gives what the plain model gives, on the benchmarks' networks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from examples.models import Workload, build
from tests.backend.harness import (
    Comparison,
    Training,
    both_lowerings,
    compare,
    dtype_of,
    ignore_dynamo_warnings,
)
from tests.models import SPIKING

pytestmark = ignore_dynamo_warnings

BENCHMARKS: dict[str, Callable[[], Workload]] = {
    "vgg8": lambda: build("vgg8", width=1 / 16, batch=2, steps=4, size=16),
    "vgg8_dropout": lambda: build("vgg8", width=1 / 16, batch=2, steps=3, size=16, dropout=0.3),
    "vgg8_spikingjelly": lambda: build(
        "vgg8_spikingjelly", width=1 / 16, batch=2, steps=3, size=16
    ),
    "sew_resnet18": lambda: build("sew_resnet18", width=1 / 16, batch=2, steps=2, size=32),
    "spikformer": lambda: build(
        "spikformer", width=1 / 8, batch=2, steps=2, size=8, depth=1, heads=2
    ),
}
SMALL = ("spiking_mlp", "spiking_mlp_dropout", "hand_written")


def train(workload: Workload, lowering: str, steps: int = 1, **options: object) -> Comparison:
    dtype = dtype_of(lowering)
    inputs = tuple(x.to(dtype) for x in workload.inputs)
    session = Training([inputs] * steps, workload.loss_fn, reset_spikingjelly)
    return compare(workload.model.to(dtype), session, lowering, **options)


def reset_spikingjelly(model: nn.Module) -> None:
    """Call `reset` on every module of SpikingJelly, as its `reset_net` does."""
    for module in model.modules():
        if type(module).__module__.startswith("spikingjelly") and hasattr(module, "reset"):
            module.reset()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_eager_lowering_has_the_bits_of_the_plain_model_on_benchmark_networks(name: str) -> None:
    others = (4,) if name == "spikformer" else ()  # tokens are sums of spikes
    train(BENCHMARKS[name](), "eager").assert_packed(*others)


def test_compiled_lowering_flips_no_spike_and_matches_gradients() -> None:
    train(SPIKING["sew"](), "inductor").assert_packed()


@both_lowerings
@pytest.mark.parametrize("name", SMALL)
def test_steps_in_a_row_match_the_plain_model(name: str, lowering: str) -> None:
    """Gradients add up over the steps; running statistics move on; dropout draws anew."""
    comparison = train(SPIKING[name](), lowering, steps=3)
    comparison.assert_packed()
    assert len(comparison.plans) == 1


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """`[N, C, H, W]` or `[T, N, C, H, W]` with C innermost in memory."""
    images = x.flatten(0, 1) if x.ndim == 5 else x
    images = images.to(memory_format=torch.channels_last)
    return images.unflatten(0, x.shape[:2]) if x.ndim == 5 else images


# Dynamo iterates over time by indexing and eager mode by unbinding: the strides of their gradients
# differ, and so does the order of sums. The hand-written net is compared with Dynamo's own.
@pytest.mark.parametrize(("name", "reference"), [("sew", None), ("hand_written", "aot_eager")])
def test_channels_last_has_the_bits_of_the_unplanned_model(
    name: str, reference: str | None
) -> None:
    workload = SPIKING[name]()
    workload.model.to(memory_format=torch.channels_last)
    inputs = tuple(channels_last(x) for x in workload.inputs)
    assert not inputs[0].is_contiguous()
    session = Training([inputs], workload.loss_fn)
    compare(workload.model, session, reference=reference).assert_packed()


@pytest.mark.parametrize(
    ("kind", "lowering"),
    [
        (nn.Dropout, "eager"),
        (nn.Dropout2d, "eager"),
        (nn.FeatureAlphaDropout, "eager"),
        (nn.Dropout, "inductor"),
        (nn.Dropout2d, "inductor"),
    ],
)
def test_dropout_of_spikes_draws_the_masks_of_the_plain_model(
    kind: type[nn.Module], lowering: str
) -> None:
    workload = SPIKING["hand_written"]()
    dropped = copy.deepcopy(workload.model)
    dropped.norms[1] = nn.Sequential(dropped.norms[1], kind(0.4))  # type: ignore[operator,index]
    other = Workload(dropped, *list(vars(workload).values())[1:])
    train(other, lowering).assert_packed()
