"""Parts and their energies are checked, with what is allowed in the message."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from spikingjelly.activation_based.op_counter import spikesim as peer

from snnfx.errors import OptionError
from snnfx.op_counter import SpikeSimEnergyConfig
from snnfx.op_counter.spikesim.config import SPIKESIM_65NM_PJ


def test_defaults_are_the_documented_ones() -> None:
    ours, theirs = SpikeSimEnergyConfig(), peer.SpikeSimEnergyConfig()
    assert [field.name for field in fields(ours)] == [field.name for field in fields(theirs)]
    assert vars(ours) == vars(theirs)
    assert vars(ours).items() >= {"xbar_size": 64, "htree_pj": 157.12, "neuron_pj": 5.096}.items()


def test_a_copy_does_not_change_with_the_original() -> None:
    config = SpikeSimEnergyConfig(xbar_size=32)
    copied = config.copy()
    config.xbar_size = 16
    assert copied == SpikeSimEnergyConfig(xbar_size=32)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("xbar_size", 0, "xbar_size must be an integer of 1 or more; got 0"),
        ("xbar_size", 64.0, "xbar_size must be an integer of 1 or more; got 64.0"),
        ("xbar_size", True, "xbar_size must be an integer of 1 or more; got True"),
        ("device", "mram", "device must be 'rram' or 'sram'; got 'mram'"),
        ("activity_mode", "sparse", "activity_mode must be 'dense' or 'event'; got 'sparse'"),
        *((name, -1.0, f"{name} must be a finite number of pJ") for name in SPIKESIM_65NM_PJ),
        ("adc_pj", math.nan, "adc_pj must be a finite number of pJ, 0 or more; got nan"),
        ("adc_pj", math.inf, "adc_pj must be a finite number of pJ, 0 or more; got inf"),
        ("adc_pj", "2", "adc_pj must be a number of pJ; got '2'"),
    ],
)
def test_invalid_fields_are_refused(field: str, value: Any, message: str) -> None:
    config = SpikeSimEnergyConfig(**{field: value})
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        config.validate()


def test_free_parts_and_integer_energies_are_allowed() -> None:
    SpikeSimEnergyConfig(adc_pj=0, mux_pj=3, device="sram").validate()


def test_the_device_decides_what_a_crossbar_costs() -> None:
    assert SpikeSimEnergyConfig(device="rram").xbar_array_energy_pj == 1.76423
    assert SpikeSimEnergyConfig(device="sram").xbar_array_energy_pj == 671.089
