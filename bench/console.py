"""What the commands share on the screen: text and results go to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

# where no terminal sets a width, lines of tables stay whole
FILE_WIDTH = 120


def console(*, to_stderr: bool) -> Console:
    """One of the two streams, as wide as its terminal."""
    terminal = (sys.stderr if to_stderr else sys.stdout).isatty()
    width = None if terminal else FILE_WIDTH
    return Console(stderr=to_stderr, highlight=False, width=width)


stdout = console(to_stderr=False)
stderr = console(to_stderr=True)


@contextmanager
def working(message: str) -> Iterator[None]:
    """A spinner on stderr while something slow runs; one plain line where no terminal listens."""
    if stderr.is_terminal:
        with stderr.status(message):
            yield
    else:
        stderr.print(message)
        yield


def progress_bar() -> Progress:
    """A progress bar on stderr with the remaining time, gone when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table: the first column holds names, the others hold right-aligned numbers."""
    result = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        result.add_column(column, justify="left" if number == 0 else "right")
    return result
