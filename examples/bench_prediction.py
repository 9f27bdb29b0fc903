"""Predicted against measured peak of activation memory, for every network, level and lowering.

    python examples/bench_prediction.py --models vgg8 spikformer --levels 0 4

The prediction is made from shapes before the first step; the measurement is that of `measure.py`.
The error is what the prediction is above (+) or below (-) the measured peak. `at` is where the
peak is predicted: the half of the step, and the node that runs.

Level 0 leaves the graph as it is. In the eager lowering that is the joint graph of AOTAutograd,
operator by operator. The `baseline` that plans name is the prediction for it, and users read it as
"eager", so the last line of each network compares it with plain PyTorch, whose autograd saves
somewhat other tensors. In the inductor lowering, a graph that is left as it is belongs to Inductor
as a whole, which fuses it in its own way: that line is marked and not held to the tolerance.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench_methods import Task, Worker, unavailable
from models import REGISTRY

console = Console(width=None if os.isatty(1) else 140)
METHOD_OF = {"eager": "snnmem-eager", "inductor": "snnmem"}
DEFAULT_WIDTH = 0.25
SIZES = {"vgg8": 32, "vgg8_spikingjelly": 32, "spikformer": 32}
DEFAULT_SIZE = 64


@dataclass(frozen=True)
class Row:
    """One case: a network under a level and a lowering, or the plain network.

    Attributes:
        model: name of the network.
        case: how the table names it.
        predicted_bytes: peak by the plan.
        measured_bytes: peak of a step.
        point: where the peak is predicted.
        is_held: whether the tolerance holds for it.
        note: why there are no figures, or what they are about.
    """

    model: str
    case: str
    predicted_bytes: int = 0
    measured_bytes: int = 0
    point: str = ""
    is_held: bool = True
    note: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one; None without figures."""
        return self.predicted_bytes / self.measured_bytes - 1 if self.measured_bytes else None


def rows_of(model: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Measure all cases of one network; the plain network comes last."""
    baseline = 0
    for lowering in arguments.lowerings:
        for level in arguments.levels:
            case = f"level {level}, {lowering}"
            found, note = _ask(_task(model, METHOD_OF[lowering], level, arguments), "prediction")
            if found is None:
                yield Row(model, case, note=note)
                continue
            baseline = found["baseline_bytes"]
            yield _row(model, case, lowering, found)
    found, note = _ask(_task(model, "eager", 0, arguments), "memory")
    plain = Row(model, "plain PyTorch", note=note, is_held=False)
    if found is not None and baseline:
        measured = found["activation_bytes"]
        plain = Row(model, plain.case, baseline, measured, "baseline of the plans", False)
    yield plain


def _row(model: str, case: str, lowering: str, found: dict[str, Any]) -> Row:
    is_inductors = lowering == "inductor" and not found["applied"]
    return Row(
        model,
        case,
        found["predicted_bytes"],
        found["measured_bytes"],
        found["point"],
        is_held=not is_inductors,
        note="Inductor's own graph" if is_inductors else "",
    )


def _task(model: str, method: str, level: int, arguments: argparse.Namespace) -> Task:
    chosen = {
        "batch": arguments.batch,
        "width": arguments.width,
        "size": arguments.size or SIZES.get(model, DEFAULT_SIZE),
        "steps": arguments.time_steps,
    }
    return Task(model, method, level, arguments.threads, chosen)


def _ask(task: Task, command: str) -> tuple[dict[str, Any] | None, str]:
    """The answer of a process of its own, or why there is none."""
    missing = unavailable(task)
    if missing is not None:
        return None, missing
    console.print(f"[dim]{task.model}: {task.method}, level {task.level}[/]")
    worker = Worker(task)
    try:
        if command == "memory":
            worker.ask("start")
        return worker.ask(command), ""
    except RuntimeError as failure:
        return None, str(failure)
    finally:
        worker.close()


def table_of(rows: list[Row], title: str) -> Table:
    """All rows as one table."""
    table = Table(title=title, title_justify="left")
    table.add_column("network")
    table.add_column("case")
    for column in ("predicted MB", "measured MB", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("at")
    for row in rows:
        if row.error is None:
            table.add_row(row.model, row.case, "n/a", "n/a", "n/a", row.note)
            continue
        note = f" ({row.note})" if row.note else ""
        table.add_row(
            row.model,
            row.case,
            f"{row.predicted_bytes / 1e6:.2f}",
            f"{row.measured_bytes / 1e6:.2f}",
            f"{100 * row.error:+.1f}%",
            row.point + note,
        )
    return table


def off(rows: list[Row], tolerance_percent: float) -> list[Row]:
    """The rows that are held to the tolerance and miss it, or failed to give figures."""
    held = [row for row in rows if row.is_held and not row.note.endswith("not installed")]
    return [r for r in held if r.error is None or 100 * abs(r.error) > tolerance_percent]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", default=list(REGISTRY), choices=list(REGISTRY), metavar="MODEL",
        help="any of: " + ", ".join(REGISTRY))  # fmt: skip
    add("--levels", nargs="+", type=int, default=list(range(5)), choices=range(5))
    add("--lowerings", nargs="+", default=list(METHOD_OF), choices=list(METHOD_OF))
    add("--batch", type=int, default=2, help="N")
    add("--time-steps", type=int, help="T; default: the network's published one")
    add("--width", type=float, default=DEFAULT_WIDTH, help="factor on the channels")
    add("--size", type=int, help="H and W of the input; default: 32, or 64 for SEW-ResNet")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--check", action="store_true", help="exit with 1 if an error exceeds the tolerance")
    add("--tolerance", type=float, default=5.0, help="percent of the measured peak")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark and print its table; the exit code is 1 if a check fails."""
    arguments = parse(argv)
    rows: list[Row] = []
    for model in arguments.models:
        rows += rows_of(model, arguments)
        if arguments.json:
            figures = [{**vars(row), "error": row.error} for row in rows]
            arguments.json.write_text(json.dumps({"results": figures}, indent=2))
    console.print(table_of(rows, _title(arguments)))
    missed = off(rows, arguments.tolerance) if arguments.check else []
    for row in missed:
        reason = row.note if row.error is None else f"{100 * row.error:+.1f}%"
        console.print(f"{row.model}, {row.case}: {reason}, allowed {arguments.tolerance:g}%")
    return 1 if missed else 0


def _title(arguments: argparse.Namespace) -> str:
    return (
        f"Peak of activation memory: N={arguments.batch}, width {arguments.width:g}, "
        f"{arguments.threads} threads, torch {torch.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
