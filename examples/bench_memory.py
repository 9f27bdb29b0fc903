"""Peak memory, step time, compile time and gradient error of training, method by method.

    python examples/bench_memory.py --model vgg8 --batch 4 --steps 5 --levels 1 2 3 4

Activation memory is what a training step holds at its worst moment beside parameters, gradients
and inputs; `measure.py` says how it is found. Step times are medians over steps taken by all
methods in turn. Compile time is the first step less a later one, with all caches off. Ratios are
to eager training, and of compile times to `torch.compile`.

The gradient error is against the plain network from the same seed. In float32 a compiled kernel
may round a potential to the other side of its threshold; that spike flips, and gradients differ
by more than rounding. `--error float64` compiles each method once more in double precision, where
this does not happen, and so shows whether the transformation itself is right.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench_methods import METHODS, Task, Worker, unavailable
from models import REGISTRY

console = Console(width=None if os.isatty(1) else 140)
DEFAULT_MODELS = ("vgg8", "vgg8_spikingjelly", "sew_resnet18", "spikformer")
DEFAULT_WIDTHS = {"vgg8": 0.5, "vgg8_spikingjelly": 0.5}


@dataclass
class Result:
    """What was measured of one method on one network.

    Attributes:
        level: of snnmem; None for other methods.
        note: why there are no figures, where there are none.
        memory: the fields of `measure.Memory`, bytes.
        step_ms: of each timed step.
        compile_s: 0 where nothing compiles.
        error: largest relative error of a gradient.
        predicted_bytes: activation memory as the plan predicts it.
        at_peak: what the plan says is alive at its peak, and the bytes of each.
    """

    model: str
    method: str
    level: int | None = None
    note: str | None = None
    memory: dict[str, int] = field(default_factory=dict)
    step_ms: list[float] = field(default_factory=list)
    compile_s: float = 0.0
    error: float | None = None
    predicted_bytes: int | None = None
    at_peak: list[tuple[str, int]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """How the method is called in the table."""
        title = METHODS[self.method].title
        return title if self.level is None else f"{title}, level {self.level}"


def compare(model: str, arguments: argparse.Namespace) -> list[Result]:
    """Measure every chosen method on one network."""
    results: list[Result] = []
    workers: list[tuple[Result, Worker]] = []
    try:
        for method, level in _cases(arguments):
            task = _task(model, method, level, arguments)
            result = Result(model, method, level, note=unavailable(task))
            results.append(result)
            if result.note is None:
                workers.append((result, Worker(task)))
                _measure_alone(*workers[-1], arguments.error)
        for index in range(arguments.steps):
            console.print(f"[dim]{model}: timed step {index + 1} of {arguments.steps}[/]")
            for result, worker in workers:
                if result.note is None:
                    result.step_ms.append(worker.ask("time"))
    finally:
        for _, worker in workers:
            worker.close()
    return results


def _cases(arguments: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """Each method, and those of snnmem once for each level."""
    for method in arguments.methods:
        if method.startswith("snnmem"):
            yield from ((method, level) for level in arguments.levels)
        else:
            yield method, None


def _task(model: str, method: str, level: int | None, arguments: argparse.Namespace) -> Task:
    chosen = {
        "batch": arguments.batch,
        "steps": arguments.time_steps,
        "size": arguments.size,
        "width": arguments.width or DEFAULT_WIDTHS.get(model, 1.0),
        "device": arguments.device,
    }
    if arguments.stem and model.startswith("sew"):
        chosen["stem"] = arguments.stem
    return Task(model, method, level or 0, arguments.threads, chosen)


def _measure_alone(result: Result, worker: Worker, error: str) -> None:
    """Everything but the step time, which is taken in turn with the other methods."""
    name = f"{result.model}, {result.title}"
    try:
        console.print(f"[dim]{name}: first steps[/]")
        result.compile_s = worker.ask("start")
        console.print(f"[dim]{name}: memory[/]")
        result.memory = worker.ask("memory")
        if result.level is not None:
            result.predicted_bytes, result.at_peak = worker.ask("plan")
        if error != "none":
            console.print(f"[dim]{name}: gradients in {error}[/]")
            result.error = worker.ask("error", error)
    except RuntimeError as failure:
        result.note = str(failure)


def table_of(results: list[Result], title: str) -> Table:
    """The results of one network as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    for column in (
        "peak MB",
        "activation MB",
        "predicted",
        "less",
        "step ms",
        "x",
        "compile s",
        "x",
        "error",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    by_method = {result.method: result for result in results if result.note is None}
    notes: list[str] = []
    for result in results:
        if result.note is not None:
            notes.append(f"n/a: {result.title}: {result.note}")
            table.add_row(result.title, "n/a")
            continue
        table.add_row(
            result.title, *_cells(result, by_method.get("eager"), by_method.get("inductor"))
        )
    table.caption = "\n".join(notes)
    return table


def peak_of(result: Result, count: int = 8) -> str:
    """The largest tensors at the predicted peak, in words."""
    largest = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in result.at_peak[:count])
    rest = sum(size for _, size in result.at_peak[count:])
    return f"{result.title}: alive at the predicted peak, MB: {largest}, others {rest / 1e6:.1f}"


def _cells(result: Result, eager: Result | None, inductor: Result | None) -> list[str]:
    activation = result.memory["activation_bytes"]
    step_ms = statistics.median(result.step_ms)
    compiles = METHODS[result.method].compiles
    return [
        f"{result.memory['peak_bytes'] / 1e6:.1f}",
        f"{activation / 1e6:.1f}",
        f"{result.predicted_bytes / 1e6:.1f}" if result.predicted_bytes else "",
        f"{eager.memory['activation_bytes'] / activation:.2f}" if eager else "",
        f"{step_ms:.1f}",
        f"{step_ms / statistics.median(eager.step_ms):.2f}" if eager else "",
        f"{result.compile_s:.1f}" if compiles else "",
        f"{result.compile_s / inductor.compile_s:.2f}" if compiles and inductor else "",
        "" if result.error is None else f"{result.error:.1e}" if result.error else "0",
    ]


def summary(result: Result) -> dict[str, Any]:
    """One result as it goes into the JSON file."""
    figures = dict(vars(result))
    if result.step_ms:
        figures["median_step_ms"] = statistics.median(result.step_ms)
    return figures


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="vgg8", choices=[*REGISTRY, "all"])
    add("--batch", type=int, default=4, help="N")
    add("--steps", type=int, default=5, help="timed training steps of each method")
    add("--time-steps", "--steps-time", type=int, help="T; default: the network's published one")
    add("--width", type=float, help="factor on the channels; default: 0.5 for the VGG, else 1")
    add("--size", type=int, help="H and W of the input")
    add("--stem", choices=["imagenet", "cifar"], help="first layer of SEW-ResNet")
    add("--levels", "--level", type=int, nargs="+", default=[4], choices=range(5), metavar="LEVEL",
        help="levels of snnmem, 0 to 4")  # fmt: skip
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
        help="any of: " + ", ".join(METHODS))  # fmt: skip
    add("--error", default="float32", choices=["float32", "float64", "none"])
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    arguments = parse(argv)
    names = DEFAULT_MODELS if arguments.model == "all" else (arguments.model,)
    tables: list[Table] = []
    results: list[Result] = []
    for name in names:
        found = compare(name, arguments)
        results += found
        tables.append(table_of(found, _title(name, arguments)))
        console.print(tables[-1])
        console.print(*(peak_of(result) for result in found if result.at_peak), sep="\n")
        if arguments.json:
            arguments.json.write_text(json.dumps(_document(arguments, results), indent=2))
    if len(tables) > 1:
        console.print(*tables)


def _title(model: str, arguments: argparse.Namespace) -> str:
    chosen = _task(model, "eager", None, arguments).build
    entry = REGISTRY[model]
    size, steps = chosen["size"] or entry.size, chosen["steps"] or entry.steps
    return (
        f"{model}, width {chosen['width']:g}: T={steps}, N={chosen['batch']}, H=W={size}, "
        f"{chosen['device']}, {arguments.threads} threads"
    )


def _document(arguments: argparse.Namespace, results: list[Result]) -> dict[str, Any]:
    settings = {key: str(value) for key, value in vars(arguments).items()}
    machine = {"torch": torch.__version__, "python": platform.python_version()}
    return {**machine, "settings": settings, "results": [summary(result) for result in results]}


if __name__ == "__main__":
    main()
