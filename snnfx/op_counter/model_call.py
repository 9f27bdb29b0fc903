"""How the one-line estimates call a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn


def call_model(model: nn.Module, inputs: Any) -> Any:
    """Call a model with one input, with a tuple or list of them, or with a dict by name."""
    if isinstance(inputs, (tuple, list)):
        return model(*cast("tuple[Any, ...]", inputs))
    if isinstance(inputs, Mapping):
        return model(**cast("Mapping[str, Any]", inputs))
    return model(inputs)
