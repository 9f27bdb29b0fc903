"""Counters' base class, the modes that call counters, and what both look at."""

from snnfx.op_counter.counter import BaseCounter
from snnfx.op_counter.modes import DispatchCounterMode, FunctionCounterMode
from snnfx.op_counter.spikes import is_binary_tensor
from snnfx.op_counter.tracker import ActiveModuleTracker

__all__ = [
    "ActiveModuleTracker",
    "BaseCounter",
    "DispatchCounterMode",
    "FunctionCounterMode",
    "is_binary_tensor",
]
