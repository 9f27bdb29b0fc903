"""The command line: ``snnfx plan`` and ``snnfx fit``.

Nothing is run and nothing is allocated: both work on models far bigger than the machine's memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from rich.console import Console

import snnfx
from snnfx.capture.offline import Capture, capture
from snnfx.config import MAX_LEVEL, Lowering, Options, Preference, parse_bytes
from snnfx.errors import OptionError, PlanError, SnnfxError, SnnfxWarning, TargetError
from snnfx.fit import METHODS, Fit, Optimizer, find_fits
from snnfx.passes.plan.memory_plan import MemoryPlan
from snnfx.passes.plan.plan_plot import check_picture_path
from snnfx.passes.plan.units import format_bytes
from snnfx.progress import Notices
from snnfx.report import fit_json, fit_table
from snnfx.target import Target, load_target

F = TypeVar("F", bound=Callable[..., Any])
LOG_WIDTH = 132


class _Size(click.ParamType):
    """An amount of memory such as 16GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_bytes(int(value) if str(value).isdecimal() else value)
        except OptionError as error:
            return self.fail(str(error).removeprefix("memory_budget="), param, ctx)


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


def _shared(function: F) -> F:
    for decorate in reversed(_SHARED):
        function = decorate(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(snnfx.__version__, prog_name="snnfx")
def main() -> None:
    """Plan the memory of training a spiking neural network, without running it.

    MODULE:FUNCTION names a function that returns (model, example_inputs); path/to/file.py:FUNCTION
    does, too. It is called without allocating: all its tensors are on the meta device.
    """


@main.command()
@_shared
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
    for path in (plot, snapshot, json_path):
        _check_folder(path)
    if plot is not None:
        _check_picture(plot)
    options = {"level": level, "memory_budget": budget, **_backend_options(shared)}
    found = _target(target, batch, shared)
    with _told(shared["quiet"]), Notices(quiet=shared["quiet"]) as notices:
        made = _capture(found, batch, notices).plan(**options)
        notices.say("writing")
        _write(made, plot, snapshot)
    _answer(made.to_json(), json_path, made.summary)


@main.command()
@_shared
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
    _check_folder(json_path)
    found = _target(target, 1, shared)
    quiet = shared["quiet"]
    with _told(quiet), Notices(len(METHODS), quiet) as notices:
        fits = find_fits(
            found.build,
            memory,
            optimizer=optimizer,
            max_batch=max_batch,
            options=_backend_options(shared),
            say=notices.say,
        )
    settings = {"target": target, "optimizer": optimizer, **_backend_options(shared)}
    title = f"{target}: largest batch in {format_bytes(memory)} with optimizer {optimizer}"
    document = fit_json(fits, memory, settings)
    _answer(document, json_path, lambda: _print_table(fits, memory, title))


def _print_table(fits: tuple[Fit, ...], memory: int, title: str) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(fit_table(fits, memory, title))


def _answer(document: str, json_path: Path | None, text: Callable[[], str | None]) -> None:
    """The figures into their file, and the text; `-` prints the figures instead."""
    if json_path is not None and str(json_path) == "-":
        click.echo(document)
        return
    if json_path is not None:
        json_path.write_text(document + "\n")
    shown = text()
    if shown is not None:
        click.echo(shown)


def _capture(target: Target, batch: int | None, notices: Notices) -> Capture:
    notices.say("building the model on the meta device")
    built = target.build(batch)
    notices.say("capturing the training step")
    captured = capture(built.model, built.inputs)
    notices.say("planning")
    return captured


def _write(made: MemoryPlan, plot: Path | None, snapshot: Path | None) -> None:
    if plot is not None:
        made.plot(plot)
    if snapshot is not None:
        made.to_memory_snapshot(snapshot)


def _backend_options(shared: dict[str, Any]) -> dict[str, Any]:
    options = {name: shared[name] for name in ("lowering", "prefer")}
    options["compress"] = not shared["no_compress"]
    Options.parse(options)
    return options


def _target(name: str, batch: int | None, shared: dict[str, Any]) -> Target:
    """The user's function, which can be called for that batch."""
    try:
        found = load_target(name, shared["batch_dim"], shared["real"])
        found.check_batch(batch)
    except TargetError as error:
        raise click.UsageError(str(error)) from error
    return found


def _check_folder(path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise click.UsageError(f"there is no folder '{path.parent}' to write '{path.name}' into")


def _check_picture(path: Path) -> None:
    try:
        check_picture_path(path)
    except PlanError as error:
        raise click.UsageError(str(error)) from error
    except ImportError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _told(quiet: bool) -> Iterator[None]:
    """Errors and warnings of snnfx as one message each, without tracebacks; no others' warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not quiet:
            warnings.simplefilter("once", SnnfxWarning)
        warnings.showwarning = lambda message, *_args, **_more: click.echo(
            f"Warning: {message}", err=True
        )
        try:
            yield
        except SnnfxError as error:
            raise click.ClickException(str(error)) from error
