"""Failures that random networks found, each as small as it could be made."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.backend import nets
from tests.backend.harness import (
    Training,
    both_lowerings,
    compare,
    dtype_of,
    ignore_dynamo_warnings,
)
from tests.fuzz.checking import check_level
from tests.fuzz.levels import LEVELS
from tests.fuzz.programs import Program, Step

pytestmark = ignore_dynamo_warnings


class WithLiteral(nn.Module):
    """A spiking net that makes a tensor of one number in its forward."""

    def __init__(self, literal: object) -> None:
        super().__init__()
        self.literal = literal
        self.first, self.second = nets.mlp()[:2], nets.mlp()[2:]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * torch.tensor(self.literal, dtype=x.dtype))


@both_lowerings
@pytest.mark.parametrize("literal", [0.5, [0.5]], ids=["number", "list"])
def test_a_tensor_made_of_a_number_in_forward_is_read_under_fake_tensors(
    lowering: str, literal: object
) -> None:
    """The analysis read the literal while the partitioner's mode refuses real tensors."""
    x = nets.features(dtype_of(lowering))
    compare(WithLiteral(literal).to(x.dtype), Training([(x,)], nets.weighted), lowering)


@pytest.mark.parametrize("level", LEVELS)
def test_an_index_made_of_a_number_in_forward(level: int) -> None:
    program = Program(steps=(Step("inplace", ("index",), 0, 3),), time=1)
    outcome = check_level(program, level)
    assert outcome.kind == "equal", outcome.reasons
