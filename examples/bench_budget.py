"""The memory-time curve: what `prefer` and `memory_budget` do to the peak and to the step.

    python examples/bench_budget.py --model vgg8 --steps 7

Each case runs in a process of its own; timed steps are taken in turn, so that a slow minute of the
machine hits all of them alike. The budgets lie evenly between the smallest peak that any plan
reaches and the largest that `prefer="speed"` takes. Predicted times are comparable with each other
only. The curve is monotone if more budget is never slower: exactly so by the prediction, and up to
`--noise` by the clock, whose medians on a shared machine vary.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench_methods import Task, Worker
from models import REGISTRY, build
from snnfx import capture

console = Console(width=None if os.isatty(1) else 140)
PREFERENCES = ("memory", "balanced", "speed")


@dataclass
class Case:
    """One plan: its options, what it predicts, and what was measured."""

    title: str
    options: dict[str, Any]
    predicted_bytes: int
    predicted_s: float
    baseline_s: float
    measured_bytes: int = 0
    step_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """The median of the timed steps."""
        return statistics.median(self.step_ms) if self.step_ms else 0.0


def find_cases(arguments: argparse.Namespace) -> list[Case]:
    """The preferences and the budgets, each with its plan, from one capture."""
    workload = build(arguments.model, **_build(arguments))
    graph = capture(workload.model, workload.inputs)

    def case(title: str, options: dict[str, Any]) -> Case:
        plan = graph.plan(**options)
        return Case(title, options, plan.predicted_peak_bytes, plan.predicted_seconds,
                    plan.baseline_seconds)  # fmt: skip

    cases = [case(f"prefer={name!r}", {"prefer": name}) for name in PREFERENCES]
    low, high = cases[0].predicted_bytes, max(c.predicted_bytes for c in cases)
    for index in range(arguments.budgets):
        budget = low + (high - low) * index // max(1, arguments.budgets - 1)
        cases.append(case(f"budget {budget / 1e6:.1f} MB", {"memory_budget": budget}))
    return cases


def _build(arguments: argparse.Namespace) -> dict[str, Any]:
    width = arguments.width or (0.5 if arguments.model.startswith("vgg") else 1.0)
    return {"batch": arguments.batch, "width": width, "size": arguments.size}


def measure(cases: list[Case], arguments: argparse.Namespace) -> list[float]:
    """Fill in what is measured; the step times of plain eager training, in ms."""
    tasks = [
        Task(arguments.model, "snnmem", 4, arguments.threads, _build(arguments), case.options)
        for case in cases
    ]
    workers = [Worker(task) for task in tasks]
    plain = Worker(Task(arguments.model, "eager", 0, arguments.threads, _build(arguments)))
    eager_ms: list[float] = []
    try:
        plain.ask("start")
        for case, worker in zip(cases, workers, strict=True):
            console.print(f"[dim]{case.title}: first steps[/]")
            worker.ask("start")
            case.measured_bytes = worker.ask("memory")["activation_bytes"]
        for index in range(arguments.steps):
            console.print(f"[dim]timed step {index + 1} of {arguments.steps}[/]")
            eager_ms.append(plain.ask("time"))
            for case, worker in zip(cases, workers, strict=True):
                case.step_ms.append(worker.ask("time"))
    finally:
        for worker in (*workers, plain):
            worker.close()
    return eager_ms


def is_monotone(values: list[float], noise: float) -> bool:
    """Whether values never rise by more than the fraction `noise`."""
    lowest = float("inf")
    for value in values:
        if value > lowest * (1 + noise):
            return False
        lowest = min(lowest, value)
    return True


def table_of(cases: list[Case], eager_ms: list[float], title: str) -> Table:
    """All cases as a table."""
    table = Table(title=title, title_justify="left")
    for column in ("case", "predicted MB", "measured MB", "predicted time", "step ms", "x eager"):
        table.add_column(column, justify="left" if column == "case" else "right")
    eager = statistics.median(eager_ms) if eager_ms else 0.0
    for case in cases:
        measured = [f"{case.measured_bytes / 1e6:.1f}"] if eager else [""]
        times = [f"{case.median_ms:.1f}", f"{case.median_ms / eager:.2f}"] if eager else ["", ""]
        table.add_row(case.title, f"{case.predicted_bytes / 1e6:.1f}", *measured,
                      f"{case.predicted_s / case.baseline_s:.3f}", *times)  # fmt: skip
    return table


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="vgg8", choices=list(REGISTRY))
    add("--batch", type=int, default=4, help="N")
    add("--width", type=float, help="factor on the channels; default: 0.5 for the VGG, else 1")
    add("--size", type=int, help="H and W of the input")
    add("--budgets", type=int, default=5, help="how many budgets")
    add("--steps", type=int, default=7, help="timed steps of each case; 0 only predicts")
    add("--noise", type=float, default=0.05, help="by how much a median may be off")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Print the curve; 1 if it is not monotone by the prediction, or by the clock."""
    arguments = parse(argv)
    cases = find_cases(arguments)
    eager_ms = measure(cases, arguments) if arguments.steps else []
    console.print(table_of(cases, eager_ms, f"{arguments.model}, N={arguments.batch}"))
    good = True
    budgets = cases[len(PREFERENCES) :]
    for name, part in (("prefer", cases[: len(PREFERENCES)]), ("budgets", budgets)):
        predicted = is_monotone([case.predicted_s for case in part], 0.0)
        clock = is_monotone([case.median_ms for case in part], arguments.noise)
        console.print(
            f"{name}: more memory is never slower by the prediction: {predicted}"
            + (f"; by the clock within {arguments.noise:.0%}: {clock}" if eager_ms else "")
        )
        good = good and predicted and clock
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
