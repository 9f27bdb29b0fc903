"""Results and time of counting: ours, from a run and from the graph, beside three others.

    python examples/bench_counting.py --threads 1
    python examples/bench_counting.py --models sew_resnet18 spikformer --full --json out.json

Counted is one forward in evaluation mode without gradients, as all of them can. Times are medians
over rounds in which all methods take turns; "overhead" is the time over that of the plain forward,
in multiples of it, and beside it stands its ratio to SpikingJelly's. Below each table stands why
the results differ, operator by operator. At last a whole training step of SEW-ResNet-101 is counted
from its graph, which runs nothing. With `--check` the script fails where a promise is broken.

Peers that are not installed are left out, and the reason says how to install them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import counting_peers as peers
from counting_peers import COUNTERS, Counts, Net, PeerMissingError
from models import REGISTRY, build

LOG_WIDTH = 150
MODELS = ("vgg8_spikingjelly", "vgg8", "sew_resnet18", "spikformer")
SMALL = {"width": 0.25, "batch": 2}
FULL = {"width": 1.0, "batch": 4}
OVERHEAD_LIMIT = 0.5
"""Our overhead, at most, as a share of SpikingJelly's."""
STATIC_SECONDS = 5.0
"""What counting a training step of SEW-ResNet-101 may take."""

TITLES = {
    "dispatch": "snnfx, run",
    "measured": "snnfx, graph, measured rates",
    "static": "snnfx, graph, symbols",
    "spikingjelly": "SpikingJelly 2.0.0",
    "syops": "syops-counter 0.0.5",
    "neurobench": "NeuroBench 2.3.0",
}
METHODS: dict[str, Callable[[Net], Counts]] = {
    "dispatch": peers.dispatch,
    "measured": peers.static_measured,
    "static": peers.static,
    "spikingjelly": peers.spikingjelly,
    "syops": peers.syops,
    "neurobench": peers.neurobench,
}
WHY = {
    "syops": (
        "counts calls of modules by a formula, a spiking input as its rate times the dense count, "
        "so padding counts as input; adds the bias, batch norm, pooling (elements of its input) "
        "and one AC for each input of a neuron that it knows; knows modules by their exact type, "
        "so layers of SpikingJelly and neurons of snnfx are none; sees no functions, no attention"
    ),
    "neurobench": (
        "counts the products with a nonzero weight and input in convolutions and linear layers "
        "alone, a layer as AC if its inputs are -1, 0 and 1, else as MAC, where zeros in the input "
        "do not count; sees no norm, pooling, neuron or attention; adds up in float32"
    ),
}


@dataclass
class Result:
    """What was found with one method.

    Attributes:
        method: a key of `METHODS`.
        counts: what it counted; None where it is missing.
        note: why there are no counts.
        step_ms: of each timed round.
    """

    method: str
    counts: Counts | None = None
    note: str | None = None
    step_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Of all rounds."""
        return statistics.median(self.step_ms)


@dataclass(frozen=True)
class Comparison:
    """All methods on one network.

    Attributes:
        model: a key of `models.REGISTRY`.
        plain_ms: of the forward without counting, each round.
        results: by method.
    """

    model: str
    plain_ms: list[float]
    results: dict[str, Result]

    def overhead(self, method: str) -> float:
        """The time that a method adds to the plain forward, in multiples of it."""
        plain = statistics.median(self.plain_ms)
        return (self.results[method].median_ms - plain) / plain


def prepared(model: str, sizes: dict[str, Any]) -> Net:
    """A network of `models.REGISTRY` in evaluation mode, whose neurons fire.

    Batch norm takes the statistics of one forward in training mode; with those that it starts with,
    evaluation would be silent from the second layer on.
    """
    workload = build(model, **sizes)
    for module in workload.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    workload.before_step()
    with torch.no_grad():
        workload.model(*workload.inputs)
    return Net(workload.model.eval(), workload.inputs, workload.before_step)


def compare(model: str, sizes: dict[str, Any], rounds: int) -> Comparison:
    """Count with each method once, and time all of them in turn."""
    net = prepared(model, sizes)
    results = {method: Result(method) for method in METHODS}
    for method, result in results.items():
        try:
            result.counts = METHODS[method](net)  # also a warm-up
        except PeerMissingError as error:
            result.note = f"not installed: {error}"
    net.forward()
    plain: list[float] = []
    for _ in range(rounds):
        plain.append(_milliseconds(net.forward))
        for method, result in results.items():
            if result.counts is not None:
                result.step_ms.append(_milliseconds(lambda run=METHODS[method]: run(net)))
    return Comparison(model, plain, results)


def _milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def table_of(found: Comparison, title: str) -> Table:
    """The results on one network."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("method", no_wrap=True)
    columns = ("FLOPs", "bytes", "MACs", "ACs", "SynOps", "ms", "overhead", "x SpikingJelly's")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    plain = f"{statistics.median(found.plain_ms):.1f}"
    table.add_row("plain forward", *[""] * len(COUNTERS), plain, "", "")
    for method, result in found.results.items():
        if result.counts is not None:
            table.add_row(TITLES[method], *_cells(found, result, result.counts))
    notes = [f"{TITLES[m]}: {r.note}" for m, r in found.results.items() if r.note]
    table.caption = "\n".join(notes)
    return table


def _cells(found: Comparison, result: Result, counts: Counts) -> list[str]:
    totals = [counts.totals.get(quantity) for quantity in COUNTERS]
    known = ["" if total is None else _text(total) for total in totals]
    overhead = found.overhead(result.method)
    ratio = ""
    if found.results["spikingjelly"].counts is not None and result.method == "dispatch":
        ratio = f"{overhead / found.overhead('spikingjelly'):.2f}"
    return [*known, f"{result.median_ms:.1f}", f"{overhead:+.2f}", ratio]


def _text(total: Any) -> str:
    symbols = getattr(total, "free_symbols", None)
    return f"f({len(symbols)} rates)" if symbols else f"{int(total):,}"


def differences(found: Comparison) -> list[str]:
    """Where SpikingJelly counts something else than we do, by quantity and operator."""
    ours, theirs = found.results["dispatch"].counts, found.results["spikingjelly"].counts
    if ours is None or theirs is None:
        return []
    lines: list[str] = []
    for quantity in COUNTERS:
        mine, other = ours.operators[quantity], theirs.operators[quantity]
        for name in sorted({*mine, *other}):
            here, there = mine.get(name, 0), other.get(name, 0)
            if here != there:
                known = "" if name in other else ", which has no rule for it"
                lines.append(f"{quantity} of {name}: {here:,}; SpikingJelly {there:,}{known}")
    return lines


def promises(found: Comparison) -> list[tuple[str, bool, bool]]:
    """What is promised: the text with its figures, whether it holds, whether it is about time."""
    results = found.results
    ours, measured = results["dispatch"].counts, results["measured"].counts
    texts: list[tuple[str, bool, bool]] = []
    if ours is None or measured is None:
        return texts
    for quantity in COUNTERS:
        same = ours.operators[quantity] == measured.operators[quantity]
        texts.append((f"{quantity}: the graph counts what the run counts", same, False))
    if results["spikingjelly"].counts is not None:
        ratio = found.overhead("dispatch") / found.overhead("spikingjelly")
        text = f"overhead at most {OVERHEAD_LIMIT} of SpikingJelly's: {ratio:.2f}"
        texts.append((text, ratio <= OVERHEAD_LIMIT, True))
    return texts


def static_seconds(model: str, sizes: dict[str, Any]) -> float:
    """The time of counting a whole training step from its graph."""
    from snnfx.op_counter import count

    workload = build(model, **sizes)
    workload.before_step()
    start = time.perf_counter()
    count(workload.model, workload.inputs, loss=workload.loss_fn, train=True)
    return time.perf_counter() - start


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        choices=tuple(REGISTRY),
        metavar="MODEL",
        help="default: four of them",
    )
    add("--full", action="store_true", help="published widths and N=4, instead of a quarter and 2")
    add("--width", type=float, help="factor on the channels")
    add("--batch", type=int, help="N")
    add("--time-steps", type=int, help="T; default: the network's published one")
    add("--size", type=int, help="H and W of the input")
    add("--rounds", type=int, default=5, help="timed rounds of all methods")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    add("--static-model", default="sew_resnet101", choices=[*REGISTRY, "none"],
        help="whose training step is counted from its graph at last")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--check", action="store_true", help="fail where a promise about results is broken")
    return parser.parse_args(argv)


def sizes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `models.build`."""
    defaults = FULL if arguments.full else SMALL
    return {
        "width": arguments.width or defaults["width"],
        "batch": arguments.batch or defaults["batch"],
        "steps": arguments.time_steps,
        "size": arguments.size,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its tables."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    sizes, broken = sizes_of(arguments), False
    document: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    for model in arguments.models or _available(console):
        found = compare(model, sizes, arguments.rounds)
        title = (
            f"{model}, width {sizes['width']:g}, N={sizes['batch']}, {arguments.threads} threads"
        )
        console.print(table_of(found, title), highlight=False)
        broken |= _print_reasons(console, found)
        document[model] = {method: _figures(result) for method, result in found.results.items()}
        document[model]["plain"] = {"step_ms": found.plain_ms}
    if arguments.static_model != "none":
        seconds = static_seconds(arguments.static_model, sizes)
        limit = (
            f", at most {STATIC_SECONDS:g} s" if arguments.static_model == "sew_resnet101" else ""
        )
        console.print(f"{arguments.static_model}: a training step counted from its graph in "
                      f"{seconds:.1f} s{limit}", highlight=False)  # fmt: skip
        document["static"] = {"model": arguments.static_model, "seconds": seconds}
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2, default=str))
    if broken and arguments.check:
        sys.exit(1)


def _available(console: Console) -> list[str]:
    """The default networks, but for those whose layers are not installed."""
    if importlib.util.find_spec("spikingjelly") is not None:
        return list(MODELS)
    console.print("vgg8_spikingjelly: not installed: pip install spikingjelly==2.0.0")
    return [model for model in MODELS if model != "vgg8_spikingjelly"]


def _print_reasons(console: Console, found: Comparison) -> bool:
    """Promises, and why results differ; returns whether a promise about results is broken."""
    broken = False
    for text, holds, is_time in promises(found):
        console.print(f"  {'yes' if holds else 'NO '}  {text}", highlight=False)
        broken |= not holds and not is_time
    for line in differences(found):
        console.print(f"  differs: {line}", highlight=False)
    for method, reason in WHY.items():
        if found.results[method].counts is not None:
            console.print(f"  {TITLES[method]} {reason}", highlight=False)
    return broken


def _figures(result: Result) -> dict[str, Any]:
    return {**asdict(result), "counts": None if result.counts is None else vars(result.counts)}


if __name__ == "__main__":
    main()
