"""Networks that pool their spikes, trained by compiled regions: exact, and without full tensors."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph

import snnfx
from snnfx.capture.pipeline import partition_joint
from snnfx.config import Options
from snnfx.passes.fxgraph import node_value

from tests.backend import nets
from tests.backend.harness import Training, compare, ignore_dynamo_warnings

pytestmark = ignore_dynamo_warnings
T, N, CHANNELS, SIZE = 2, 3, 8, 16


class Pooled(nn.Module):
    """Overlapping maxima in front of a shortcut, then averages, then maxima by two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Sequential(nets.Merged(nn.Conv2d(c, CHANNELS, 3, padding=1, bias=False)), nets.lif())
            for c in (3, CHANNELS, CHANNELS)
        )
        self.overlapping = nets.Merged(nn.MaxPool2d(3, 2, 1))
        self.averages = nets.Merged(nn.AvgPool2d(2))
        self.maxima = nets.Merged(nn.MaxPool2d(2))
        self.readout = nn.Linear(CHANNELS * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, 3, SIZE, SIZE]` to `[N, 5]`."""
        x = self.overlapping(self.first(x))
        x = self.averages(self.second(x) + x)
        return self.readout(self.maxima(self.third(2 * x)).flatten(2)).mean(0)


def train(model: nn.Module, x: Tensor) -> float:
    """Train plainly and compiled; the largest relative error of a gradient."""
    session = Training([(x,)], nets.weighted)
    found: dict[str, Tensor] = {}

    def observed(net: nn.Module, run: object) -> dict[str, Tensor]:
        results = session(net, run)  # type: ignore[arg-type]
        for name, value in results.items():
            if "gradient" in name and name in found:
                scale = max(found[name].norm().item(), 1e-3)  # some are zero but for rounding
                errors.append((value - found[name]).norm().item() / scale)
        found.update(results)
        return results

    errors: list[float] = []
    comparison = compare(model, observed, "inductor")
    assert all(plan.applied for plan in comparison.plans)
    assert len(errors) == len(list(model.parameters()))
    assert sum(bool(found[n].any()) for n in found if "gradient" in n) >= 0.8 * len(errors)
    return max(errors)


def test_gradients_through_pooling_are_those_of_the_plain_model() -> None:
    torch.manual_seed(0)
    x = torch.randn(T, N, 3, SIZE, SIZE, dtype=torch.float64)
    assert train(Pooled().double(), x) < 1e-12


def test_a_channels_last_model_trains_like_the_plain_one() -> None:
    torch.manual_seed(0)
    model = nets.convolutional(between=nn.MaxPool2d(3, 2, 1)).double()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert train(model, nets.images(torch.float64)) < 1e-12


def outlines(model: nn.Module, x: Tensor) -> tuple[Graph, Graph]:
    """The graphs of forward and backward as they are to run, regions one node each."""
    captured = snnfx.capture(model, x)
    partition = partition_joint(captured.graph_module, captured.roles, Options.parse({}))
    assert partition.plan.applied
    assert partition.outlines is not None
    first, second = partition.outlines
    return first.graph, second.graph


def tensors(graph: Graph) -> Iterable[Tensor]:
    """All that is computed between the ends of a graph."""
    for node in graph.nodes:
        value = node_value(node)
        if node.op not in ("placeholder", "output") and isinstance(value, Tensor):
            yield value


POOLINGS = {
    "averages": nn.AvgPool2d(2),
    "averages that overlap": nn.AvgPool2d(3, 2, 1),
    "maxima": nn.MaxPool2d(2),
    "maxima that overlap": nn.MaxPool2d(3, 2, 1),
}


@pytest.mark.parametrize("name", POOLINGS)
def test_no_indices_and_no_full_float_tensors_stand_around_a_pooling(name: str) -> None:
    model = nets.convolutional(between=POOLINGS[name])
    graphs = outlines(model, torch.randn(nets.T, nets.N, 3, 16, 16))
    forward, backward = (list(tensors(graph)) for graph in graphs)
    assert all(v.dtype != torch.int64 or v.dim() == 0 for v in (*forward, *backward))
    full = torch.Size([nets.T * nets.N, nets.CHANNELS, 16, 16])
    # In the forward what the convolution gives, in the backward that and its gradient: neither
    # spikes nor the gradient of what was pooled.
    counts = [sum(v.shape == full and v.is_floating_point() for v in half)
              for half in (forward, backward)]  # fmt: skip
    assert counts == [1, 2]
