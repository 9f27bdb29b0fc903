"""Counts of a real run, to compare static ones with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from snnfx.op_counter import (
    ACCounter,
    BaseCounter,
    DispatchCounterMode,
    FlopCounter,
    MACCounter,
    MemoryAccessCounter,
    SynOpCounter,
)

KINDS: dict[str, type[BaseCounter]] = {
    "flops": FlopCounter,
    "bytes": MemoryAccessCounter,
    "mac": MACCounter,
    "ac": ACCounter,
    "synops": SynOpCounter,
}


def counted(
    step: Callable[[], Any], quantities: tuple[str, ...] = tuple(KINDS)
) -> dict[str, dict[str, dict[Any, int]]]:
    """``[quantity][scope][operator]`` of what `step` runs."""
    torch.manual_seed(7)
    counters: dict[str, Any] = {name: KINDS[name]() for name in quantities}
    with DispatchCounterMode(list(counters.values()), strict=True):
        step()
    return {name: counter.get_counts() for name, counter in counters.items()}


def totals(counts: dict[str, dict[str, dict[Any, int]]]) -> dict[str, int]:
    """The sums of all quantities."""
    return {name: sum(scopes["Global"].values()) for name, scopes in counts.items()}
