"""Where everything that a user sees is written, its lines and its tables."""

from __future__ import annotations

import io
import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leapray.console.tables import fitted

# no emoji: a path or a class may hold ":x:"
console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)


def show_everything() -> None:
    """Let standard output and standard error replace what their encoding does not have, so that no line fails in an ASCII terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """One line of result."""
    console.print(line, soft_wrap=True, markup=False)


def table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table whose first column holds names and whose others are figures, at most as wide as the console.

    One that is wider is turned or folded into blocks of columns, each beside the names (:func:`leapray.console.tables.fitted`).
    """
    for block in fitted(header, rows, console.width):
        _print(title, block)
        title = ""


def _print(title: str, block: list[list[str]]) -> None:
    grid = Table(title=Text(title) if title else None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    for index, name in enumerate(block[0]):
        # a name may hold brackets; a cell that is wider than the console is broken into lines
        grid.add_column(Text(name), justify="right" if index else "left", no_wrap=not index, overflow="fold")
    for row in block[1:]:
        grid.add_row(*(Text(cell) for cell in row))
    console.print(grid)
