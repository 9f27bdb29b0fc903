"""Count operations, bytes and energy of a model: in a run, or from its graph without running it."""

from snnfx.op_counter.base import (
    ActiveModuleTracker,
    BaseCounter,
    DispatchCounterMode,
    FunctionCounterMode,
    is_binary_tensor,
)
from snnfx.op_counter.spikesim import (
    SpikeSimCounter,
    SpikeSimEnergyConfig,
    SpikeSimEnergyProfiler,
    SpikeSimEnergyReport,
    SpikeSimEventEnergyProfiler,
    SpikeSimEventEnergyReport,
    estimate_spikesim_event_energy,
)

__all__ = [
    "ActiveModuleTracker",
    "BaseCounter",
    "DispatchCounterMode",
    "FunctionCounterMode",
    "SpikeSimCounter",
    "SpikeSimEnergyConfig",
    "SpikeSimEnergyProfiler",
    "SpikeSimEnergyReport",
    "SpikeSimEventEnergyProfiler",
    "SpikeSimEventEnergyReport",
    "estimate_spikesim_event_energy",
    "is_binary_tensor",
]
