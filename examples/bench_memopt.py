"""Memory, time and gradients of `snnfx.memory_optimization` beside SpikingJelly's memopt.

    python examples/bench_memopt.py --model vgg8_spikingjelly --batch 4 --steps 5 --levels 1 2 3 4

No `torch.compile`: all methods train eagerly. Each runs in a process of its own, timed steps are
taken in turn, times are medians; `measure.py` says how activation memory is found. "optimise" is
the time of the whole call that changes the model: ours records one step on fake tensors and
predicts, SpikingJelly's level 1 runs the model forward once to probe it. Its levels 2 to 4 measure
trial steps on a GPU; what they answer here is printed below the table.

The gradient error is against the plain network from the same seed: 0 is bit for bit. It is taken
in float32, and in float64 where chunks along time add up a weight's gradient in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench_methods import Task, Worker, unavailable
from models import REGISTRY, build

console = Console(width=None if os.isatty(1) else 140)
NETWORKS = ("vgg8_spikingjelly", "vgg8", "sew_resnet18", "spikformer")
PEAK_NOTE = "predicted_peak_bytes:"
MAX_SECONDS = 10.0
"""What level 4 may take on the eight-layer VGG."""


@dataclass
class Result:
    """What was measured of one method on one network.

    Attributes:
        title: of the row.
        note: why there are no figures, where there are none.
        activation_bytes: at the worst moment of a step.
        step_ms: of each timed step.
        done: "seconds" that changing the model took, and of ours the fields of `MemOptSummary`.
        error: the largest relative error of a gradient.
        error_dtype: in which it was taken.
    """

    title: str
    note: str | None = None
    activation_bytes: int = 0
    step_ms: list[float] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)
    error: float = 0.0
    error_dtype: str = "float32"

    @property
    def median_ms(self) -> float:
        """Of the timed steps."""
        return statistics.median(self.step_ms)

    @property
    def predicted_bytes(self) -> int | None:
        """The peak that the summary's notes tell."""
        notes = [n for n in self.done.get("notes", ()) if n.startswith(PEAK_NOTE)]
        return int(notes[0].rpartition(">")[2]) if notes else None


def compare(model: str, arguments: argparse.Namespace) -> dict[str, Result]:
    """Measure plain training, SpikingJelly's level 1, and each of our levels on one network."""
    cases = {"eager": ("eager", 0), "spikingjelly": ("spikingjelly", 1)}
    cases |= {f"level {level}": ("memopt", level) for level in arguments.levels}
    titles = {"eager": "plain", "spikingjelly": "SpikingJelly, level 1 (peer)"}
    results: dict[str, Result] = {}
    workers: dict[str, Worker] = {}
    try:
        for case, (method, level) in cases.items():
            task = Task(model, method, level, arguments.threads, sizes(arguments))
            results[case] = Result(titles.get(case, f"memory_optimization, {case}"))
            results[case].note = unavailable(task)
            if results[case].note is None:
                console.print(f"[dim]{model}: {results[case].title}[/]")
                workers[case] = Worker(task)
                _measure(results[case], workers[case])
        for index in range(arguments.steps):
            console.print(f"[dim]{model}: timed step {index + 1} of {arguments.steps}[/]")
            for case, worker in workers.items():
                results[case].step_ms.append(worker.ask("time"))
    finally:
        for worker in workers.values():
            worker.close()
    return results


def sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `models.build`."""
    return {
        "batch": arguments.batch,
        "steps": arguments.time_steps,
        "size": arguments.size,
        "width": arguments.width,
    }


def _measure(result: Result, worker: Worker) -> None:
    worker.ask("start")
    result.done = worker.ask("applied")
    result.activation_bytes = worker.ask("memory")["activation_bytes"]
    if result.done.get("tcgc_container_count"):
        result.error_dtype = "float64"
    result.error = worker.ask("error", result.error_dtype)


def table_of(results: dict[str, Result], title: str) -> Table:
    """The results of one network as a table."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("method", no_wrap=True)
    columns = ("predicted MB", "measured MB", "less", "step ms", "x plain", "x peer")
    for column in (*columns, "optimise s", "GC", "TCGC", "error"):
        table.add_column(column, justify="right")
    notes = [f"n/a: {r.title}: {r.note}" for r in results.values() if r.note is not None]
    for result in results.values():
        if result.note is None:
            table.add_row(result.title, *_cells(result, results))
    table.caption = "\n".join(notes)
    return table


def _cells(result: Result, results: dict[str, Result]) -> list[str]:
    eager, peer, done = results["eager"], results["spikingjelly"], result.done
    predicted = result.predicted_bytes
    return [
        f"{predicted / 1e6:.1f}" if predicted else "",
        f"{result.activation_bytes / 1e6:.1f}",
        f"{eager.activation_bytes / result.activation_bytes:.2f}",
        f"{result.median_ms:.0f}",
        f"{result.median_ms / eager.median_ms:.2f}",
        f"{result.median_ms / peer.median_ms:.2f}" if peer.note is None else "",
        f"{done['seconds']:.1f}" if result is not eager else "",
        str(done.get("gc_container_count", "")),
        str(done.get("tcgc_container_count", "")),
        f"{result.error:.1e}" if result.error else "0",
    ]


def promises(model: str, results: dict[str, Result]) -> list[tuple[str, bool, bool]]:
    """What is promised: the text with its figures, whether it holds, whether it is about time."""
    found: list[tuple[str, bool, bool]] = []
    peer = results["spikingjelly"]
    for case, result in results.items():
        if not case.startswith("level"):
            continue
        limit = 1e-12 if result.error_dtype == "float64" else 0.0
        found.append((f"{case}: gradients, error {result.error:.1e}", result.error <= limit, False))
        if peer.note is None:
            peaks = f"{result.activation_bytes / peer.activation_bytes:.3f}"
            lower = result.activation_bytes <= peer.activation_bytes
            found.append((f"{case}: peak no higher than SpikingJelly's, {peaks}x", lower, False))
            times = result.median_ms / peer.median_ms
            found.append((f"{case}: step no slower, {times:.2f}x", times <= 1, True))
        if case == "level 4" and model.startswith("vgg8"):
            seconds = result.done["seconds"]
            text = f"{case}: optimised within {MAX_SECONDS:g} s, {seconds:.1f} s"
            found.append((text, seconds <= MAX_SECONDS, True))
    return found


def what_spikingjelly_answers(level: int) -> str:
    """What SpikingJelly's `optimize_memory` says to a level above 1 on this machine."""
    from spikingjelly.activation_based.memopt import optimize_memory

    workload = build("vgg8_spikingjelly", width=1 / 16, batch=2, steps=2, size=16)
    workload.before_step()
    try:
        optimize_memory(
            workload.model,
            workload.layer_types,
            lambda model: model(*workload.inputs),
            level=level,
            split_fn=lambda module: list(module.children()),
            can_chunk=lambda module: True,
        )
    except RuntimeError as error:
        return str(error)
    return "it runs"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="all", choices=[*REGISTRY, "all"])
    add("--batch", type=int, default=4, help="N")
    add("--steps", type=int, default=5, help="timed training steps of each method")
    add("--time-steps", type=int, help="T; default: the network's published one")
    add("--width", type=float, default=1.0, help="factor on the channels")
    add("--size", type=int, help="H and W of the input")
    add("--levels", type=int, nargs="+", default=[1, 2, 3, 4], choices=range(5), metavar="LEVEL")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--check", action="store_true", help="fail where memory or gradients break a promise")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    arguments = parse(argv)
    document: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    broken = False
    for model in NETWORKS if arguments.model == "all" else (arguments.model,):
        results = compare(model, arguments)
        title = (
            f"{model}, width {arguments.width:g}, N={arguments.batch}, {arguments.threads} threads"
        )
        console.print(table_of(results, title))
        for text, holds, is_time in promises(model, results):
            console.print(f"  {'yes' if holds else 'NO '}  {text}", highlight=False)
            broken |= not holds and not is_time
        document[model] = {case: vars(result) for case, result in results.items()}
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=2))
        if results["spikingjelly"].note is None:
            for level in (2, 3, 4):
                answer = what_spikingjelly_answers(level)
                console.print(f"  SpikingJelly, level {level}: {answer}", highlight=False)
    if broken and arguments.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
