"""Count operations, bytes and energy of a model: in a run, or from its graph without running it."""

from snnfx.op_counter.ac import ACCounter
from snnfx.op_counter.base import (
    ActiveModuleTracker,
    BaseCounter,
    DispatchCounterMode,
    FunctionCounterMode,
    is_binary_tensor,
)
from snnfx.op_counter.flop import FlopCounter
from snnfx.op_counter.mac import MACCounter
from snnfx.op_counter.memory_access import MemoryAccessCounter
from snnfx.op_counter.synop import SynOpCounter

__all__ = [
    "ACCounter",
    "ActiveModuleTracker",
    "BaseCounter",
    "DispatchCounterMode",
    "FlopCounter",
    "FunctionCounterMode",
    "MACCounter",
    "MemoryAccessCounter",
    "SynOpCounter",
    "is_binary_tensor",
]
