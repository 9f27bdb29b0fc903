"""Count operations, bytes and energy of a model: in a run, or from its graph without running it."""

from snnfx.op_counter.base import (
    ActiveModuleTracker,
    BaseCounter,
    DispatchCounterMode,
    FunctionCounterMode,
    is_binary_tensor,
)
from snnfx.op_counter.flop import FlopCounter
from snnfx.op_counter.memory_access import MemoryAccessCounter
from snnfx.op_counter.neuromc import (
    MemoryHierarchyConfig,
    NeuroMCEnergyProfiler,
    NeuroMCRuntimeEnergyReport,
    estimate_neuromc_runtime_energy,
)

__all__ = [
    "ActiveModuleTracker",
    "BaseCounter",
    "DispatchCounterMode",
    "FlopCounter",
    "FunctionCounterMode",
    "MemoryAccessCounter",
    "MemoryHierarchyConfig",
    "NeuroMCEnergyProfiler",
    "NeuroMCRuntimeEnergyReport",
    "estimate_neuromc_runtime_energy",
    "is_binary_tensor",
]
