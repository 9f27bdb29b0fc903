"""The energy of a run on a SpikeSim accelerator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from snnfx.errors import OptionError
from snnfx.op_counter.base import DispatchCounterMode
from snnfx.op_counter.model_call import call_model
from snnfx.op_counter.neuron_types import is_if_or_lif, is_neuron
from snnfx.op_counter.spikesim.config import SpikeSimEnergyConfig
from snnfx.op_counter.spikesim.counter import SpikeSimCounter
from snnfx.op_counter.spikesim.formulas import TOTAL, added


@dataclass(frozen=True)
class SpikeSimEnergyReport:
    """The energy of a run, in either activity mode. Energies in pJ.

    Attributes:
        energy_total_pj: of all stages.
        energy_by_stage: by the name of the module that convolves.
        energy_by_component: ``"totals"``, with the total, and ``"by_stage"``.
        event_stats_by_stage: counts of each stage; without events, the active ones are the dense.
        stage_metadata: sizes of each stage, and how its calls were counted.
        warnings: what was outside of the model.
        breakdown_pj: by component, over all stages.
        counts: ``dense_pe_cycle_count`` and ``stage_count``.
    """

    energy_total_pj: float
    energy_by_stage: dict[str, float]
    energy_by_component: dict[str, Any]
    event_stats_by_stage: dict[str, dict[str, Any]]
    stage_metadata: dict[str, dict[str, Any]]
    warnings: list[str]
    breakdown_pj: dict[str, float]
    counts: dict[str, int]


SpikeSimEventEnergyReport = SpikeSimEnergyReport


class SpikeSimEnergyProfiler:
    """Measures what runs inside, on every entry anew: forwards in `eval` mode, without gradients.

    Args:
        config: of the accelerator; later changes of it have no effect.
        strict: what is outside of the model is an error, instead of a warning of the report.
        verbose: print what each convolution counts.

    Attributes:
        config: as given.
        counter: of what runs inside.

    Raises:
        OptionError: the configuration is invalid.
        UncountedError: inside, with `strict`: a convolution is outside of the model.
    """

    def __init__(
        self,
        *,
        config: SpikeSimEnergyConfig | None = None,
        strict: bool = False,
        verbose: bool = False,
    ) -> None:
        self.counter = SpikeSimCounter(
            config=config or SpikeSimEnergyConfig(), strict=strict, verbose=verbose
        )
        self.config = self.counter.config
        self._mode = DispatchCounterMode([self.counter])

    def __enter__(self) -> SpikeSimEnergyProfiler:
        self.counter.reset()
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)

    def get_report(self) -> SpikeSimEnergyReport:
        """The energy of what ran last inside.

        Raises:
            OptionError: with `strict`: no convolution of the model ran.
        """
        return _report_of(self.counter, ())

    def get_total(self) -> float:
        """``get_report().energy_total_pj``."""
        return self.get_report().energy_total_pj

    def get_counts(self) -> dict[str, Any]:
        """``event_stats_by_stage`` and ``stage_metadata`` of the report."""
        return {
            "event_stats_by_stage": self.counter.get_stage_stats(),
            "stage_metadata": self.counter.get_stage_metadata(),
        }


SpikeSimEventEnergyProfiler = SpikeSimEnergyProfiler


def estimate_spikesim_event_energy(
    model: nn.Module,
    inputs: Any,
    *,
    config: SpikeSimEnergyConfig | None = None,
    strict: bool = False,
    verbose: bool = False,
) -> SpikeSimEnergyReport:
    """The energy of one forward on a SpikeSim accelerator; it is run, without gradients.

    Args:
        model: in `eval` mode; its states change as in any forward.
        inputs: of the model; a tuple or list is its positional arguments, a dict its named ones.
        config: of the accelerator.
        strict: what is outside of the model is an error, instead of a warning of the report.
        verbose: print what each convolution counts.

    Raises:
        OptionError: the configuration is invalid; or with `strict`: the model is in training mode,
            has other neurons than IF and LIF where these are required, or no convolution.
        UncountedError: with `strict`: a convolution is outside of the model.
    """
    profiler = SpikeSimEnergyProfiler(config=config, strict=strict, verbose=verbose)
    found = list(_outside(model, profiler.config))
    if strict and found:
        raise OptionError("; ".join(found))
    with profiler, torch.no_grad():
        call_model(model, inputs)
    return _report_of(profiler.counter, found)


def _outside(model: nn.Module, config: SpikeSimEnergyConfig) -> Iterable[str]:
    """What of a model is outside of SpikeSim's, whatever it will run."""
    if model.training:
        yield "SpikeSim models inference only, and the model is in training mode: call model.eval()"
    others = [
        f"{name or type(module).__name__} ({type(module).__name__})"
        for name, module in model.named_modules()
        if is_neuron(module) and not is_if_or_lif(module)
    ]
    if config.require_if_lif_neurons and others:
        yield (
            f"SpikeSim's neuron unit computes IF and LIF neurons, and the model has "
            f"{', '.join(others)}: set require_if_lif_neurons=False to price these alike"
        )


def _report_of(counter: SpikeSimCounter, found_before: Iterable[str]) -> SpikeSimEnergyReport:
    """Price what was counted; `found_before` the run goes first among its warnings."""
    by_stage = {scope: stage.energy_pj(counter.config) for scope, stage in counter.stages.items()}
    parts = added(list(by_stage.values()))
    total = parts.pop(TOTAL, 0.0)
    return SpikeSimEnergyReport(
        energy_total_pj=total,
        energy_by_stage={scope: energy[TOTAL] for scope, energy in by_stage.items()},
        energy_by_component={"totals": {**parts, TOTAL: total}, "by_stage": by_stage},
        event_stats_by_stage=counter.get_stage_stats(),
        stage_metadata=counter.get_stage_metadata(),
        warnings=[*found_before, *counter.warnings, *_nothing(counter)],
        breakdown_pj=parts,
        counts={"dense_pe_cycle_count": counter.get_total(), "stage_count": len(by_stage)},
    )


def _nothing(counter: SpikeSimCounter) -> Iterable[str]:
    """What to say if no convolution was counted."""
    if counter.stages:
        return
    message = (
        "SpikeSim has counted no convolution: run a model with nn.Conv2d layers, after "
        "model.eval() and under torch.no_grad(), inside of the profiler"
    )
    if counter.strict:
        raise OptionError(message)
    yield message
