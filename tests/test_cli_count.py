"""``snnfx count``: what it prints and writes, and errors of one line without a traceback."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from snnfx.cli import main
from snnfx.op_counter import (
    DispatchCounterMode,
    FlopCounter,
    SynOpCounter,
    estimate_neuromc_runtime_energy,
)
from snnfx.op_counter.report import CountReport

SOURCE = """
import torch
from torch import nn
from snnfx.neurons import LIFNode

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.neuron = LIFNode(tau=1.2, step_mode="m")
        self.readout = nn.Linear(3 * 16, 5)

    def forward(self, x):
        current = self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.readout(self.neuron(4 * current).flatten(2)).mean(0)

def net(batch=2):
    torch.manual_seed(0)
    return Net(), torch.rand(3, batch, 1, 4, 4)

def fixed():
    return net()

def reading():
    return nn.Linear(4, int(torch.rand(1).item() + 3)), torch.rand(2, 4)

class Odd(nn.Linear):
    def forward(self, x):
        return torch.special.bessel_j0(super().forward(x))

def odd():
    return Odd(4, 3), torch.rand(2, 4)

def huge(batch=2):
    return nn.Sequential(nn.Linear(8, 400_000), nn.Linear(400_000, 400_000)), torch.rand(batch, 8)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return str(path)


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, ["count", *(str(argument) for argument in arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def report_of(*arguments: Any) -> CountReport:
    result = run(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    return CountReport.from_json(result.stdout)


def built(nets: str, batch: int = 2) -> tuple[nn.Module, torch.Tensor]:
    scope: dict[str, Any] = {}
    exec(Path(nets).read_text(), scope)
    return scope["net"](batch)


def test_flops_from_the_graph_are_those_of_a_run(nets: str) -> None:
    model, x = built(nets, 5)
    flops = FlopCounter()
    with DispatchCounterMode([flops]):
        model(x).sum().backward()
    report = report_of(f"{nets}:net", "--train", "--batch", 5)
    assert report.total("flops") == flops.get_total() > 0
    assert report.total("flops", "backward") > 0
    assert report.total("flops") > report_of(f"{nets}:net", "--batch", 5).total("flops")


def test_rates_are_symbols_a_number_or_measured(nets: str) -> None:
    model, x = built(nets)
    synops = SynOpCounter()
    with DispatchCounterMode([synops]), torch.no_grad():
        model.eval()(x)
    assert 0 < synops.get_total() < 3 * 2 * 48 * 5
    assert report_of(f"{nets}:net").total("synops").free_symbols
    assert report_of(f"{nets}:net", "--rates", "0.25").total("synops") == 3 * 2 * 48 * 5 / 4
    assert report_of(f"{nets}:net", "--rates", "measured").total("synops") == synops.get_total()


def test_a_measured_batch_is_resized_with_its_values(nets: str) -> None:
    report = report_of(f"{nets}:fixed", "--rates", "measured", "--batch", 4, "--batch-dim", 1)
    once = report_of(f"{nets}:fixed", "--rates", "measured")
    assert report.total("synops") == 2 * once.total("synops") > 0


def test_the_table_and_all_files_are_written(nets: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"counts.{name}" for name in ("json", "csv", "png", "svg")}
    outputs = ("--json", files["json"], "--csv", files["csv"], "--plot", files["png"],
               "--roofline", files["svg"], "--device", "NVIDIA A100")  # fmt: skip
    result = run(f"{nets}:net", "--train", "--rates", "0.1", "-q", *outputs)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert f"{nets}:net: a training step" in result.stdout.replace("\n", "")
    labels = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    for label in ("Global", "Net", "conv", "neuron", "readout"):
        assert label in labels
    report = CountReport.from_json(files["json"].read_text())
    rows = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert sum(int(row["flops"] or 0) for row in rows) == report.total("flops")
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert "NVIDIA A100" in files["svg"].read_text() or files["svg"].stat().st_size > 5000


def test_a_depth_limits_the_table(nets: str) -> None:
    result = run(f"{nets}:net", "--depth", 1, "-q")
    labels = [line.split()[0] for line in result.stdout.splitlines() if line.strip()]
    assert "Net" in labels
    assert "conv" not in labels


def test_a_model_bigger_than_this_machine_is_counted(nets: str) -> None:
    report = report_of(f"{nets}:huge", "--batch", 3)
    assert report.total("mac") == 3 * 400_000 * (8 + 400_000)


@pytest.mark.parametrize(("precision", "mac_pj"), [("fp32", 4.6), ("fp16", 1.5), ("int8", 0.23)])
def test_compute_energy_is_priced_from_the_counts(nets: str, precision: str, mac_pj: float) -> None:
    result = run(f"{nets}:net", "--rates", "0.1", "--energy", "compute", "--precision", precision,
                 "--json", "-")  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    mac = document["totals"]["forward"]["mac"]
    assert document["energy"]["energy_mac_pj"] == pytest.approx(mac_pj * mac)


def test_energy_of_symbolic_counts_is_an_expression(nets: str) -> None:
    result = run(f"{nets}:net", "--energy", "compute", "-q")
    assert result.exit_code == 0, result.output
    assert "energy, compute, fp32" in result.stdout
    assert "neuron" in result.stdout


def test_neuromc_measures_a_training_step_with_its_optimizer(nets: str, tmp_path: Path) -> None:
    picture = tmp_path / "energy.svg"
    arguments = (f"{nets}:net", "--train", "--energy", "neuromc", "--optimizer", "sgd")
    result = run(*arguments, "--json", "-", "--plot", picture, "-q")
    assert result.exit_code == 0, result.output
    energy = json.loads(result.stdout)["energy"]
    assert set(energy["energy_by_stage"]) >= {"forward", "backward", "optimizer"}
    model, x = built(nets)
    expected = estimate_neuromc_runtime_energy(
        model.train(),
        (x,),
        target=torch.zeros(()),
        loss_fn=lambda output, _: output.sum(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
    )
    assert energy["energy_total_pj"] == pytest.approx(expected.energy_total_pj)
    assert picture.read_text().startswith("<?xml")


def test_spikesim_measures_a_forward(nets: str) -> None:
    result = run(f"{nets}:net", "--energy", "spikesim", "--json", "-", "-q")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["energy"]["energy_total_pj"] > 0


def test_formulas_in_time_batch_and_rates_are_printed(nets: str) -> None:
    result = run(f"{nets}:net", "--symbolic", "--time-dim", 0, "--batch-dim", 1, "-q")
    assert result.exit_code == 0, result.output
    (synops,) = [x for x in result.stdout.splitlines() if x.startswith("synops = ")]
    (flops,) = [x for x in result.stdout.splitlines() if x.startswith("flops = ")]
    assert "T" in flops
    assert "N" in flops
    assert "240" in synops  # 48 inputs of 5 outputs


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nets",), 2, "names no function"),
        (("{nets}:net", "--rates", "1.5"), 2, "'1.5' is no firing rate: give a number from 0 to 1"),
        (("{nets}:net", "--rates", "many"), 2, "'many' is no firing rate"),
        (("{nets}:fixed", "--batch", 3), 2, "--batch-dim"),
        (("{nets}:net", "--precision", "fp16"), 2, "--precision is of --energy compute"),
        (("{nets}:net", "--optimizer", "sgd"), 2, "--optimizer is of --energy neuromc --train"),
        (("{nets}:net", "--energy", "spikesim", "--train"), 2, "SpikeSim models inference"),
        (("{nets}:net", "--energy", "solar"), 2, "'solar' is not one of"),
        (("{nets}:net", "--symbolic", "--rates", "measured"), 2, "keeps rates as symbols"),
        (("{nets}:net", "--device", "abacus"), 2, "no roofline of a device 'abacus'; there are"),
        (("{nets}:net", "--plot", "x.bmp"), 2, "must be one of .png, .svg, .pdf"),
        (("{nets}:net", "--csv", "no/such/x.csv"), 2, "there is no folder 'no/such'"),
        (("{nets}:net", "--plot", "{folder}/x.png"), 1, "count with rates=0.1"),
        (("{nets}:reading",), 1, "--real calls it with real tensors"),
    ],
)
def test_errors_are_told_in_one_line_with_their_exit_code(
    arguments: tuple[Any, ...], code: int, message: str, nets: str, tmp_path: Path
) -> None:
    result = run(*(str(argument).format(nets=nets, folder=tmp_path) for argument in arguments))
    assert result.exit_code == code
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert message in line
    assert result.stdout == ""


def test_strict_counting_names_the_operator_without_a_rule(nets: str) -> None:
    assert run(f"{nets}:net", "--strict", "--train", "-q").exit_code == 0
    result = run(f"{nets}:odd", "--strict", "-q")
    assert result.exit_code == 1
    assert "special_bessel_j0" in result.stderr
    assert "special_bessel_j0" in run(f"{nets}:odd", "-q").stdout
