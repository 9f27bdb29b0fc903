"""The command line: what it prints and writes, and errors of one line without a traceback."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from snnfx import MemoryPlan
from snnfx.cli import main
from snnfx.progress import DELAY_SECONDS, Notices

from tests.sources import ROOT

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

SOURCE = """
import torch
from torch import nn
from snnfx.neurons import LIFNode

def net(batch=2, hidden=64):
    layers = nn.Linear(8, hidden), LIFNode(step_mode="m"), nn.Linear(hidden, hidden)
    return nn.Sequential(*layers, LIFNode(step_mode="m"), nn.Linear(hidden, 3)), torch.rand(
        2, batch, 8
    )

def fixed():
    return net()

def huge(batch=2):
    return net(batch, 160_000)

class Deciding(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y * 2 if y.sum() > 0 else y

def deciding(batch=2):
    return Deciding(4, 3), torch.rand(batch, 4)

def reading():
    return nn.Linear(4, int(torch.rand(1).item())), torch.rand(2, 4)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return str(path)


def run(*arguments: Any) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def test_plan_prints_the_summary_and_writes_all_files(nets: str, tmp_path: Path) -> None:
    files = {name: tmp_path / f"plan.{name}" for name in ("json", "png", "pickle")}
    options = ("--batch", 5, "--level", 1, "--lowering", "eager", "-q")
    outputs = ("--json", files["json"], "--plot", files["png"], "--snapshot", files["pickle"])
    result = run("plan", f"{nets}:net", *options, *outputs)
    assert result.exit_code == 0, result.output
    plan = MemoryPlan.from_json(files["json"].read_text())
    assert result.stdout == plan.summary() + "\n"
    assert result.stderr == ""
    assert (plan.level, plan.lowering, plan.applied) == (1, "eager", True)
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    events = pickle.loads(files["pickle"].read_bytes())["device_traces"][0]
    sizes = {event["size"] for event in events}
    assert 2 * 5 * 64 * 4 in sizes  # [T, N, hidden] in float32


def test_plan_prints_json_alone_if_asked(nets: str) -> None:
    result = run("plan", f"{nets}:fixed", "--lowering", "eager", "--no-compress", "--json", "-")
    assert result.exit_code == 0
    plan = MemoryPlan.from_json(result.stdout)
    assert plan.level == 4
    assert not plan.packed
    assert plan.applied


def test_a_function_without_a_batch_is_planned_with_the_dimension_that_is_named(nets: str) -> None:
    peaks = [
        MemoryPlan.from_json(
            run("plan", target, *options, "--lowering", "eager", "--json", "-").stdout
        ).baseline_peak_bytes
        for target, options in (
            (f"{nets}:fixed", ("--batch", 6, "--batch-dim", 1)),
            (f"{nets}:net", ("--batch", 6)),
        )
    ]
    assert peaks[0] == peaks[1] > 0


def test_a_model_bigger_than_this_machine_is_planned_and_fitted(nets: str) -> None:
    result = run("fit", f"{nets}:huge", "--memory", "1TB", "--lowering", "eager", "--json", "-",
                 "--max-batch", 3)  # fmt: skip
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["memory_bytes"] == 10**12
    assert [fit["batch"] for fit in document["fits"]] == [3] * 6
    weights = 160_000**2 * 4
    assert all(fit["need"]["parameters"] > weights > 100e9 for fit in document["fits"])
    assert all(fit["need"]["optimizer"] == 2 * fit["need"]["gradients"] for fit in document["fits"])


def test_fit_prints_a_table_with_a_row_for_each_method(nets: str) -> None:
    result = run("fit", f"{nets}:net", "--memory", "200KB", "--optimizer", "sgd",
                 "--lowering", "eager", "-q")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert "largest batch in 195.3 KiB with optimizer sgd" in " ".join(result.stdout.split())
    batches = {" ".join(row[:-12]): int(row[-13]) for row in rows if row[0] in ("eager", "level")
               and len(row) > 12}  # fmt: skip
    assert len(batches) == 6
    assert 0 < min(batches.values()) < max(batches.values())


def test_fit_says_by_how_much_nothing_fits(nets: str) -> None:
    result = run("fit", f"{nets}:net", "--memory", "40KB", "--lowering", "eager", "-q")
    assert result.exit_code == 0
    assert result.stdout.count("not even batch 1 fits: it needs") == 6
    assert "none (1 needs:)" in result.stdout


def test_fit_says_that_its_limit_was_reached(nets: str) -> None:
    result = run("fit", f"{nets}:net", "--memory", "1GiB", "--max-batch", 2, "--lowering", "eager")
    assert "level 4: batch 2 is the limit (--max-batch), and fits" in result.stdout
    assert "2 or more" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("plan", "nets"), 2, "names no function"),
        (("plan", "{nets}:nothing"), 2, "it has 'net', 'fixed'"),
        (("plan", "{nets}:fixed", "--batch", 3), 2, "--batch-dim"),
        (("fit", "{nets}:fixed", "--memory", "1GiB"), 2, "--batch-dim"),
        (("fit", "{nets}:net"), 2, "Missing option '--memory'"),
        (("fit", "{nets}:net", "--memory", "much"), 2, "'much' is not an amount of memory"),
        (("plan", "{nets}:net", "--level", 5), 2, "5 is not in the range 0<=x<=4"),
        (("plan", "{nets}:net", "--lowering", "fast"), 2, "'fast' is not one of"),
        (("plan", "{nets}:net", "--plot", "plan.bmp"), 2, "must be one of .png, .svg, .pdf"),
        (("plan", "{nets}:net", "--json", "no/such/x.json"), 2, "there is no folder 'no/such'"),
        (("plan", "{nets}:reading"), 1, "--real calls it with real tensors"),
        (("plan", "{nets}:deciding"), 1, "cannot be captured as one graph: Data-dependent"),
        (("fit", "{nets}:deciding", "--memory", "1GiB"), 1, "cannot be captured as one graph"),
    ],
)
def test_errors_are_told_in_one_line_with_their_exit_code(
    arguments: tuple[Any, ...], code: int, message: str, nets: str
) -> None:
    result = run(*(str(argument).format(nets=nets) for argument in arguments))
    assert result.exit_code == code
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert message in line
    assert result.stdout == ""


def test_the_module_runs_and_names_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "snnfx", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout == f"snnfx, version {version}\n"


def test_the_console_script_is_the_same_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"snnfx": "snnfx.cli:main"}
    assert set(main.commands) == {"plan", "fit", "count"}


def test_work_of_more_than_two_seconds_is_told_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DELAY_SECONDS == 2
    monkeypatch.setattr("snnfx.progress.DELAY_SECONDS", 0.2)
    with Notices() as notices:
        notices.say("first")
        notices.say("second")
        assert capsys.readouterr().err == ""
        deadline = time.monotonic() + 10
        told = ""
        while "second" not in told and time.monotonic() < deadline:
            time.sleep(0.02)
            told += capsys.readouterr().err
        notices.say("third")
    assert told == "second\n"
    assert capsys.readouterr().err == "third\n"
    with Notices(quiet=True) as notices:
        notices.say("unheard")
        time.sleep(0.3)
        notices.say("unheard")
    assert capsys.readouterr().err == ""
