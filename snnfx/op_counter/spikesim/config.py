"""What the parts of a SpikeSim accelerator cost, and how a network is mapped to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from snnfx.errors import OptionError

SPIKESIM_65NM_PJ: Mapping[str, float] = MappingProxyType(
    {
        "tile_buffer_pj": 397.0,
        "temp_buffer_pj": 0.2,
        "sub_pj": 1.15e-6,
        "adc_pj": 2.03084,
        "htree_pj": 19.64 * 8,
        "mux_pj": 0.094245,
        "mem_fetch_pj": 4.64,
        "neuron_pj": 1.274 * 4,
        "rram_xbar_pj": 1.76423,
        "sram_xbar_pj": 671.089,
    }
)
"""Picojoules of one use of each part, at 65 nm.

Source: A. Moitra et al., "SpikeSim: An end-to-end compute-in-memory hardware evaluation tool for
benchmarking spiking neural networks", TCAD 2023, doi:10.1109/TCAD.2023.3274918; the numbers are
those of `compute_energy` in ela_spikesim.py of the authors'
github.com/Intelligent-Computing-Lab-Yale/SpikeSim at commit c2627bc.
"""

DEVICES = ("rram", "sram")
ACTIVITY_MODES = ("dense", "event")


@dataclass
class SpikeSimEnergyConfig:
    """A SpikeSim accelerator; energies in pJ, of one use of each part. See `SPIKESIM_65NM_PJ`.

    Attributes:
        xbar_size: rows and columns of a crossbar: the input channels, and output channels, of one
            tile.
        device: what the crossbars are made of, ``"rram"`` or ``"sram"``.
        activity_mode: ``"dense"`` prices every cycle as SpikeSim does; ``"event"`` only what spikes
            set off, see `snnfx.op_counter.spikesim.formulas`.
        require_if_lif_neurons: whether other neurons than (leaky) integrate-and-fire ones, which
            SpikeSim's neuron unit computes, are outside of the model.
        tile_buffer_pj: of the buffer of a tile.
        temp_buffer_pj: of a temporary buffer.
        sub_pj: of a subtraction.
        adc_pj: of an analog-to-digital conversion.
        htree_pj: of the H-tree that distributes inputs.
        mux_pj: of a multiplexer.
        mem_fetch_pj: of a fetch of the input.
        neuron_pj: of a neuron unit.
        rram_xbar_pj: of a crossbar read, with RRAM.
        sram_xbar_pj: of a crossbar read, with SRAM.
    """

    xbar_size: int = 64
    device: str = "rram"
    activity_mode: str = "dense"
    require_if_lif_neurons: bool = True
    tile_buffer_pj: float = SPIKESIM_65NM_PJ["tile_buffer_pj"]
    temp_buffer_pj: float = SPIKESIM_65NM_PJ["temp_buffer_pj"]
    sub_pj: float = SPIKESIM_65NM_PJ["sub_pj"]
    adc_pj: float = SPIKESIM_65NM_PJ["adc_pj"]
    htree_pj: float = SPIKESIM_65NM_PJ["htree_pj"]
    mux_pj: float = SPIKESIM_65NM_PJ["mux_pj"]
    mem_fetch_pj: float = SPIKESIM_65NM_PJ["mem_fetch_pj"]
    neuron_pj: float = SPIKESIM_65NM_PJ["neuron_pj"]
    rram_xbar_pj: float = SPIKESIM_65NM_PJ["rram_xbar_pj"]
    sram_xbar_pj: float = SPIKESIM_65NM_PJ["sram_xbar_pj"]

    def copy(self) -> SpikeSimEnergyConfig:
        """An independent copy."""
        return replace(self)

    def validate(self) -> None:
        """Check all fields; nothing else does until a counter or profiler is made.

        Raises:
            OptionError: a field has an invalid value.
        """
        if not _is_integer(self.xbar_size) or self.xbar_size <= 0:
            raise OptionError(f"xbar_size must be an integer of 1 or more; got {self.xbar_size!r}")
        _one_of("device", self.device, DEVICES)
        _one_of("activity_mode", self.activity_mode, ACTIVITY_MODES)
        for name in SPIKESIM_65NM_PJ:
            value: Any = getattr(self, name)
            if not (_is_integer(value) or isinstance(value, float)):
                raise OptionError(f"{name} must be a number of pJ; got {value!r}")
            if not math.isfinite(value) or value < 0:
                raise OptionError(f"{name} must be a finite number of pJ, 0 or more; got {value!r}")

    @property
    def xbar_array_energy_pj(self) -> float:
        """Of one read of a crossbar, of the device that is used."""
        return self.rram_xbar_pj if self.device == "rram" else self.sram_xbar_pj


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise OptionError(f"{name} must be {' or '.join(map(repr, allowed))}; got {value!r}")
