"""What is going on, on the terminal or as lines, for work of more than two seconds."""

from __future__ import annotations

import sys
import threading
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

DELAY_SECONDS = 2.0


class Notices:
    """Shows the current step of some work on stderr, from two seconds after its start.

    On a terminal it is one line with a bar and the time, which is gone at the end; elsewhere each
    step is a line, so that a log stays readable.
    """

    def __init__(self, total: int | None = None, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._quiet = quiet
        self._lock = threading.Lock()
        self._timer = threading.Timer(DELAY_SECONDS, self._show)
        self._timer.daemon = True
        self._shown = False
        self._text = ""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        bar = (BarColumn(),) if total else ()
        self._bar = Progress(*columns[:2], *bar, columns[2], console=self._console, transient=True)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Notices:
        if not self._quiet:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            if self._shown and self._console.is_terminal:
                self._bar.stop()
            self._quiet = True

    def say(self, text: str, done: int = 0) -> None:
        """Tell the current step, and how many of the total are done."""
        with self._lock:
            self._text = text
            self._bar.update(self._task, description=text, completed=done)
            if self._shown:
                self._log()

    def _show(self) -> None:
        with self._lock:
            if self._quiet:
                return
            self._shown = True
            if self._console.is_terminal:
                self._bar.start()
            self._log()

    def _log(self) -> None:
        if not self._console.is_terminal and self._text:
            print(self._text, file=sys.stderr, flush=True)
