"""How long planning takes, and whether it gives the same plan every time.

    python examples/bench_planning.py --models vgg8 sew_resnet101 --limits 2 20
    python examples/bench_planning.py --models sew_resnet101 --time-steps 10 --quick  # 20,000 nodes

Planning is all that happens between the joint graph, which PyTorch's compiler traces for any
backend, and the compiler of kernels: analyses, costs, segments, splits, tiles, restoring, the
rewrite of both halves, their regions and schedules, and the predicted timeline. Nothing runs and no
GPU is needed. For comparison: the published search of SpikingJelly's `memopt` on a spiking VGG
takes 451 s on a GPU.

Each network is captured once; then each level is planned, in this process twice and in another
process once, and the plans are compared. Times are the smaller of the two in this process, wall
clock and CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from models import REGISTRY, build
from snnfx import capture
from snnfx.capture.offline import Capture

console = Console(width=None if os.isatty(1) else 140)


def captured(name: str, batch: int, steps: int | None) -> Capture:
    """The joint graph of a network, which is built on the meta device."""
    with torch.device("meta"):
        width = 0.5 if name.startswith("vgg") else 1.0
        workload = build(name, batch=batch, steps=steps, width=width, device="meta")
    return capture(workload.model, workload.inputs)


def planned(graph: Capture, level: int, lowering: str) -> tuple[float, float, str, int]:
    """Wall seconds, CPU seconds, a hash of the plan, and its predicted peak in bytes."""
    wall, cpu = time.perf_counter(), time.process_time()
    plan = graph.plan(level=level, lowering=lowering)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]
    return wall, cpu, digest, plan.predicted_peak_bytes


def elsewhere(name: str, arguments: argparse.Namespace, level: int) -> str:
    """The hash of the plan that another process makes."""
    command = [sys.executable, str(Path(__file__)), "--models", name]
    command += ["--batch", str(arguments.batch), "--lowering", arguments.lowering]
    command += ["--hash", str(level)]
    command += ["--time-steps", str(arguments.time_steps)] if arguments.time_steps else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


def measure(name: str, limit: float | None, arguments: argparse.Namespace, table: Table) -> bool:
    """Add the rows of one network; whether all is as it should be."""
    start = time.perf_counter()
    graph = captured(name, arguments.batch, arguments.time_steps)
    seconds = time.perf_counter() - start
    nodes = len(graph.graph_module.graph.nodes)
    console.print(f"{name}: {nodes} nodes in the joint graph, captured in {seconds:.1f} s")
    good = True
    for level in arguments.levels:
        runs = [planned(graph, level, arguments.lowering) for _ in range(2)]
        wall, cpu = min(run[0] for run in runs), min(run[1] for run in runs)
        same = len({run[2] for run in runs}) == 1
        if not arguments.quick:
            same = same and elsewhere(name, arguments, level) == runs[0][2]
        fits = limit is None or wall <= limit
        good = good and same and fits
        table.add_row(name, str(level), f"{wall:.2f}", f"{cpu:.2f}",
                      "" if limit is None else f"{limit:g} {'met' if fits else 'missed'}",
                      f"{runs[0][3] / 1e6:.1f}", "yes" if same else "NO")  # fmt: skip
    return good


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", default=["vgg8", "sew_resnet101"], choices=list(REGISTRY),
        metavar="MODEL")  # fmt: skip
    add("--limits", nargs="+", type=float, default=[2.0, 20.0], help="seconds for each model")
    add("--levels", nargs="+", type=int, default=[4], choices=range(5), metavar="LEVEL")
    add("--batch", type=int, default=4, help="N")
    add("--time-steps", type=int, metavar="T", help="default: the network's published number")
    add("--lowering", default="inductor", choices=["inductor", "eager"])
    add("--quick", action="store_true", help="compare plans within this process only")
    add("--hash", type=int, metavar="LEVEL", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if a limit is missed or plans differ."""
    arguments = parse(argv)
    if arguments.hash is not None:
        graph = captured(arguments.models[0], arguments.batch, arguments.time_steps)
        print(planned(graph, arguments.hash, arguments.lowering)[2])
        return 0
    table = Table(title=f"planning, N={arguments.batch}, {arguments.lowering} lowering")
    for column in ("model", "level", "s", "CPU s", "limit s", "predicted peak MB", "same plan"):
        table.add_column(column, justify="left" if column == "model" else "right")
    good = True
    for index, name in enumerate(arguments.models):
        limit = arguments.limits[index] if index < len(arguments.limits) else None
        good = measure(name, limit, arguments, table) and good
    console.print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
