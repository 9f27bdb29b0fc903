"""Speed of packing and unpacking, as a share of a plain copy of the same number of bytes.

    python examples/bench_pack.py --threads 1
    python examples/bench_pack.py --quick --json pack.json

The share of an operation that reads and writes b bytes in all is the time of ``dst.copy_(src)`` on
buffers of b / 2 bytes, divided by the operation's own time. Rows "into" write into a buffer that
exists, as the copy does; all others allocate their result, which on large tensors costs more than
the work (the system zeroes every fresh page), so they are also compared with ``src.clone()``.
Times are medians over rounds in which the copies and the operation take turns.

Beside snnfx: SpikingJelly's `BitSpikeCompressor`, if it is installed, and numpy's `packbits` and
`unpackbits`, converted from and to the same float tensor.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from snnfx.kernels import bitpack_cpu
from snnfx.kernels.bitpack_reference import packed_shape
from snnfx.kernels.ops import pack_bits, unpack_bits

TIME_STEPS = 8


@dataclass(frozen=True)
class Case:
    """One method on one tensor: `pack` takes and `unpack` gives a tensor of `wide_bytes`."""

    method: str
    dtype: str
    bits: int
    layout: str
    wide_bytes: int
    pack: Callable[[], object]
    unpack: Callable[[], torch.Tensor]
    expected: torch.Tensor


@dataclass(frozen=True)
class Measurement:
    """Medians of one direction of one case; shares are of the copy and of the clone."""

    method: str
    dtype: str
    bits: int
    layout: str
    direction: str
    ms: float
    gigabytes_per_s: float
    share_of_copy: float
    share_of_clone: float


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(case: Case, direction: str, rounds: int) -> Measurement:
    """Time one direction of `case` in turn with a copy and a clone of as many bytes."""
    run = case.pack if direction == "pack" else case.unpack
    element_bits = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size() * 8
    total_bytes = case.wide_bytes + case.wide_bytes * case.bits // element_bits
    source = torch.ones(total_bytes // 2, dtype=torch.uint8)
    target = torch.ones_like(source)
    actions = {"run": run, "copy": lambda: target.copy_(source), "clone": source.clone}
    times: dict[str, list[float]] = {name: [] for name in actions}
    for action in actions.values():
        action()  # first touch of every buffer
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds(action))
    median = {name: statistics.median(values) for name, values in times.items()}
    return Measurement(
        case.method,
        case.dtype,
        case.bits,
        case.layout,
        direction,
        ms=median["run"] * 1e3,
        gigabytes_per_s=total_bytes / median["run"] / 1e9,
        share_of_copy=median["copy"] / median["run"],
        share_of_clone=median["clone"] / median["run"],
    )


def random_codes(elements: int, dtype: torch.dtype, bits: int) -> torch.Tensor:
    """Values 0 to ``2**bits - 1``, ``[TIME_STEPS, elements / TIME_STEPS]``."""
    top = 1 if dtype == torch.bool else (1 << bits) - 1
    return torch.randint(0, top + 1, (TIME_STEPS, elements // TIME_STEPS)).to(dtype)


def snnfx_cases(elements: int, dtype: torch.dtype, bits: int, layout: str) -> Iterator[Case]:
    """The kernel into a buffer that exists, and, at 1 bit, the operator."""
    x = random_codes(elements, dtype, bits)
    name, wide_bytes = str(dtype).removeprefix("torch."), x.numel() * x.element_size()
    out = torch.zeros(packed_shape(x.shape, bits, layout), dtype=torch.uint8)
    values = torch.zeros_like(x)
    flat = layout == "flat"
    pack_into = bitpack_cpu.pack_flat_into if flat else bitpack_cpu.pack_time_into
    unpack_into = bitpack_cpu.unpack_flat_into if flat else bitpack_cpu.unpack_time_into

    def unpack_again() -> torch.Tensor:
        unpack_into(out, values, bits)
        return values

    description = (name, bits, layout, wide_bytes)
    yield Case("snnfx, into", *description, lambda: pack_into(x, out, bits), unpack_again, x)
    if bits == 1:
        yield Case(
            "snnfx",
            *description,
            lambda: pack_bits(x, bits, layout),
            lambda: unpack_bits(out, x.shape, x.dtype, bits, layout),
            x,
        )


def numpy_case(elements: int) -> Case:
    """``packbits`` and ``unpackbits`` in the same bit order."""
    x = random_codes(elements, torch.float32, 1)
    array = x.numpy().reshape(-1)
    packed = np.packbits(array != 0, bitorder="little")

    def unpack() -> torch.Tensor:
        bits = np.unpackbits(packed, count=array.size, bitorder="little")
        return torch.from_numpy(bits.astype(np.float32)).view(x.shape)

    return Case(
        "numpy packbits",
        "float32",
        1,
        "flat",
        array.nbytes,
        lambda: np.packbits(array != 0, bitorder="little"),
        unpack,
        x,
    )


def spikingjelly_case(elements: int) -> Case | None:
    """Its bit compressor, or None where it is not installed."""
    try:
        from spikingjelly.activation_based.memopt.compress import BitSpikeCompressor
    except ImportError:
        return None
    x = random_codes(elements, torch.float32, 1)
    compressor = BitSpikeCompressor()
    packed = compressor.compress(x)
    return Case(
        "SpikingJelly BitSpikeCompressor",
        "float32",
        1,
        "flat",
        x.numel() * 4,
        lambda: compressor.compress(x),
        lambda: compressor.decompress(packed),
        x,
    )


def all_cases(elements: int, console: Console) -> Iterator[Case]:
    """Every row of the table, made when its turn comes."""
    for layout in ("flat", "time"):
        for bits in (1, 2, 4, 8):
            yield from snnfx_cases(elements, torch.float32, bits, layout)
        for dtype in (torch.bfloat16, torch.bool):
            yield next(snnfx_cases(elements, dtype, 1, layout))
    yield numpy_case(elements)
    rival = spikingjelly_case(elements)
    if rival is None:
        console.print(
            "SpikingJelly is not importable here, so it has no row; "
            "pip install --no-deps spikingjelly==2.0.0 loguru, then run again"
        )
    else:
        yield rival


def show(measurements: list[Measurement], title: str, console: Console) -> None:
    """Print pairs of measurements, pack then unpack, as rows."""
    table = Table(title=title, caption="share: time of a plain copy of the same bytes / own time")
    for column in ("method", "dtype", "bits", "layout"):
        table.add_column(column)
    for direction in ("pack", "unpack"):
        for column in ("ms", "GB/s", "of copy", "of clone"):
            table.add_column(f"{direction}\n{column}", justify="right")
    for pack, unpack in zip(measurements[::2], measurements[1::2], strict=True):
        cells = [pack.method, pack.dtype, str(pack.bits), pack.layout]
        for m in (pack, unpack):
            cells += [f"{m.ms:.1f}", f"{m.gigabytes_per_s:.1f}"]
            cells += [f"{m.share_of_copy:.0%}", f"{m.share_of_clone:.0%}"]
        table.add_row(*cells)
    console.print(table)


def main() -> None:
    """Read the options, measure, print and write."""
    parser = argparse.ArgumentParser(description="Packing speed as a share of a plain copy.")
    parser.add_argument("--elements", type=int, default=1 << 26, help="elements of the tensor")
    parser.add_argument("--rounds", type=int, default=11, help="timed rounds; the median counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="2**24 elements, 5 rounds")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.elements, arguments.rounds = 1 << 24, 5
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    console = Console(width=150)
    measurements: list[Measurement] = []
    for case in all_cases(arguments.elements // 64 * 64, console):
        case.pack()
        if not torch.equal(case.unpack(), case.expected):
            raise SystemExit(f"{case.method} did not give back the tensor that it packed")
        measurements += [measure(case, way, arguments.rounds) for way in ("pack", "unpack")]
    title = f"{arguments.elements} elements, {arguments.threads} threads, torch {torch.__version__}"
    show(measurements, title, console)
    if arguments.json:
        machine = {"processor": platform.processor(), "torch": torch.__version__}
        record = {"machine": machine, "threads": arguments.threads}
        record["elements"] = arguments.elements
        record["measurements"] = [asdict(m) for m in measurements]
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
