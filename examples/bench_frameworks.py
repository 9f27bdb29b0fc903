"""Networks of other frameworks, plain and compiled by snnmem, side by side in one run.

    python examples/bench_frameworks.py --size small --steps 5

Each network of `models_frameworks.py` is adapted by one call where its framework splits graphs
(`snnfx.adapters`), and is otherwise as its users write it. Columns:

- *graphs*: that Dynamo made, and how many breaks there are between them. A second graph without a
  break is the first one compiled again, since the state of a neuron has become a tensor.
- *activation MB*: the peak of one training step beside parameters, gradients and inputs, as
  `measure.py` finds it.
- *step ms*: the median over steps that both take in turn.
- *error*: the largest relative error of a gradient against the plain network's from the same seed.
  In the eager lowering and float32 it shows whether the transformation is exact: 0, or rounding
  where a sum over the batch is taken in tiles. The compiled lowering is held in float64: in float32
  a kernel may round a potential to the other side of its threshold, as any other compiler's may;
  that spike flips, and gradients differ by more than rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._dynamo.utils import counters

from measure import gradients_of, largest_relative_error, measure_memory, time_step
from models import Workload
from models_frameworks import FRAMEWORKS, build_framework
from snnfx.adapters import adapt

console = Console(width=None if os.isatty(1) else 140)
ROUNDING = 1e-6  # of a float32 sum over the batch in another order
DOUBLE_ROUNDING = 1e-8  # of float64 kernels, through all layers of a network
SINGLE = {"snntorch": 1e-4, "sinabs": 1e-4}  # make float32 of any spikes; their errors may be these


@dataclass(frozen=True)
class Row:
    """What was measured of one network; a pair is (plain, snnmem).

    Attributes:
        graphs: that Dynamo made.
        breaks: between them.
        activation_bytes: of one training step.
        step_ms: medians.
        eager_error: largest relative error of a gradient, in the eager lowering.
        compiled_error: in the inductor lowering and float64, or float32 for those in `SINGLE`.
    """

    name: str
    graphs: int
    breaks: int
    activation_bytes: tuple[int, int]
    step_ms: tuple[float, float]
    eager_error: float
    compiled_error: float

    @property
    def ratio(self) -> float:
        """How many times less activation memory."""
        return self.activation_bytes[0] / self.activation_bytes[1]


class Run:
    """One network and what runs it: the plain model, or the compiled one."""

    def __init__(
        self,
        name: str,
        size: str,
        options: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.work: Workload = build_framework(name, size)
        self.work.model.to(dtype)
        self.inputs = tuple(x.to(dtype) for x in self.work.inputs)
        self.run: Callable[..., Tensor] = self.work.model
        if options is not None:
            adapt(self.work.model)
            self.run = torch.compile(self.work.model, backend="snnmem", options=options)

    def step(self) -> None:
        """A forward and a backward from a fresh state, with the same random numbers each time."""
        torch.manual_seed(1)
        self.work.before_step()
        self.work.model.zero_grad(set_to_none=True)
        self.work.loss_fn(self.run(*self.inputs)).backward()

    def gradients(self) -> list[Tensor]:
        """Those of one step."""
        self.step()
        return [gradient.clone() for gradient in gradients_of(self.work.model)]

    def activation_bytes(self) -> int:
        """Of one step; see `measure.py`."""
        return measure_memory(self.step, self.work.model, self.inputs).activation_bytes


def measured(name: str, arguments: argparse.Namespace) -> Row:
    """Measure one network, plain and compiled."""
    options = {"level": arguments.level, "prefer": arguments.prefer}
    eager_error = _error(name, arguments.size, {**options, "lowering": "eager"}, torch.float32)
    precision = torch.float32 if name in SINGLE else torch.float64
    compiled_error = _error(name, arguments.size, options, precision)
    torch.compiler.reset()
    counters.clear()
    plain, compiled = Run(name, arguments.size), Run(name, arguments.size, options)
    for _ in range(2):  # the first step compiles, the second may compile again for a state
        plain.step()
        compiled.step()
    memory = plain.activation_bytes(), compiled.activation_bytes()
    times = [(time_step(plain.step), time_step(compiled.step)) for _ in range(arguments.steps)]
    plain_ms, compiled_ms = (statistics.median(column) for column in zip(*times, strict=True))
    return Row(
        name,
        counters["stats"]["unique_graphs"],
        sum(counters["graph_break"].values()),
        memory,
        (plain_ms, compiled_ms),
        eager_error,
        compiled_error,
    )


def _error(name: str, size: str, options: dict[str, Any], dtype: torch.dtype) -> float:
    """Of the gradients of the second step, when neurons have had a state before."""
    torch.compiler.reset()
    plain, compiled = Run(name, size, None, dtype), Run(name, size, options, dtype)
    plain.step()
    compiled.step()
    return largest_relative_error(compiled.gradients(), plain.gradients())


def table_of(rows: Sequence[Row], title: str) -> Table:
    """The rows as a table."""
    table = Table(title=title, title_justify="left")
    table.add_column("network")
    for column in ("graphs", "breaks", "activation MB", "snnmem", "less", "step ms", "snnmem", "x"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("error, eager", justify="right")
    table.add_column("compiled", justify="right")
    for row in rows:
        plain_bytes, snnmem_bytes = row.activation_bytes
        plain_ms, snnmem_ms = row.step_ms
        table.add_row(
            row.name, str(row.graphs), str(row.breaks),
            f"{plain_bytes / 1e6:.1f}", f"{snnmem_bytes / 1e6:.1f}", f"{row.ratio:.2f}",
            f"{plain_ms:.1f}", f"{snnmem_ms:.1f}", f"{snnmem_ms / plain_ms:.2f}",
            f"{row.eager_error:.1e}" if row.eager_error else "0",
            f"{row.compiled_error:.1e}" if row.compiled_error else "0",
        )  # fmt: skip
    return table


def read(file: Path) -> list[Row]:
    """The rows that `--json` wrote."""
    rows = json.loads(file.read_text())
    pairs = ("activation_bytes", "step_ms")
    return [Row(**{**row, **{name: tuple(row[name]) for name in pairs}}) for row in rows]


def broken(rows: Sequence[Row]) -> list[str]:
    """What does not hold: rows that are not exact, and rows that save nothing."""
    found = [f"{row.name}: error {row.eager_error:.1e}" for row in rows
             if row.eager_error > ROUNDING]  # fmt: skip
    found += [f"{row.name}: compiled error {row.compiled_error:.1e}" for row in rows
              if row.compiled_error > SINGLE.get(row.name, DOUBLE_ROUNDING)]  # fmt: skip
    return found + [f"{row.name}: nothing saved" for row in rows if row.ratio <= 1]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", default=list(FRAMEWORKS), choices=list(FRAMEWORKS), metavar="MODEL",
        help="any of: " + ", ".join(FRAMEWORKS))  # fmt: skip
    add("--size", default="small", choices=["tiny", "small", "full"])
    add("--level", type=int, default=4, choices=range(5), metavar="LEVEL", help="0 to 4")
    add("--prefer", default="balanced", choices=["speed", "balanced", "memory"])
    add("--steps", type=int, default=5, help="timed training steps of each")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark, print its table, and return 1 if a row does not hold."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    for name in arguments.models:
        rows.append(measured(name, arguments))
        console.print(f"[dim]{name}: {rows[-1].ratio:.2f} times less[/]")
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    title = f"level {arguments.level}, prefer {arguments.prefer}, size {arguments.size}, "
    title += f"{arguments.threads} threads"
    console.print(table_of(rows, title))
    console.print(f"median: {statistics.median(row.ratio for row in rows):.2f} times less")
    for text in broken(rows):
        console.print(f"[red]does not hold: {text}[/]")
    return bool(broken(rows))


if __name__ == "__main__":
    raise SystemExit(main())
