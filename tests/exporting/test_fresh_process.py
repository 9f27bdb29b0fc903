"""Exported models train in a process that has never seen their code, as they train here."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import snnfx

from tests.exporting.training import Record, assert_same, train
from tests.models import NETS
from tests.sources import ROOT

pytestmark = pytest.mark.slow

EXACT = {
    "spiking_mlp_dropout": 2,
    "hand_written": 2,
    "sew": 1,
    "vgg_dropout": 2,
    "spikformer": 1,
    "plain_mlp": 1,
}
"""Level by network, float32: bit for bit."""

TILED = {"hand_written": 4, "sew": 3}
"""Level by network, float64: to 1e-10."""

STEPS = 3

Pair = tuple[Record, Record]

CHILD = """
import importlib.util, json, pathlib, sys
import torch
import snnfx

assert importlib.util.find_spec("tests") is None and importlib.util.find_spec("examples") is None
for folder in pathlib.Path(sys.argv[1]).iterdir():
    torch.set_num_threads(int(sys.argv[2]))
    model = snnfx.load(folder / "net.snnfx")
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(3)
    record = {}
    for step in range(int(sys.argv[3])):
        optimizer.zero_grad()
        output = model(*inputs)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        loss = (output.square() * weights).sum() + output.sum()
        loss.backward()
        optimizer.step()
        record[f"{step} loss"] = loss.detach()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                record[f"{step} gradient of {name}"] = parameter.grad.clone()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            record[f"{step} {name}"] = tensor.detach().clone()
    torch.save(record, folder / "record.pt")
"""


def trained(levels: dict[str, int], dtype: torch.dtype, folder: Path) -> dict[str, Pair]:
    """What a fresh process and this one recorded, by network."""
    nets, packages = folder / "nets", folder / "packages"
    packages.mkdir()
    (packages / "snnfx").symlink_to(ROOT / "snnfx")
    expected: dict[str, Record] = {}
    for name, level in levels.items():
        work = NETS[name]()
        model = work.model.to(dtype)
        inputs: list[Tensor] = [x.to(dtype) for x in work.inputs]
        place = nets / name
        place.mkdir(parents=True)
        snnfx.export(model, inputs, place / "net.snnfx", level=level)
        torch.save(inputs, place / "inputs.pt")
        expected[name] = train(copy.deepcopy(model), [inputs] * STEPS)
    run_child(nets, packages)
    return {
        name: (torch.load(nets / name / "record.pt"), record) for name, record in expected.items()
    }


def run_child(folder: Path, packages: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(folder)]
    command += [str(torch.get_num_threads()), str(STEPS)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_fresh_process_trains_with_the_bits_of_the_model(tmp_path: Path) -> None:
    for there, here in trained(EXACT, torch.float32, tmp_path).values():
        assert_same(there, here)


def test_a_fresh_process_trains_as_the_model_with_tiles(tmp_path: Path) -> None:
    for there, here in trained(TILED, torch.float64, tmp_path).values():
        assert_same(there, here, 1e-10)
