"""What ``snnfx count`` does: count from the graph, measure a run where asked to, and show it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from snnfx.commands import check_folder, check_picture, find_target, told, write_answer
from snnfx.config import Optimizer
from snnfx.eager.trace import total_of
from snnfx.errors import OptionError
from snnfx.op_counter import (
    ComputeEnergyConfig,
    ComputeEnergyCostConfig,
    SpikeSimEnergyConfig,
    count,
    estimate_neuromc_runtime_energy,
    estimate_spikesim_event_energy,
)
from snnfx.op_counter.compute_energy import compute_energy_of
from snnfx.op_counter.report import CountReport
from snnfx.op_counter.report_energy import energy_json, energy_table
from snnfx.op_counter.report_plot import draw_energy, priced
from snnfx.op_counter.report_roofline import device_named
from snnfx.progress import Notices
from snnfx.target import Built

LOG_WIDTH = 160
MEASURED = "measured"
RUN_MODELS = ("neuromc", "spikesim")
"""Energy models that measure a run."""

PRECISIONS: Mapping[str, Callable[[], ComputeEnergyCostConfig]] = {
    "fp32": ComputeEnergyCostConfig.fp32,
    "fp16": ComputeEnergyCostConfig.fp16,
    "int8": ComputeEnergyCostConfig.int8,
}

OPTIMIZERS: Mapping[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters),
}


@dataclass(frozen=True)
class CountCall:
    """What the command is called with; see the help of its options in `snnfx.cli`."""

    target: str
    batch: int | None
    batch_dim: int | None
    time_dim: int | None
    real: bool
    train: bool
    rates: float | str | None
    symbolic: bool
    energy: str | None
    precision: str | None
    optimizer: Optimizer | None
    device: str
    depth: int
    strict: bool
    quiet: bool
    json_path: Path | None
    csv_path: Path | None
    plot: Path | None
    roofline: Path | None

    @property
    def needs_run(self) -> bool:
        """Whether the model has to be run, once."""
        return self.rates == MEASURED or self.energy in RUN_MODELS


@dataclass(frozen=True)
class _Found:
    """What there is to show."""

    report: CountReport
    energy: Any
    formulas: Mapping[str, Any]


def run_count(call: CountCall) -> None:
    """Count, write what is asked for, and print the tables.

    Raises:
        click.ClickException: with the text that the user gets, and the exit code.
    """
    _check(call)
    target = find_target(
        call.target, call.batch_dim, call.real or call.needs_run, call.batch, call.needs_run
    )
    with told(call.quiet), Notices(quiet=call.quiet) as notices:
        notices.say("building the model")
        built = target.build(call.batch)
        built.model.train(call.train)
        notices.say("counting")
        report = _counted(call, built)
        formulas = _formulas(report) if call.symbolic else {}
        energy = None
        if call.energy is not None:
            notices.say("estimating the energy")
            energy = _energy(call, built, report)
        notices.say("writing")
        found = _Found(report, energy, formulas)
        _write(call, found)
    write_answer(_document(found), call.json_path, lambda: _show(call, found))


def _check(call: CountCall) -> None:
    """Hold what can be known to be wrong before anything is built."""
    for path in (call.json_path, call.csv_path, call.plot, call.roofline):
        check_folder(path)
    for path in (call.plot, call.roofline):
        if path is not None:
            check_picture(path)
    if call.precision is not None and call.energy != "compute":
        raise click.UsageError("--precision is of --energy compute; give that, or leave it out")
    if call.energy == "spikesim" and call.train:
        raise click.UsageError("SpikeSim models inference: leave out --train, or choose another "
                               "--energy")  # fmt: skip
    if call.optimizer is not None and not (call.energy == "neuromc" and call.train):
        raise click.UsageError("--optimizer is of --energy neuromc --train; give both, or leave "
                               "it out")  # fmt: skip
    if call.symbolic and call.rates == MEASURED:
        raise click.UsageError("--symbolic keeps rates as symbols: leave out --rates measured")
    try:
        device_named(call.device)
    except OptionError as error:
        raise click.UsageError(f"--device: {error}") from error


def _counted(call: CountCall, built: Built) -> CountReport:
    with torch.set_grad_enabled(call.train):
        return count(
            built.model,
            built.inputs,
            train=call.train,
            rates=call.rates,
            time_dim=call.time_dim if call.symbolic else None,
            batch_dim=call.batch_dim if call.symbolic else None,
            strict=call.strict,
        )


def _formulas(report: CountReport) -> Mapping[str, Any]:
    return report.symbolic().expressions


def _energy(call: CountCall, built: Built, report: CountReport) -> Any:
    """The report of the energy model that was asked for."""
    if call.energy == "compute":
        config = ComputeEnergyConfig(strict=call.strict, cost_config=_cost(call))
        return compute_energy_of(report, config)
    if call.energy == "spikesim":
        return estimate_spikesim_event_energy(
            built.model, built.inputs, config=SpikeSimEnergyConfig(), strict=call.strict
        )
    return _neuromc(call, built.model, built.inputs)


def _cost(call: CountCall) -> ComputeEnergyCostConfig:
    return PRECISIONS[call.precision or "fp32"]()


def _neuromc(call: CountCall, model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    if not call.train:
        with torch.no_grad():
            return estimate_neuromc_runtime_energy(model, inputs, strict=call.strict)
    make = OPTIMIZERS.get(call.optimizer or "none")
    return estimate_neuromc_runtime_energy(
        model,
        inputs,
        target=torch.zeros(()),
        loss_fn=lambda output, _target: total_of(output),
        optimizer=None if make is None else make(model.parameters()),
        strict=call.strict,
    )


def _write(call: CountCall, found: _Found) -> None:
    if call.csv_path is not None:
        call.csv_path.write_text(found.report.to_csv())
    if call.plot is not None:
        if found.energy is None:
            found.report.plot(call.plot)
        elif call.energy == "compute":
            prices = {"mac": _cost(call).e_mac_pj, "ac": _cost(call).e_ac_pj}
            draw_energy(found.energy, call.plot, priced(found.report, prices))
        else:
            draw_energy(found.energy, call.plot)
    if call.roofline is not None:
        found.report.roofline(call.roofline, call.device)


def _document(found: _Found) -> str:
    """The report's JSON, with the energy's and the formulas where there are any."""
    document = json.loads(found.report.to_json())
    if found.energy is not None:
        document["energy"] = json.loads(energy_json(found.energy))
    if found.formulas:
        document["formulas"] = {name: str(formula) for name, formula in found.formulas.items()}
    return json.dumps(document, indent=2)


def _show(call: CountCall, found: _Found) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    step = "a training step" if call.train else "a forward"
    console.print(found.report.table(call.depth, f"{call.target}: {step}"), highlight=False)
    if found.energy is not None:
        console.print(_shown_energy(call, found.energy), highlight=False)
    for name, formula in found.formulas.items():
        click.echo(f"{name} = {formula}")


def _shown_energy(call: CountCall, energy: Any) -> Table:
    precision = f", {call.precision or 'fp32'}" if call.energy == "compute" else ""
    return energy_table(energy, f"energy, {call.energy}{precision}")
