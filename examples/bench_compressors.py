"""Size and speed of the spike compressors, at several firing rates.

    python examples/bench_compressors.py --threads 1
    python examples/bench_compressors.py --shape 4 16 64 32 32 --rates 5 20 --dtype bfloat16

The ratio is the tensor's bytes over those that the compressor holds. Times are given as multiples
of ``x.clone()``, which reads and writes the tensor once; all of them allocate their result. They
are medians over repeats in which the clone and all compressors take turns. A small tensor is cloned
into memory that was in use just before, a large one into fresh pages, which takes several times as
long: compare figures of one shape and dtype only.

Beside snnfx: the compressors of the same names of SpikingJelly, if version 2.0 is installed. Every
compressor is first made to give the tensor back.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from snnfx.compressors import (
    BitSpikeCompressor,
    BooleanSpikeCompressor,
    CompressedSpikes,
    GridSpikeCompressor,
    NullSpikeCompressor,
    SparseSpikeCompressor,
    Uint8SpikeCompressor,
)

DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Method:
    """One compressor; `compress` returns whatever its `decompress` takes."""

    library: str
    name: str
    compressor: Any


@dataclass(frozen=True)
class Measurement:
    """One compressor at one firing rate; times are medians in multiples of a clone."""

    library: str
    name: str
    rate_percent: float
    ratio: float
    clone_ms: float
    compress_clones: float
    decompress_clones: float


def all_methods() -> list[Method]:
    """Ours, each followed by SpikingJelly's of the same name where there is one."""
    ours = [
        ("Null", NullSpikeCompressor()),
        ("Boolean", BooleanSpikeCompressor()),
        ("Uint8", Uint8SpikeCompressor()),
        ("Bit", BitSpikeCompressor()),
        ("Grid, 2 bits", GridSpikeCompressor(2)),
        ("Sparse, int64", SparseSpikeCompressor()),
        ("Sparse, int32", SparseSpikeCompressor(torch.int32)),
    ]
    theirs = spikingjelly_compressors()
    found: list[Method] = []
    for name, compressor in ours:
        found.append(Method("snnfx", name, compressor))
        if name in theirs:
            found.append(Method("SpikingJelly", name, theirs[name]))
    return found


def spikingjelly_compressors() -> dict[str, Any]:
    """SpikingJelly's compressors by name; none where its 2.0 is not installed."""
    try:
        module = importlib.import_module("spikingjelly.activation_based.memopt.compress")
    except ImportError:
        return {}
    return {
        "Boolean": module.BooleanSpikeCompressor(),
        "Uint8": module.Uint8SpikeCompressor(),
        "Bit": module.BitSpikeCompressor(),
        "Sparse, int64": module.SparseSpikeCompressor(),
        "Sparse, int32": module.SparseSpikeCompressor(torch.int32),
    }


def held_bytes(payload: Any) -> int:
    """Bytes of the tensors in what a compressor returned."""
    if isinstance(payload, CompressedSpikes):
        return payload.nbytes
    return sum(part.nbytes for part in payload if isinstance(part, Tensor))


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call; its result is released outside of it."""
    start = time.perf_counter()
    result = function()
    taken = time.perf_counter() - start
    del result
    return taken


def measure(
    methods: Sequence[Method], x: Tensor, rate_percent: float, repeats: int
) -> list[Measurement]:
    """Time a clone of `x` and both directions of every method, all of them in turn.

    Raises:
        SystemExit: a method did not give `x` back.
    """
    actions: list[Callable[[], object]] = [x.clone]
    payloads = [method.compressor.compress(x) for method in methods]
    for method, payload in zip(methods, payloads, strict=True):
        if not torch.equal(method.compressor.decompress(payload), x):
            raise SystemExit(f"{method.library} {method.name} did not give the spikes back")
        actions.append(partial(method.compressor.compress, x))
        actions.append(partial(method.compressor.decompress, payload))
    rounds = [[seconds(action) for action in actions] for _ in range(repeats)]
    clone, *times = (statistics.median(column) for column in zip(*rounds, strict=True))
    return [
        Measurement(
            method.library,
            method.name,
            rate_percent,
            ratio=x.nbytes / max(1, held_bytes(payload)),
            clone_ms=clone * 1e3,
            compress_clones=compress / clone,
            decompress_clones=decompress / clone,
        )
        for method, payload, compress, decompress in zip(
            methods, payloads, times[::2], times[1::2], strict=True
        )
    ]


def table_of(measurements: Sequence[Measurement], title: str) -> Table:
    """A row a compressor, three columns a firing rate."""
    rates = sorted({m.rate_percent for m in measurements})
    table = Table(title=title, caption="x: times smaller; c, d: time to compress, to decompress, "
                  "in clones of the tensor")  # fmt: skip
    table.add_column("compressor")
    table.add_column("library")
    for rate in rates:
        for column in ("x", "c", "d"):
            table.add_column(f"{rate:g} %\n{column}", justify="right")
    rows: dict[tuple[str, str], dict[float, Measurement]] = {}
    for m in measurements:
        rows.setdefault((m.name, m.library), {})[m.rate_percent] = m
    for (name, library), by_rate in rows.items():
        cells = [name, library]
        for m in (by_rate[rate] for rate in rates):
            cells += [f"{m.ratio:.3g}", f"{m.compress_clones:.2f}", f"{m.decompress_clones:.2f}"]
        table.add_row(*cells)
    return table


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Size and speed of the spike compressors.")
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 64, 64, 32, 32])
    parser.add_argument("--rates", type=float, nargs="+", default=[1, 2, 5, 10, 20, 50],
                        help="percent of elements that are spikes")  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=11, help="timed rounds; the median counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args()


def main() -> None:
    """Read the options, measure, print and write."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    measurements: list[Measurement] = []
    for rate in arguments.rates:
        x = (torch.rand(arguments.shape) < rate / 100).to(dtype)
        measurements += measure(all_methods(), x, rate, arguments.repeats)
    threads = f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}"
    shape = " x ".join(map(str, arguments.shape))
    title = f"{shape}, {arguments.dtype}, {threads}, torch {torch.__version__}"
    Console(width=170).print(table_of(measurements, title))
    if arguments.json:
        record: dict[str, Any] = {
            "machine": {"processor": platform.processor(), "torch": torch.__version__},
            "shape": arguments.shape,
            "dtype": arguments.dtype,
            "threads": arguments.threads,
            "measurements": [asdict(m) for m in measurements],
        }
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
