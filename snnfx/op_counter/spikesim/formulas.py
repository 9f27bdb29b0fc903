"""Energy of what a SpikeSim accelerator does, in pJ: formulas of counts, without any counting.

SpikeSim (see `config.SPIKESIM_65NM_PJ`) prices each cycle of a processing element alike. With a
crossbar of ``B x B`` and a kernel of ``h x w``,

    E_cycle = E_control + E_neuron + B/8 * h * w * E_xbar
    E_control = E_htree + E_fetch + E_tile_buffer + B/8 * (16 * E_sub + E_temp_buffer)
                + (B/8)**2 * (E_adc + E_mux)

and a layer runs one cycle for each site of its output and each pair of an input and an output tile.
That is the mode ``"dense"``.

The mode ``"event"`` splits the same energy by what causes it, and leaves out what no spike causes.
A patch that has no spike is never distributed, so control costs ``E_control`` for each active patch
and output tile. A site that no spike reaches has no neuron to update: ``E_neuron`` for each active
site, input and output tile. A full tile has ``B * h * w`` rows, so that a row's share of the
crossbar is ``E_xbar / 8``; a tile of ``c < B`` channels has fewer rows for a crossbar that costs
the same, so a row's share is ``E_xbar / 8 * B / c``. If all is active, the three add up to the
dense energy.
"""

from __future__ import annotations

from collections.abc import Mapping

from snnfx.errors import OptionError
from snnfx.op_counter.spikesim.config import SpikeSimEnergyConfig
from snnfx.op_counter.spikesim.events import Events, Pair, Tiling

ROWS_A_GROUP = 8.0
"""Columns that share a converter, and rows that share a driver (the ``xbar_size / 8`` of
ela_spikesim.py)."""

SUBTRACTIONS = 16.0
"""Subtractions for each group of columns and cycle (ela_spikesim.py)."""

TOTAL = "total_pj"


def patch_control_energy_pj(config: SpikeSimEnergyConfig) -> float:
    """`E_control`: of one patch that reaches one output tile's crossbar."""
    groups = config.xbar_size / ROWS_A_GROUP
    return (
        config.htree_pj
        + config.mem_fetch_pj
        + config.tile_buffer_pj
        + groups * SUBTRACTIONS * config.sub_pj
        + groups * config.temp_buffer_pj
        + groups * groups * (config.adc_pj + config.mux_pj)
    )


def pe_cycle_energy_pj(config: SpikeSimEnergyConfig, kernel_size: Pair) -> float:
    """`E_cycle`: of one cycle of a processing element.

    Raises:
        OptionError: a size of the kernel is below 1.
    """
    height, width = kernel_size
    if height <= 0 or width <= 0:
        raise OptionError(f"kernel_size must be two integers of 1 or more; got {kernel_size}")
    xbar = config.xbar_size / ROWS_A_GROUP * height * width * config.xbar_array_energy_pj
    return patch_control_energy_pj(config) + config.neuron_pj + xbar


def xbar_row_energy_pj(config: SpikeSimEnergyConfig, tile_channels: int) -> float:
    """Of one row's share of a crossbar.

    Args:
        config: of the accelerator.
        tile_channels: input channels that lie on the crossbar, 1 to ``xbar_size``.

    Raises:
        OptionError: these do not fit a crossbar.
    """
    if not 1 <= tile_channels <= config.xbar_size:
        raise OptionError(
            f"tile_channels must be 1 to xbar_size ({config.xbar_size}); got {tile_channels}"
        )
    return config.xbar_array_energy_pj / ROWS_A_GROUP * (config.xbar_size / tile_channels)


def dense_energy_pj(
    config: SpikeSimEnergyConfig, tiling: Tiling, pe_cycles: int
) -> dict[str, float]:
    """Of cycles at full activity: ``pe_cycle_pj`` and ``total_pj``."""
    total = pe_cycles * pe_cycle_energy_pj(config, tiling.kernel_size)
    return {"pe_cycle_pj": total, TOTAL: total}


def event_energy_pj(
    config: SpikeSimEnergyConfig, tiling: Tiling, events: Events
) -> dict[str, float]:
    """Of events: ``patch_control_pj``, ``xbar_pj``, ``neuron_pj`` and ``total_pj``."""
    per_row = [xbar_row_energy_pj(config, channels) for channels in tiling.input_tile_channels]
    rows = sum(n * energy for n, energy in zip(events.rows_by_tile, per_row, strict=True))
    patches = tiling.out_channel_tiles * events.patch_tiles
    updates = tiling.in_channel_tiles * events.output_tile_sites
    parts = {
        "patch_control_pj": patches * patch_control_energy_pj(config),
        "xbar_pj": tiling.out_channel_tiles * rows,
        "neuron_pj": updates * config.neuron_pj,
    }
    return {**parts, TOTAL: sum(parts.values())}


def added(breakdowns: list[Mapping[str, float]]) -> dict[str, float]:
    """The sum of breakdowns, part by part."""
    parts = dict.fromkeys((part for breakdown in breakdowns for part in breakdown), 0.0)
    for breakdown in breakdowns:
        for part, energy in breakdown.items():
            parts[part] += energy
    return parts
