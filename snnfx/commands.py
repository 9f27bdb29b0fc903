"""What ``snnfx plan`` and ``snnfx fit`` do.

Nothing is run and nothing is allocated: both work on models far bigger than the machine's memory.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from snnfx.capture.offline import capture
from snnfx.config import Optimizer
from snnfx.errors import OptionError, SnnfxError, SnnfxWarning, TargetError
from snnfx.fit import METHODS, Fit, find_fits
from snnfx.passes.cost.units import format_bytes
from snnfx.pictures import check_picture_path
from snnfx.progress import Notices
from snnfx.report import fit_json, fit_table
from snnfx.target import Target, load_target

LOG_WIDTH = 132


@dataclass(frozen=True)
class Call:
    """What both commands are called with.

    Attributes:
        target: names the function that builds the model.
        batch_dim: see `snnfx.target.Target`.
        real: as there.
        quiet: no progress and no warnings.
        options: of the backend.
        json_path: where all figures go; `-` prints them instead of the text.
    """

    target: str
    batch_dim: int | None
    real: bool
    quiet: bool
    options: dict[str, Any]
    json_path: Path | None


def run_plan(call: Call, batch: int | None, plot: Path | None, snapshot: Path | None) -> None:
    """Plan, write what is asked for, and print the summary.

    Raises:
        click.ClickException: with the text that the user gets, and the exit code.
    """
    for path in (plot, snapshot, call.json_path):
        check_folder(path)
    if plot is not None:
        check_picture(plot)
    target = find_target(call.target, call.batch_dim, call.real, batch)
    with told(call.quiet), Notices(quiet=call.quiet) as notices:
        notices.say("building the model")
        built = target.build(batch)
        notices.say("capturing the training step")
        captured = capture(built.model, built.inputs)
        notices.say("planning")
        made = captured.plan(**call.options)
        notices.say("writing")
        if plot is not None:
            made.plot(plot)
        if snapshot is not None:
            made.to_memory_snapshot(snapshot)
    write_answer(made.to_json(), call.json_path, lambda: click.echo(made.summary()))


def run_fit(call: Call, memory_bytes: int, optimizer: Optimizer, max_batch: int) -> None:
    """Find the largest batch for each method, and print a table.

    Raises:
        click.ClickException: with the text that the user gets, and the exit code.
    """
    check_folder(call.json_path)
    target = find_target(call.target, call.batch_dim, call.real, 1)
    with told(call.quiet), Notices(len(METHODS), call.quiet) as notices:
        fits = find_fits(
            target.build,
            memory_bytes,
            optimizer=optimizer,
            max_batch=max_batch,
            options=call.options,
            say=notices.say,
        )
    settings = {"target": call.target, "optimizer": optimizer, **call.options}
    memory = format_bytes(memory_bytes)
    title = f"{call.target}: largest batch in {memory} with optimizer {optimizer}"
    document = fit_json(fits, memory_bytes, settings)
    write_answer(document, call.json_path, lambda: _print_table(fits, memory_bytes, title))


def _print_table(fits: tuple[Fit, ...], memory_bytes: int, title: str) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(fit_table(fits, memory_bytes, title))


def write_answer(document: str, json_path: Path | None, show: Callable[[], None]) -> None:
    """The figures into their file, and the text; `-` prints the figures instead."""
    if json_path is not None and str(json_path) == "-":
        click.echo(document)
        return
    if json_path is not None:
        json_path.write_text(document + "\n")
    show()


def find_target(
    name: str,
    batch_dim: int | None,
    real: bool,
    batch: int | None,
    keeps_values: bool = False,
) -> Target:
    """The user's function, which can be called for that batch.

    Raises:
        click.UsageError: there is none, or it cannot.
    """
    try:
        found = load_target(name, batch_dim, real, keeps_values)
        found.check_batch(batch)
    except TargetError as error:
        raise click.UsageError(str(error)) from error
    return found


def check_folder(path: Path | None) -> None:
    """Hold that a file can be written there.

    Raises:
        click.UsageError: there is no such folder.
    """
    if path is not None and not path.parent.is_dir():
        raise click.UsageError(f"there is no folder '{path.parent}' to write '{path.name}' into")


def check_picture(path: Path) -> None:
    """Hold that a picture can be drawn there.

    Raises:
        click.ClickException: it cannot; the text says why.
    """
    try:
        check_picture_path(path)
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    except ImportError as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def told(quiet: bool) -> Generator[None]:
    """Errors and warnings of snnfx as one message each; nothing of what torch warns or logs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
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
        finally:
            logging.disable(before)
