"""Energy of arithmetic alone: the MACs and ACs of a run or of a graph, each at a price.

    energy = MACs * e_mac + ACs * e_ac

What a MAC and an AC cost is Horowitz's table for 45 nm; a MAC is a multiplication and an addition,
an AC an addition. Memory, control, and the states of neurons at rest cost nothing in this model: it
compares networks, it does not predict what a chip draws.

SpikingJelly 2.0's SimpleEnergy is this plus memory. Its ACs are more than ours: to count memory it
adds up one number for each site of a convolution over spikes, and these additions, which run inside
its own mode, are counted with the model's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from snnfx.errors import OptionError, UncountedError
from snnfx.op_counter.ac import ACCounter
from snnfx.op_counter.base import BaseCounter, DispatchCounterMode
from snnfx.op_counter.flop import FlopCounter
from snnfx.op_counter.mac import MACCounter
from snnfx.op_counter.model_call import call_model
from snnfx.op_counter.report import CountReport, Stage
from snnfx.op_counter.spikes import Count
from snnfx.op_counter.synop import SynOpCounter

HOROWITZ_45NM_PJ: Mapping[str, float] = MappingProxyType(
    {
        "fp32_multiply": 3.7,
        "fp32_add": 0.9,
        "fp16_multiply": 1.1,
        "fp16_add": 0.4,
        "int8_multiply": 0.2,
        "int8_add": 0.03,
    }
)
"""Picojoules of one operation at 45 nm and 0.9 V.

Source: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014,
doi:10.1109/ISSCC.2014.6757323, figure 1.1.9.
"""

_DIGITS = 2  # the table's: 3.7 + 0.9 is to be 4.6, and not the next float

_PRICED = {"mac": True, "ac": True, "synop": False, "flop": False}
"""The counts of a report, and whether energy depends on them."""

_OF_REPORT = {"mac": "mac", "ac": "ac", "synop": "synops", "flop": "flops"}
"""The quantities of a `CountReport` by the names of counts."""


@dataclass
class ComputeEnergyCostConfig:
    """What operations cost, in pJ. The default is `fp32`; the dtype of a run changes nothing.

    Attributes:
        e_mac_pj: of a multiply-accumulate.
        e_ac_pj: of an accumulate.

    Raises:
        OptionError: a cost is no finite number of at least 0.
    """

    e_mac_pj: float = 4.6
    e_ac_pj: float = 0.9

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check the costs, which may have been set since.

        Raises:
            OptionError: a cost is no finite number of at least 0.
        """
        for name, value in (("e_mac_pj", self.e_mac_pj), ("e_ac_pj", self.e_ac_pj)):
            if not (_is_number(value) and math.isfinite(value) and value >= 0):
                raise OptionError(f"{name} must be a finite number of pJ, 0 or more; got {value!r}")

    @classmethod
    def fp32(cls) -> ComputeEnergyCostConfig:
        """32-bit floating point: ``E_MAC = 3.7 + 0.9 pJ``, ``E_AC = 0.9 pJ``."""
        return cls._of("fp32")

    @classmethod
    def fp16(cls) -> ComputeEnergyCostConfig:
        """16-bit floating point: ``E_MAC = 1.1 + 0.4 pJ``, ``E_AC = 0.4 pJ``."""
        return cls._of("fp16")

    @classmethod
    def int8(cls) -> ComputeEnergyCostConfig:
        """8-bit integers: ``E_MAC = 0.2 + 0.03 pJ``, ``E_AC = 0.03 pJ``."""
        return cls._of("int8")

    @classmethod
    def _of(cls, number: str) -> ComputeEnergyCostConfig:
        add = HOROWITZ_45NM_PJ[f"{number}_add"]
        multiply = HOROWITZ_45NM_PJ[f"{number}_multiply"]
        return cls(e_mac_pj=round(multiply + add, _DIGITS), e_ac_pj=add)


@dataclass
class ComputeEnergyConfig:
    """How a compute-only estimate is made.

    Attributes:
        strict: what a report only warns of, operators that are not priced or no operator at all, is
            an error. It is raised for the report, not inside the run.
        verbose: print what each operator counts.
        cost_config: what operations cost.
        extra_ignore_modules: types of modules, or modules, inside of which nothing counts.
    """

    strict: bool = False
    verbose: bool = False
    cost_config: ComputeEnergyCostConfig = field(default_factory=ComputeEnergyCostConfig)
    extra_ignore_modules: list[type[nn.Module] | nn.Module] | None = None


@dataclass(frozen=True)
class ComputeEnergyReport:
    """The energy of arithmetic; memory, addressing and resting states are not in it.

    Numbers of a measured run are plain; those of a graph with symbolic rates are sympy expressions.

    Attributes:
        energy_total_pj: ``energy_mac_pj + energy_ac_pj``.
        energy_mac_pj: of multiply-accumulates.
        energy_ac_pj: of accumulates.
        breakdown_pj: ``mac_pj`` and ``ac_pj``.
        counts: ``mac``, ``ac``, and for comparison ``synop`` and ``flop``, which cost nothing here.
        warnings: what ran and is not priced.
    """

    energy_total_pj: Count
    energy_mac_pj: Count
    energy_ac_pj: Count
    breakdown_pj: dict[str, Count]
    counts: dict[str, Count]
    warnings: list[str]


class ComputeEnergyProfiler:
    """Measures the compute-only energy of what runs inside, on every entry anew.

    Args:
        config: see `ComputeEnergyConfig`; later changes of it have no effect.

    Raises:
        OptionError: a cost is invalid.
    """

    def __init__(self, *, config: ComputeEnergyConfig | None = None) -> None:
        self.config = _copy_of(config or ComputeEnergyConfig())
        self.config.cost_config.validate()
        ignored = list(self.config.extra_ignore_modules or ())
        self.mac_counter = MACCounter(extra_ignore_modules=ignored)
        self.ac_counter = ACCounter(extra_ignore_modules=ignored)
        self.synop_counter = SynOpCounter(extra_ignore_modules=ignored)
        self.flop_counter = FlopCounter(extra_ignore_modules=ignored)
        self._counters: dict[str, BaseCounter] = {
            "mac": self.mac_counter,
            "ac": self.ac_counter,
            "synop": self.synop_counter,
            "flop": self.flop_counter,
        }
        self._mode = DispatchCounterMode(list(self._counters.values()), verbose=self.config.verbose)

    def __enter__(self) -> ComputeEnergyProfiler:
        for counter in self._counters.values():
            counter.reset()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)

    def get_report(self) -> ComputeEnergyReport:
        """The energy of what ran last inside.

        Raises:
            UncountedError: with `strict`: an operator is not priced, or none ran.
        """
        return _report(
            {name: counter.get_total() for name, counter in self._counters.items()},
            {name: self._mode.get_unsupported(c) for name, c in self._counters.items()},
            any(self._counters[name].records for name, priced in _PRICED.items() if priced),
            self.config,
        )

    def get_total(self) -> float:
        """``get_report().energy_total_pj``."""
        return self.get_report().energy_total_pj

    def get_counts(self) -> dict[str, Count]:
        """``get_report().counts``."""
        return self.get_report().counts


def estimate_compute_energy(
    model: nn.Module, inputs: Any, *, config: ComputeEnergyConfig | None = None
) -> ComputeEnergyReport:
    """The compute-only energy of one forward, which is run, without gradients.

    Args:
        model: to run; its states change as in any forward.
        inputs: of the model; a tuple or list is its positional arguments, a dict its named ones.
        config: see `ComputeEnergyConfig`.

    Raises:
        OptionError: a cost is invalid.
        UncountedError: with ``config.strict``: an operator is not priced, or none ran.
    """
    profiler = ComputeEnergyProfiler(config=config)
    with profiler, torch.no_grad():
        call_model(model, inputs)
    return profiler.get_report()


def compute_energy_of(
    report: CountReport, config: ComputeEnergyConfig | None = None, *, stage: Stage | None = None
) -> ComputeEnergyReport:
    """The compute-only energy of counts that are there already; nothing runs.

    Args:
        report: of `snnfx.op_counter.count`; with symbolic rates, so is the energy.
        config: see `ComputeEnergyConfig`.
        stage: of one half of a training step; None for all that was counted.

    Raises:
        OptionError: a cost is invalid, or modules are to be ignored, which only counting can.
        UncountedError: with ``config.strict``: an operator is not priced, or there is none.
    """
    config = config or ComputeEnergyConfig()
    config.cost_config.validate()
    if config.extra_ignore_modules:
        raise OptionError(
            "extra_ignore_modules takes effect where operators are counted, and these counts are "
            "made; leave it out, or measure a run with estimate_compute_energy"
        )
    priced = _report(
        {name: report.total(quantity, stage) for name, quantity in _OF_REPORT.items()},
        {name: report.unsupported.get(quantity, {}) for name, quantity in _OF_REPORT.items()},
        any("mac" in entry.counts or "ac" in entry.counts for entry in report.operators),
        config,
    )
    return replace(priced, warnings=[*priced.warnings, *report.warnings])


def _report(
    counts: Mapping[str, Count],
    unsupported: Mapping[str, Mapping[str, int]],
    anything: bool,
    config: ComputeEnergyConfig,
) -> ComputeEnergyReport:
    """Price counts; `anything` tells whether any operator was looked at for MACs and ACs."""
    cost = config.cost_config
    mac_pj, ac_pj = counts["mac"] * cost.e_mac_pj, counts["ac"] * cost.e_ac_pj
    return ComputeEnergyReport(
        energy_total_pj=mac_pj + ac_pj,
        energy_mac_pj=mac_pj,
        energy_ac_pj=ac_pj,
        breakdown_pj={"mac_pj": mac_pj, "ac_pj": ac_pj},
        counts=dict(counts),
        warnings=_warnings(unsupported, anything, config.strict),
    )


def _warnings(
    unsupported: Mapping[str, Mapping[str, int]], anything: bool, strict: bool
) -> list[str]:
    """What is outside of the model; where that is part of the energy, an error if `strict`."""
    warnings: list[str] = []
    if not anything:
        warnings.append(
            "MACs and ACs of no operator were counted: run the model inside of the profiler, and "
            "outside of the modules in extra_ignore_modules"
        )
    missing = [name for name in unsupported if unsupported[name]]
    warnings += [_missing(name, unsupported[name]) for name in missing]
    if strict and (not anything or any(_PRICED[name] for name in missing)):
        raise UncountedError("; ".join(warnings))
    return warnings


def _missing(name: str, calls: Mapping[str, int]) -> str:
    operators = ", ".join(f"{operator} ({number}x)" for operator, number in sorted(calls.items()))
    effect = "the energy leaves them out" if _PRICED[name] else f"counts['{name}'] leaves them out"
    return f"no rule of {name} for {operators}: {effect}"


def _copy_of(config: ComputeEnergyConfig) -> ComputeEnergyConfig:
    """A copy that shares the modules to ignore: these are told apart by identity."""
    copied = copy.copy(config)
    copied.cost_config = copy.copy(config.cost_config)
    return copied


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
