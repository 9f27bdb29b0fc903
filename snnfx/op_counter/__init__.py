"""Count operations, bytes and energy of a model: in a run, or from its graph without running it."""

from snnfx.op_counter.ac import (
    ACCounter,
)
from snnfx.op_counter.base import (
    ActiveModuleTracker,
    BaseCounter,
    DispatchCounterMode,
    FunctionCounterMode,
    is_binary_tensor,
)
from snnfx.op_counter.compute_energy import (
    ComputeEnergyConfig,
    ComputeEnergyCostConfig,
    ComputeEnergyProfiler,
    ComputeEnergyReport,
    compute_energy_of,
    estimate_compute_energy,
)
from snnfx.op_counter.flop import (
    FlopCounter,
)
from snnfx.op_counter.mac import (
    MACCounter,
)
from snnfx.op_counter.memory_access import (
    MemoryAccessCounter,
)
from snnfx.op_counter.neuromc import (
    MemoryHierarchyConfig,
    NeuroMCEnergyProfiler,
    NeuroMCRuntimeEnergyReport,
    estimate_neuromc_runtime_energy,
)
from snnfx.op_counter.report import (
    CountReport,
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
from snnfx.op_counter.static import (
    count,
)
from snnfx.op_counter.synop import (
    SynOpCounter,
)

__all__ = [
    "ACCounter",
    "ActiveModuleTracker",
    "BaseCounter",
    "ComputeEnergyConfig",
    "ComputeEnergyCostConfig",
    "ComputeEnergyProfiler",
    "ComputeEnergyReport",
    "CountReport",
    "DispatchCounterMode",
    "FlopCounter",
    "FunctionCounterMode",
    "MACCounter",
    "MemoryAccessCounter",
    "MemoryHierarchyConfig",
    "NeuroMCEnergyProfiler",
    "NeuroMCRuntimeEnergyReport",
    "SpikeSimCounter",
    "SpikeSimEnergyConfig",
    "SpikeSimEnergyProfiler",
    "SpikeSimEnergyReport",
    "SpikeSimEventEnergyProfiler",
    "SpikeSimEventEnergyReport",
    "SynOpCounter",
    "compute_energy_of",
    "count",
    "estimate_compute_energy",
    "estimate_neuromc_runtime_energy",
    "estimate_spikesim_event_energy",
    "is_binary_tensor",
]
