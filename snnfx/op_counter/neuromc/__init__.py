"""Energy on the NeuroMC accelerator: measured in a run, mapped to cores and memories."""

from snnfx.op_counter.neuromc.config import MemoryHierarchyConfig, MemoryInstanceSpec
from snnfx.op_counter.neuromc.estimate import estimate_neuromc_runtime_energy
from snnfx.op_counter.neuromc.profiler import NeuroMCEnergyProfiler
from snnfx.op_counter.neuromc.report import NeuroMCRuntimeEnergyReport

__all__ = [
    "MemoryHierarchyConfig",
    "MemoryInstanceSpec",
    "NeuroMCEnergyProfiler",
    "NeuroMCRuntimeEnergyReport",
    "estimate_neuromc_runtime_energy",
]
