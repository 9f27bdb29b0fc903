"""The command line: ``snnfx plan``, ``snnfx fit`` and ``snnfx count``.

What its options are; `snnfx.commands` does the work, and is loaded when it is needed, since PyTorch
takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

import snnfx
from snnfx.config import MAX_LEVEL, Lowering, Optimizer, Preference, parse_bytes
from snnfx.errors import OptionError

F = TypeVar("F", bound=Callable[..., Any])


class _Size(click.ParamType[int]):
    """An amount of memory such as 16GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_bytes(int(value) if str(value).isdecimal() else value)
        except OptionError as error:
            return self.fail(str(error).removeprefix("memory_budget="), param, ctx)


class _Rates(click.ParamType[Any]):
    """One firing rate for all spikes, or where to take each from."""

    name = "rates"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "measured":
            return value
        try:
            rate = Fraction(value)
        except (ValueError, ZeroDivisionError):
            rate = Fraction(-1)
        if not 0 <= rate <= 1:
            self.fail(f"'{value}' is no firing rate: give a number from 0 to 1, or 'measured'")
        return rate


_FILE = click.Path(dir_okay=False, writable=True, allow_dash=True, path_type=Path)
_SHARED: tuple[Any, ...] = (
    click.argument("target", metavar="MODULE:FUNCTION"),
    click.option("--lowering", type=click.Choice(get_args(Lowering)), default="inductor",
                 show_default=True, help="How the planned graph is to run."),
    click.option("--prefer", type=click.Choice(get_args(Preference)), default="balanced",
                 show_default=True, help="What matters more."),
    click.option("--no-compress", is_flag=True, help="Pack nothing."),
    click.option("--batch-dim", type=click.IntRange(0), metavar="D",
                 help="Which dimension of the inputs is the batch, for a FUNCTION without an "
                      "argument batch, batch_size or n."),
    click.option("--real", is_flag=True,
                 help="Call FUNCTION with real tensors, for one that reads their values; then the "
                      "model must fit into this machine's memory."),
    click.option("--json", "json_path", type=_FILE, metavar="FILE",
                 help="Write all figures there; - prints them instead of the text."),
    click.option("--quiet", "-q", is_flag=True, help="No progress and no warnings."),
)  # fmt: skip

_COUNTED: tuple[Any, ...] = (
    click.argument("target", metavar="MODULE:FUNCTION"),
    click.option("--train", is_flag=True,
                 help="Count a forward and a backward in training mode, instead of one forward in "
                      "evaluation mode."),
    click.option("--rates", type=_Rates(), metavar="measured|RATE",
                 help="Firing rates: of one run, or one for all spikes; else they are symbols."),
    click.option("--batch", type=click.IntRange(1), metavar="N",
                 help="Batch; default: FUNCTION's."),
    click.option("--batch-dim", type=click.IntRange(0), metavar="D",
                 help="Which dimension of the inputs is the batch."),
    click.option("--time-dim", type=click.IntRange(0), metavar="D",
                 help="Which dimension of the inputs is time, for --symbolic."),
    click.option("--symbolic", is_flag=True,
                 help="Print formulas in T and N, for --time-dim and --batch-dim, and in rates."),
    click.option("--energy", type=click.Choice(("compute", "neuromc", "spikesim")),
                 help="Estimate the energy, too. neuromc and spikesim run the model once."),
    click.option("--precision", type=click.Choice(("fp32", "fp16", "int8")),
                 help="Of the arithmetic of --energy compute.  [default: fp32]"),
    click.option("--optimizer", type=click.Choice(get_args(Optimizer)),
                 help="Whose step --energy neuromc --train holds.  [default: none]"),
    click.option("--real", is_flag=True,
                 help="Call FUNCTION with real tensors, for one that reads their values; implied "
                      "where the model is run."),
    click.option("--depth", type=click.IntRange(0), default=3, show_default=True, metavar="D",
                 help="Modules in the table, down to that depth."),
    click.option("--json", "json_path", type=_FILE, metavar="FILE",
                 help="Write all figures there; - prints them instead of the text."),
    click.option("--csv", "csv_path", type=_FILE, metavar="FILE",
                 help="Write a line for each module, stage and operator."),
    click.option("--plot", type=_FILE, metavar="FILE",
                 help="Draw counts, or with --energy the energy: .png, .svg or .pdf."),
    click.option("--roofline", type=_FILE, metavar="FILE", help="Draw layers on a roofline."),
    click.option("--device", default="cpu", show_default=True, metavar="NAME",
                 help="Whose roofline."),
    click.option("--strict", is_flag=True, help="An operator without a rule is an error."),
    click.option("--quiet", "-q", is_flag=True, help="No progress and no warnings."),
)  # fmt: skip


def _with(options: tuple[Any, ...]) -> Callable[[F], F]:
    """A decorator that gives a command these arguments and options."""

    def decorated(function: F) -> F:
        for decorate in reversed(options):
            function = decorate(function)
        return function

    return decorated


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(snnfx.__version__, prog_name="snnfx")
def main() -> None:
    """Plan the memory of training a spiking neural network, and count what it computes.

    MODULE:FUNCTION names a function that returns (model, example_inputs); path/to/file.py:FUNCTION
    does, too. It is called without allocating: all its tensors are on the meta device.
    """


@main.command()
@_with(_SHARED)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Batch; default: FUNCTION's.")
@click.option("--level", type=click.IntRange(0, MAX_LEVEL), default=MAX_LEVEL, show_default=True)
@click.option("--budget", type=_Size(), metavar="SIZE", help="Activation memory, such as 16GiB.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw the plan: .png, .svg or .pdf.")
@click.option("--snapshot", type=_FILE, metavar="FILE",
              help="Write the predicted timeline for https://pytorch.org/memory_viz.")  # fmt: skip
def plan(
    target: str,
    batch: int | None,
    level: int,
    budget: int | None,
    plot: Path | None,
    snapshot: Path | None,
    json_path: Path | None,
    **shared: Any,
) -> None:
    """Print the memory plan of the model that MODULE:FUNCTION returns."""
    from snnfx.commands import Call, run_plan

    options = {"level": level, "memory_budget": budget, **_backend_options(shared)}
    call = Call(target, shared["batch_dim"], shared["real"], shared["quiet"], options, json_path)
    run_plan(call, batch, plot, snapshot)


@main.command()
@_with(_SHARED)
@click.option("--memory", type=_Size(), required=True, metavar="SIZE",
              help="Memory of the device, such as 80GiB.")  # fmt: skip
@click.option("--optimizer", type=click.Choice(get_args(Optimizer)), default="adam",
              show_default=True, help="What keeps state for each trained parameter.")  # fmt: skip
@click.option("--max-batch", type=click.IntRange(1), default=65536, show_default=True,
              metavar="N", help="Try no larger one.")  # fmt: skip
def fit(
    target: str,
    memory: int,
    optimizer: Optimizer,
    max_batch: int,
    json_path: Path | None,
    **shared: Any,
) -> None:
    """Print the largest batch that fits into a memory, plain and at each level.

    Counted are parameters, gradients, the optimizer's state, buffers, inputs, and the predicted
    peak of activations. Each answer is verified: that batch fits, the next one does not.
    """
    from snnfx.commands import Call, run_fit

    options = _backend_options(shared)
    call = Call(target, shared["batch_dim"], shared["real"], shared["quiet"], options, json_path)
    run_fit(call, memory, optimizer, max_batch)


@main.command()
@_with(_COUNTED)
def count(**options: Any) -> None:
    """Print what the model that MODULE:FUNCTION returns computes: FLOPs, bytes, MACs, ACs, SynOps.

    Nothing is run, unless for measured rates or for an energy model that measures.
    """
    from snnfx.count_command import CountCall, run_count

    run_count(CountCall(**options))


def _backend_options(shared: dict[str, Any]) -> dict[str, Any]:
    names = ("lowering", "prefer")
    return {**{name: shared[name] for name in names}, "compress": not shared["no_compress"]}
