"""Export a spiking network, load it in a process without its code, and train it there.

    python examples/export_and_train.py --models vgg8 sew_resnet18 spikformer

For each network: the size of the file beside that of its parameters and buffers, the time to export
(trace, plan and rewrite for training and for evaluation, and write) and to load, and what the fresh
process found: the largest difference of a loss, gradient, parameter or buffer over three steps of
SGD from those of the plain model in this process. 0 is bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import snnfx
from models import build

console = Console(width=None if os.isatty(1) else 110)
STEPS = 3
SNNFX = Path(snnfx.__file__).parent

CHILD = """
import importlib.util, json, pathlib, sys, time
import torch
import snnfx

assert importlib.util.find_spec("models") is None
folder = pathlib.Path(sys.argv[1])
load = snnfx.load  # imports what it needs, which is not timed
torch.set_num_threads(int(sys.argv[2]))
start = time.perf_counter()
model = load(folder / "net.snnfx")
seconds = time.perf_counter() - start
inputs = torch.load(folder / "inputs.pt", weights_only=True)
expected = torch.load(folder / "record.pt", weights_only=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
torch.manual_seed(0)
difference = 0.0
for step in range(int(sys.argv[3])):
    optimizer.zero_grad()
    loss = model(*inputs).square().mean()
    loss.backward()
    optimizer.step()
    found = [loss, *(p.grad for p in model.parameters()), *model.parameters(), *model.buffers()]
    pairs = zip(found, expected[step], strict=True)
    difference = max(difference, *(float((a - b).abs().max()) for a, b in pairs))
print(json.dumps({"load_seconds": seconds, "difference": difference}))
"""


def train(model: nn.Module, inputs: tuple[Tensor, ...], before: Any) -> list[list[Tensor]]:
    """After each step: the loss, the gradients, the parameters and the buffers."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(0)
    record: list[list[Tensor]] = []
    for _ in range(STEPS):
        before()
        optimizer.zero_grad()
        loss = model(*inputs).square().mean()
        loss.backward()
        optimizer.step()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        state = [loss, *gradients, *model.parameters(), *model.buffers()]
        record.append([tensor.detach().clone() for tensor in state])
    return record


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Export one network and train it in a fresh process."""
    torch.manual_seed(0)
    work = build(name, width=args.width, batch=args.batch, steps=args.time_steps, size=args.size)
    tensors = (*work.model.parameters(), *work.model.buffers())
    with tempfile.TemporaryDirectory() as temporary:
        folder, packages = Path(temporary) / "net", Path(temporary) / "packages"
        folder.mkdir()
        packages.mkdir()
        (packages / "snnfx").symlink_to(SNNFX)
        start = time.perf_counter()
        snnfx.export(work.model, work.inputs, folder / "net.snnfx", level=args.level)
        seconds = time.perf_counter() - start
        torch.save(list(work.inputs), folder / "inputs.pt")
        torch.save(train(work.model, work.inputs, work.before_step), folder / "record.pt")
        command = [sys.executable, "-c", CHILD, str(folder), str(args.threads), str(STEPS)]
        environment = {**os.environ, "PYTHONPATH": str(packages)}
        done = subprocess.run(
            command, cwd=temporary, env=environment, check=True, capture_output=True, text=True
        )
        return {
            "model": name,
            "state_bytes": sum(tensor.nbytes for tensor in tensors),
            "file_bytes": (folder / "net.snnfx").stat().st_size,
            "export_seconds": seconds,
            **json.loads(done.stdout),
        }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["vgg8", "sew_resnet18", "spikformer"])
    parser.add_argument("--level", type=int, default=2, help="1 and 2 keep the model's bits")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--time-steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [measure(name, args) for name in args.models]
    table = Table("network", "state MB", "file MB", "export s", "load s", "difference")
    for r in results:
        table.add_row(
            r["model"],
            f"{r['state_bytes'] / 1e6:.2f}",
            f"{r['file_bytes'] / 1e6:.2f}",
            f"{r['export_seconds']:.1f}",
            f"{r['load_seconds']:.2f}",
            f"{r['difference']:g}",
        )
    console.print(f"level {args.level}, eager lowering, {STEPS} steps of SGD in a fresh process")
    console.print(table)
    if args.json is not None:
        args.json.write_text(json.dumps({"arguments": vars(args) | {"json": None},
                                         "results": results}))  # fmt: skip


if __name__ == "__main__":
    main()
