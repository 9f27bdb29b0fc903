"""Energies equal SpikeSim's published formula, and its parts add up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snnfx.errors import OptionError
from snnfx.op_counter import SpikeSimEnergyConfig
from snnfx.op_counter.spikesim.events import Convolution, Tiling, dense_events
from snnfx.op_counter.spikesim.formulas import (
    added,
    dense_energy_pj,
    event_energy_pj,
    pe_cycle_energy_pj,
    xbar_row_energy_pj,
)


def published_cycle_energy_pj(xbar_size: int, k: int, xbar: float) -> float:
    """`PE_cycle_energy` of ela_spikesim.py, with its numbers."""
    converters = k * k * xbar + (xbar_size / 8) * (2.03084 + 0.094245)
    fixed = 19.64 * 8 + 4.64 + 1.274 * 4.0 + 397
    return fixed + xbar_size / 8 * (converters + 16 * 1.15e-6 + 0.2)


@pytest.mark.parametrize("xbar_size", [8, 64, 128])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("device", "xbar"), [("rram", 1.76423), ("sram", 671.089)])
def test_a_cycle_costs_what_the_paper_s_code_says(
    xbar_size: int, k: int, device: str, xbar: float
) -> None:
    config = SpikeSimEnergyConfig(xbar_size=xbar_size, device=device)
    expected = published_cycle_energy_pj(xbar_size, k, xbar)
    assert pe_cycle_energy_pj(config, (k, k)) == pytest.approx(expected, rel=1e-12)


def test_the_vgg9_of_the_paper_s_code_costs_what_it_prints() -> None:
    """The example at the end of ela_spikesim.py: 3x3 kernels, 64 x 64 RRAM crossbars, 5 steps."""
    in_channels = [3, 64, 64, 128, 128, 256, 256]
    out_channels = [64, 64, 128, 128, 256, 256, 256]
    sides = [32, 16, 16, 8, 8, 8, 4]
    config = SpikeSimEnergyConfig()
    energy = 0.0
    for c, m, side in zip(in_channels, out_channels, sides, strict=True):
        conv = Convolution(
            Tiling(c, m, (3, 3), 64), (5, c, side, side), (5, m, side, side), (1, 1), (1, 1), (1, 1)
        )
        energy += dense_energy_pj(config, conv.tiling, conv.pe_cycles)["total_pj"]
    cycles = sum(
        math.ceil(c / 64) * math.ceil(m / 64) * side**2
        for c, m, side in zip(in_channels, out_channels, sides, strict=True)
    )
    assert energy == pytest.approx(5 * cycles * published_cycle_energy_pj(64, 3, 1.76423))


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(1, 16),
    st.sampled_from(("rram", "sram")),
)
def test_events_at_full_activity_cost_as_much_as_dense_cycles(
    in_channels: int, out_channels: int, kernel: tuple[int, int], xbar_size: int, device: str
) -> None:
    config = SpikeSimEnergyConfig(xbar_size=xbar_size, device=device)
    tiling = Tiling(in_channels, out_channels, kernel, xbar_size)
    conv = Convolution(
        tiling, (2, in_channels, 9, 9), (2, out_channels, 4, 5), (2, 2), (0, 0), (1, 1)
    )
    dense = dense_energy_pj(config, tiling, conv.pe_cycles)
    events = event_energy_pj(config, tiling, dense_events(conv))
    assert events["total_pj"] == pytest.approx(dense["total_pj"], rel=1e-12)
    assert events["total_pj"] == sum(pj for part, pj in events.items() if part != "total_pj")


def test_rows_of_a_part_filled_tile_share_the_whole_crossbar() -> None:
    config = SpikeSimEnergyConfig(xbar_size=64)
    assert xbar_row_energy_pj(config, 16) == pytest.approx(4 * xbar_row_energy_pj(config, 64))


@pytest.mark.parametrize("channels", [0, 65])
def test_channels_that_do_not_fit_a_crossbar_are_refused(channels: int) -> None:
    with pytest.raises(OptionError, match=rf"1 to xbar_size \(64\); got {channels}"):
        xbar_row_energy_pj(SpikeSimEnergyConfig(), channels)


def test_kernels_without_elements_are_refused() -> None:
    with pytest.raises(OptionError, match=r"two integers of 1 or more; got \(3, 0\)"):
        pe_cycle_energy_pj(SpikeSimEnergyConfig(), (3, 0))


def test_breakdowns_add_part_by_part() -> None:
    assert added([{"a": 1.0, "b": 2.0}, {"b": 3.0}]) == {"a": 1.0, "b": 5.0}
    assert added([]) == {}
