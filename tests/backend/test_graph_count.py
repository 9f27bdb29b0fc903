"""One warning says that a model is split into several graphs, and nothing else gives one."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snnfx.errors import SnnfxWarning

from tests.backend import nets
from tests.backend.harness import ignore_dynamo_warnings

pytestmark = ignore_dynamo_warnings
OPTIONS = {"lowering": "eager"}


class Split(nn.Module):
    """Linear layers with graph breaks between them, one or three."""

    def __init__(self, breaks: int) -> None:
        super().__init__()
        self.breaks = breaks
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        torch._dynamo.graph_break()
        if self.breaks > 1:
            x = self.layer(x.relu())
            torch._dynamo.graph_break()
            x = self.layer(x.relu())
            torch._dynamo.graph_break()
        return self.layer(x.relu())


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="snnmem", options={**OPTIONS, **options})


def messages(run: Any, *inputs: Tensor) -> list[str]:
    """The warnings of snnfx in a training step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(*inputs).sum().backward()
    return [str(w.message) for w in caught if issubclass(w.category, SnnfxWarning)]


@pytest.mark.parametrize("breaks", [1, 3])
def test_a_split_model_is_told_once_with_count_place_and_remedy(breaks: int) -> None:
    run, x = compiled(Split(breaks)), torch.randn(3, 4)
    (message,) = messages(run, x)
    assert f"as {breaks + 1} graphs" in message
    assert f"The first break: Call to `torch._dynamo.graph_break()`, at {__file__}:" in message
    assert "snnfx.adapters.adapt(model)" in message
    assert "torch._dynamo.explain(model)" in message
    assert "optimize_ddp = False" in message
    assert messages(run, x) == []
    assert messages(run, torch.randn(5, 4)) == []  # compiled again, for another size


def test_each_compiled_model_is_told_of_its_own_graphs() -> None:
    first, second = compiled(Split(1)), compiled(Split(3), level=1)
    x = torch.randn(3, 4)
    assert ["as 2 graphs" in text for text in messages(first, x)] == [True]
    assert ["as 4 graphs" in text for text in messages(second, x)] == [True]


def test_models_of_one_graph_are_told_nothing_however_often_they_are_compiled() -> None:
    model = nets.mlp()
    run = compiled(model)
    for batch in (2, 3, 5):
        assert messages(run, torch.randn(nets.T, batch, nets.FEATURES)) == []
    other = compiled(nets.mlp())
    assert messages(other, torch.randn(nets.T, 2, nets.FEATURES)) == []
    torch.compiler.reset()
    assert messages(run, torch.randn(nets.T, 2, nets.FEATURES)) == []


def test_the_split_of_distributed_training_names_its_switch() -> None:
    from torch._dynamo.output_graph import GraphCompileReason

    from snnfx.graph_count import GraphCount

    count = GraphCount()
    part = torch.fx.GraphModule({}, torch.fx.Graph())
    reason = "DDPOptimizer intentional graph-break (See Note [DDPOptimizer]).\nMore."
    part.compile_subgraph_reason = GraphCompileReason(reason, [])
    for _ in range(2):
        count.add(part)
    assert count.graphs == 2
    assert "DDPOptimizer intentional graph-break" in count.message()
    assert "More" not in count.message()
