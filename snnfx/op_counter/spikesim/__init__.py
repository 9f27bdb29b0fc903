"""Energy of convolutions on a SpikeSim accelerator: crossbars in memory, dense or event-driven."""

from snnfx.op_counter.spikesim.config import SpikeSimEnergyConfig
from snnfx.op_counter.spikesim.counter import SpikeSimCounter
from snnfx.op_counter.spikesim.profiler import (
    SpikeSimEnergyProfiler,
    SpikeSimEnergyReport,
    SpikeSimEventEnergyProfiler,
    SpikeSimEventEnergyReport,
    estimate_spikesim_event_energy,
)

__all__ = [
    "SpikeSimCounter",
    "SpikeSimEnergyConfig",
    "SpikeSimEnergyProfiler",
    "SpikeSimEnergyReport",
    "SpikeSimEventEnergyProfiler",
    "SpikeSimEventEnergyReport",
    "estimate_spikesim_event_energy",
]
