"""Count operations, bytes and energy of a model: in a run, or from its graph without running it."""

from snnfx.op_counter.base import (
    ActiveModuleTracker,
    BaseCounter,
    DispatchCounterMode,
    FunctionCounterMode,
    is_binary_tensor,
)

__all__ = [
    "ActiveModuleTracker",
    "BaseCounter",
    "DispatchCounterMode",
    "FunctionCounterMode",
    "is_binary_tensor",
]
