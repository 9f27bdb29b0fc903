"""Settings that every test runs under."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("snnfx", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("snnfx")


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Each test starts from the same random state and from an empty compiler."""
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()
