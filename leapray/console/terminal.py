"""Where everything that a user sees is written, its lines and its tables."""

from __future__ import annotations

import io
import logging
import sys
import warnings

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leapray.console.output import Output
from leapray.console.tables import fitted
from leapray.errors import UserError

_OUTPUT, _ERRORS = Output("stdout"), Output("stderr")
# no emoji: a path or a class may hold ":x:"
console = Console(file=_OUTPUT.file, highlight=False, emoji=False)
errors = Console(file=_ERRORS.file, stderr=True, highlight=False, emoji=False)
_WRITTEN = ("wrote ", "copied ")
"""What the last line of a verb begins with that has written files."""
_last_line = ""


def show_everything() -> None:
    """Let standard output and standard error replace what their encoding does not have, so that no line fails in an ASCII terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def quieten_plots() -> None:
    """Keep off the terminal what matplotlib says of a home directory that it cannot write to, and of letters that its font lacks.

    Pictures are drawn all the same, with a box for each such letter.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"(Glyph \d+ .* missing from|Matplotlib currently does not support .* natively)", UserWarning)


def close() -> None:
    """Write what is left in standard output and standard error, so that Python does not fail on it at its end."""
    _OUTPUT.close()
    _ERRORS.close()


def require_output() -> None:
    """Tell on standard error where lines of standard output were lost.

    Raises UserError if they are all that the verb gives, which is so unless its last line says what it wrote.
    """
    _OUTPUT.close()
    if _OUTPUT.lost:
        sentence = f"standard output cannot be written ({_OUTPUT.lost}); make room or send it elsewhere"
        if not _last_line.startswith(_WRITTEN):
            raise UserError(sentence)
        errors.print(f"note: {sentence}. Its last line: {_last_line}", soft_wrap=True, markup=False)


def say(line: str) -> None:
    """One line of result."""
    global _last_line
    _last_line = line
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
